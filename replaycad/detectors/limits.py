"""Limits of normal scores: what an image and a pixel of a class may have before it is an alarm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.interface import Detector

FALSE_ALARM_RATE = 0.01  # of the limits, on normal images
SKETCH = 1001  # quantiles that stand for the pixels of a class where classes are taken together

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images of one class, small enough to be kept.

    Attributes:
        image_scores: `[N]`, one per image.
        map_values: `[P]`, of the pixels of their maps, or `SKETCH` quantiles of these, rising.
        num_tiles: images that make one picture, whose score is that of the highest.
    """

    image_scores: FloatArray
    map_values: FloatArray
    num_tiles: int = 1

    def sketched(self) -> "NormalScores":
        """The same with quantiles in place of all pixels."""
        places = np.linspace(0, 1, SKETCH)
        return NormalScores(
            self.image_scores, np.quantile(self.map_values, places).astype(np.float32),
            self.num_tiles,
        )  # fmt: skip

    def limits(self) -> dict[str, float]:
        """Image score and map value that 1 % of images and pixels exceed, and their medians.

        Where each of n tiles stays below a limit in 0.99^(1/n) of all cases, n of them do in 99 %.
        """
        found = {"false_alarm_rate": FALSE_ALARM_RATE}
        for name, values in (("image", self.image_scores), ("pixel", self.map_values)):
            root = 1 / self.num_tiles if name == "image" else 1.0
            found[name] = float(np.quantile(values, (1 - FALSE_ALARM_RATE) ** root))
            typical = np.median(values) if root == 1 else np.quantile(values, 0.5**root)
            found[f"typical_{name}"] = float(typical)
        return found


def measured(
    detector: Detector, maps: torch.Tensor, counted: NDArray[np.bool_] | None
) -> tuple[FloatArray, FloatArray]:
    """What the maps of normal images say.

    Args:
        detector: whose maps they are.
        maps: `[B, H, W]` float.
        counted: `[B, H, W]` bool, false on padding and where images are ignored; None for all.

    Returns:
        image scores `[B]`, and the values `[B, P]` of every second pixel of every second row, NaN
        where they do not count.
    """
    if counted is not None:
        lowest = maps.amin()
        maps = torch.where(torch.from_numpy(counted).to(maps.device), maps, lowest)
    values = maps[:, ::2, ::2].flatten(1).cpu().numpy()
    if counted is not None:
        values[~counted[:, ::2, ::2].reshape(values.shape)] = np.nan
    return detector.image_scores(maps).cpu().numpy(), values


def together(parts: Sequence[NormalScores]) -> NormalScores:
    """The scores of several classes as if they were one; pixels of each count alike if sketched."""
    return NormalScores(
        np.concatenate([part.image_scores for part in parts]),
        np.concatenate([part.map_values for part in parts]),
        max(part.num_tiles for part in parts),
    )
