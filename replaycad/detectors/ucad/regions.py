"""Structure-based contrastive learning: features of one region together, of two apart (UCAD)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F


def region_map(masks: Sequence[NDArray[np.bool_]], height: int, width: int) -> torch.Tensor:
    """Which region each place of a grid lies in.

    Larger masks are painted before smaller ones, with numbers from 1 on; what none covers is 0.

    Deviation: the program shrinks the painted map bilinearly, which at borders makes numbers of no
    region out of two; here the middle of each place is looked at.

    Args:
        masks: of one picture, `[H, W]` bool each, H and W multiples of the grid's.
        height, width: of the grid.

    Returns:
        `[height * width]` int64, row by row.
    """
    if not masks:
        return torch.zeros(height * width, dtype=torch.int64)
    painted = np.zeros(masks[0].shape, np.int64)
    for number, mask in enumerate(sorted(masks, key=lambda one: -int(one.sum())), start=1):
        painted[mask] = number
    down, across = len(painted) // height, len(painted[0]) // width
    middles = painted[down // 2 :: down, across // 2 :: across]
    return torch.from_numpy(np.ascontiguousarray(middles)).flatten()


def contrastive_loss(
    features: torch.Tensor, regions: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over all pairs of places: -s / t within a region, exp(s / t) between two.

    s is the cosine of two features and t the temperature. A place and itself are a pair too.

    Args:
        features: of one picture, `[N, D]`.
        regions: `[N]`, as `region_map` gives.
        temperature: t.

    Returns:
        a scalar.
    """
    unit = F.normalize(features, dim=1)
    cosines = unit @ unit.T / temperature
    same = regions[:, None] == regions
    return torch.where(same, -cosines, cosines.exp()).mean()
