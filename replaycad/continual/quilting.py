"""Puts fragments of many images together to new ones (image quilting, Efros and Freeman 2001).

Squares are laid from the middle outwards, each one of those that belong there and go on from what
lies there already. Two that overlap meet along the cut where they differ least; what is smooth in
them, light and shade, passes over the whole overlap (two bands, Burt and Adelson 1983).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from replaycad.artifacts.fragments import Fragments
from replaycad.continual.fragments import lattice

TOLERANCE = 1.1
"""Squares are drawn from those that go on at most this much worse than the best, in grey levels."""
SMOOTH = 0.125  # of a square's side, the sigma above which light and shade is smooth
MISSED = 0.01  # of a square that may lack what the image shows; above it others stand in
OTHERS = 64  # of the nearest cells
_SIDES = ((0, -1), (-1, 0), (0, 1), (1, 0))  # left, above, right, below

Floats = NDArray[np.float32]


class Quilter:
    """The fragments of one class.

    Args:
        fragments: as they are stored.
        squares: `[Q, 3, P, P]` uint8 of them.
        seen: `[Q, P, P]` bool, what of each its image shows.
    """

    def __init__(
        self, fragments: Fragments, squares: NDArray[np.uint8], seen: NDArray[np.bool_]
    ) -> None:
        self._size = fragments.size
        self._places = lattice(fragments.canvas, fragments.size, fragments.overlap)
        self._squares = squares.astype(np.float32)
        sigma = (0, 0, SMOOTH * self._size, SMOOTH * self._size)
        self._smooth = ndimage.gaussian_filter(self._squares, sigma, mode="nearest", truncate=2)
        self._hidden = ~seen.reshape(len(seen), -1)
        across = len(self._places)
        self._cells = np.stack(np.divmod(fragments.cells.astype(np.int64), across), 1)
        self._own = {
            divmod(cell, across): np.flatnonzero(fragments.cells == cell)
            for cell in range(across**2)
        }
        self._whole = np.flatnonzero(~self._hidden.any(1))
        self._order = self._outwards()

    def draw(
        self, wanted: NDArray[np.bool_], streams: Sequence[np.random.Generator]
    ) -> NDArray[np.uint8]:
        """Put pictures together; each depends on its row and its stream alone.

        Args:
            wanted: `[B, C, C]`, what of the frame each picture is to show.
            streams: B random streams.

        Returns:
            `[B, 3, C, C]` uint8, black where nothing was wanted.
        """
        canvas = _Canvas(wanted, self._places, self._size)
        for cell in self._order:
            rows = canvas.rows(cell)
            if not len(rows):
                continue
            under, has = canvas.under(cell, rows)
            wanted_here = canvas.wanted(cell, rows)
            picks = self._picked(cell, under, has & wanted_here, wanted_here, streams, rows)
            canvas.lay(cell, rows, self._squares[picks], self._smooth[picks])
        return canvas.picture()

    def _outwards(self) -> list[tuple[int, int]]:
        """Cells of the lattice, the middle first, then ring by ring."""
        middle = self._places[-1] / 2
        from_middle = self._places - middle

        def key(cell: tuple[int, int]) -> tuple[float, float]:
            down, right = (float(from_middle[number]) for number in cell)
            return max(abs(down), abs(right)), float(np.arctan2(down, right))

        return sorted(self._own, key=key)

    def _picked(
        self,
        cell: tuple[int, int],
        under: Floats,
        has: NDArray[np.bool_],
        wanted: NDArray[np.bool_],
        streams: Sequence[np.random.Generator],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Which squares `[n]` go on well from what lies there.

        Those that belong there; or one from nearby, where none of these shows what is wanted.
        """
        own = self._own[cell]
        missed = self._missed(own, wanted)
        enough = missed <= MISSED * self._size**2
        picks = np.zeros(len(rows), np.int64)
        for is_own in (True, False):
            which = np.flatnonzero(enough.any(1) == is_own)
            if not len(which):
                continue
            candidates = own if is_own else np.concatenate([own, self._others(cell)])
            allowed = enough[which]
            if not is_own:
                missed = self._missed(candidates, wanted[which])
                allowed = missed <= np.maximum(
                    missed.min(1, keepdims=True), MISSED * self._size**2
                )
            cost = np.where(
                allowed, _misfit(under[which], has[which], self._squares[candidates]), np.inf
            )
            good = cost <= cost.min(1, keepdims=True) * TOLERANCE**2
            for place, row in enumerate(which):
                fitting = candidates[good[place]]
                # Of others the nearest: a part fits on a plain ground as well as more ground does.
                picks[row] = streams[rows[row]].choice(fitting) if is_own else fitting[0]
        return picks

    def _others(self, cell: tuple[int, int]) -> NDArray[np.int64]:
        """Squares `[n]` of the cells nearest to one, such as their images show whole, if any."""
        others = self._whole if len(self._whole) else np.arange(len(self._squares))
        away = np.abs(self._cells[others] - cell).max(1)
        return others[np.argsort(away, kind="stable")[:OTHERS]]

    def _missed(
        self, candidates: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Pixels `[n, c]` that are wanted and that candidates do not show."""
        flat = wanted.reshape(len(wanted), -1).astype(np.float32)
        return flat @ self._hidden[candidates].astype(np.float32).T


def _misfit(under: Floats, has: NDArray[np.bool_], squares: Floats) -> NDArray[np.float64]:
    """Squared difference `[n, c]` of squares to what lies there, exact: a sum of whole numbers.

    So it is the same however many pictures are put together at once.
    """
    somewhere = has.any(0)
    mask = np.repeat(has[:, None, somewhere], 3, axis=1).reshape(len(has), -1).astype(np.float64)
    below = under[:, :, somewhere].reshape(len(has), -1) * mask
    above = squares[:, :, somewhere].reshape(len(squares), -1).astype(np.float64)
    return (below * below).sum(1)[:, None] - 2 * below @ above.T + mask @ (above * above).T


class _Canvas:
    """Pictures that grow square by square.

    Args:
        wanted: `[B, C, C]`.
        places: where squares begin along a side.
        size: side of a square.
    """

    def __init__(
        self, wanted: NDArray[np.bool_], places: NDArray[np.int64], size: int
    ) -> None:
        count, side, _ = wanted.shape
        self._wanted, self._places, self._size = wanted, places, size
        self._drawn = np.zeros((count, 3, side, side), np.float32)  # whole numbers
        self._smooth = np.zeros_like(self._drawn)
        self._has = np.zeros((count, side, side), np.bool_)
        self._laid = np.zeros((count, len(places), len(places)), np.bool_)

    def rows(self, cell: tuple[int, int]) -> NDArray[np.int64]:
        """Pictures that show something there."""
        return np.flatnonzero(self._wanted[(slice(None), *self._at(cell))].any((1, 2)))

    def wanted(self, cell: tuple[int, int], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """What these pictures are to show there, `[n, P, P]`."""
        return self._wanted[(rows, *self._at(cell))]

    def under(
        self, cell: tuple[int, int], rows: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """What lies there, `[n, 3, P, P]`, and where anything does, `[n, P, P]`."""
        down, right = self._at(cell)
        return self._drawn[rows][:, :, down, right], self._has[(rows, down, right)]

    def lay(
        self, cell: tuple[int, int], rows: NDArray[np.int64], squares: Floats, smooth: Floats
    ) -> None:
        """Lay a square `[n, 3, P, P]` on each of these pictures."""
        down, right = self._at(cell)
        under, has = self.under(cell, rows)
        smooth_under = self._smooth[rows][:, :, down, right]
        sharp, wide = self._weights(cell, rows, np.square(squares - under).sum(1))
        sharp, wide = (np.where(has, part, 1)[:, None] for part in (sharp, wide))
        light = wide * smooth + (1 - wide) * smooth_under
        detail = sharp * (squares - smooth) + (1 - sharp) * (under - smooth_under)
        self._smooth[rows, :, down, right] = light
        self._drawn[rows, :, down, right] = np.rint(light + detail).clip(0, 255)
        self._has[rows, down, right] = True
        self._laid[(rows, *cell)] = True

    def _weights(
        self, cell: tuple[int, int], rows: NDArray[np.int64], error: Floats
    ) -> tuple[Floats, Floats]:
        """How much a new square counts, `[n, P, P]`: along cuts, and over whole overlaps."""
        size, places = self._size, self._places
        cuts = np.ones(error.shape, np.bool_)
        wide = np.ones(error.shape, np.float32)
        for step in _SIDES:
            other = (cell[0] + step[0], cell[1] + step[1])
            if not all(0 <= number < len(places) for number in other):
                continue
            is_laid = self._laid[(rows, *other)][:, None, None]
            axis = 0 if step[0] else 1
            shared = size - abs(int(places[cell[axis]] - places[other[axis]]))
            # Seen so that the neighbour lies to the left.
            turned = [_turned(part, step)[:, :, :shared] for part in (error, cuts, wide)]
            turned[1] &= seams(turned[0]) | ~is_laid
            ramp = (np.arange(shared, dtype=np.float32) + 0.5) / shared
            np.minimum(turned[2], np.where(is_laid, ramp, 1), out=turned[2])
        soft = ndimage.uniform_filter(cuts.astype(np.float32), (0, 3, 3), mode="nearest")
        return soft, wide

    def picture(self) -> NDArray[np.uint8]:
        """All of them, `[B, 3, C, C]`."""
        return self._drawn.astype(np.uint8)

    def _at(self, cell: tuple[int, int]) -> tuple[slice, slice]:
        down, right = (int(self._places[number]) for number in cell)
        return slice(down, down + self._size), slice(right, right + self._size)


def _turned(part: NDArray, step: tuple[int, int]) -> NDArray:
    """A view of `[n, P, P]` in which the neighbour that a step leads to lies to the left."""
    part = part if step[1] else part.transpose(0, 2, 1)
    return part if sum(step) < 0 else part[:, :, ::-1]


def seams(error: Floats) -> NDArray[np.bool_]:
    """Where a new square is seen in its overlap with one to the left: from the cheapest cut on.

    Args:
        error: `[n, L, O]`, how far both differ, rows along the cut.

    Returns:
        `[n, L, O]`; the cut moves by one pixel a row at most.
    """
    _, length, width = error.shape
    cost = error.astype(np.float64)
    for row in range(1, length):
        cost[:, row] += ndimage.minimum_filter1d(cost[:, row - 1], 3, axis=1, mode="nearest")
    seen = np.zeros(error.shape, np.bool_)
    columns = np.arange(width)
    cut = cost[:, -1].argmin(1)
    for row in range(length - 1, -1, -1):
        seen[:, row] = columns >= cut[:, None]
        if row:
            near = np.abs(columns - cut[:, None]) <= 1
            cut = np.where(near, cost[:, row - 1], np.inf).argmin(1)
    return seen
