"""The ground of a class, learned from what the borders of its images show; the part differs.

A part on a patterned ground does not stand out in one image: the pattern has edges of its own. Over
a class it does, as the ground comes back at every border and the part never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from replaycad.mask_ops import label_components, resize_masks
from replaycad.segmentation.selection import tidy

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

WORK_SIZE = 128  # pixels at which patches are compared, whatever the size of the images
BORDER_FRACTION = 0.1  # of the side: what lies there is taken for ground
BANK = 384  # patches that stand for the ground, and for the part
SAMPLED = 4000  # patches that the directions of largest variance are found from
DIRECTIONS = 12
FLOOR = 0.02  # distance per side that is noise; values are 0 to 1
CORE, CLEARANCE = 2, 4  # pixels: as far inside, and outside, a first guess is sure of itself
MIN_PATCHES = 30
SMOOTH_SIDE = 3  # pixels of the box that smooths a first difference
MAIN_FRACTION = 0.1  # of the largest piece of a part; a smaller one is a stain of the ground
LEVELS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What tells ground from part in a class: patches of both, in common directions.

    Attributes:
        side: of the patches, in pixels of the image at 128 px.
        mean: `[3 * side * side]` float32, of all patches, RGB, 0 to 1.
        directions: `[3 * side * side, D]` float32.
        ground: `[B, D]` float32.
        part: `[B, D]` float32.
    """

    side: int
    mean: torch.Tensor
    directions: torch.Tensor
    ground: torch.Tensor
    part: torch.Tensor

    def object_mask(self, image: ByteArray) -> BoolArray:
        """Part `[H, W]` bool of an image `[H, W, 3]` uint8: what is likelier part than ground."""
        small = _small(image)
        mask = _cut(self._likeness(_patches(small, self.side)), 0.0)
        return _at_size(mask, image.shape[0], image.shape[1])

    def _likeness(self, patches: torch.Tensor) -> torch.Tensor:
        """Logarithm `[S, S]` of how much nearer each patch `[S, S, d]` lies to the part."""
        flat = (patches.flatten(0, 1) - self.mean) @ self.directions
        floor = FLOOR * self.side
        to_ground, to_part = (_nearest(flat, bank) + floor for bank in (self.ground, self.part))
        return _smooth((to_ground / to_part).log().view(patches.shape[:2]), self.side)


def learn_ground(images: Sequence[ByteArray], side: int) -> Ground | None:
    """Learn what is ground and what is part from images of one class.

    First, patches of the images that are far from every patch of the borders are the part; small
    patches see thin parts, large ones tell a large dark part from the dark holes of its ground.
    Then patches of half that side, surely inside and surely outside of it, tell the two apart with
    a sharper outline.

    Deviation: the paper selects among the masks of "segment everything" where corner points fail; a
    class whose ground has a pattern is told from it by what the borders of all its images show.

    Args:
        images: `[H, W, 3]` uint8 RGB each, a few dozen at most, as all are held at once.
        side: of the first patches, an odd number of pixels of the image at 128 px.

    Returns:
        None if no part, or nothing but part, was found.
    """
    small = [_small(image) for image in images]
    stream = torch.Generator().manual_seed(0)
    guesses = [_cut(*_with_threshold(far)) for far in _far_from_borders(small, side, stream)]
    inside, outside, fine = [], [], side // 2 | 1
    for image, guess in zip(small, guesses, strict=True):
        patches = _patches(image, fine)
        inside.append(patches[_grown(~guess, CORE).logical_not()])
        outside.append(patches[_grown(guess, CLEARANCE).logical_not()])
    part, ground = (_sample(torch.cat(bank), BANK, stream) for bank in (inside, outside))
    if min(len(part), len(ground)) < MIN_PATCHES:
        return None
    mean, directions = _directions(torch.cat([part, ground]))
    return Ground(
        side=fine,
        mean=mean,
        directions=directions,
        ground=(ground - mean) @ directions,
        part=(part - mean) @ directions,
    )


