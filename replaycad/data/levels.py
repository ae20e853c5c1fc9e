"""Grey levels of anomaly masks: which of them are the defect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from replaycad.data.decoding import opened
from replaycad.data.pixels import array_of, bands, tint_of
from replaycad.errors import DatasetError

BoolArray = NDArray[np.bool_]

MAX_LEVELS = 32  # of drawn masks, which number their defects; more come from lossy files
LOSSY = frozenset((".jpg", ".jpeg", ".jfif", ".webp"))
LOOKED_AT = 256  # rows and columns at least, of a picture that is asked whether it is a mask
NEAR = 24  # levels from black or white that a lossy file strays to
FEW_BETWEEN = 0.03  # share of the pixels of a lossy mask that lie between


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which levels of a class's masks are defective.

    Args:
        above: those above it, in a drawn mask.
        middle: those above it, in a lossy one.
        as_stored: whether masks were drawn on photos as the camera stored them, not as shown.
        reason: what was seen, in words; empty where black is normal and all else defective.
    """

    above: float = 0.0
    middle: float = 127.5
    as_stored: bool = False
    reason: str = ""

    def defects(self, path: Path) -> BoolArray:
        """`[H, W]` bool, true on the defect of a mask as it is shown.

        Raises:
            DatasetError: it cannot be read.
        """
        values = mask_levels(path)
        limit = self.middle if _is_lossy(_levels(values), path) else self.above
        return cast(BoolArray, np.greater(values, limit))


BLACK_IS_NORMAL = Cut()


def cut_of(masks: Iterable[Sequence[Path]]) -> Cut:
    """Find the cut of a class from all of its masks, for one mask may be of one level.

    Drawn masks have few levels: the lowest is normal, all others are defective, as VisA numbers
    them. Lossy ones have many: they are cut in the middle.

    Raises:
        DatasetError: a mask cannot be read.
    """
    drawn: set[float] = set()
    lossy: set[float] = set()
    for path in (path for paths in masks for path in paths):
        own = _levels(mask_levels(path))
        (lossy if _is_lossy(own, path) else drawn).update((min(own), *sorted(own)[1:4], max(own)))
    above, middle, reasons = 0.0, Cut.middle, []
    if drawn and 0.0 < min(drawn) < max(drawn):  # of a single level nothing can be told
        above = min(drawn)
        reasons.append(f"levels {_listed(drawn)}, of which {above:g} is taken as normal")
    if lossy:
        middle = (min(lossy) + max(lossy)) / 2
        reasons.append(f"many grey levels, cut at {middle:g}")
    return Cut(above=above, middle=middle, reason=" or ".join(reasons))


def mask_levels(path: Path) -> NDArray[Any]:
    """Levels `[H, W]` of a mask as it is shown: its greys, or the brightest of its colours.

    A palette counts by its colours. Transparency counts where it is all that differs, or has two
    levels. Where no colour is black, the most frequent one is 0.

    Raises:
        DatasetError: if the file is missing, truncated or no image, or has several pages.
    """
    with opened(path) as file:
        if getattr(file, "n_frames", 1) > 1:
            raise DatasetError(f"{path} holds several pages", "save each as a file of its own")
        ImageOps.exif_transpose(file, in_place=True)  # a copy of a huge file is much
        shown: Image.Image = file
        if shown.mode in ("1", "L", "F") or shown.mode.startswith("I"):
            return array_of(shown)
        has_alpha = shown.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        if has_alpha or "transparency" in shown.info:
            if shown.mode != "RGBA":
                shown = shown.convert("RGBA")
            ranges = cast(tuple[tuple[int, int], ...], shown.getextrema())
            alpha = shown.getchannel("A")
            counts = alpha.histogram()
            is_drawn = counts[0] and sum(count > 0 for count in counts) == 2
            if is_drawn or (all(low == high for low, high in ranges[:3]) and ranges[3][0] < 255):
                return array_of(alpha)
        return _of_colours(shown)


def _of_colours(picture: Image.Image) -> NDArray[Any]:
    """Levels of a picture: the brightest of its colours, or ranks of frequency without a black.

    Band by band, for masks may be as large as photos.
    """
    tint, bright = tint_of(picture)
    if not tint or not bright.min():
        return bright
    picture = picture.convert("RGB")
    colours = picture.getcolors(MAX_LEVELS)
    if not colours or len(colours) == 1:
        return bright
    levels = np.zeros(bright.shape, np.uint8)
    for rank, (_, colour) in enumerate(sorted(colours, key=lambda one: -one[0])):
        is_it = np.ones(levels.shape, np.bool_)
        for band, value in enumerate(cast(tuple[int, int, int], colour)):
            is_it &= np.equal(np.asarray(picture.getchannel(band)), value)
        levels[is_it] = rank
    return levels


def is_black(paths: Sequence[Path], cut: Cut) -> bool:
    """Whether masks show no defect at all.

    A mask of one level shows one only if that is white: elsewhere it may be what others call
    normal, of which it need not know.

    Raises:
        DatasetError: one cannot be read.
    """
    shown = [path for path in paths if cut.defects(path).any()]
    return not any(_levels(mask_levels(path)) not in _GREYS for path in shown)


_GREYS: tuple[set[float], ...] = tuple({float(level)} for level in range(255))


def num_levels(path: Path) -> int:
    """How many levels a picture has; 2 also for a lossy file of two.

    Raises:
        DatasetError: it cannot be read.
    """
    values = mask_levels(path)
    step = max(1, max(values.shape) // LOOKED_AT)
    values = values[::step, ::step].astype(np.float64)
    count, low, high = len(np.unique(values)), values.min(), values.max()
    if count <= 2:
        return count
    between = (values > low + NEAR) & (values < high - NEAR)
    is_of_two = high - low > 4 * NEAR and between.mean() < FEW_BETWEEN
    return 2 if is_of_two else count


def is_mask(path: Path) -> bool:
    """Whether a picture has so few levels that it may be a mask; false if it cannot be read."""
    try:
        return num_levels(path) <= MAX_LEVELS
    except DatasetError:
        return False


def _levels(values: NDArray[Any]) -> set[float]:
    """Levels of a mask `[H, W]`; of very many the lowest ones and the highest."""
    found = values[:1, :1].ravel()
    for top, bottom in bands(*values.shape):
        found = np.union1d(found, values[top:bottom])
        found = np.concatenate([found[:-1][: 2 * MAX_LEVELS], found[-1:]])
    return set(found.tolist())


def _is_lossy(levels: set[float], path: Path) -> bool:
    """Whether levels are those that a lossy file makes of two.

    In a file that keeps what it is given, they lie close around two, as where somebody saved a
    lossy mask again.
    """
    low, high = min(levels), max(levels)
    if len(levels) > MAX_LEVELS:
        return True
    if path.suffix.lower() in LOSSY:
        return len(levels) > 2 and high - low > 4 * NEAR
    is_near = all(level < low + NEAR or level > high - NEAR for level in levels)
    return len(levels) > 3 and high - low > 4 * NEAR and is_near


def _listed(levels: set[float]) -> str:
    named = [f"{level:g}" for level in sorted(levels)]
    return ", ".join(named if len(named) <= 4 else [*named[:3], "...", named[-1]])
