"""Limits of detectors that learn all classes together, from the images that they learned from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from replaycad.continual.real_limits import RealLimits, of_real_images
from replaycad.continual.router import Router
from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.interface import Detector
from replaycad.detectors.limits import NormalScores, measured, together
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.progress import Report, silent

THRESHOLD_IMAGES = 256  # at most, evenly_spaced over the training set


@torch.no_grad()
def normal_limits(
    detector: Detector,
    features: FeatureCache,
    mixture: Mixture,
    class_order: Sequence[str],
    batch_size: int,
    router: Router | None = None,
    real: Mapping[str, RealLimits | None] | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Limits over all training images, and under `by_class` over those of each class.

    The first serve where nobody knows which class an image is of. An image that a memory holds is
    measured as if it did not. Of replayed classes the limits are those that real images are
    expected to have.

    Args:
        detector: in evaluation mode.
        features: of the images.
        mixture: normal images of all classes.
        class_order: names of the classes, by their index.
        batch_size: images at once.
        router: tells the classes apart; None where nothing does.
        real: by class name, how real images of replayed classes score against replays.
        report: hears how sure these limits are.
    """
    rows = evenly_spaced(len(mixture), THRESHOLD_IMAGES)
    classes = mixture.class_index
    places = np.empty(len(classes), np.int64)  # of each image among those of its class
    for index in np.unique(classes):
        own = np.flatnonzero(classes == index)
        places[own] = np.arange(len(own))
    parts: dict[int, list[NormalScores]] = {}
    for chunk in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        levels, indices = features(chunk), classes[chunk].tolist()
        maps = detector.fitted_maps(levels, indices, places[chunk].tolist())
        found = measured(detector, maps, mixture.counted(chunk))
        distances = np.zeros((len(chunk), 0), np.float32)
        if router is not None:
            distances = router.distances(levels, indices, chunk.tolist())[:, None]
        for row, index in enumerate(indices):
            one = found.of(row, mixture.num_tiles[index])
            parts.setdefault(index, []).append(replace(one, distances=distances[row]))
    scores = {class_order[index]: together(parts[index]) for index in sorted(parts)}
    limits = {name: one.limits() for name, one in scores.items()}
    is_bank = isinstance(detector, PatchCore)
    for name in (class_order[index] for index in sorted(mixture.replayed)):
        limits[name] = of_real_images(name, limits[name], (real or {}).get(name), is_bank, report)
        scores[name] = scores[name].moved(limits[name])
    overall = together(list(scores.values())).limits()
    overall.pop("product", None)  # of one class: over several it says nothing
    return {**overall, "by_class": limits}
