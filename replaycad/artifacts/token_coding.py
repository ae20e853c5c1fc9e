"""Tokens in few bytes: DCT-transformed, quantised and compressed, as JPEG does with pixels.

Tokens `[N, K, D]` are rounded to multiples of one step and compressed with LZMA2. Those of the
bundled network's shape are transformed first: over their grid by a discrete cosine transform, and
along D by a fixed matrix, `token_directions.safetensors`, after which an error of one step in any
number changes what the network reads by the same amount. So steps may be coarse where it does not
look. Measured on a pill and a weave: half the bytes of a file whose tokens are merely rounded, at
the same error in what is read. The matrix belongs to the file format and stays when the network is
trained anew; tokens of another shape are rounded as they are.
"""

import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

LARGEST = 32_767  # steps on either side of zero
SIDE, WIDTH = 8, 192  # of the bundled network's grid of tokens, and D
DIRECTIONS = Path(__file__).with_name("token_directions.safetensors")
"""`directions` `[D, D]` float16: the right singular vectors of the layer that reads tokens into
maps, each divided by its singular value, one in a row (`tests.bench.directions`)."""

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


def is_transformed(shape: tuple[int, ...]) -> bool:
    """Whether tokens `[..., K, D]` are transformed before they are rounded."""
    return shape[-2:] == (SIDE**2, WIDTH)


def transform(tokens: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """Turn tokens `[N, K, D]` into coefficients `[N, D, K]`; those of other shapes stay."""
    if not is_transformed(tokens.shape):
        return tokens
    along = tokens.astype(np.float64) @ _inverse_directions()
    return np.asarray(_cosines() @ along).transpose(0, 2, 1)


def inverse_transform(
    coefficients: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Turn coefficients in any shape back into tokens of the given `[N, K, D]`."""
    if not is_transformed(shape):
        return coefficients.reshape(shape)
    stored = coefficients.reshape(shape[0], WIDTH, SIDE**2).astype(np.float64)
    along = (stored @ _cosines()).transpose(0, 2, 1)
    return (along @ _directions()).astype(np.float32)


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


def unpack(stored: bytes, size: int, step: float) -> NDArray[np.float32]:
    """Undo `pack`.

    Args:
        stored: what `pack` gave.
        size: how many numbers it holds; no more memory than they take is used, whatever it says.
        step: of `pack`.

    Returns:
        [size], in the order of `pack`.

    Raises:
        ValueError: if `stored` is damaged or holds another count of numbers.
    """
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        planes = reader.decompress(stored, max_length=2 * size + 1)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None
    if len(planes) != 2 * size:
        raise ValueError(f"it holds {'more' if len(planes) > 2 * size else 'less'} than that")
    low, high = np.frombuffer(planes, np.uint8).reshape(2, -1)
    levels = np.stack([low, high], axis=1).view("<u2")[:, 0].astype(np.int32)
    levels = np.where(levels % 2, -(levels + 1) // 2, levels // 2)
    return levels.astype(np.float32) * np.float32(step)


def finest_step(values: NDArray[np.floating[Any]]) -> float:
    """Smallest step with which each number takes 16 bits; 0 for none or zeros alone."""
    return float(np.abs(values).max(initial=0.0)) / LARGEST


@cache
def _directions() -> NDArray[np.float64]:
    return load_file(DIRECTIONS)["directions"].astype(np.float64)


@cache
def _inverse_directions() -> NDArray[np.float64]:
    return np.linalg.inv(_directions()).astype(np.float64)


@cache
def _cosines() -> NDArray[np.float64]:
    """Orthonormal cosines `[K, K]` over a grid of tokens, one in each row."""
    places = np.arange(SIDE)
    rows = np.cos(np.pi / SIDE * np.outer(places, places + 0.5)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return np.kron(rows, rows)
