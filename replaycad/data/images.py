"""Image files to arrays of one size: RGB, eight bits, upright."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from replaycad.errors import DatasetError

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

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
    """Anything that says where its image lies."""

    @property
    def path(self) -> Path:
        """The image file."""


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
    """Width and height in pixels as the file's first bytes say, before it is unpacked.

    Raises:
        DatasetError: as `load_image`.
    """
    with _decoding(path), Image.open(path) as file:
        return file.size


def square_pixels(picture: Image.Image, size: int) -> ByteArray:
    """An RGB picture as `[size, size, 3]` uint8."""
    return np.asarray(_to_square(picture, size), dtype=np.uint8)


def load_images(samples: Sequence[HasPath], size: int) -> ByteArray:
    """Read the images of all samples as `[N, 3, size, size]` uint8 RGB; see `load_image`."""
    images = np.empty((len(samples), 3, size, size), dtype=np.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[:] = load_image(sample.path, size).transpose(2, 0, 1)
    return images


def evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    """Which images stand for all: at most `count` of 0..total-1, evenly spaced, rising, `[n]`."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))


def load_anomaly_mask(path: Path, size: int) -> BoolArray:
    """Read an anomaly mask as `[size, size]` bool, true on the defect.

    Whatever is not zero is defective, as VisA numbers its defects; that is decided at full size,
    then the 0/255 mask is resized bilinearly (antialiased) and cut at one half.

    Raises:
        DatasetError: if the file is missing, truncated or no image.
    """
    with _decoding(path):
        with Image.open(path) as file:
            # Colours count, not palette indices, and alpha says nothing about defects.
            has_numbers = file.mode in ("1", "L", "F") or file.mode.startswith("I")
            values = np.asarray(file if has_numbers else file.convert("RGB"))
        defective = values > 0 if values.ndim == 2 else (values > 0).any(axis=-1)
        full = Image.fromarray(np.where(defective, 255, 0).astype(np.uint8))
        return np.asarray(_to_square(full, size)) > 127.5


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
