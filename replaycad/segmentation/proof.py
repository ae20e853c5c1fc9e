"""Whether masks of one class are masks of one thing: a rule proves itself on what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from replaycad.mask_ops import Operation, apply_to_masks, label_components, resize_masks, shift
from replaycad.segmentation.selection import is_plausible_object

BoolArray = NDArray[np.bool_]

MIN_PLAUSIBLE_SHARE = 0.75
MAX_AREA_SPREAD = 0.5
MIN_AGREEMENT = 0.7
COMPARED_SIZE = 64  # pixels at which masks are laid over each other
ANGLE_STEP = 5  # degrees
TURNING_GAIN = 0.1  # in IoU; a class that gains less by turning lies still
PIECE_FRACTION = 0.25  # of the largest piece; a smaller one is no object of its own


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the masks of a few images say about the rule that made them.

    Attributes:
        plausible: share of masks that could be an object, 0 to 1.
        spread: of the areas of those, from quartile to quartile over the median.
        agreement: median IoU of a mask moved to the place of its neighbour's, 0 to 1.
    """

    plausible: float
    spread: float
    agreement: float

    @property
    def holds(self) -> bool:
        """Whether these are masks of one thing."""
        return (
            self.plausible >= MIN_PLAUSIBLE_SHARE
            and self.spread <= MAX_AREA_SPREAD
            and self.agreement >= MIN_AGREEMENT
        )

    def __str__(self) -> str:
        """The figures as a note shows them."""
        return (
            f"{self.plausible:.0%} of the masks plausible, areas spread by {self.spread:.0%}, "
            f"agreement {self.agreement:.2f}"
        )


def prove(object_masks: Sequence[BoolArray]) -> Proof:
    """Judge the masks `[H, W]` bool that a rule gives for some images of one class.

    Masks that could not be an object count against the share alone, so that one failure among
    good masks is forgiven.
    """
    plausible = [mask for mask in object_masks if is_plausible_object(mask)]
    share = len(plausible) / max(1, len(object_masks))
    if not plausible:
        return Proof(plausible=share, spread=0.0, agreement=0.0)
    low, median, high = np.percentile([mask.mean() for mask in plausible], (25, 50, 75))
    return Proof(
        plausible=share, spread=float((high - low) / median), agreement=agreement(plausible)
    )


def agreement(object_masks: Sequence[BoolArray]) -> float:
    """Median IoU of each mask `[H, W]` bool with the next one, moved to its place: 0 to 1.

    Moved is shifted, and turned too where that makes the masks of the class agree much better.
    Where several objects move each by itself, a mask agrees as well as its objects do. One mask
    agrees with itself; masks without object agree with nothing.
    """
    if len(object_masks) < 2:
        return float(len(object_masks) == 1 and bool(object_masks[0].any()))
    still, turned = (np.diag(ious, 1) for ious in moved_ious(object_masks, object_masks))
    pieces = [_pieces(mask) for mask in resize_masks(np.stack(object_masks), COMPARED_SIZE)]
    apart = [_of_pieces(a, b) for a, b in pairwise(pieces)]
    lying = float(np.median(np.maximum(still, apart)))
    turning = float(np.median(np.maximum(turned, apart)))
    return turning if turning > lying + TURNING_GAIN else lying


def moved_ious(
    masks: Sequence[BoolArray], others: Sequence[BoolArray]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of every mask with every other once it lies in its place, `[N, M]`, 0 to 1.

    Args:
        masks: N of them, `[H, W]` bool.
        others: M of them.

    Returns:
        Where masks may be shifted only, and where they may also be turned.
    """
    a, b = (_centred(resize_masks(np.stack(some), COMPARED_SIZE)) for some in (masks, others))
    still = best = _ious(a, b)
    for degrees in range(ANGLE_STEP, 360, ANGLE_STEP):
        best = np.maximum(best, _ious(apply_to_masks(Operation(rotate_degrees=degrees), a), b))
    return still, best


def _ious(masks: BoolArray, others: BoolArray) -> NDArray[np.float64]:
    """IoU `[N, M]` of masks `[N, S, S]` and `[M, S, S]` as they lie; 0 where both are empty."""
    a, b = (some.reshape(len(some), -1).astype(np.float32) for some in (masks, others))
    both = (a @ b.T).astype(np.float64)
    either: NDArray[np.float64] = a.sum(1)[:, None] + b.sum(1)[None] - both
    return both / np.maximum(either, 1)


def _centred(masks: BoolArray) -> BoolArray:
    """The masks `[N, S, S]`, each with its centroid in the middle of the frame."""
    moved = np.zeros_like(masks)
    middle = (masks.shape[-1] - 1) / 2
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        rows, columns = np.nonzero(masks[index])
        right, down = round(middle - columns.mean()), round(middle - rows.mean())
        moved[index] = shift(masks[index], right, down)
    return moved


def _pieces(mask: BoolArray) -> BoolArray:
    """The objects `[P, S, S]` of a mask `[S, S]`, each in the middle; none for a single one."""
    labels, count = label_components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(areas >= PIECE_FRACTION * areas.max(initial=0)) + 1
    return _centred(labels == (large if len(large) > 1 else large[:0])[:, None, None])


def _of_pieces(pieces: BoolArray, others: BoolArray) -> float:
    if not len(pieces) or not len(others):
        return 0.0
    counts = sorted((len(pieces), len(others)))
    return float(_ious(pieces, others).max(1).mean()) * counts[0] / counts[1]
