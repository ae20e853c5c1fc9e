"""The frozen diffusion model, the conditions that stand for a class, and the way between them."""
