"""Cuts images of a class into fragments, of which new images can be put together.

No image is kept: of any one at most a quarter of its area, in squares of which no two touch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from replaycad.artifacts.fragments import Fragments, encode_squares
from replaycad.diffusion.alignment import to_frame, to_pose

PARTS, SHARED = 4, 4
"""A square is a quarter of the image's side, and shares a quarter of its own with each neighbour.
"""
MOST_OF_ONE = PARTS**2 // 4  # squares of one image: a quarter of its area
LEAST_SEEN = 0.25  # of a square that an image must show for it to be cut from it
BYTES_BESIDE = 2  # of a fragment: its place and its image
PROBE = 256  # squares that tell about how many fit
TRIES, WELL_USED = 6, 0.95  # of counts, and the part of the room after which no more are made
_CHUNK = 64

ByteArray = NDArray[np.uint8]


def lattice(canvas: int, size: int, overlap: int) -> NDArray[np.int64]:
    """Where squares begin along a side: evenly, the last at the end, overlapping at least so much.
    """
    count = 1 if canvas <= size else -(-(canvas - overlap) // (size - overlap))
    return np.rint(np.linspace(0, canvas - size, count)).astype(np.int64)


@dataclass(frozen=True)
class Frame:
    """The frame of a class, wide enough for whatever its images show of it.

    Attributes:
        side: of an image in pixels.
        poses: `[N, 3]` float32 of images that turn, as `diffusion.alignment` finds them; None
            where images are taken as they lie.
    """

    side: int
    poses: NDArray[np.float32] | None

    @property
    def margin(self) -> int:
        """Pixels of the frame beyond a picture that lies straight in it."""
        return 0 if self.poses is None else -(-self.side // 4)

    @property
    def canvas(self) -> int:
        """Side of the frame in pixels."""
        return self.side + 2 * self.margin

    def moved(self, images: ByteArray, rows: Sequence[int]) -> ByteArray:
        """Images `[n, 3, S, S]` uint8, of which the poses are those rows, in the frame.

        Beyond its border each goes on in its last colour, which no replay shows.
        """
        if self.poses is None:
            return images
        pad, poses = self.margin, self._scaled(rows)
        parts = []
        for chunk, own in zip(torch.from_numpy(images).split(_CHUNK), poses.split(_CHUNK),
                              strict=True):  # fmt: skip
            wide = F.pad(chunk.float(), (pad,) * 4, mode="replicate")
            parts.append(to_frame(wide, own, "border").round().clamp(0, 255).to(torch.uint8))
        return torch.cat(parts).numpy()

    def seen(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """What images of these poses show of the frame, `[n, C, C]`."""
        if self.poses is None:
            return np.ones((len(rows), self.canvas, self.canvas), np.bool_)
        ones = F.pad(torch.ones(1, 1, self.side, self.side), (self.margin,) * 4)
        parts = [
            to_frame(ones.expand(len(own), -1, -1, -1), own, "zeros", "bilinear")[:, 0] > 0.999
            for own in self._scaled(rows).split(_CHUNK)
        ]
        return torch.cat(parts).numpy()

    def posed(self, drawn: ByteArray, rows: Sequence[int]) -> ByteArray:
        """Pictures of the frame `[n, 3, C, C]` uint8 as images of these poses, `[n, 3, S, S]`."""
        if self.poses is None:
            return drawn
        moved = to_pose(torch.from_numpy(drawn).float(), self._scaled(rows), "border")
        own = slice(self.margin, self.margin + self.side)
        return moved[:, :, own, own].round().clamp(0, 255).to(torch.uint8).numpy()

    def _scaled(self, rows: Sequence[int]) -> torch.Tensor:
        """Poses with shifts in widths of the frame, not of an image."""
        assert self.poses is not None
        poses = torch.from_numpy(self.poses[list(rows)])
        scale = self.side / self.canvas
        return poses * torch.tensor([1.0, scale, scale])


def shown_cells(
    seen: NDArray[np.bool_], size: int, overlap: int, least: float = LEAST_SEEN
) -> NDArray[np.bool_]:
    """Which cells of the lattice each image shows, `[N, R * R]`, row by row.

    Args:
        seen: `[N, C, C]`, what each image shows.
        size: side of a square in pixels.
        overlap: of neighbours.
        least: part of a square that must be seen.
    """
    places = lattice(seen.shape[-1], size, overlap)
    sums = np.pad(seen.cumsum(1, dtype=np.int32).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    ends = places + size
    above, below = sums[:, places], sums[:, ends]
    area = below[:, :, ends] - below[:, :, places] - above[:, :, ends] + above[:, :, places]
    return area.reshape(len(seen), -1) >= least * size * size


def cut_order(
    shown: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Which fragments are cut, (cell, image) in the order in which they are kept.

    Each image gives to one of four sets of cells only, those of even or odd rows and columns: so no
    two of its fragments touch, and `MOST_OF_ONE` at most. All cells are served in turn, one that
    few images show more seldom, by the image that has given least.

    Args:
        shown: of each lattice that squares belong to, as `shown_cells` finds them; cells are
            numbered through, and every image gives to one of the lattices.
        rng: random stream.
    """
    count = len(shown[0])
    sets, ties = rng.permutation(count), rng.random(count)
    free: dict[int, list[int]] = {}
    turns = []
    for number, cells in enumerate(shown):
        gives = sets // 4 % len(shown) == number
        across, before = math.isqrt(cells.shape[1]), len(free)
        for place in range(cells.shape[1]):
            row, column = divmod(place, across)
            own = gives & (sets % 4 == 2 * (row % 2) + column % 2) & cells[:, place]
            cell = before + place
            free[cell] = np.flatnonzero(own).tolist()
            many = len(free[cell])
            turns += [((turn + 0.5) / many, rng.random(), cell) for turn in range(many)]
    order, given = [], np.zeros(count, np.int64)
    for _, _, cell in sorted(turns):
        image = min(free[cell], key=lambda one: (given[one], ties[one]))
        free[cell].remove(image)
        if given[image] < MOST_OF_ONE:
            order.append((cell, image))
            given[image] += 1
    return order


