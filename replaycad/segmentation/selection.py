"""Which prompt to give and which of the answers to keep: plain rules on arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from replaycad.mask_ops import label_components

BoolArray = NDArray[np.bool_]
Rule = Literal["corners", "ground", "area", "frame"]
AreaRange = tuple[float, float]

CORNER_INSET_FRACTION = 0.02
PLAUSIBLE_AREA: AreaRange = (0.02, 0.90)
MAX_BORDER_FRACTION = 0.25  # a strip from edge to edge passes, blobs of a texture do not
AREA_RANGE_FACTOR = 1.5
MAX_OVERLAP = 0.5
SPECK_FRACTION = 0.001
WINDOW_MARGIN = 0.1
MAX_WINDOW = 0.94  # of the longer side; a larger window would show nothing larger


class MaskPolicy(Protocol):
    """What object masks need to know about a class."""

    @property
    def mask_rule(self) -> str:
        """`corners`, `ground`, `area`, `frame` or `auto`."""

    @property
    def area_range(self) -> AreaRange | None:
        """Least and largest area of the object, as fractions of the image; None if not known."""

    @property
    def several_objects(self) -> bool:
        """Whether an image shows several objects, each of that area, which belong together."""


class Finder(Protocol):
    """What was learned over a class and finds the part in one image of it."""

    def object_mask(self, image: NDArray[np.uint8]) -> BoolArray:
        """Part `[H, W]` bool of an image `[H, W, 3]` uint8 RGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SettledRule:
    """How the masks of one class are made, and why; itself a `MaskPolicy`.

    Attributes:
        mask_rule: what makes them.
        area_range: least and largest area for `area`; None if the reference decides.
        several_objects: whether masks of that area are united.
        ground: for `ground`, what was learned over the class.
        reference: for `area`, the mask `[H, W]` bool that comes back in the images of the class.
        reason: one line that says why this rule.
        failure: what is wrong with the rule that was asked for; empty if it proved itself.
    """

    mask_rule: Rule
    area_range: AreaRange | None = None
    several_objects: bool = False
    ground: Finder | None = None
    reference: BoolArray | None = None
    reason: str = ""
    failure: str = ""


def corner_points(height: int, width: int) -> NDArray[np.float64]:
    """Four corner prompts `[4, 2]` as (x, y) in pixels, a little inside the image (paper A.3)."""
    inset = max(1.0, CORNER_INSET_FRACTION * min(height, width))
    left, right, top, bottom = inset, width - 1 - inset, inset, height - 1 - inset
    return np.array([(left, top), (right, top), (left, bottom), (right, bottom)])


def border_fraction(mask: BoolArray) -> float:
    """Share of the border pixels of a mask `[H, W]` that are true."""
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return float(edge.mean())


def is_plausible_object(mask: BoolArray) -> bool:
    """Whether a mask `[H, W]` covers 2 to 90 % of the image and at most a quarter of its border."""
    low, high = PLAUSIBLE_AREA
    return low <= float(mask.mean()) <= high and border_fraction(mask) <= MAX_BORDER_FRACTION


def infer_area_range(area_fractions: Sequence[float]) -> AreaRange | None:
    """Area range around the median of the areas seen in a first pass; None without any area."""
    if not area_fractions:
        return None
    median = float(np.median(area_fractions))
    return median / AREA_RANGE_FACTOR, min(1.0, median * AREA_RANGE_FACTOR)


def select_by_area(
    masks: Sequence[BoolArray], qualities: Sequence[float], area_range: AreaRange
) -> int | None:
    """Index of the mask whose area fits the class (paper A.3); None if there are no masks.

    Among masks inside `area_range` the one with the highest predicted quality wins; if none is
    inside, the one whose area is nearest by ratio.
    """
    if not masks:
        return None
    low, high = area_range
    areas = [max(float(mask.mean()), 1e-6) for mask in masks]
    inside = [index for index, area in enumerate(areas) if low <= area <= high]
    if inside:
        return max(inside, key=lambda index: (qualities[index], -index))
    return min(range(len(masks)), key=lambda i: max(low / areas[i], areas[i] / high))


def union_by_area(
    masks: Sequence[BoolArray], qualities: Sequence[float], area_range: AreaRange
) -> BoolArray | None:
    """All masks `[H, W]` whose area fits the class as one: the objects of candle or macaroni.

    The best come first, and what lies by more than half in those taken is a part or a repeat.
    Where none fits, the one that `select_by_area` takes; None if there are no masks.
    """
    low, high = area_range
    fitting = [i for i, mask in enumerate(masks) if low <= float(mask.mean()) <= high]
    if not fitting:
        index = select_by_area(masks, qualities, area_range)
        return None if index is None else masks[index]
    union = np.zeros_like(masks[0])
    for index in sorted(fitting, key=lambda index: (-qualities[index], index)):
        if (masks[index] & union).sum() <= MAX_OVERLAP * masks[index].sum():
            union = union | masks[index]
    return union


def surroundings(mask: BoolArray) -> tuple[slice, slice] | None:
    """Square window (rows, columns) around a mask `[H, W]` bool, 10 % of its side left around it.

    The window stays inside the image and is cut where the image is too narrow for it. None if it
    would be nearly the whole image, or if the mask is empty.
    """
    if not mask.any():
        return None
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    side = max(int(span[-1] - span[0]) + 1 for span in spans)
    side = round(side * (1 + 2 * WINDOW_MARGIN))
    if side >= MAX_WINDOW * max(mask.shape):
        return None
    window = []
    for span, length in zip(spans, mask.shape, strict=True):
        start = (int(span[0]) + int(span[-1]) + 1 - side) // 2
        start = min(max(start, 0), max(length - side, 0))
        window.append(slice(start, min(start + side, length)))
    return window[0], window[1]


def tidy(object_mask: BoolArray) -> BoolArray:
    """Drop specks and fill pin-holes below 0.1 % of the image in a mask `[H, W]` bool.

    Such fragments are decoder noise at the enlarged logits' zero line, and one stray part would be
    taken for an object by the replay transform that moves single objects.
    """
    # Deviation: the paper names no clean-up; specks and pin-holes below 0.1 % of the image are
    # removed.
    smallest = SPECK_FRACTION * object_mask.size
    return ~_without_small_parts(~_without_small_parts(object_mask, smallest), smallest)


def _without_small_parts(mask: BoolArray, smallest: float) -> BoolArray:
    labels, count = label_components(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= smallest
    keep[0] = False
    return keep[labels]
