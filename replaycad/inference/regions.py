"""Where a picture is anomalous, and how big that is."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MOST = 20  # regions that are told
TOUCHING = np.ones((3, 3))  # pixels that share a corner belong together


class Region(NamedTuple):
    """One place of a picture.

    Attributes:
        box: left, top, right and bottom in pixels of the picture; the last two are not part of it.
        area: in pixels of the picture.
        percent: of the picture.
        peak: highest value of the map in it.
        outlines: closed lines around it and around its holes, in pixels of the picture, corner by
            corner, with the place to the right; None where nobody asked.
    """

    box: tuple[int, int, int, int]
    area: int
    percent: float
    peak: float
    outlines: list[list[tuple[int, int]]] | None = None

    def facts(self) -> dict[str, Any]:
        """For JSON; without outlines where there are none."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def find_regions(
    anomaly_map: NDArray[np.float32],
    level: float,
    width: int,
    height: int,
    outlined: bool = False,
) -> list[Region]:
    """Where a map is above a level, the highest place first.

    With the limit of an image as the level, the marked area was 0.6 to 3.5 times the drawn one in
    the median of six real classes; with the limit of a pixel 3 to 6.5 times.

    Args:
        anomaly_map: `[h, w]` float32; minus infinity where nothing counts.
        level: half of the highest value stands in for it where no pixel comes so high, or where it
            is not above 0: the scores of some detectors are on another scale than their maps.
        width, height: of the picture, whose shape the map may have at another size, or squashed.
        outlined: whether to give outlines.

    Returns:
        at most `MOST`; none where no pixel is above 0.
    """
    highest = float(anomaly_map.max())
    if highest <= 0:
        return []
    cut = level if 0 < level < highest else highest / 2
    marked, count = ndimage.label(anomaly_map > cut, TOUCHING)
    numbers = range(1, count + 1)
    peaks = ndimage.maximum(anomaly_map, marked, numbers)
    sizes = np.bincount(marked.ravel())[1:]
    across, down = width / anomaly_map.shape[1], height / anomaly_map.shape[0]
    found = []
    places = ndimage.find_objects(marked)
    for number, place, peak, size in zip(numbers, places, peaks, sizes, strict=True):
        rows, columns = place
        box = (
            int(columns.start * across), int(rows.start * down),
            min(width, int(np.ceil(columns.stop * across))),
            min(height, int(np.ceil(rows.stop * down))),
        )  # fmt: skip
        area = round(float(size) * across * down)
        share = 100 * float(size) / anomaly_map.size
        lines = None
        if outlined:
            lines = [
                [(round((columns.start + x) * across), round((rows.start + y) * down))
                 for x, y in line]
                for line in outlines(marked[place] == number)
            ]  # fmt: skip
        found.append(Region(box, area, round(share, 3), round(float(peak), 4), lines))
    return sorted(found, key=lambda region: -region.peak)[:MOST]


def outlines(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Closed lines along the borders of a mask `[h, w]`.

    Returns:
        of each line its corners (x, y), between pixels; the mask lies to the right of it, so holes
        are run around the other way. The last corner is joined to the first.
    """
    inside = np.pad(mask, 1)
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0)),
    ):  # fmt: skip
        beside = np.roll(inside, (-down, -right), (0, 1))
        for row, column in np.argwhere(inside & ~beside).tolist():
            x, y = column - 1, row - 1
            corner = (x + start[0], y + start[1])
            ahead.setdefault(corner, []).append((x + end[0], y + end[1]))
    lines = []
    while ahead:
        first = corner = next(iter(ahead))
        line: list[tuple[int, int]] = []
        while not line or corner != first:
            line.append(corner)
            following = ahead[corner].pop()
            if not ahead[corner]:
                del ahead[corner]
            corner = following
        lines.append(_corners(line))
    return lines


def _corners(line: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points of a closed line at which it turns."""
    neighbours = zip(line[-1:] + line[:-1], line, line[1:] + line[:1], strict=True)
    return [
        here for before, here, after in neighbours
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
    ]  # fmt: skip
