"""A part that turns on a ground that lies still: both are cut, and put together, apart.

Turned upright the ground would turn along, and as they lie parts do not fit together.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from replaycad.diffusion.alignment import to_frame, to_pose
from replaycad.mask_ops import resize_masks

SHAPE_SIZE = 96  # px of the shape that is kept
RIM = 1 / 64  # of an image's side, about a part, where nothing counts as ground
_CHUNK = 64


def on_plain_ground(
    images: NDArray[np.uint8], object_masks: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Images `[N, 3, S, S]` with a ground of one colour, the mean of what `[N, S, S]` leave."""
    ground = ~object_masks[:, None]
    colour = (images * ground).sum((0, 2, 3)) / max(1, int(ground.sum()))
    plain = np.rint(colour).astype(np.uint8)[:, None, None]
    return np.where(ground, plain, images)


def shape_of(object_masks: NDArray[np.bool_], poses: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The part upright, `[SHAPE_SIZE, SHAPE_SIZE]`: what half of the masks `[N, H, W]` show."""
    floats = torch.from_numpy(resize_masks(object_masks, SHAPE_SIZE))[:, None].float()
    moved = to_frame(floats, torch.from_numpy(poses), "zeros", "bilinear")
    return (moved.mean((0, 1)) >= 0.5).numpy()


class Part:
    """The shape of a part, and how it lies in each image.

    Args:
        shape: as `shape_of` gives.
        poses: `[N, 3]` float32.
        side: of an image in pixels.
    """

    def __init__(
        self, shape: NDArray[np.bool_], poses: NDArray[np.float32], side: int
    ) -> None:
        # Smoothed, or its pixels would be seen as teeth along the edge.
        smooth = ndimage.gaussian_filter(shape.astype(np.float32), 1)
        wide = F.interpolate(torch.from_numpy(smooth)[None, None], (side, side), mode="bilinear")
        self._upright = (2 * wide - 0.5).clamp(0, 1)
        self._poses, self._rim = torch.from_numpy(poses), max(1, round(RIM * side))

    def upright(self, canvas: int) -> NDArray[np.bool_]:
        """What is needed of the part in its frame, with a rim, `[C, C]`."""
        grown = ndimage.binary_dilation(self._upright[0, 0].numpy() > 0, iterations=self._rim)
        return np.pad(grown, (canvas - grown.shape[0]) // 2)

    def covers(self, rows: list[int]) -> NDArray[np.float32]:
        """How far the part covers the ground in images of these poses, 0..1, `[n, S, S]`."""
        parts = [
            to_pose(self._upright.expand(len(own), -1, -1, -1), own, "zeros")[:, 0].clamp(0, 1)
            for own in self._poses[rows].split(_CHUNK)
        ]
        return torch.cat(parts).numpy()

    def ground(self, rows: list[int]) -> NDArray[np.bool_]:
        """What images of these poses show of the ground, `[n, S, S]`."""
        covered = self.covers(rows) > 0
        near = np.ones((1, 1 + 2 * self._rim, 1 + 2 * self._rim), np.bool_)
        return ~ndimage.binary_dilation(covered, near)
