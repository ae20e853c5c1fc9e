"""What was kept of a class, and what of its training images is in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.conditions import ConditionsArtifact


@dataclass(frozen=True)
class Kept:
    """One form of a class.

    Attributes:
        artifact: to be saved.
        rows: training images that it holds as images.
        bank: `[M, F]` float32, where features are kept: the whole bank before it was cut and coded.
        places: `[M]` int64, which training image each patch of the bank is from.
        is_whole: nothing of that bank was left out, and coding moved its patches but slightly.
    """

    artifact: ConditionsArtifact
    rows: Sequence[int] = ()
    bank: NDArray[np.float32] | None = None
    places: NDArray[np.int64] | None = None
    is_whole: bool = False
