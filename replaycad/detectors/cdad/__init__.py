"""CDAD: a diffusion model redraws the image, told what it shows (Li et al., CVPR 2025)."""
