"""Fills the memory banks of a detector class by class; what did not change is not computed again.

This serves detectors whose banks are apart: what such a detector says of a class depends on that
class alone. So a step of a sequence costs what is new in it, however many classes came before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.limits import NormalScores, measured, together
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.progress import Report, silent
from replaycad.runtime import generator

LIMIT_IMAGES = 256  # of a class, at most, that its limits are taken from, evenly spaced

Tensors = Mapping[str, NDArray[Any]]


class Keeper(Protocol):
    """Where the banks of classes are kept between trainings, by what they were made from."""

    def load(self, class_name: str) -> Tensors | None:
        """The tensors of a class, or None where its images or the settings are others now."""

    def save(self, class_name: str, tensors: Tensors) -> None:
        """Keep the tensors of a class."""


def fit_banks(
    detector: PatchCore,
    mixture: Mixture,
    class_order: Sequence[str],
    encoder: Encoder,
    batch_size: int,
    seed: int,
    kept: Keeper | None = None,
    report: Report = silent,
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

    Returns:
        limits over all classes, and under `by_class` of each, from its images held against the
        bank of all others of it.
    """
    scores: dict[str, NormalScores] = {}
    limits: dict[str, Any] = {}
    present = np.unique(mixture.class_index)
    for number, index in enumerate(present, start=1):
        name = class_order[index]
        known = kept.load(name) if kept else None
        if known is None:
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
            names = scores[name].limits()
            limits[name] = dict(zip(names, known["limits"].tolist(), strict=True))
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
        found = normal_scores(
            detector, features, len(rows), class_index, batch_size,
            lambda places: mixture.counted(rows[places]),
        )  # fmt: skip
        return replace(found, num_tiles=mixture.num_tiles[class_index])
    finally:
        features.close()


@torch.no_grad()
def normal_scores(
    detector: PatchCore,
    features: FeatureCache,
    num_images: int,
    class_index: int,
    batch_size: int,
    counted: Callable[[NDArray[np.int64]], NDArray[np.bool_] | None] = lambda places: None,  # noqa: ARG005
) -> NormalScores:
    """Scores of the images that a class was fitted to, each as if it had not been among them.

    Where `counted` says so of images at some places, `[B, H, W]` bool, pixels do not count.
    """
    places = evenly_spaced(num_images, LIMIT_IMAGES)
    image_scores, map_values = [], []
    for chunk in np.array_split(places, math.ceil(len(places) / batch_size)):
        maps = detector.fitted_maps(features(chunk), [class_index] * len(chunk), chunk.tolist())
        found, values = measured(detector, maps, counted(chunk))
        image_scores.append(found)
        map_values.append(values[~np.isnan(values)])
    return NormalScores(np.concatenate(image_scores), np.concatenate(map_values))
