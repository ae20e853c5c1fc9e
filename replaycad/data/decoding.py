"""What PIL says of files that it cannot read, in one sentence with the file's name."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from replaycad.errors import DatasetError

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


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """Open a picture, and name the file in every way in which PIL can fail to read it.

    By a file object, not by name: PIL maps plain files that it knows by name into memory, and mixes
    up width and height where an uncompressed TIFF says that it lies on its side.

    Raises:
        DatasetError: it is missing, too large or no picture, now or while its pixels are read.
    """
    hint = "replace or remove the file"
    try:
        with path.open("rb") as stream, Image.open(stream) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{path} is not there", "check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        told = str(error).split(", could be")[0]
        raise DatasetError(f"{path} has too many pixels: {told}", hint) from None
    except UnidentifiedImageError:
        raise DatasetError(
            f"{path} is no image of a known format", "save it as PNG or TIFF, or remove it"
        ) from None
    except _DECODER_ERRORS as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}", hint) from None
