"""Dinomaly: linear attention rebuilds a transformer's features (Guo et al., CVPR 2025)."""
