"""How near drawn images come to the training images that they were learned from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from replaycad.continual.exemplars import describe
from replaycad.detectors.encoders import Encoder

COPY_RATIO = 0.5
"""A replay is a near copy if it lies less than half as far from its nearest training image as that
lies from the one nearest to it (the ratio of Yoon et al. 2023 on memorisation, with one neighbour).
"""
_SIDE = 64  # px at which pixels are compared
_CHUNK = 64


def audit(
    drawn: NDArray[np.uint8], real: NDArray[np.uint8], encoder: Encoder
) -> dict[str, Any]:
    """Distance of each drawn image to the nearest training image, beside that among the latter.

    Args:
        drawn: `[N, 3, S, S]` uint8.
        real: `[M, 3, S, S]` uint8, the training images; two or more.
        encoder: frozen.

    Returns:
        `pixels` (root mean square of grey levels, at 64 px) and `features` (cosine-like, of pooled
        features), each with the medians `replay_to_image` and `image_to_image`, the smallest
        `ratio` of the two and `near_copies`, the places of the replays below `COPY_RATIO`.
    """
    rows = {
        "pixels": (_pixels(drawn), _pixels(real)),
        "features": (describe(drawn, encoder), describe(real, encoder)),
    }
    return {name: _held_against(*pair) for name, pair in rows.items()}


def near_copies(found: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Replays that an audit calls copies, in pixels or in features."""
    return sorted({index for part in found.values() for index in part["near_copies"]})


def _held_against(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, Any]:
    among, _ = _nearest(real, real, skip_self=True)
    to_real, which = _nearest(drawn, real)
    ratios = to_real / among[which].clamp_min(1e-6)
    return {
        "replay_to_image": float(to_real.median()),
        "image_to_image": float(among.median()),
        "ratio": float(ratios.min()),
        "near_copies": torch.nonzero(ratios < COPY_RATIO).flatten().tolist(),
    }


def _pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """`[N, D]` whose Euclidean distances are root mean squares of grey levels."""
    small = F.interpolate(
        torch.from_numpy(images).float(), size=(_SIDE, _SIDE), mode="area"
    ).flatten(1)  # fmt: skip
    return small / small.shape[1] ** 0.5


def _nearest(
    rows: torch.Tensor, others: torch.Tensor, skip_self: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to the nearest of the others, and which that is: `[N]` float32, `[N]` int64."""
    distances, places = [], []
    for start in range(0, len(rows), _CHUNK):
        found = torch.cdist(
            rows[start : start + _CHUNK], others, compute_mode="donot_use_mm_for_euclid_dist"
        )
        if skip_self:
            found[torch.arange(len(found)), torch.arange(start, start + len(found))] = torch.inf
        least, place = found.min(dim=1)
        distances.append(least)
        places.append(place)
    return torch.cat(distances), torch.cat(places)