def _far_from_borders(
    images: Sequence[torch.Tensor], side: int, stream: torch.Generator
) -> list[torch.Tensor]:
    """How far `[S, S]` each patch of each image lies from the patches of all borders."""
    width = round(BORDER_FRACTION * WORK_SIZE)
    is_border = torch.ones(WORK_SIZE, WORK_SIZE, dtype=torch.bool)
    is_border[width:-width, width:-width] = False
    share = -(-SAMPLED // len(images))
    border, every = [], []
    for image in images:
        patches = _patches(image, side)
        border.append(_sample(patches[is_border], share, stream))
        every.append(_sample(patches.flatten(0, 1), share, stream))
    mean, directions = _directions(torch.cat(every))
    bank = (_sample(torch.cat(border), BANK, stream) - mean) @ directions
    far = []
    for image in images:
        flat = (_patches(image, side).flatten(0, 1) - mean) @ directions
        far.append(_smooth(_nearest(flat, bank).view(WORK_SIZE, WORK_SIZE), SMOOTH_SIDE))
    return far


def _small(image: ByteArray) -> torch.Tensor:
    """`[3, S, S]` float32, 0 to 1."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255
    if planes.shape[-2:] == (WORK_SIZE, WORK_SIZE):
        return planes[0]
    return F.interpolate(planes, (WORK_SIZE, WORK_SIZE), mode="bilinear", antialias=True)[0]


def _patches(image: torch.Tensor, side: int) -> torch.Tensor:
    """Patches `[S, S, 3 * side * side]` around every pixel of `[3, S, S]`."""
    padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")
    return F.unfold(padded, side)[0].T.reshape(*image.shape[1:], -1)


def _sample(patches: torch.Tensor, count: int, stream: torch.Generator) -> torch.Tensor:
    return patches[torch.randperm(len(patches), generator=stream)[:count]]


def _directions(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[D]` and the directions `[D, d]` of largest variance of patches `[N, D]`."""
    mean = patches.mean(0)
    _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))
    return mean, vectors[:, -DIRECTIONS:]


def _nearest(points: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Distance `[N]` from each of `[N, d]` to the nearest of `[B, d]`."""
    return torch.cdist(points, bank).amin(1)


def _smooth(values: torch.Tensor, side: int) -> torch.Tensor:
    """The mean of `[S, S]` over a square, twice."""
    for _ in range(2):
        padded = F.pad(values[None, None], (side // 2,) * 4, mode="replicate")
        values = F.avg_pool2d(padded, side, 1)[0, 0]
    return values


def _with_threshold(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The values and where they fall into two groups that differ most (Otsu 1979)."""
    count, edges = np.histogram(values.numpy(), LEVELS)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count) / count.sum()
    mass = np.cumsum(count * middles) / count.sum()
    between = (mass[-1] * below - mass) ** 2 / np.maximum(below * (1 - below), 1e-9)
    return values, float(middles[between.argmax()])


def _cut(values: torch.Tensor, threshold: float) -> BoolArray:
    """What lies above the threshold, without specks, pin-holes and stains, `[S, S]` bool."""
    mask = tidy((values > threshold).numpy())
    labels, count = label_components(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    return mask & (areas >= MAIN_FRACTION * areas.max())[labels]


def _grown(mask: BoolArray, pixels: int) -> torch.Tensor:
    """The mask `[S, S]` and all within a square of so many pixels around it."""
    grey = torch.from_numpy(mask)[None, None].float()
    return F.max_pool2d(grey, 2 * pixels + 1, 1, pixels)[0, 0] > 0


def _at_size(mask: BoolArray, height: int, width: int) -> BoolArray:
    if mask.shape == (height, width):
        return mask
    if height == width:
        return resize_masks(mask[None], height)[0]
    grey = torch.from_numpy(mask)[None, None].float()
    enlarged = F.interpolate(grey, (height, width), mode="bilinear")[0, 0] >= 0.5
    return np.asarray(enlarged.numpy(), dtype=np.bool_)
