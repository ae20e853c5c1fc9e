"""MambaAD: state-space blocks rebuild the features (He et al., NeurIPS 2024)."""
