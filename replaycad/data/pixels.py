"""Picture files to RGB of eight bits, upright; and the range of those that have more bits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from replaycad.data.decoding import opened
from replaycad.errors import DatasetError

WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 8, 10, 12, 14 and 16 bits
FULL_RANGE = 65535.0
TINT = 24  # levels that the channels of a grey photo may differ by, as lossy files make them
MANY = 0.05  # share of pixels above white: an image of more has another range, of less a glint
FEW = 0.001  # share of the pixels of a training image that may be above white: hot ones
MOST = 0.75  # share of the training images that must end at white
DARK = 8.0  # times below white: an image that ends there may have another range
BAND = 2**22  # pixels of a huge picture that are worked on at once
NOTE = "note"  # key of what there is to say, in the `info` of a picture that was read
DARKEST_WHITE = 64  # of 255: colours of 14 or more bits come up to it
_BITS_PER_SAMPLE = 258  # of TIFF
_HAS_PREVIEWS = ("MPO",)  # a photo with smaller copies of itself, as telephones write it


def read_picture(path: Path, white: float | None = None) -> Image.Image:
    """Read an image in its own size, RGB and upright.

    Grey, palette and CMYK files are converted, transparency is laid over white, the orientation of
    the camera is applied.

    Args:
        path: of the file.
        white: level that becomes white in files of more than eight bits, linearly from 0; 0 if the
            class has no such files; None, where no class is known, for the end of sixteen bits.
            Somewhat brighter pixels become white too, and the picture's `info` says so.

    Raises:
        DatasetError: if the file is missing, truncated, no image, too large, has several pages, or
            is of another range than its class.
    """
    with opened(path) as file:
        pages = getattr(file, "n_frames", 1)
        if pages > 1 and file.format not in _HAS_PREVIEWS:
            raise DatasetError(
                f"{path} holds {pages} pages or frames", "save each as a file of its own"
            )
        ImageOps.exif_transpose(file, in_place=True)  # a copy of a huge file is much
        picture: Image.Image = file
        if not _is_deep(picture.mode):
            if white:
                raise DatasetError(
                    f"{path} has 8 bits, but its class was learned from pictures of more",
                    "save it in the range of the others",
                )
            return _to_rgb(picture)
        values = array_of(picture)
        if white == 0.0:
            raise DatasetError(
                f"{path} has more than 8 bits, but its class was learned from pictures of 8 bits",
                "save it with 8 bits, or learn the class from such pictures",
            )
        if white is None and picture.mode == "F":
            raise DatasetError(
                f"{path} holds floating-point values, whose range is unknown",
                "convert it to 8 or 16 bits",
            )
        is_known, white = white is not None, FULL_RANGE if white is None else white
        highest = _highest(values, path)
        if picture.mode == "F" and highest <= 1.0 < white:
            raise DatasetError(
                f"{path} holds broken numbers up to {highest:g}, but the pictures of its class are "
                f"whole ones up to {white:g}",
                "save it in the range of the others",
            )
        if np.greater(values, white).mean() > MANY:
            raise DatasetError(
                f"{path} has levels up to {highest:g}, but the pictures of its class end at "
                f"{white:g}",
                "save it in the range of the others",
            )
        levels = np.empty(values.shape, np.uint8)
        for top, bottom in bands(*values.shape):
            scaled = values[top:bottom].astype(np.float64) * (255.0 / white) + 0.5
            levels[top:bottom] = scaled.clip(0, 255)
        shown = Image.fromarray(levels).convert("RGB")
        if highest > white:
            shown.info[NOTE] = f"its levels reach {highest:g}, and what is above {white:g} is white"
        elif is_known and highest < white / DARK:
            shown.info[NOTE] = f"its levels end at {highest:g}, far below {white:g}, which is white"
        return shown


def is_deep(path: Path) -> bool:
    """Whether a picture has levels of more than eight bits, as its first bytes say.

    Raises:
        DatasetError: if the file is missing or no image.
    """
    return _depth(path) == "deep"


@dataclass(frozen=True)
class Range:
    """What the levels of a class's pictures are.

    Attributes:
        white: level that is shown as white; 0 if all have eight bits.
        note: a sentence on what was guessed; empty for eight bits.
        colours: `grey` or `colours`, if all are such files; else empty.
    """

    white: float = 0.0
    note: str = ""
    colours: str = ""


def white_of(paths: Iterable[Path]) -> float:
    """Level that is shown as white in all pictures of a class; see `range_of`.

    Raises:
        DatasetError: as `range_of`.
    """
    return range_of(paths).white


def range_of(paths: Iterable[Path]) -> Range:
    """Find the range of a class over its training images.

    Whole numbers end where their bits do: at 255, 1023, 4095, 16383 or 65535, the first that none
    exceeds but for a few hot pixels. Broken ones end at 1 if none is higher, else like whole ones.

    Raises:
        DatasetError: if some have eight bits and others more, or one is negative or not finite.
    """
    paths = list(paths)
    depths = {path: _depth(path) for path in paths}
    deep = [path for path in paths if depths[path] == "deep"]
    if not deep:
        _check_colours([path for path in paths if depths[path] == "colours of 16 bits"])
        is_grey = {depth == "grey" for depth in depths.values()}
        return Range(colours="" if len(is_grey) != 1 else "grey" if is_grey.pop() else "colours")
    if len(deep) < len(paths):
        flat = next(path for path in paths if depths[path] != "deep")
        raise DatasetError(
            f"{deep[0]} has more than 8 bits, but {flat} of the same class has 8",
            "save all pictures of a class in one range",
        )
    found = [_levels(path, path.stat().st_mtime_ns) for path in deep]
    ends = [one.end for one in found]
    if max(ends) <= 1.0 and any(one.is_broken for one in found):
        return Range(1.0, "pictures hold broken numbers; 1 is shown as white", "grey")
    whites = [*WHITES, 2.0 ** np.ceil(np.log2(max(*ends, 1.0)))]
    white = next(
        white for white in whites
        if all(one.without_few <= white for one in found)
        and sum(end <= white for end in ends) >= MOST * len(ends)
    )  # fmt: skip
    note = f"pictures have more than 8 bits; level {white:g} is shown as white"
    if max(ends) > white:
        note += f"; {sum(end > white for end in ends)} of {len(ends)} have pixels above it"
    num_dark = sum(end < white / DARK for end in ends)
    if num_dark:
        note += f"; {num_dark} of {len(ends)} end below {white / DARK:g}: is that one range?"
    return Range(white, note, "grey")


def strange(path: Path, picture: Image.Image, expected: str) -> str:
    """What to say of a picture that has other colours than its class, or levels beyond its white.

    Args:
        path: of the file.
        picture: what was read of it.
        expected: colours of the class, as of its `Range`.

    Returns:
        A sentence; empty where nothing is strange.
    """
    is_grey = expected and _depth(path) in ("grey", "deep")
    if expected == "colours" and is_grey:
        return "it is grey, and its class was learned in colours"
    if expected == "grey" and not is_grey and tint_of(picture)[0] > TINT:
        return "it has colours, and its class was learned from grey photos"
    return str(picture.info.get(NOTE, ""))


class _Levels(NamedTuple):
    """Of one picture: its highest level, the same without its few brightest pixels, its kind."""

    end: float
    without_few: float
    is_broken: bool


@lru_cache(maxsize=65_536)
def _levels(path: Path, _mtime_ns: int) -> _Levels:
    with opened(path) as file:
        values, is_broken = array_of(file), file.mode == "F"
    end = _highest(values, path)
    place = int((values.size - 1) * (1.0 - FEW))
    return _Levels(end, float(np.partition(values, place, axis=None)[place]), is_broken)


def _check_colours(deep: Iterable[Path]) -> None:
    """Refuse colours of 16 bits that end below them: PIL reads the upper 8 bits alone."""
    highest, first = 0, None
    for path in deep:
        first = first or path
        with opened(path) as file:
            highest = max(highest, int(np.asarray(file.convert("RGB")).max()))
    if first and highest < DARKEST_WHITE:
        raise DatasetError(
            f"{first} and others hold colours of 16 bits that fill a part of their range only",
            "save them with 8 bits a colour, or as grey of 16 bits",
        )


def _depth(path: Path) -> Literal["grey", "colours", "deep", "colours of 16 bits"]:
    """Whether a file has grey levels of 8 bits, colours of 8, levels of more, or colours of more.

    PIL cuts the last to 8 bits.
    """
    with opened(path) as file:
        if _is_deep(file.mode):
            return "deep"
        if file.format == "TIFF":
            bits = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
            has_more = max(bits if isinstance(bits, tuple) else (bits,)) > 8
        else:
            has_more = any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
        if has_more:
            return "colours of 16 bits"
        return "grey" if file.mode in ("1", "L", "LA", "La") else "colours"


def _highest(values: NDArray[Any], path: Path) -> float:
    lowest, highest = values.min(), values.max()
    if not np.isfinite(lowest) or not np.isfinite(highest) or lowest < 0:
        raise DatasetError(
            f"{path} holds levels below 0 or none at all, so its range is unknown",
            "save it with 8 or 16 bits",
        )
    return float(highest)


def _is_deep(mode: str) -> bool:
    return mode == "F" or mode.startswith("I")


def _to_rgb(picture: Image.Image) -> Image.Image:
    """The same in RGB, transparency laid over white band by band: a whole layer more is much."""
    has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if not has_alpha and "transparency" not in picture.info:
        if picture.mode != "RGB":
            return picture.convert("RGB")
        picture.load()  # before its file is closed
        return picture
    shown = Image.new("RGB", picture.size)
    for top, bottom in bands(picture.height, picture.width):
        opaque = picture.crop((0, top, picture.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        shown.paste(Image.alpha_composite(white, opaque).convert("RGB"), (0, top))
    return shown


def tint_of(picture: Image.Image) -> tuple[int, NDArray[np.uint8]]:
    """How far the colours of a pixel differ at most, and the brightest of each, `[H, W]`."""
    bright, tint = np.empty((picture.height, picture.width), np.uint8), 0
    for top, bottom in bands(*bright.shape):
        part = picture.crop((0, top, picture.width, bottom)).convert("RGB")
        red, green, blue = (np.asarray(band) for band in part.split())
        own = bright[top:bottom]
        np.maximum(np.maximum(red, green, out=own), blue, out=own)
        tint = max(tint, int((own - np.minimum(np.minimum(red, green), blue)).max()))
    return tint, bright


def array_of(picture: Image.Image) -> NDArray[Any]:
    """Levels `[H, W]` of a picture of one channel; NumPy alone holds three copies meanwhile."""
    first = np.asarray(picture.crop((0, 0, 1, 1)))
    levels = np.empty((picture.height, picture.width), first.dtype)
    for top, bottom in bands(*levels.shape):
        levels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return levels


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row of each band of some `BAND` pixels, and the row after its last."""
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
