"""From pictures to their maps, window by window: what is in memory are the windows of one batch."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replaycad.data.views import BoolArray, ByteArray, View, Window, touched

FloatArray = NDArray[np.float32]
Key = TypeVar("Key")
MapsOf = Callable[[ByteArray], FloatArray]
"""Images `[B, S, S, 3]` uint8 RGB -> their maps `[B, S, S]` float32."""

RAMP = 4
"""Towards its border the word of a tile loses weight over this part of its side: a quarter."""
MAP_SIDE = 1024
"""Longer side of the map of a tiled picture, in pixels, unless a tile would have too few: a defect
of 20 px in a picture of 2,048 is then measured on 80 pixels, and 100 pictures on 10^8."""
LEAST_TILE_MAP = 32  # px of a tile in the map, however large the picture


class Stitched:
    """Puts the maps of the windows of one picture together.

    Args:
        view: of the picture's class.
        width: of the picture.
        height: likewise.
        size: of the networks' images.

    Attributes:
        windows: of the picture.
        shape: height and width of its map.
        counted: `[h, w]` bool, false where the picture is ignored; None if all of it counts.

    Raises:
        DatasetError: as `View.windows`, or ignored pixels of another size than the picture.
    """

    def __init__(self, view: View, width: int, height: int, size: int) -> None:
        self.windows = view.windows(width, height)
        self._size, self._tiled = size, bool(view.tile)
        if view.tile:
            largest = max(MAP_SIDE / max(width, height), LEAST_TILE_MAP / view.tile)
            self._scale = min(1.0, largest, size / view.tile)
            self.shape = max(1, round(height * self._scale)), max(1, round(width * self._scale))
        else:
            x, y, right, bottom = self.windows[0].place(size)
            self.shape = bottom - y, right - x
        self.counted: BoolArray | None = None
        if view.ignore:
            mask = view.mask_for(width, height, "the picture")
            self.counted = ~touched(mask, self.shape[1], self.shape[0])
        self._sum = np.zeros(self.shape, np.float32)
        self._weight = np.zeros(self.shape, np.float32)

    def add(self, window: Window, one_map: FloatArray) -> None:
        """Take the map `[size, size]` float32 of one window."""
        x, y, right, bottom = window.place(self._size)
        content = one_map[y:bottom, x:right]
        if not self._tiled:
            self._sum, self._weight = content, np.ones((), np.float32)
            return
        rows, columns = self._part(window)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if content.shape != (height, width):
            drawn = Image.fromarray(np.ascontiguousarray(content, np.float32))
            content = np.asarray(drawn.resize((width, height), Image.Resampling.BILINEAR))
        ramp = max(1.0, window.side * self._scale / RAMP)
        weight = np.outer(_rising(height, ramp), _rising(width, ramp)).astype(np.float32)
        self._sum[rows, columns] += weight * content
        self._weight[rows, columns] += weight

    def whole(self) -> FloatArray:
        """The map `[h, w]` float32 of the picture, without its padding."""
        return self._sum / self._weight if self._tiled else self._sum

    def parts(self, whole: FloatArray) -> Iterator[FloatArray]:
        """Maps `[h, w]` float32 that a detector can score, the highest score is the picture's.

        Of a tiled picture one for each tile. What does not count is as low as the lowest that does.
        """
        least = whole.min() if self.counted is None else whole[self.counted].min()
        filled = whole if self.counted is None else np.where(self.counted, whole, least)
        if self._tiled:
            yield from (filled[self._part(window)] for window in self.windows)
            return
        x, y, right, bottom = self.windows[0].place(self._size)
        square = np.full((self._size, self._size), least, np.float32)
        square[y:bottom, x:right] = filled
        yield square

    def _part(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the map that a window covers."""
        left, top, right, bottom = window.box
        rows, columns = (
            slice(min(round(first * self._scale), length - 1),
                  max(1, min(round(last * self._scale), length)))
            for first, last, length in
            ((top, bottom, self.shape[0]), (left, right, self.shape[1]))
        )  # fmt: skip
        return rows, columns


def stitched_maps(
    pictures: Iterable[tuple[Key, Image.Image]],
    view: View,
    size: int,
    batch_size: int,
    maps_of: MapsOf,
) -> Iterator[tuple[Key, Stitched]]:
    """The maps of pictures of one class, each as soon as its last window is done.

    Args:
        pictures: key and RGB picture in its own size, what is ignored blanked; read one by one.
        view: of the class.
        size: S, side of the networks' images.
        batch_size: windows at once, of one picture or several.
        maps_of: the detector.

    Raises:
        DatasetError: a tile is larger than a picture, or what is ignored has another size.
    """
    waiting: list[tuple[Stitched, Window]] = []
    pixels = np.empty((batch_size, size, size, 3), np.uint8)
    pending: deque[tuple[Key, Stitched]] = deque()

    def work() -> Iterator[tuple[Key, Stitched]]:
        if not waiting:
            return
        maps = maps_of(pixels[: len(waiting)])
        for (whole, window), one_map in zip(waiting, maps, strict=True):
            whole.add(window, one_map)
        last = waiting[-1]
        waiting.clear()
        while pending and (pending[0][1] is not last[0] or last[1] is last[0].windows[-1]):
            yield pending.popleft()

    for key, picture in pictures:
        whole = Stitched(view, *picture.size, size)
        pending.append((key, whole))
        for window in whole.windows:
            pixels[len(waiting)] = window.pixels(picture, size)
            waiting.append((whole, window))
            if len(waiting) == batch_size:
                yield from work()
    yield from work()


class MapFile(Sequence[NDArray[np.generic]]):
    """Arrays of any shapes in a temporary file without a name: one at a time is in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="replaycad-")  # noqa: SIM115 (lives as long as self)
        self._places: list[tuple[int, np.dtype, tuple[int, ...]]] = []

    def append(self, values: NDArray[np.generic]) -> None:
        """Keep one more."""
        place = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values).data)
        self._places.append((place, values.dtype, values.shape))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.generic]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.generic]]: ...

    def __getitem__(
        self, index: int | slice
    ) -> NDArray[np.generic] | list[NDArray[np.generic]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        place, dtype, shape = self._places[index]
        self._file.seek(place)
        found = np.empty(shape, dtype)
        self._file.readinto(found.data)
        return found


def _rising(length: int, ramp: float) -> FloatArray:
    """Weights `[length]` that rise from both ends to 1 over `ramp` pixels."""
    places = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(np.minimum(places, places[::-1]) / np.float32(ramp), np.float32(1))
