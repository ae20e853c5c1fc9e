"""Which class an image is of, for detectors that do not tell: a small memory bank of each class."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.continual.real_limits import RealLimits, give_look
from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.interface import Detector
from replaycad.detectors.patchcore.network import NO_PLACE, ROUTE_PICKS, PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.runtime import generator

PRESET = PatchCorePreset(bank_fraction=1.0, bank_limit=ROUTE_PICKS, is_routed=True)
ROUTER_IMAGES = 32  # of a class that its bank is filled from, evenly spaced


class Router:
    """Memory banks that tell the classes of a detector apart.

    Attributes:
        bank: of all classes.
        places: class index -> row of the mixture -> which of the images in the bank it is.
    """

    def __init__(self, bank: PatchCore) -> None:
        self.bank = bank
        self.places: dict[int, dict[int, int]] = {}

    def distances(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], rows: Sequence[int]
    ) -> NDArray[np.float32]:
        """How far images are from their own class, each as if it were not in the bank, `[B]`."""
        places = [
            self.places.get(index, {}).get(row, NO_PLACE)
            for index, row in zip(class_index, rows, strict=True)
        ]
        return self.bank.fitted_distances(features, class_index, places).cpu().numpy()


def empty_bank(encoder: Encoder, image_size: int) -> PatchCore | None:
    """A bank of no class, on the encoder's device; None where the encoder has but one level."""
    if len(encoder.channels) < 2:
        return None
    # The last two are all that it reads; before the others may stand the picture.
    channels, strides = encoder.channels[-2:], encoder.strides[-2:]
    return PatchCore(channels, strides, image_size, PRESET).to(encoder.device)


def router_of(
    detector: Detector,
    mixture: Mixture,
    class_order: Sequence[str],
    features: FeatureCache,
    encoder: Encoder,
    batch_size: int,
    seed: int,
    state: dict[str, NDArray[Any]],
    real: Mapping[str, RealLimits | None] = MappingProxyType({}),
) -> Router | None:
    """What tells the classes apart: a memory bank by itself, beside any other detector another.

    Args:
        detector: that has learned the mixture.
        mixture: normal images.
        class_order: names of the classes, by their index.
        features: of these images.
        encoder: that they are from.
        batch_size: images at once.
        seed: of the coresets.
        state: of the router of the detector that the training went on from; may be empty.
        real: by class name, how real images of replayed classes score against replays.

    Returns:
        None where the encoder has but one level.
    """
    bank = detector if isinstance(detector, PatchCore) else empty_bank(encoder, mixture.image_size)
    if bank is None:
        return None
    if state:
        bank.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        bank.to(encoder.device)
    router = Router(bank)
    for index in np.unique(mixture.class_index).tolist():
        rows = np.flatnonzero(mixture.class_index == index)
        if bank is not detector:
            rows = rows[evenly_spaced(len(rows), ROUTER_IMAGES)]
            chunks = np.array_split(rows, -(-len(rows) // batch_size))
            bank.fit(map(features, chunks), index, generator(seed, "router", class_order[index]))
        known = real.get(class_order[index]) if index in mixture.replayed else None
        give_look(bank, index, known)
        router.places[index] = {int(row): place for place, row in enumerate(rows)}
    return router


def state_beside(router: Router | None, detector: Detector) -> dict[str, NDArray[Any]]:
    """Parameters of a router; none where it is the detector itself."""
    if router is None or router.bank is detector:
        return {}
    return {name: value.cpu().numpy() for name, value in router.bank.state_dict().items()}
