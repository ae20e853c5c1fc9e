"""Grey levels of anomaly masks: which of them are the defect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from replaycad.data.decoding import opened

ByteArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

MAX_LEVELS = 32  # of drawn masks, which number their defects; more come from lossy files
LOSSY = frozenset((".jpg", ".jpeg", ".jfif", ".webp"))
LOOKED_AT = 256  # rows and columns at least, of a picture that is asked whether it is a mask
NEAR = 24  # levels from black or white that a lossy file strays to
FEW_BETWEEN = 0.03  # share of the pixels of a lossy mask that lie between


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which levels of a class's masks are defective: those above `above`.

    Args:
        above: a level.
        reason: what was seen, in words; empty where black is normal and all else defective.
    """

    above: float = 0.0
    reason: str = ""

    def defects(self, values: NDArray[Any]) -> BoolArray:
        """`[H, W]` bool, true on the defect, of the levels of a mask `[H, W]`."""
        return cast(BoolArray, values > self.above)


BLACK_IS_NORMAL = Cut()


def cut_of(masks: Iterable[Sequence[Path]]) -> Cut:
    """Find the cut of a class from all of its masks, for one mask may be of one level.

    Drawn masks have few levels: the lowest is normal, all others are defective, as VisA numbers
    them. Lossy ones have many: they are cut in the middle.

    Raises:
        DatasetError: a mask cannot be read.
    """
    levels: set[float] = set()
    is_lossy = False
    for path in (path for paths in masks for path in paths):
        own = set(np.unique(mask_levels(path)).tolist())
        is_lossy |= len(own) > MAX_LEVELS or _strays(own, path.suffix.lower() in LOSSY)
        levels |= {min(own), max(own)} if is_lossy else own
    if not levels:
        return Cut()
    low, high = min(levels), max(levels)
    if is_lossy:
        return Cut(above=(low + high) / 2, reason=f"many grey levels, cut at {(low + high) / 2:g}")
    if low == 0.0 or low == high:  # of a single level one cannot be told from the other
        return Cut()
    return Cut(above=low, reason=f"levels {_listed(levels)}, of which {low:g} is taken as normal")


def mask_levels(path: Path) -> NDArray[Any]:
    """Levels `[H, W]` of a mask as it is shown: its greys, or the brightest of its colours.

    A palette counts by its colours; transparency counts where it is all that differs.

    Raises:
        DatasetError: if the file is missing, truncated or no image.
    """
    with opened(path) as file:
        shown = ImageOps.exif_transpose(file)
        if shown.mode in ("1", "L", "F") or shown.mode.startswith("I"):
            return np.asarray(shown)
        has_alpha = shown.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        if has_alpha or "transparency" in shown.info:
            values = np.asarray(shown.convert("RGBA"))
            alpha = values[..., 3]
            if (values[..., :3] == values[0, 0, :3]).all() and alpha.min() < 255:
                return alpha
        return np.asarray(shown.convert("RGB")).max(axis=-1)


def is_black(paths: Sequence[Path], cut: Cut) -> bool:
    """Whether masks show no defect at all.

    Raises:
        DatasetError: one cannot be read.
    """
    return not any(cut.defects(mask_levels(path)).any() for path in paths)


def is_two_level(path: Path) -> bool:
    """Whether a picture looks like a mask: two grey levels, or nearly so in a lossy file.

    Raises:
        DatasetError: it cannot be read.
    """
    values = mask_levels(path).astype(np.float64)
    step = max(1, max(values.shape) // LOOKED_AT)
    values = values[::step, ::step]
    if len(np.unique(values)) <= 2:
        return True
    low, high = values.min(), values.max()
    between = (values > low + NEAR) & (values < high - NEAR)
    return bool(high - low > 4 * NEAR and between.mean() < FEW_BETWEEN)


def _strays(levels: set[float], is_lossy: bool) -> bool:
    """Whether levels are those that a lossy file makes of two.

    In a file that keeps what it is given, they lie close around two, as where somebody saved a
    lossy mask again.
    """
    low, high = min(levels), max(levels)
    is_near = all(level < low + NEAR or level > high - NEAR for level in levels)
    return high - low > 4 * NEAR and (len(levels) > 2 if is_lossy else len(levels) > 3 and is_near)


def _listed(levels: set[float]) -> str:
    named = [f"{level:g}" for level in sorted(levels)]
    return ", ".join(named if len(named) <= 4 else [*named[:3], "...", named[-1]])
