"""RLR: features are rebuilt from a learned reference (He et al., ECCV 2024)."""
