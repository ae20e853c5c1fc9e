"""Image files to arrays of one size: RGB, eight bits, upright."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from replaycad.data.samples import Sample
from replaycad.data.views import WHOLE, View, Window, packed
from replaycad.errors import DatasetError

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

MAX_TILES = 4096
"""Tiles that a class is learned from, evenly spaced over all of its training pictures: decoded they
are 0.8 GB on the disk at 256 px, and a bank keeps some thousand patches anyway."""

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF; the latter swap width and height
_BILINEAR = Image.Resampling.BILINEAR

# Everything PIL's decoders were seen to raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class HasPath(Protocol):
    """Anything that says where its image lies and how it is seen, as `Sample` does."""

    @property
    def path(self) -> Path:
        """The image file."""

    @property
    def view(self) -> View:
        """How the pictures of its class are seen."""

    @property
    def window(self) -> Window | None:
        """The part of the picture that is meant; None for the whole."""


class Reader:
    """Reads samples as the networks see them; a picture is not decoded again for each tile."""

    def __init__(self) -> None:
        self._last: tuple[Path, View] | None = None
        self._picture: Image.Image | None = None

    def picture(self, sample: HasPath) -> Image.Image:
        """The whole picture in its own size, RGB, what is ignored blanked.

        Raises:
            DatasetError: as `load_image`, or it has another size than what is ignored in it.
        """
        if self._picture is None or self._last != (sample.path, sample.view):
            self._picture = None  # gives its memory back before the next takes its own
            read = read_picture(sample.path)
            self._picture = sample.view.blanked(read, str(sample.path))
            self._last = (sample.path, sample.view)
        return self._picture

    def pixels(self, sample: HasPath, size: int) -> ByteArray:
        """One image of the networks, `[size, size, 3]` uint8 RGB.

        Raises:
            DatasetError: as `picture`.
        """
        return self._window(sample).pixels(self.picture(sample), size)

    def counted(self, sample: HasPath, size: int) -> BoolArray | None:
        """`[size, size]` bool, true where `pixels` shows what counts; None if all of it does."""
        picture = self.picture(sample)
        return sample.view.counted(self._window(sample), *picture.size, size)

    def _window(self, sample: HasPath) -> Window:
        return sample.window or replace(sample.view, tile=0).windows(*self.picture(sample).size)[0]


def load_image(path: Path, size: int) -> ByteArray:
    """Read an image as `[size, size, 3]` uint8 RGB.

    Grey, 16-bit grey, palette and CMYK files are converted, transparency is laid over white, the
    orientation of the camera is applied. Resized bilinearly (antialiased) straight to a square.

    Raises:
        DatasetError: if the file is missing, truncated, no image, too large or of floating point.
    """
    return square_pixels(read_picture(path), size)


def read_picture(path: Path) -> Image.Image:
    """Read an image in its own size, RGB and upright, as `load_image` sees it.

    Raises:
        DatasetError: as `load_image`.
    """
    with _decoding(path), Image.open(path) as file:
        return _to_rgb(ImageOps.exif_transpose(file), path)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, upright, as the file's first bytes say before it is unpacked.

    Raises:
        DatasetError: as `load_image`.
    """
    with _decoding(path), Image.open(path) as file:
        is_turned = file.getexif().get(_ORIENTATION) in _TURNED
        return file.size[::-1] if is_turned else file.size


def viewed(samples: Sequence[Sample], view: View, limit: int = MAX_TILES) -> list[Sample]:
    """The samples as their class is seen: a tile is a sample of its own.

    Args:
        samples: whole pictures.
        view: of the class.
        limit: of the tiles; of more, as many are taken evenly spaced.

    Returns:
        The same with the view; or their tiles, named such as `train/good/000.png#256,512` by their
        left and upper border.

    Raises:
        DatasetError: if a picture cannot be read or is smaller than a tile.
    """
    if not view.tile:
        return [replace(sample, view=view) for sample in samples]
    tiles = []
    for sample in samples:
        width, height = picture_size(sample.path)
        view.check(width, height, str(sample.path))
        for window in view.windows(width, height):
            name = f"{sample.image_id}#{window.box[0]},{window.box[1]}"
            tiles.append(replace(sample, image_id=name, view=view, window=window))
    return [tiles[row] for row in evenly_spaced(len(tiles), limit)]


