"""PatchCore: keeps a few patches of every class (Roth et al., CVPR 2022)."""
