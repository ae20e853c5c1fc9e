"""What a training protects of the classes before: weights by a penalty, steps by a guard."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from replaycad.artifacts.detector import Arrays, DetectorArtifact
from replaycad.config.stages import TrainConfig
from replaycad.continual.guard import HOLDS, Guard, remembered
from replaycad.continual.penalties import IMPORTANCES, Penalty, added, normalized
from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.interface import Detector
from replaycad.errors import ArtifactError, ConfigError
from replaycad.runtime import global_stream

IMPORTANCE_IMAGES = 256  # that a penalty's importances are the mean of


class Protection:
    """A penalty and a guard, where the config wants them and a detector is gone on from.

    Args:
        detector: as it starts.
        config: of the stage.
        init: detector to go on from; None for none, and then nothing is protected yet.

    Raises:
        ArtifactError: if `init` remembers nothing for what is wanted.
        ConfigError: if the guard belongs to another detector.

    Attributes:
        guard: that holds steps; None for none.
    """

    def __init__(
        self, detector: Detector, config: TrainConfig, init: DetectorArtifact | None
    ) -> None:
        _check_fits(config)
        self._config = config
        self._importances = _kept(init, config, "penalty")
        self._matrices = _kept(init, config, "guard")
        self._penalty: Penalty | None = None
        if self._importances:
            self._penalty = Penalty(detector, self._importances, config.penalty_weight)
        self.guard: Guard | None = None
        if init is not None and config.guard != "none":
            self.guard = Guard(detector, self._matrices, HOLDS[config.guard])

    def penalty(self) -> torch.Tensor | None:
        """Of weights, `[out, in]` and others, as they are: a scalar with gradient, or None."""
        return self._penalty() if self._penalty else None

    def remembered(
        self, detector: Detector, features: FeatureCache, mixture: Mixture, seed: int
    ) -> tuple[Arrays, Arrays]:
        """What the next training needs: importances of weights, and matrices of layers."""
        importances, matrices, config = self._importances, self._matrices, self._config
        if config.penalty != "none":
            device = next(detector.parameters()).device
            some = _Some(features, mixture, IMPORTANCE_IMAGES, config.batch_size)
            with global_stream(device, seed, "importances", 0):
                found = normalized(IMPORTANCES[config.penalty](detector, some))
            importances = added(found, importances) if importances else found
        if config.guard != "none":
            some = _Some(features, mixture, HOLDS[config.guard].num_images, config.batch_size)
            matrices = remembered(detector, some, config.guard, matrices)
        return _arrays(importances), _arrays(matrices)


def _check_fits(config: TrainConfig) -> None:
    wanted = config.guard.partition("-")[0]
    if wanted not in ("none", config.detector):
        raise ConfigError(
            f"the guard '{config.guard}' belongs to the detector {wanted}, not {config.detector}",
            f"use --detector {wanted}, or penalty=ewc with any that is trained by a loss",
        )


def _kept(
    init: DetectorArtifact | None, config: TrainConfig, what: str
) -> dict[str, torch.Tensor]:
    """What `init` remembers of its classes for a `penalty` or a `guard`; empty without one.

    On the CPU, for not every device has the float64 of moments.
    """
    wanted = getattr(config, what)
    if init is None or wanted == "none":
        return {}
    of = init.header["config"].get(what, "none")
    if of != wanted:
        raise ArtifactError(
            f"detector '{config.init}' was trained with the {what} '{of}', not '{wanted}'",
            f"train it with --set {what}={wanted}",
        )
    kept: Arrays = getattr(init, what)
    return {name: torch.from_numpy(values) for name, values in kept.items()}


@dataclass(frozen=True)
class _Some:
    """Pyramids of images evenly spaced in a mixture, so many of them or all for 0; read anew."""

    features: FeatureCache
    mixture: Mixture
    count: int
    batch_size: int

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        rows = evenly_spaced(len(self.mixture), self.count or len(self.mixture))
        return map(self.features, np.array_split(rows, math.ceil(len(rows) / self.batch_size)))


def _arrays(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: values.cpu().numpy() for name, values in tensors.items()}
