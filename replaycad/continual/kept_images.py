"""Real images that were kept of a class, and how they are moved and turned as the class is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.continual.exemplars import vary
from replaycad.diffusion.alignment import beyond_border
from replaycad.mask_ops import Operation
from replaycad.runtime import stream_seed


def picked_place(seed: int, count: int) -> int:
    """Which of so many images a seed picks."""
    return int(_stream(seed).integers(count, size=1)[0])


def _stream(seed: int) -> np.random.Generator:
    """What is drawn for an image: first which of the kept ones it is made of."""
    return np.random.default_rng(stream_seed(int(seed), "exemplar"))


class KeptImages:
    """The real images of one class.

    Args:
        images: `[E, 3, S, S]` uint8.
        own: `[E, 3]` float32, their poses.
        poses: `[P, 3]` float32 that the class takes; None where poses were not looked for.
        policy: of the class.
        symmetries: turns and flips that the class allows, degrees and flip of each.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        own: NDArray[np.float32],
        poses: NDArray[np.float32] | None,
        policy: dict[str, Any],
        symmetries: Sequence[Sequence[Any]],
    ) -> None:
        self.images, self._own, self._poses = images, own, poses
        self._policy = policy
        self._operations = [Operation(rotate_degrees=turn, flip=flip) for turn, flip in symmetries]
        self._beyond = beyond_border(policy["mask_rule"])

    def in_frame(self, seed: int) -> NDArray[np.uint8]:
        """The image that a seed picks, in the common frame: `[3, S, S]` uint8."""
        picked = _stream(seed).integers(len(self.images), size=1)
        still = np.zeros((1, 3), np.float32)
        return vary(self.images[picked], self._own[picked], still, self._beyond, (), [])[0]

    def draw(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images `[n, 3, S, S]` uint8, each as its seed has it `varied`."""
        return np.stack([self.varied(seed) for seed in seeds])

    def varied(self, seed: int, place: int | None = None) -> NDArray[np.uint8]:
        """An image moved and turned as the class is: `[3, S, S]` uint8.

        Args:
            seed: picks the image, pose, turn and flip.
            place: of the image, where the seed shall not pick it.
        """
        rng = _stream(seed)
        picked = rng.integers(len(self.images), size=1)
        if place is not None:
            picked = np.array([place])
        wanted = self._own[picked]
        # A surface stays: turned, it would go on beyond its border, where a mirror shows kinks.
        is_moved = self._policy["mask_rule"] != "frame"
        if is_moved and self._poses is not None:
            wanted = self._poses[rng.integers(len(self._poses), size=1)]
        elif is_moved and self._policy["replay_augmentation"] == "free_rotation":
            wanted = wanted + np.array([[rng.uniform(0, 360), 0, 0]], np.float32)
        images, own = self.images[picked], self._own[picked]
        return vary(images, own, wanted, self._beyond, self._operations, [rng])[0]