def read_ignored(path: Path) -> bytes:
    """What `View.ignore` keeps of the picture beside a class; empty if it is all black.

    Raises:
        DatasetError: if it cannot be read, or all of it is ignored.
    """
    ignored = _nonzero(path)
    if ignored.all():
        hint = "leave black what is to be judged, and paint white what is not"
        raise DatasetError(f"{path} has no black pixel, so all of a picture is ignored", hint)
    return packed(ignored)


def square_pixels(picture: Image.Image, size: int) -> ByteArray:
    """An RGB picture as `[size, size, 3]` uint8."""
    return np.asarray(_to_square(picture, size), dtype=np.uint8)


def load_images(samples: Sequence[HasPath], size: int) -> ByteArray:
    """Read the images of all samples as `[N, 3, size, size]` uint8 RGB; see `load_image`."""
    images = np.empty((len(samples), 3, size, size), dtype=np.uint8)
    reader = Reader()
    for image, sample in zip(images, samples, strict=True):
        image[:] = reader.pixels(sample, size).transpose(2, 0, 1)
    return images


def load_counted(samples: Sequence[HasPath], size: int) -> BoolArray | None:
    """Where the images of `load_images` count, `[N, size, size]` bool; None if they do everywhere.

    Raises:
        DatasetError: as `load_images`.
    """
    found = [_counted(sample, size) for sample in samples]
    if all(one is None for one in found):
        return None
    whole = np.ones((size, size), np.bool_)
    return np.stack([whole if one is None else one for one in found])


def _counted(sample: HasPath, size: int) -> BoolArray | None:
    """Where one image counts, from the first bytes of its file."""
    if sample.view == WHOLE:
        return None
    width, height = picture_size(sample.path)
    window = sample.window or sample.view.windows(width, height)[0]
    return sample.view.counted(window, width, height, size)


def evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    """Which images stand for all: at most `count` of 0..total-1, evenly spaced, rising, `[n]`."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))


def load_anomaly_mask(path: Path, size: int | tuple[int, int]) -> BoolArray:
    """Read an anomaly mask as `[size, size]` bool, true on the defect.

    Whatever is not zero is defective, as VisA numbers its defects; that is decided at full size,
    then the 0/255 mask is resized bilinearly (antialiased) and cut at one half.

    Args:
        path: of the mask.
        size: side of the square in pixels, or height and width.

    Raises:
        DatasetError: if the file is missing, truncated or no image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    full = Image.fromarray(np.where(_nonzero(path), 255, 0).astype(np.uint8))
    if full.size != (width, height):
        full = full.resize((width, height), _BILINEAR)
    return cast(BoolArray, np.asarray(full) > 127.5)


def _nonzero(path: Path) -> BoolArray:
    """`[H, W]` bool, true where a picture is not black."""
    with _decoding(path):
        with Image.open(path) as file:
            # Colours count, not palette indices, and alpha says nothing about defects.
            has_numbers = file.mode in ("1", "L", "F") or file.mode.startswith("I")
            values = np.asarray(file if has_numbers else file.convert("RGB"))
        return cast(BoolArray, values > 0 if values.ndim == 2 else (values > 0).any(axis=-1))


def resize_image(image: ByteArray, size: int) -> ByteArray:
    """Resize `[3, H, W]` uint8 to `[3, size, size]` uint8, bilinearly as files are."""
    if image.shape[-2:] == (size, size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(_to_square(picture, size)).transpose(2, 0, 1)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Name the file in every way PIL can fail to read it."""
    hint = "replace or remove the file"
    try:
        yield
    except FileNotFoundError:
        raise DatasetError(f"{path} is not there", "check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"{path} has too many pixels: {error}", hint) from None
    except _DECODER_ERRORS as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}", hint) from None


def _to_square(picture: Image.Image, size: int) -> Image.Image:
    return picture if picture.size == (size, size) else picture.resize((size, size), _BILINEAR)


def _to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode == "F":
        raise DatasetError(
            f"{path} holds floating-point values, whose range is unknown",
            "convert it to 8 or 16 bits",
        )
    if picture.mode.startswith("I"):
        # 16-bit grey (PIL names it I;16 or I): the full range 0..65535 becomes 0..255. PIL's own
        # conversion would clip everything above 255.
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if has_alpha or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture.convert("RGB")
