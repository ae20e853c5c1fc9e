"""What PIL says of files that it cannot read, in one sentence with the file's name."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

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
def decoding(path: Path) -> Iterator[None]:
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
