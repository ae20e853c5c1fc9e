"""How far real images of a class lie from drawn ones: judges a way to keep a class, label-free."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore import PatchCore
from replaycad.detectors.structures import PatchCorePreset

BANK_LIMIT = 4_000  # patches of the drawn images that are kept, as the detector's mini preset
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
    detector.fit(_features(drawn, encoder), 0, generator)
    scores = [
        detector.image_scores(detector.anomaly_maps(levels)) for levels in _features(real, encoder)
    ]
    return float(torch.cat(scores).mean())


def _features(images: NDArray[np.uint8], encoder: Encoder) -> Iterator[Sequence[torch.Tensor]]:
    for chunk in torch.from_numpy(images).split(_CHUNK):
        yield encoder.encode_images(chunk)
