"""Pieces of a picture moved elsewhere in it (NSA, Schlüter et al., ECCV 2022)."""

import torch
from torch.nn import functional as F

HALF_WIDTH = (0.03, 0.4)  # of a piece, along either axis, in parts of the picture's side
SCALE = (0.7, 1.3)  # that a piece is resized by, normal about 1 with this spread, cut off here
SCALE_SPREAD = 0.5


def spoilt(pictures: torch.Tensor, share: float, max_patches: int) -> torch.Tensor:
    """Move up to so many pieces of some pictures to random places of the same picture.

    Deviation: pieces are pasted; NSA blends their borders (Poisson). Draws from torch's global
    stream on the CPU, whatever the device.

    Args:
        pictures: `[B, 3, S, S]` float.
        share: of them that are spoilt, in the mean.
        max_patches: pieces; each after the first by the toss of a coin.

    Returns:
        `[B, 3, S, S]`; what is not spoilt is bit-equal.
    """
    side, result = pictures.shape[-1], pictures.clone()
    for row in range(len(pictures)):
        if float(torch.rand((), device="cpu")) >= share:
            continue
        for number in range(max_patches):
            if number and float(torch.rand((), device="cpu")) < 0.5:
                break
            _move(pictures[row], result[row], side)
    return result


def _move(source: torch.Tensor, target: torch.Tensor, side: int) -> None:
    """Copy a piece of `[3, S, S]` into another, in place."""
    draws = torch.rand(6, device="cpu").tolist()
    scale = 1 + SCALE_SPREAD * float(torch.randn((), device="cpu"))
    scale = min(max(scale, SCALE[0]), SCALE[1])
    low, high = HALF_WIDTH
    size = [max(2, round(2 * (low + draw * (high - low)) * side)) for draw in draws[:2]]
    size = [min(one, side) for one in size]
    place = [int(draw * (side - one + 1)) for draw, one in zip(draws[2:4], size, strict=True)]
    piece = source[:, place[0] : place[0] + size[0], place[1] : place[1] + size[1]]
    wide = [min(max(2, round(one * scale)), side) for one in size]
    piece = F.interpolate(piece[None], wide, mode="bilinear", align_corners=False)[0]
    place = [int(draw * (side - one + 1)) for draw, one in zip(draws[4:], wide, strict=True)]
    target[:, place[0] : place[0] + wide[0], place[1] : place[1] + wide[1]] = piece
