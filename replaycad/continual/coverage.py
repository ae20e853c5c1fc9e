"""How far images of a class lie from others in features: judges, without labels, what covers it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore import PatchCore
from replaycad.detectors.structures import PatchCorePreset
from replaycad.mask_ops import Operation, apply_to_images, augmentations

BANK_LIMIT = 16_384  # patches of the drawn images: all of 64 bundled ones; a coreset takes longer
SYMMETRY_IMAGES = 24  # of either half of a class
SYMMETRY_SLACK = 1.15
"""Turned images may lie so much farther than images as they are. Measured on ten classes, twice:
grid, tile and a texture up to 1.15 whatever the turn, all others from 1.16 to 45."""
_CHUNK = 32


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
    size = real.shape[-1]
    preset = PatchCorePreset(image_size=size, bank_fraction=1.0, bank_limit=BANK_LIMIT)
    detector = PatchCore(encoder.channels, encoder.strides, size, preset)
    detector.fit(pyramids(drawn, encoder), 0, generator)
    scores = [
        detector.image_scores(detector.anomaly_maps(levels)) for levels in pyramids(real, encoder)
    ]
    return float(torch.cat(scores).mean())


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
    one, other = images[picked[::2]], images[picked[1::2]]
    operations = augmentations("six_way")
    if not len(other):
        return operations[:1]
    found = [
        distance(apply_to_images(operation, one), other, encoder, generator)
        for operation in operations
    ]
    limit = SYMMETRY_SLACK * found[0]
    return [one for one, value in zip(operations, found, strict=True) if value <= limit]


def pyramids(images: NDArray[np.uint8], encoder: Encoder) -> Iterator[Sequence[torch.Tensor]]:
    """Features of images `[N, 3, S, S]` uint8, a few images at a time: levels `[B, C, H, W]`."""
    for chunk in torch.from_numpy(images).split(_CHUNK):
        yield encoder.encode_images(chunk)
