"""What only pixels tell of a class: broken images, blank ones, and ones unlike the others."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replaycad.data.pixels import is_deep, read_picture, white_of
from replaycad.data.samples import Sample, counted, listed
from replaycad.errors import DatasetError

ByteArray = NDArray[np.uint8]

SIDE = 24  # px of the small copies that are compared
BLANK = 1.0  # standard deviation in grey levels of what shows nothing
ROWS = 512  # images whose distances to all are in memory at a time
FEWEST = 8  # images among which one can be unlike the others
FAR = 6.0  # times the usual spread, measured by the median: beyond it an image stands apart


def look_through(train: Sequence[Sample], test: Sequence[Sample]) -> list[str]:
    """Unpack every image and say what is wrong; one image per processor is in memory at a time.

    Args:
        train: normal images.
        test: test images.

    Returns:
        Sentences on files that cannot be read, blank images, and training images that are unlike
        the others, the most unlike first.
    """
    try:
        white = white_of(sample.path for sample in train if _opens(sample))
    except DatasetError as error:
        return [str(error)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda sample: _small(sample, white), [*train, *test]))
    problems = []
    broken = {
        sample.image_id: one for sample, one in zip([*train, *test], found, strict=True)
        if isinstance(one, str)
    }  # fmt: skip
    if broken:
        problems.append(
            f"{counted(len(broken), 'file')} cannot be read ({listed(list(broken))}): replace or "
            f"remove; the first: {next(iter(broken.values()))}"
        )
    small = {
        sample.image_id: one for sample, one in zip([*train, *test], found, strict=True)
        if not isinstance(one, str)
    }  # fmt: skip
    blank = [name for name, one in small.items() if one.std() < BLANK]
    if blank:
        problems.append(f"{counted(len(blank))} of one colour ({listed(blank)}): remove")
    names = [sample.image_id for sample in train if sample.image_id in small]
    odd = unlike_others(np.stack([small[name] for name in names])) if names else []
    if odd:
        shown = listed([names[place] for place in odd])
        problems.append(
            f"{counted(len(odd), 'training image')} unlike the others ({shown}): look whether "
            "they are normal"
        )
    return problems


def unlike_others(small: ByteArray) -> list[int]:
    """Which of `[N, SIDE, SIDE, 3]` uint8 pictures are far from all others, the farthest first.

    Each is held against its nearest neighbour, so that a class may have several looks.
    """
    if len(small) < FEWEST:
        return []
    flat = small.reshape(len(small), -1) - small.mean(axis=0, dtype=np.float32).reshape(-1)
    squares = (flat * flat).sum(axis=1)
    nearest = np.empty(len(flat), np.float32)
    for start in range(0, len(flat), ROWS):
        rows = slice(start, start + ROWS)
        distances = squares[rows, None] + squares - 2 * flat[rows] @ flat.T
        distances[distances < 1.0] = np.inf  # itself, and copies of it
        nearest[rows] = np.sqrt(distances.min(axis=1))
    nearest[np.isinf(nearest)] = 0.0
    middle = np.median(nearest)
    spread = 1.4826 * np.median(np.abs(nearest - middle))
    limit = middle + FAR * max(spread, 0.05 * middle)
    return [int(place) for place in np.argsort(-nearest) if nearest[place] > limit]


def _opens(sample: Sample) -> bool:
    try:
        is_deep(sample.path)
    except DatasetError:
        return False
    return True


def _small(sample: Sample, white: float) -> ByteArray | str:
    """A small copy `[SIDE, SIDE, 3]`, uint8; or what is wrong with the file."""
    try:
        picture = read_picture(sample.path, white)
    except DatasetError as error:
        return error.message
    shrunk = picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(shrunk, np.uint8)
