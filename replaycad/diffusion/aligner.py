"""Poses of stored images: found once for all that ask, or in a frame that others lie in already."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from replaycad.diffusion.alignment import (
    FINE,
    FREE_SPREAD,
    Alignment,
    align,
    align_to,
    spread,
    to_frame,
    variance,
)
from replaycad.runtime import generator

MAX_KNOWN = 64  # alignments that an `Aligner` remembers; each is but the poses


class Aligner:
    """`align` for stored images, which remembers what it found for the last `MAX_KNOWN` classes.

    Every representation of a class that is tried begins with its poses and would wait for them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], Alignment] = {}

    def __call__(self, images: NDArray[np.uint8], seed: int) -> Alignment:
        """Find the poses of `[N, 3, S, S]` uint8 images; `seed` is that of the run."""
        key = (hashlib.sha256(images.tobytes()).digest(), seed)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.pop(next(iter(self._known)))  # the oldest
            self._known[key] = align(torch.from_numpy(images), generator(seed, "alignment"))
        return self._known[key]


class FrameAligner(Aligner):
    """Finds the poses of some images in the frame that others are known to lie in.

    Args:
        poses: `[K, 3]` float32, of the first images of every call.
    """

    def __init__(self, poses: NDArray[np.float32]) -> None:
        super().__init__()
        self._poses = torch.from_numpy(poses)

    def __call__(self, images: NDArray[np.uint8], seed: int) -> Alignment:  # noqa: ARG002
        """Find the poses of `[K + N, 3, S, S]` uint8 images; nothing is drawn from `seed`."""
        all_images, count = torch.from_numpy(images), len(self._poses)
        known, others = all_images[:count], all_images[count:]
        is_free = bool(spread(self._poses[:, 0]) > FREE_SPREAD)
        poses = self._poses
        if len(others):
            frame = to_frame(known.float(), poses, "border").mean(0)
            poses = torch.cat([poses, align_to(others, frame, is_free)])
        fine = F.interpolate(all_images.float() / 127.5 - 1, (FINE, FINE), mode="area")
        left = variance(to_frame(fine, poses, mode="bilinear"))
        return Alignment(poses, is_free, float(left / variance(fine).clamp_min(1e-9)))
