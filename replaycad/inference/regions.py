"""Where a picture is anomalous, and how big that is."""

from typing import NamedTuple

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
    """

    box: tuple[int, int, int, int]
    area: int
    percent: float
    peak: float


def find_regions(
    anomaly_map: NDArray[np.float32], level: float, width: int, height: int
) -> list[Region]:
    """Where a map is above a level, the highest place first.

    With the limit of an image as the level, the marked area was 0.6 to 3.5 times the drawn one in
    the median of six real classes; with the limit of a pixel 3 to 6.5 times.

    Args:
        anomaly_map: `[h, w]` float32; minus infinity where nothing counts.
        level: half of the highest value stands in for it where no pixel comes so high, or where it
            is not above 0: the scores of some detectors are on another scale than their maps.
        width, height: of the picture, whose shape the map may have at another size, or squashed.

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
    for place, peak, size in zip(ndimage.find_objects(marked), peaks, sizes, strict=True):
        rows, columns = place
        box = (
            int(columns.start * across), int(rows.start * down),
            min(width, int(np.ceil(columns.stop * across))),
            min(height, int(np.ceil(rows.stop * down))),
        )  # fmt: skip
        area = round(float(size) * across * down)
        share = 100 * float(size) / anomaly_map.size
        found.append(Region(box, area, round(share, 3), round(float(peak), 4)))
    return sorted(found, key=lambda region: -region.peak)[:MOST]
