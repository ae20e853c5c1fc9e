"""What only pixels tell of a class: broken images, blank ones, and ones unlike the others."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replaycad.data.images import load_anomaly_mask, masks_cut
from replaycad.data.levels import Cut
from replaycad.data.pixels import is_deep, range_of, read_picture
from replaycad.data.samples import Sample, counted, listed
from replaycad.errors import DatasetError

ByteArray = NDArray[np.uint8]

SIDE = 24  # px of the small copies that are compared
BLANK = 1.0  # standard deviation in grey levels of what shows nothing
ROWS = 512  # images whose distances to all are in memory at a time
MASK_SIDE = 256  # px at which masks are looked at
SAMPLED = 256  # rows and columns of pixels, evenly spaced, that a blank image is told by
LARGE = 0.5  # share of an image, above which a defect is implausible
COMPARED = 100  # images of a class that are held against those of others
ALIKE = 1.5  # times the distance within a class, up to which two classes look the same
INEXACT = 4e-6  # of the squares, by which their difference is off in 32 bits
FEWEST = 8  # images among which one can be unlike the others
FAR = 6.0  # times the usual spread, measured by the median: beyond it an image stands apart


@dataclass(frozen=True)
class Look:
    """What the pixels of a class's images tell.

    Attributes:
        problems: sentences.
        note: what was guessed of the levels of training images; empty for eight bits.
        odd: training images that are unlike the others, the most unlike first.
        shown: small copies `[n, SIDE, SIDE, 3]` uint8 of some training images.
    """

    problems: list[str] = field(default_factory=list)
    note: str = ""
    odd: list[Sample] = field(default_factory=list)
    shown: ByteArray = field(default_factory=lambda: np.zeros((0, SIDE, SIDE, 3), np.uint8))


def look_through(train: Sequence[Sample], test: Sequence[Sample]) -> Look:
    """Unpack every image and say what is wrong; one image per processor is in memory at a time.

    Args:
        train: normal images.
        test: test images.
    """
    try:
        found_range = range_of(sample.path for sample in train if _opens(sample))
    except DatasetError as error:
        return Look([str(error)])
    samples = [*train, *test]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda sample: _small(sample, found_range.white), samples))
    reasons = {
        one.image_id: reason for one, reason in zip(samples, found, strict=True)
        if isinstance(reason, str)
    }  # fmt: skip
    problems = []
    if reasons:
        problems.append(
            next(iter(reasons.values())) if len(reasons) == 1 else
            f"{len(reasons)} files are of no use ({listed(list(reasons))}); the first: "
            f"{next(iter(reasons.values()))}"
        )
    blank = [
        one.image_id for one, small in zip(samples, found, strict=True)
        if not isinstance(small, str) and small.is_blank
    ]  # fmt: skip
    if blank:
        shows = "1 image shows" if len(blank) == 1 else f"{len(blank)} images show"
        problems.append(f"{shows} one colour only ({listed(blank)}): remove")
    learned = [
        (one, small.pixels) for one, small in zip(train, found, strict=False)
        if not isinstance(small, str)
    ]  # fmt: skip
    if not learned:
        return Look(problems, found_range.note)
    stack = np.stack([small for _, small in learned])
    odd = [learned[place][0] for place in unlike_others(stack)]
    if odd:
        shown = listed([one.image_id for one in odd])
        problems.append(
            f"{counted(len(odd), 'training image')} {_is(odd)} unlike the others ({shown}): look "
            "whether that is normal"
        )
    some = stack[:: max(1, len(stack) // COMPARED)][:COMPARED]
    return Look(problems, found_range.note, odd, some)


@dataclass(frozen=True)
class MaskLook:
    """What the anomaly masks of a class are.

    Attributes:
        cut: how those are read that can be.
        useless: sentences on what cannot be read or does not fit.
        implausible: sentences on what can be and is hardly meant.
    """

    cut: Cut
    useless: list[str]
    implausible: list[str]


def look_at_masks(test: Sequence[Sample]) -> MaskLook:
    """Unpack every anomaly mask.

    Args:
        test: test images.
    """
    readable = [sample for sample in test if sample.mask_paths]
    wrong: list[str] = []
    empty: list[str] = []
    tiny: list[str] = []
    large: list[str] = []
    try:
        cut = masks_cut(readable)
    except DatasetError:
        faults = {sample: _fault(sample) for sample in readable}
        wrong = [fault for fault in faults.values() if fault]
        readable = [sample for sample, fault in faults.items() if not fault]
        cut = masks_cut(readable)
    for sample in readable:
        try:
            share = load_anomaly_mask(sample, MASK_SIDE, cut).mean()
        except DatasetError as error:
            wrong.append(error.message)
            continue
        if share == 0:
            marked = any(cut.defects(path).any() for path in sample.mask_paths)
            (tiny if marked else empty).append(sample.image_id)
        large += [sample.image_id] if share > LARGE else []
    found, useless = [], []
    if wrong:
        useless.append(f"{counted(len(wrong), 'anomaly mask')} {_is(wrong)} of no use: {wrong[0]}")
    if empty:
        told = f"{counted(len(empty), 'anomaly mask')} {_is(empty)} empty"
        found.append(f"{told} ({listed(empty)})")
    if tiny:
        told = f"{counted(len(tiny), 'anomaly mask')} mark{'s' * (len(tiny) == 1)} less than"
        found.append(f"{told} a pixel at {MASK_SIDE} px ({listed(tiny)})")
    if 2 * len(large) > len(readable):
        told = f"{counted(len(large), 'anomaly mask')} cover{'s' * (len(large) == 1)}"
        found.append(f"{told} more than half of the image: are black and white exchanged?")
    return MaskLook(cut, useless, found)


def _fault(sample: Sample) -> str:
    """Why an image's masks cannot be read; empty if they can."""
    try:
        masks_cut([sample])
    except DatasetError as error:
        return error.message
    return ""


