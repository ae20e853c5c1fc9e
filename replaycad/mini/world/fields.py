"""Random fields on the picture plane: seeded dice, spline noise, cells, blur; all free of size."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Item = TypeVar("Item")
# A cubic B-spline averages its random knots; this brings the variance back to about one.
SPLINE_GAIN = 2.08
MAX_CELLS = 128


class Dice:
    """A numpy generator that answers in python floats, so that float32 fields stay float32."""

    def __init__(self, *seeds: int) -> None:
        """Seed from whole numbers; trailing zeros do not count."""
        self.generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seeds)))

    def between(self, low: float, high: float) -> float:
        """Return a uniform number in [low, high)."""
        return low + (high - low) * float(self.generator.random())

    def around(self, centre: float, spread: float) -> float:
        """Return a normal number, cut at two spreads."""
        step = float(self.generator.standard_normal())
        return centre + spread * min(max(step, -2.0), 2.0)

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both possible."""
        return int(self.generator.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return float(self.generator.random()) < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items, all equally likely."""
        return items[int(self.generator.integers(len(items)))]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        """Return one of the items with chances proportional to the weights."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        place = float(self.generator.random()) * edges[-1]
        return items[min(int(np.searchsorted(edges, place, side="right")), len(items) - 1)]

    def normals(self, *shape: int) -> Field:
        """Return float32 normal numbers of the given shape."""
        return self.generator.standard_normal(shape, dtype=np.float32)

    def rough(self, *shape: int) -> Field:
        """Return float32 numbers of zero mean and unit variance, evenly_spaced spread and cheap."""
        raw = np.frombuffer(self.generator.bytes(2 * math.prod(shape)), dtype=np.int16)
        return raw.astype(np.float32).reshape(shape) * np.float32(math.sqrt(3) / 32768)

    def uniforms(self, *shape: int) -> Field:
        """Return float32 uniform numbers in [0, 1) of the given shape."""
        return self.generator.random(shape, dtype=np.float32)


@lru_cache(maxsize=512)
def spline_matrix(size: int, cells: int) -> Field:
    """Return cubic B-spline weights `[size, cells + 3]` at the pixel centres of one axis."""
    place = (np.arange(size) + 0.5) / size * cells
    knot = np.floor(place).astype(np.int64)
    t = place - knot
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    matrix = np.zeros((size, cells + 3), dtype=np.float32)
    for offset in range(4):
        matrix[np.arange(size), knot + offset] = weights[:, offset] / 6
    return matrix


def spline_noise(
    dice: Dice, size: int, cells_y: float, cells_x: float, rows: slice, columns: slice
) -> Field:
    """Return smooth noise `[H, W]` of unit variance on a window of the picture.

    Args:
        dice: the source; the number of draws depends on the cells only, never on the size.
        size: side of the whole picture in pixels.
        cells_y: noise cells along the picture's height (capped at 128).
        cells_x: noise cells along the picture's width (capped at 128).
        rows: window rows.
        columns: window columns.
    """
    count_y = int(min(max(round(cells_y), 1), MAX_CELLS))
    count_x = int(min(max(round(cells_x), 1), MAX_CELLS))
    knots = dice.rough(count_y + 3, count_x + 3)
    left = spline_matrix(size, count_y)[rows]
    right = spline_matrix(size, count_x)[columns]
    return (left @ knots @ right.T) * SPLINE_GAIN


@lru_cache(maxsize=128)
def blur_matrix(size: int, sigma_milli: int) -> Field:
    """Return a row-normalised Gaussian matrix `[size, size]`; sigma in thousandths of the side."""
    place = (np.arange(size) + 0.5) / size
    distance = (place[:, None] - place[None, :]) / max(sigma_milli / 1000, 1e-4)
    matrix = np.exp(-0.5 * distance**2)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def blur(field: Field, sigma: float) -> Field:
    """Return a Gaussian blur of a square field `[..., S, S]`; sigma as a fraction of the side."""
    matrix = blur_matrix(field.shape[-1], max(round(sigma * 1000), 1))
    return matrix @ field @ matrix.T


def shifted(field: Field, right: float, down: float) -> Field:
    """Return a square field `[S, S]` moved by fractions of the side; edges repeat."""
    size = field.shape[-1]
    index = np.arange(size)
    rows = np.clip(index - round(down * size), 0, size - 1)
    columns = np.clip(index - round(right * size), 0, size - 1)
    return field[rows[:, None], columns[None, :]]


def voronoi(u: Field, v: Field, table: Field, jitter: float) -> tuple[Field, Field, NDArray]:
    """Return the two nearest distances and the cell number on a jittered unit lattice.

    Args:
        u: first coordinate `[H, W]` in cells.
        v: second coordinate `[H, W]` in cells.
        table: random offsets `[T, T, 2]` in [0, 1), T a power of two, repeated over the lattice.
        jitter: 0 for a square lattice, 1 for fully random cells.
    """
    period = table.shape[0] - 1
    offsets = (0.5 + jitter * (table.reshape(-1, 2) - 0.5)).astype(np.float32)
    base_u = np.floor(u)
    base_v = np.floor(v)
    local_u = u - base_u
    local_v = v - base_v
    cell_u = base_u.astype(np.int32)
    cell_v = base_v.astype(np.int32)
    first = np.full(u.shape, 9.0, dtype=np.float32)
    second = first.copy()
    owner = np.zeros(u.shape, dtype=np.int32)
    for step_v in (-1, 0, 1):
        row = ((cell_v + step_v) & period) * table.shape[0]
        for step_u in (-1, 0, 1):
            number = row + ((cell_u + step_u) & period)
            near = offsets[number]
            gap_u = near[..., 0] + step_u - local_u
            gap_v = near[..., 1] + step_v - local_v
            distance = gap_u * gap_u + gap_v * gap_v
            closer = distance < first
            second = np.where(closer, first, np.minimum(second, distance))
            owner = np.where(closer, number, owner)
            first = np.minimum(first, distance)
    return np.sqrt(first), np.sqrt(second), owner


def lattice_noise(dice: Dice, u: Field, v: Field, cells_u: float, cells_v: float) -> Field:
    """Return unit noise along turned coordinates (two units wide), repeating outside it.

    Args:
        dice: the source; draws a fixed table of 128 x 64 knots.
        u: first coordinate `[H, W]`.
        v: second coordinate `[H, W]`.
        cells_u: noise cells per two units along u.
        cells_v: noise cells per two units along v.
    """
    table = dice.rough(128, 64).ravel()
    x = u * (cells_u * 0.5) + 37.3
    y = v * (cells_v * 0.5) + 71.7
    low_x, low_y = np.floor(x), np.floor(y)
    part_x, part_y = x - low_x, y - low_y
    part_x = part_x * part_x * (3 - 2 * part_x)
    part_y = part_y * part_y * (3 - 2 * part_y)
    left = low_x.astype(np.int32) & 63
    right = (left + 1) & 63
    top = (low_y.astype(np.int32) & 127) * 64
    bottom = (top + 64) & 8191
    upper = table[top + left] * (1 - part_x) + table[top + right] * part_x
    lower = table[bottom + left] * (1 - part_x) + table[bottom + right] * part_x
    return (upper * (1 - part_y) + lower * part_y) * 1.4


def bilinear(table: Field, u: Field, v: Field) -> Field:
    """Sample a table `[h, w]` at unit-square coordinates; zero outside."""
    height, width = table.shape
    padded = np.pad(table, 1)
    x = np.clip(u * width + 0.5, 0, width + 0.999)
    y = np.clip(v * height + 0.5, 0, height + 0.999)
    column = x.astype(np.int32)
    row = y.astype(np.int32)
    part_x = x - column
    part_y = y - row
    flat = padded.ravel()
    place = row * (width + 2) + column
    top = flat[place] * (1 - part_x) + flat[place + 1] * part_x
    place = place + (width + 2)
    bottom = flat[place] * (1 - part_x) + flat[place + 1] * part_x
    inside = (u > -0.02) & (u < 1.02) & (v > -0.02) & (v < 1.02)
    return (top * (1 - part_y) + bottom * part_y) * inside


def smoothstep(low: float, high: float, field: Field) -> Field:
    """Return the cubic step from 0 at low to 1 at high."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
