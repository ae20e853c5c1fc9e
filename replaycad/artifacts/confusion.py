"""Which products test images were told to be, by the limits that their detector has now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.detector import DETECTOR
from replaycad.artifacts.format import read_header
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.artifacts.store import Store

NO_PRODUCT = "no known product"


@dataclass(frozen=True)
class Confusion:
    """Test images of K classes by what a detector that knows L classes told them to be.

    Attributes:
        classes: K names, of the rows.
        told: L names, of all columns but the last, which is of no known product.
        counts: `[K, L + 1]` int64, images.
    """

    classes: list[str]
    told: list[str]
    counts: NDArray[np.int64]

    def is_right(self, class_name: str, told: str) -> bool:
        """Whether an image of a class is told right; of one that nobody learned it is no product.

        Args:
            class_name: the class.
            told: one of `told`, or `NO_PRODUCT`.
        """
        return told == (class_name if class_name in self.told else NO_PRODUCT)

    @property
    def num_wrong(self) -> int:
        """Images that were told to be of another class."""
        return sum(
            int(self.counts[row, column])
            for row, name in enumerate(self.classes)
            for column, told in enumerate(self.told) if not self.is_right(name, told)
        )  # fmt: skip

    @property
    def num_unknown(self) -> int:
        """Images of classes that the detector knows which were told to be of none."""
        known = [row for row, name in enumerate(self.classes) if name in self.told]
        return int(self.counts[known, -1].sum())

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "classes": self.classes, "told": [*self.told, NO_PRODUCT],
            "counts": self.counts.tolist(), "num_wrong": self.num_wrong,
            "num_unknown": self.num_unknown,
        }  # fmt: skip

    def sentence(self) -> str:
        """What a user is told of it."""
        wrong, unknown = self.num_wrong, self.num_unknown
        return (
            f"Of {self.counts.sum()} test images {wrong} {_was(wrong)} told to be of a "
            f"wrong class and {unknown} of {NO_PRODUCT}."
        )


def confusion(scores: ScoresArtifact, thresholds: Mapping[str, Any]) -> Confusion | None:
    """Count what the images of a scores artifact were told to be.

    An image is of the class that it is most like, and of no known product where it is farther from
    it than the limit `product` of that class, if it has one; as `predict` tells it.

    Args:
        scores: of the test images.
        thresholds: of their detector, as of now.

    Returns:
        None where the detector does not tell classes apart, or the scores do not say it.
    """
    by_class = thresholds.get("by_class", {})
    told, distances = scores.told_index, scores.product_distances
    if told is None or distances is None or not all(n in by_class for n in scores.told_classes):
        return None
    limits = [by_class[name].get("product", np.inf) for name in scores.told_classes]
    last = len(limits)
    columns = np.where(distances > np.array(limits)[told], last, told)
    counts = np.zeros((len(scores.classes), last + 1), np.int64)
    np.add.at(counts, (scores.class_index, columns), 1)
    return Confusion(scores.classes, scores.told_classes, counts)


def read_confusion(store: Store, name: str) -> Confusion | None:
    """`confusion` of a detector of a store and of its scores.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    scores = ScoresArtifact.load(store.path("scores", name))
    return confusion(scores, read_header(store.path("detectors", name), DETECTOR)["thresholds"])


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