def _is(some: Sequence[object]) -> str:
    return "is" if len(some) == 1 else "are"


def unlike_others(small: ByteArray) -> list[int]:
    """Which of `[N, SIDE, SIDE, 3]` uint8 pictures are far from all others, the farthest first.

    Each is held against its nearest neighbour, so that a class may have several looks.
    """
    if len(small) < FEWEST:
        return []
    nearest = _nearest(small, small)
    nearest[np.isinf(nearest)] = 0.0
    middle = np.median(nearest)
    spread = 1.4826 * np.median(np.abs(nearest - middle))
    limit = middle + FAR * max(spread, 0.05 * middle)
    return [int(place) for place in np.argsort(-nearest) if nearest[place] > limit]


def look_alike(one: ByteArray, other: ByteArray) -> bool:
    """Whether images of two classes are as near to each other as to those of their own class."""
    if min(len(one), len(other)) < FEWEST:
        return False
    across = [np.median(_nearest(one, other)), np.median(_nearest(other, one))]
    within = [np.median(_nearest(one, one)), np.median(_nearest(other, other))]
    return bool(max(across) < ALIKE * min(within))


def _nearest(small: ByteArray, others: ByteArray) -> NDArray[np.float32]:
    """Distance `[N]` of each picture to the nearest of the others; copies of it do not count.

    In parts, so that few are floats at a time. Squares of 32 bits are inexact by some millionths:
    what is nearer than that is a copy, be it of a picture that is far from all.
    """
    nearest = np.full(len(small), np.inf, np.float32)
    middle = others.mean(axis=0, dtype=np.float32).reshape(-1)
    for first in range(0, len(others), ROWS):
        far = others[first : first + ROWS].reshape(-1, middle.size) - middle
        far_squares = (far * far).sum(axis=1)
        for start in range(0, len(small), ROWS):
            flat = small[start : start + ROWS].reshape(-1, middle.size) - middle
            squares = (flat * flat).sum(axis=1)[:, None] + far_squares
            distances = squares - 2 * flat @ far.T
            distances[distances < 1.0 + INEXACT * squares] = np.inf
            own = nearest[start : start + ROWS]
            np.minimum(own, np.sqrt(distances.min(axis=1)), out=own)
    return nearest


def _opens(sample: Sample) -> bool:
    try:
        is_deep(sample.path)
    except DatasetError:
        return False
    return True


class _Small(NamedTuple):
    """A small copy of a picture `[SIDE, SIDE, 3]` uint8; whether the picture shows one colour."""

    pixels: ByteArray
    is_blank: bool


def _small(sample: Sample, white: float) -> _Small | str:
    """A small copy of a picture; or what is wrong with the file."""
    try:
        picture = read_picture(sample.path, white)
    except DatasetError as error:
        return str(error)
    shrunk = picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(shrunk, np.uint8)
    if pixels.std() >= BLANK:
        return _Small(pixels, is_blank=False)
    # Not by the copy, in which a fine texture averages out.
    some = picture.resize((SAMPLED, SAMPLED), Image.Resampling.NEAREST)
    return _Small(pixels, bool(np.asarray(some).std() < BLANK))
