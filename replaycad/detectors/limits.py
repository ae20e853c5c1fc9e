"""Limits of normal scores: what an image and a pixel of a class may have before it is an alarm."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.interface import Detector

FALSE_ALARM_RATE = 0.01  # of the limits, on normal images
SKETCH = 1001  # quantiles that stand for the pixels of a class where classes are taken together
PRODUCT_MARGIN = 1.5
"""Times the distance to its class that 1 % of normal images exceed: farther, it is no such product.
On 20 procedural classes, each also left out of the detector, 1.2 to 1.8 told every image; on six
real ones 1.5 lost 1 of 464 images, a bottle half gone, and told all others, 1.8 lost none and took
11 % of the others for their neighbours."""
PIXEL_STEP = 2  # every second pixel of every second row is looked at

LIMITS = ("false_alarm_rate", "image", "typical_image", "pixel", "typical_pixel", "product")

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images, small enough to be kept.

    Attributes:
        image_scores: `[N]`, one per image.
        map_values: `[N, P]` or `[P]`, of the pixels of their maps, NaN where one does not count; or
            `SKETCH` quantiles of these, rising.
        num_tiles: of how many images a picture is made, at most.
        distances: `[N]`, of each image to its class, where a detector tells classes apart.
    """

    image_scores: FloatArray
    map_values: FloatArray
    num_tiles: int = 1
    distances: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, row: int, num_tiles: int) -> "NormalScores":
        """Those of one image."""
        return NormalScores(self.image_scores[row : row + 1], self.map_values[row], num_tiles)

    def sketched(self) -> "NormalScores":
        """The same with quantiles in place of all pixels, to be taken together with other classes.

        No distance is kept: one to its class says nothing of another.
        """
        quantiles = np.nanquantile(self.map_values, np.linspace(0, 1, SKETCH))
        return NormalScores(self.image_scores, quantiles.astype(np.float32), self.num_tiles)

    def limits(self) -> dict[str, float]:
        """Image score and map value that 1 % of images and pixels exceed, and their medians.

        With distances also `product`, beyond which an image is of no class that is known.

        A picture of many tiles scores as its highest: where each of n stays below a limit in
        0.99^(1/n) of all cases, n of them do in 99 %.
        """
        found = {"false_alarm_rate": FALSE_ALARM_RATE}
        for name, values in (("image", self.image_scores), ("pixel", self.map_values)):
            counted = values[~np.isnan(values)]
            root = 1 / self.num_tiles if name == "image" else 1.0
            found[name] = float(np.quantile(counted, (1 - FALSE_ALARM_RATE) ** root))
            typical = np.median(counted) if root == 1 else np.quantile(counted, 0.5**root)
            found[f"typical_{name}"] = float(typical)
        if len(self.distances):
            usual = np.quantile(self.distances, 1 - FALSE_ALARM_RATE)
            found["product"] = float(PRODUCT_MARGIN * usual)
        return found


def together(parts: Sequence[NormalScores]) -> NormalScores:
    """The scores of several images or classes as one; sketched classes count alike."""
    return NormalScores(
        np.concatenate([part.image_scores for part in parts]),
        np.concatenate([part.map_values.ravel() for part in parts]),
        max(part.num_tiles for part in parts),
        np.concatenate([part.distances for part in parts]),
    )


def measured(
    detector: Detector, maps: torch.Tensor, counted: NDArray[np.bool_] | None
) -> NormalScores:
    """Scores of images with maps `[N, S, S]`.

    Args:
        detector: whose maps they are.
        maps: float.
        counted: `[N, S, S]`, false on padding and ignored pixels; None if all count.
    """
    if counted is not None:  # low for a score, no pixel
        maps, least = maps.clone(), maps.amin()
        maps[torch.from_numpy(~counted).to(maps.device)] = least
    values = maps[:, ::PIXEL_STEP, ::PIXEL_STEP].flatten(1).cpu().numpy()
    if counted is not None:
        seen = counted[:, ::PIXEL_STEP, ::PIXEL_STEP].reshape(values.shape)
        values = np.where(seen, values, np.float32(np.nan))
    return NormalScores(detector.image_scores(maps).cpu().numpy(), values)
