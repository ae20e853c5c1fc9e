"""Which product a picture is of: how far its windows are from classes, told picture by picture."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.interface import Detector
from replaycad.detectors.patchcore.confirmed import Confirmed
from replaycad.detectors.patchcore.network import PatchCore


class Nearness(NamedTuple):
    """How far images are from the classes that a detector tells apart.

    Attributes:
        means: `[B, K]` float32; the class with the least is theirs.
        lows: `[B, K]` float32, what most patches of an image stay below; held against what images
            of a class may have, it says whether an image is of that product at all.
    """

    means: torch.Tensor
    lows: torch.Tensor


def routed_maps(
    detector: Detector,
    router: PatchCore | None,
    features: Sequence[torch.Tensor],
    row: int | None = None,
    confirmed: Confirmed | None = None,
) -> tuple[torch.Tensor, Nearness | None]:
    """Maps of images, and how far these are from classes.

    Args:
        detector: in evaluation mode.
        router: what tells the classes apart: the detector itself, a bank beside it, or None.
        features: levels `[B, C, H, W]` float.
        row: of the class whose bank judges, where banks are apart; None for that of the nearest.
        confirmed: what people called good, which lowers the maps of a detector beside its router.

    Returns:
        anomaly maps `[B, S, S]` float32 as they come; None beside them where there is no router.
    """
    if router is None:
        return detector.anomaly_maps(features), None
    if router is detector:
        maps, means, lows = router.routed_maps(features, row)
        return maps, Nearness(means, lows)
    maps, patches = detector.anomaly_maps(features), router.patches(features)
    means, lows = router.class_distances(patches)
    if confirmed is not None:
        rows = means.argmin(dim=1)
        rows = rows if row is None else torch.full_like(rows, row)
        maps = confirmed(maps, patches, rows)
    return maps, Nearness(means, lows)


class Windows:
    """How far windows are from classes, kept until the picture that they are of is told."""

    def __init__(self) -> None:
        self._means: deque[NDArray[np.float32]] = deque()
        self._lows: deque[NDArray[np.float32]] = deque()

    def extend(self, near: Nearness) -> None:
        """Add windows behind those that wait."""
        self._means.extend(near.means.cpu().numpy())
        self._lows.extend(near.lows.cpu().numpy())

    def told(self, num_windows: int, row: int | None = None) -> tuple[int, float]:
        """The class of the next picture, of so many windows, and how far from it its middle one is.

        Args:
            num_windows: at least 1, all of which were added.
            row: of the class where that is known.
        """
        mean, low = (
            np.stack([part.popleft() for _ in range(num_windows)])
            for part in (self._means, self._lows)
        )
        row = int(mean.mean(axis=0).argmin()) if row is None else row
        return row, float(np.median(low[:, row]))
