"""SimpleNet: a discriminator tells features from noisy ones (Liu et al., CVPR 2023)."""
