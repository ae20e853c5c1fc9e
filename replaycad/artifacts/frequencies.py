"""Tokens of the bundled network's shape as frequencies of what it reads: most are then nearly 0.

As JPEG keeps blocks of pixels as frequencies, and as finely as they are seen. A constant of the
file format, like its tables: other weights read such a file, too, if less well for its bytes.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

SIDE, WIDTH = 8, 192  # of the grid of tokens, and D
DIRECTIONS = Path(__file__).with_name("token_directions.safetensors")
"""`directions` `[D, D]` float16: a token that is told 1 along direction i is row i of it. They are
the right singular vectors of the layer that reads tokens into maps, each divided by its singular
value: rounded by one step along any of them, the maps change alike (`tests.bench.directions`)."""


def have_places(shape: tuple[int, ...]) -> bool:
    """Whether tokens `[..., K, D]` are a grid of the bundled network's."""
    return shape[-2:] == (SIDE**2, WIDTH)


def to_frequencies(tokens: NDArray[np.float32]) -> NDArray[np.float64]:
    """Tokens `[N, K, D]` as `[N, D, K]`, of each direction its frequencies over the grid."""
    told = tokens.astype(np.float64) @ _inverse()
    return np.asarray(_waves() @ told).transpose(0, 2, 1)


def from_frequencies(frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo `to_frequencies`."""
    told = frequencies.astype(np.float64) @ _waves()
    return (told.transpose(0, 2, 1) @ _directions()).astype(np.float32)


@cache
def _directions() -> NDArray[np.float64]:
    return load_file(DIRECTIONS)["directions"].astype(np.float64)


@cache
def _inverse() -> NDArray[np.float64]:
    return np.linalg.inv(_directions()).astype(np.float64)


@cache
def _waves() -> NDArray[np.float64]:
    """Orthonormal cosines `[K, K]` over a grid of tokens, one in each row."""
    places = np.arange(SIDE)
    rows = np.cos(np.pi / SIDE * np.outer(places, places + 0.5)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return np.kron(rows, rows)
