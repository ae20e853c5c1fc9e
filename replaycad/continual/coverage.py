"""How well images of a class stand for others of it, in features: judged without any label."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.anomaly import apply_both_axes, image_scores
from replaycad.detectors.cut_paste import windows
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.coreset import greedy_coreset, nearest_squared_distances
from replaycad.detectors.patchcore.embedding import embed
from replaycad.detectors.patchcore.network import POOL_BYTES
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.pyramid import smoothing_matrix
from replaycad.mask_ops import Operation, apply_to_images, augmentations
from replaycad.metrics import image_auroc, pixel_ap
from replaycad.runtime import generator

BANK_LIMIT = 32_768  # patches of the drawn images: all of 128 bundled ones; a coreset takes longer
WHOLE = PatchCorePreset(bank_fraction=1.0, bank_limit=BANK_LIMIT)
PASTED_AREA = (0.01, 0.05)  # of an image
PASTINGS = 2  # of each image
SYMMETRY_IMAGES = 24  # of either half of a class
SYMMETRY_SLACK = 1.2
"""Turned images may lie so much farther than images as they are. Measured with EfficientNet-Lite0
at 128 px on six classes: half a turn of a grid 1.08 and 1.13, half a turn and both flips of a tile
1.07 to 1.17, all other turns and classes from 1.48 to 10. (Bundled encoder, ten classes: textures
up to 1.15, all others from 1.16.)"""
_CHUNK = 32

Name = TypeVar("Name", bound=str)


class Memory:
    """A memory bank of some images, filled as a detector would fill it, for any encoder.

    Args:
        size: side of the images in pixels.
        bank: `[M, F]` float32.
        places: `[M]` int64, which image each patch is from; None where none of those is judged.
    """

    def __init__(
        self, size: int, bank: torch.Tensor, places: NDArray[np.int64] | None = None
    ) -> None:
        self._size, self._bank = size, bank
        self._to_image: torch.Tensor | None = None
        self._places = None if places is None else torch.from_numpy(places).to(bank.device)

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        encoder: Encoder,
        generator: torch.Generator,
        preset: PatchCorePreset,
        places: NDArray[np.int64] | None = None,
    ) -> "Memory":
        """Fill one with images `[N, 3, S, S]` uint8.

        Args:
            images: of which the judged ones are none.
            encoder: frozen.
            generator: CPU random stream of the coreset.
            preset: says how many patches it has.
            places: `[N]`, names of the images, where some of them are judged.
        """
        pool, owners, seen, done = None, torch.empty(0, dtype=torch.int64), 0, 0
        for pyramid in pyramids(images, encoder):
            patches = patches_of(pyramid)
            numbers = torch.arange(done, done + len(patches)).repeat_interleave(patches.shape[1])
            done, seen = done + len(patches), seen + len(numbers)
            flat = patches.flatten(0, 1)
            pool = flat if pool is None else torch.cat([pool, flat])
            owners = torch.cat([owners, numbers])
            if pool.nbytes > POOL_BYTES:
                wanted, width = preset.bank_limit, preset.projection_width
                picks = greedy_coreset(pool, wanted, generator, width)
                pool, owners = pool[picks], owners[picks.cpu()]
        assert pool is not None
        wanted = max(1, min(round(preset.bank_fraction * seen), preset.bank_limit))
        picks = greedy_coreset(pool, wanted, generator, preset.projection_width)
        names = None if places is None else places[owners[picks.cpu()].numpy()]
        return cls(images.shape[-1], pool[picks], names)

    def maps(self, patches: torch.Tensor, places: Sequence[int] | None = None) -> torch.Tensor:
        """Anomaly maps `[B, S, S]` float32 on the CPU.

        Args:
            patches: `[B, P, F]`, as `patches_of` gives them, in a square.
            places: `[B]`, which image each is of: it is held against the patches of all others.
        """
        if self._places is None or places is None:
            distances = nearest_squared_distances(patches.flatten(0, 1), self._bank)
        else:
            distances = torch.cat([
                nearest_squared_distances(one, self._bank[self._places != place])
                for one, place in zip(patches, places, strict=True)
            ])  # fmt: skip
        side = math.isqrt(patches.shape[1])
        if self._to_image is None:
            matrix = smoothing_matrix(self._size, side, align_corners=False)
            self._to_image = matrix.to(patches)
        return apply_both_axes(distances.reshape(-1, side, side), self._to_image).cpu()


def patches_of(pyramid: Sequence[torch.Tensor]) -> torch.Tensor:
    """Embedded patches `[B, P, F]` float32 of the last two levels, or of an only one twice."""
    middle, coarse = (level.float() for level in (pyramid[-2:] if len(pyramid) > 1 else
                                                  [pyramid[0], pyramid[0]]))  # fmt: skip
    return embed(middle, coarse).permute(0, 2, 3, 1).flatten(1, 2)


def distance(
    drawn: NDArray[np.uint8],
    real: NDArray[np.uint8],
    encoder: Encoder,
    generator: torch.Generator,
) -> float:
    """What a memory bank of the drawn images says of real normal ones: lower covers them better.

    Each real image counts with its most distant patch, for that is what would raise a false alarm.

    Args:
        drawn: `[N, 3, S, S]` uint8.
        real: `[M, 3, S, S]` uint8, normal, of which the drawn ones know nothing.
        encoder: frozen.
        generator: CPU random stream of the bank.

    Returns:
        mean squared distance in feature space, at least 0.
    """
    memory = Memory.of(drawn, encoder, generator, WHOLE)
    maps = [memory.maps(patches_of(pyramid)) for pyramid in pyramids(real, encoder)]
    return float(image_scores(torch.cat(maps)).mean())


def separations(
    memories: Mapping[Name, Memory],
    real: NDArray[np.uint8],
    encoder: Encoder,
    generator: torch.Generator,
    places: NDArray[np.int64] | None = None,
) -> dict[Name, float]:
    """How well memory banks tell real normal images from spoilt ones.

    To lie near is not enough, for a blur lies near to everything, defects too (measured on a grid:
    blurred replays at 0.80 of `distance` and 4.1 pixel AP, real images at 0.83 and 7.9). So each
    real image is held against itself with a piece of it pasted elsewhere, as CutPaste does (Li et
    al. 2021), several times over, for one place decides little; all banks see the same.

    Args:
        memories: by name.
        real: `[M, 3, S, S]` uint8, normal, none of them in the banks unless `places` says so.
            Conditions may have been searched with them: over six held-out classes that made a
            difference of -0.004.
        encoder: frozen.
        generator: CPU random stream of what is pasted.
        places: `[M]`, which of the images behind a bank each is, to be left out of that bank.

    Returns:
        by name, mean of image AUROC and pixel AP, 0..1, higher is better.
    """
    spoilt, masks = cut_and_paste(np.concatenate([real] * PASTINGS), generator)
    masks = np.concatenate([np.zeros((len(real), *masks.shape[1:]), np.bool_), masks])
    labels = np.arange(len(masks)) >= len(real)
    images = np.concatenate([real, spoilt])
    own = None if places is None else np.concatenate([places] * (1 + PASTINGS)).tolist()
    parts: dict[Name, list[torch.Tensor]] = {name: [] for name in memories}
    done = 0
    for pyramid in pyramids(images, encoder):
        patches = patches_of(pyramid)
        batch = None if own is None else own[done : done + len(patches)]
        done += len(patches)
        for name, memory in memories.items():
            parts[name].append(memory.maps(patches, batch))
    separated = {}
    for name in memories:
        maps = torch.cat(parts[name])
        of_images = image_auroc(image_scores(maps).numpy(), labels)
        separated[name] = (of_images + pixel_ap(maps.numpy(), masks)) / 2
    return separated


def cut_and_paste(
    images: NDArray[np.uint8], generator: torch.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images `[N, 3, S, S]` uint8 with a piece of each elsewhere, a little lighter or darker.

    Returns:
        the spoilt images, and masks `[N, S, S]` bool, true on what was pasted.
    """
    spoilt, side = images.copy(), images.shape[-1]
    masks = np.zeros((len(images), side, side), np.bool_)
    draws = torch.rand(len(images), 7, generator=generator, dtype=torch.float64).numpy()
    for image, mask, (area, shape, light, *places) in zip(spoilt, masks, draws, strict=True):
        share = PASTED_AREA[0] + area * (PASTED_AREA[1] - PASTED_AREA[0])
        source, target = windows(
            share, 3.0 ** (2 * shape - 1), places, side, side, least=2, spare=1
        )
        piece = image[:, *source] * (0.8 + 0.4 * light)
        image[:, *target] = piece.round().clip(0, 255).astype(np.uint8)
        mask[target] = True
    return spoilt, masks


