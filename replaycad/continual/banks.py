"""Fills the memory banks of a detector class by class; what did not change is not computed again.

This serves detectors whose banks are apart: what such a detector says of a class depends on that
class alone. So a step of a sequence costs what is new in it, however many classes came before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.continual.real_limits import RealLimits, give_look, of_real_images
from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.limits import LIMITS, NormalScores, measured, together
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.progress import Report, silent
from replaycad.runtime import generator

LIMIT_IMAGES = 128  # of a class, at most, that its limits are taken from, evenly spaced

Tensors = Mapping[str, NDArray[Any]]


class Keeper(Protocol):
    """Where the banks of classes are kept between trainings, by what they were made from."""

    def load(self, class_name: str) -> Tensors | None:
        """The tensors of a class, or None where its images or the settings are others now."""

    def save(self, class_name: str, tensors: Tensors) -> None:
        """Keep the tensors of a class."""


class KeptBank(NamedTuple):
    """What was kept of a class as features.

    Attributes:
        patches: `[N, F]` float32, the most telling ones first.
        limits: of normal scores, as `NormalScores.limits` gives them.
    """

    patches: NDArray[np.float32]
    limits: Mapping[str, float]

    def give(self, detector: PatchCore, class_index: int) -> None:
        """Make it the bank of a class, as much of it as the detector keeps of one."""
        patches = torch.from_numpy(self.patches[: detector.preset.bank_limit])
        unknown = torch.full((len(patches),), -1)
        detector.set_bank(class_index, patches, unknown)


def fit_banks(
    detector: PatchCore,
    mixture: Mixture,
    class_order: Sequence[str],
    encoder: Encoder,
    batch_size: int,
    seed: int,
    kept: Keeper | None = None,
    report: Report = silent,
    real: Mapping[str, RealLimits | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """Give a detector the bank of each class of the mixture.

    Args:
        detector: whose banks are apart (`is_separate`).
        mixture: normal images of all classes.
        class_order: names of the classes, by their index in the mixture.
        encoder: frozen.
        batch_size: images encoded at once.
        seed: of the coresets; with the name of a class it fixes its bank, whatever its place.
        kept: banks of earlier trainings; None to compute all.
        report: hears of the classes done.
        real: by class name, how real images of replayed classes score against replays.

    Returns:
        limits over all classes, and under `by_class` of each, from its images held against the
        bank of all others of it; of a class that was replayed those of real images, as far as they
        are known (`of_real_images`).
    """
    scores: dict[str, NormalScores] = {}
    limits: dict[str, Any] = {}
    present = np.unique(mixture.class_index)
    for number, index in enumerate(present, start=1):
        name = class_order[index]
        known = kept.load(name) if kept else None
        if known is None or len(known["limits"]) != len(LIMITS):
            rows = np.flatnonzero(mixture.class_index == index)
            stream = generator(seed, "fit", name)
            found = _fit_class(detector, mixture, rows, int(index), encoder, batch_size, stream)
            limits[name], scores[name] = found.limits(), found.sketched()
            if kept:
                bank, places = detector.bank_of(int(index))
                kept.save(name, {
                    "bank": bank.cpu().numpy(), "places": places.cpu().numpy(),
                    "limits": np.array(list(limits[name].values())),
                    "image_scores": scores[name].image_scores,
                    "map_values": scores[name].map_values,
                })  # fmt: skip
        else:
            bank, places = (torch.from_numpy(known[part]) for part in ("bank", "places"))
            detector.set_bank(int(index), bank, places)
            scores[name] = NormalScores(
                known["image_scores"], known["map_values"], mixture.num_tiles[int(index)]
            )
            limits[name] = dict(zip(LIMITS, known["limits"].tolist(), strict=True))
        give_look(detector, int(index), real.get(name) if index in mixture.replayed else None)
        if index in mixture.replayed:
            limits[name] = of_real_images(name, limits[name], real.get(name), True, report)
            scores[name] = scores[name].moved(limits[name])
        report.step("fit", number, len(present))
    return {**together(list(scores.values())).limits(), "by_class": limits}


def _fit_class(
    detector: PatchCore,
    mixture: Mixture,
    rows: NDArray[np.int64],
    class_index: int,
    encoder: Encoder,
    batch_size: int,
    stream: torch.Generator,
) -> NormalScores:
    """Fill the bank of one class from these rows; the scores of its images without themselves."""
    features = FeatureCache(
        encoder, lambda wanted: mixture.images(rows[np.asarray(wanted)]), len(rows), batch_size,
        uses=2,
    )  # fmt: skip
    try:
        chunks = np.array_split(np.arange(len(rows)), math.ceil(len(rows) / batch_size))
        detector.fit(map(features, chunks), class_index, stream)
        return normal_scores(detector, features, mixture, rows, class_index, batch_size)
    finally:
        features.close()


@torch.no_grad()
def normal_scores(
    detector: PatchCore,
    features: FeatureCache,
    mixture: Mixture,
    rows: NDArray[np.int64],
    class_index: int,
    batch_size: int,
) -> NormalScores:
    """Scores of the images that a class was fitted to, each as if it had not been among them."""
    places, found = evenly_spaced(len(rows), LIMIT_IMAGES), []
    for chunk in np.array_split(places, math.ceil(len(places) / batch_size)):
        maps, distances = detector.fitted(
            features(chunk), [class_index] * len(chunk), chunk.tolist()
        )
        part = measured(detector, maps, mixture.counted(rows[chunk]))
        found.append(replace(part, distances=distances.cpu().numpy()))
    return replace(together(found), num_tiles=mixture.num_tiles[class_index])


def with_kept(thresholds: dict[str, Any], banks: Mapping[str, KeptBank]) -> dict[str, Any]:
    """Limits with those of classes whose banks were kept.

    No image of these is at hand. So the limits over all classes become those of the class that has
    the highest, with at most as many false alarms in any; what is typical becomes the mean.
    """
    if not banks:
        return thresholds
    kept = {name: dict(bank.limits) for name, bank in banks.items()}
    overall = {name: value for name, value in thresholds.items() if name != "by_class"}
    for name in ("image", "pixel"):
        overall[name] = max(overall[name], *(one[name] for one in kept.values()))
        typical = f"typical_{name}"
        shares = [overall[typical]] * len(thresholds["by_class"])
        shares += [one[typical] for one in kept.values()]
        overall[typical] = sum(shares) / len(shares)
    return {**overall, "by_class": {**kept, **thresholds["by_class"]}}
