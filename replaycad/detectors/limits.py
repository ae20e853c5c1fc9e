"""Limits of normal scores: what an image and a pixel of a class may have before it is an alarm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM_RATE = 0.01  # of the limits, on normal images
SKETCH = 1001  # quantiles that stand for the pixels of a class where classes are taken together

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images of one class, small enough to be kept.

    Attributes:
        image_scores: `[N]`, one per image.
        map_values: `[P]`, of the pixels of their maps, or `SKETCH` quantiles of these, rising.
    """

    image_scores: FloatArray
    map_values: FloatArray

    def sketched(self) -> "NormalScores":
        """The same with quantiles in place of all pixels."""
        places = np.linspace(0, 1, SKETCH)
        return NormalScores(
            self.image_scores, np.quantile(self.map_values, places).astype(np.float32)
        )

    def limits(self) -> dict[str, float]:
        """Image score and map value that 1 % of images and pixels exceed, and their medians."""
        found = {"false_alarm_rate": FALSE_ALARM_RATE}
        for name, values in (("image", self.image_scores), ("pixel", self.map_values)):
            found[name] = float(np.quantile(values, 1 - FALSE_ALARM_RATE))
            found[f"typical_{name}"] = float(np.median(values))
        return found


def together(parts: Sequence[NormalScores]) -> NormalScores:
    """The scores of several classes as if they were one; pixels of each count alike if sketched."""
    return NormalScores(
        np.concatenate([part.image_scores for part in parts]),
        np.concatenate([part.map_values for part in parts]),
    )