def symmetries(
    images: NDArray[np.uint8], encoder: Encoder, generator: torch.Generator
) -> list[Operation]:
    """Turns and flips after which a class looks as before: fabrics have some, bottles few.

    Half of the images, turned, must lie as near to the other half as they do unturned.

    Args:
        images: `[N, 3, S, S]` uint8, normal.
        encoder: frozen.
        generator: CPU random stream; picks the halves.

    Returns:
        Operations of `six_way` that hold, the identity first.
    """
    picked = torch.randperm(len(images), generator=generator)[: 2 * SYMMETRY_IMAGES].numpy()
    half, other = images[picked[::2]], images[picked[1::2]]
    operations = augmentations("six_way")
    if not len(other):
        return operations[:1]
    distances = [
        distance(apply_to_images(operation, half), other, encoder, generator)
        for operation in operations
    ]
    limit = SYMMETRY_SLACK * distances[0]
    return [
        operation
        for operation, value in zip(operations, distances, strict=True)
        if value <= limit
    ]


def allowed_turns(
    policy: Mapping[str, Any], framed: NDArray[np.uint8], encoder: Encoder, seed: int
) -> list[Operation]:
    """Turns and flips of a class: those that its policy names, else those that `symmetries` finds.

    Args:
        policy: of the class.
        framed: `[N, 3, S, S]` uint8, its images in the common frame.
        encoder: frozen.
        seed: of the run.
    """
    if policy["train_augmentation"] in ("rotate_180", "six_way"):
        return augmentations(policy["train_augmentation"])
    return symmetries(framed, encoder, generator(seed, "symmetries"))


def pyramids(images: NDArray[np.uint8], encoder: Encoder) -> Iterator[Sequence[torch.Tensor]]:
    """Features of images `[N, 3, S, S]` uint8, a few images at a time: levels `[B, C, H, W]`."""
    for chunk in torch.from_numpy(images).split(_CHUNK):
        yield encoder.encode_images(chunk)
