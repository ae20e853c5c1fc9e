"""A convolutional start for a small Sam: learnt edges in place of plain patches."""

import timm
import torch
from torch import nn
from torch.nn import functional as F

STRIDE = 8


class PyramidStem(nn.Module):
    """Patch embedding of `ImageEncoderViT` made of a timm network's levels at stride 4, 8 and 16.

    A plain patch embedding has to learn what an edge is; a network that has learnt it for another
    task needs a fifth of the pictures (measured: the card of the bundled models).
    """

    def __init__(self, timm_name: str, width: int) -> None:
        """Build it untrained; `width` is the channels of the tokens."""
        super().__init__()
        self.levels = timm.create_model(timm_name, features_only=True, out_indices=(1, 2, 3))
        fine, middle, coarse = self.levels.feature_info.channels()
        # Four places of the fine level lie in one token; kept apart, they tell where outlines run.
        self.fine = nn.Conv2d(4 * fine, width, 1)
        self.middle = nn.Conv2d(middle, width, 1)
        self.coarse = nn.Conv2d(coarse, width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, S/8, S/8, width]` of normalised pictures `[B, 3, S, S]`."""
        fine, middle, coarse = self.levels(images.contiguous(memory_format=torch.channels_last))
        coarse = F.interpolate(self.coarse(coarse), scale_factor=2.0, mode="bilinear")
        tokens = self.fine(F.pixel_unshuffle(fine, 2)) + self.middle(middle) + coarse
        return tokens.permute(0, 2, 3, 1)
