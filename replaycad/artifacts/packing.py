"""Numbers in few bytes: rounded to one step, entropy coded."""

import lzma
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 32_767  # steps on either side of zero

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


def pack(values: NDArray[np.floating[Any]], step: float) -> bytes:
    """Store each number as the nearest multiple of `step`.

    Args:
        values: any shape, finite.
        step: at least `finest_step` of them.
    """
    levels = np.rint(values / step).astype(np.int32)
    # Signs last: 0, -1, 1, -2, 2 are 0, 1, 2, 3, 4, so that small numbers have small high bytes.
    unsigned = np.where(levels < 0, -2 * levels - 1, 2 * levels).astype("<u2")
    planes = unsigned.reshape(-1, 1).view(np.uint8)
    # High bytes, which are nearly all alike, last.
    return lzma.compress(planes.T.tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)


def unpack(
    stored: bytes, shape: tuple[int, ...], step: float, signs_last: bool = True
) -> NDArray[np.float32]:
    """Undo `pack`.

    Args:
        stored: what `pack` gave.
        shape: of the numbers; no more memory than they take is used, whatever `stored` says.
        step: of `pack`.
        signs_last: false for what was packed before they were, as two's complement.

    Raises:
        ValueError: if `stored` is damaged or holds another count of numbers.
    """
    size = 2 * int(np.prod(shape))
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        planes = reader.decompress(stored, max_length=size + 1)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None
    if len(planes) != size:
        raise ValueError(f"it holds {'more' if len(planes) > size else 'less'} than {shape}")
    low, high = np.frombuffer(planes, np.uint8).reshape(2, -1)
    levels = np.stack([low, high], axis=1).view("<u2" if signs_last else "<i2").astype(np.int32)
    if signs_last:
        levels = np.where(levels % 2, -(levels + 1) // 2, levels // 2)
    return levels.reshape(shape).astype(np.float32) * np.float32(step)


def finest_step(values: NDArray[np.floating[Any]]) -> float:
    """Smallest step with which each number takes 16 bits; 0 for none or zeros alone."""
    return float(np.abs(values).max(initial=0.0)) / LARGEST