def cut(
    pictures: Sequence[ByteArray],
    order: Sequence[tuple[int, int]],
    size: int,
    overlap: int,
    quality: int,
    room: int,
) -> Fragments | None:
    """As many fragments as fit, the first in the order.

    Args:
        pictures: of each lattice `[N, 3, C, C]` uint8, images as they lie there.
        order: as `cut_order` gives.
        size: side of a square in pixels.
        overlap: of neighbours.
        quality: of AVIF.
        room: bytes of sheet, places and images.

    Returns:
        None if not even a few fit.
    """
    corners = []
    for number, one in enumerate(pictures):
        places = lattice(one.shape[-1], size, overlap)
        corners += [(number, top, left) for top in places for left in places]

    def taken(count: int) -> tuple[Fragments, int]:
        # In the order of the cells neighbours in the sheet are alike, which takes fewer bytes.
        first = sorted(order[:count])
        found = ((*corners[cell], image) for cell, image in first)
        squares = np.stack([
            pictures[number][image, :, top : top + size, left : left + size]
            for number, top, left, image in found
        ])  # fmt: skip
        cells, owners = np.array(first, np.uint8).T
        canvas = pictures[-1].shape[-1]
        kept = Fragments(encode_squares(squares, quality), cells, owners, size, overlap, canvas)
        return kept, len(kept.sheet) + BYTES_BESIDE * count

    count, best = min(PROBE, len(order)), None
    for _ in range(TRIES):
        found, used = taken(count)
        if used <= room and (best is None or len(found) > len(best)):
            best = found
            if count == len(order) or used > WELL_USED * room:
                break
        count = min(len(order), int(count * (1 + WELL_USED) / 2 * room / used))
        if count < 1 or (best is not None and count <= len(best)):
            break
    return best
