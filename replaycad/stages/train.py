"""Trains a detector on real images of the new classes and replays of the old ones."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.config.stages import TrainConfig
from replaycad.continual.banks import Keeper, KeptBank, fit_banks, with_kept
from replaycad.continual.normal_limits import normal_limits
from replaycad.continual.protection import Protection
from replaycad.continual.real_limits import RealLimits
from replaycad.continual.router import Router, router_of, state_beside
from replaycad.data.mixture import Mixture, batches
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.interface import Detector
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.registry import build_detector, resolve_defaults, training_of
from replaycad.detectors.shared_norm import share
from replaycad.distributed import average_gradients, ranks, wait
from replaycad.errors import ArtifactError, ConfigError, TrainingError
from replaycad.progress import Report, silent
from replaycad.runtime import generator, global_stream, stream_seed


class TrainCheckpoint(Protocol):
    """Where a training keeps its state between two runs."""

    def load(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Return steps done and tensors, or None where there is nothing usable."""

    def save(self, step: int, tensors: dict[str, np.ndarray]) -> None:
        """Replace what was kept."""


def train_detector(
    mixture: Mixture,
    class_order: Sequence[str],
    encoder: Encoder,
    config: TrainConfig,
    seed: int,
    header: dict[str, Any],
    report: Report = silent,
    checkpoint: TrainCheckpoint | None = None,
    init: DetectorArtifact | None = None,
    save_every_seconds: float = 60.0,
    kept: Keeper | None = None,
    banks: Mapping[str, KeptBank] = MappingProxyType({}),
    real: Mapping[str, RealLimits | None] = MappingProxyType({}),
) -> DetectorArtifact:
    """Train one detector.

    Args:
        mixture: normal images of all classes, real and replayed.
        class_order: names of the classes that the detector then knows, in the order learned.
        encoder: frozen.
        config: of the stage.
        seed: of the initial weights and of the order of the images.
        header: common part of the artifact's header.
        report: hears of every step and of the loss.
        checkpoint: keeps weights and moments now and then and when the user interrupts.
        init: detector to go on from, with a fresh optimiser; None to start from scratch.
        save_every_seconds: time between two savings.
        kept: banks of earlier trainings, for a detector whose banks are apart.
        banks: by class name, memory banks that were kept in place of images.
        real: by class name, how real images of replayed classes score against replays.

    Returns:
        the trained parameters, with limits of normal scores for `anomaly.normalized_scores`.

    Raises:
        TrainingError: if the loss stops being finite; the last checkpoint stays.
        ArtifactError: if `init` is another kind of detector, or remembers nothing for the penalty.
        ConfigError: if a penalty is asked of a detector without a loss.
    """
    config = resolve_defaults(config)
    detector = _start(encoder, config, seed, header, init, len(class_order))
    for name, bank in banks.items():
        assert isinstance(detector, PatchCore)
        bank.give(detector, class_order.index(name))
    protection = Protection(detector, config, init)
    uses, size = _uses(config, mixture) if detector.trained_by != "fit" else 1.0, config.batch_size
    features = FeatureCache(encoder, mixture.images, len(mixture), size, uses, report)
    if detector.trained_by != "fit":
        loop = _Loop(detector, features, mixture, config, seed, report, protection)
        loop.run(checkpoint, save_every_seconds)
    router: Router | None = None
    if isinstance(detector, PatchCore) and detector.is_separate:
        thresholds = fit_banks(
            detector, mixture, class_order, encoder, size, seed, kept, report, real
        )
    else:
        if detector.trained_by != "loss":
            _fit(detector, mixture, class_order, features, config, seed, report)
        router, thresholds = _judged(
            detector, mixture, class_order, features, encoder, config, seed, init, real, report
        )
    penalty, guard = protection.remembered(detector, features, mixture, seed)
    return DetectorArtifact(
        detector=config.detector,
        preset=config.preset,
        encoder=header["config"]["encoder"],
        image_size=config.image_size,
        class_order=list(class_order),
        state={name: value.cpu().numpy() for name, value in detector.state_dict().items()},
        thresholds=with_kept(thresholds, banks),
        header=header,
        mean=tuple(encoder.mean),
        std=tuple(encoder.std),
        penalty=penalty,
        guard=guard,
        router=state_beside(router, detector),
    )


def _judged(
    detector: Detector,
    mixture: Mixture,
    class_order: Sequence[str],
    features: FeatureCache,
    encoder: Encoder,
    config: TrainConfig,
    seed: int,
    init: DetectorArtifact | None,
    real: Mapping[str, RealLimits | None],
    report: Report,
) -> tuple[Router | None, dict[str, Any]]:
    """What tells the classes of a detector apart, and its limits of normal scores."""
    detector.eval()
    known, size = init.router if init is not None else {}, config.batch_size
    router = router_of(detector, mixture, class_order, features, encoder, size, seed, known, real)
    limits = normal_limits(detector, features, mixture, class_order, size, router, real, report)
    return router, limits


def _start(
    encoder: Encoder,
    config: TrainConfig,
    seed: int,
    header: dict[str, Any],
    init: DetectorArtifact | None,
    num_classes: int,
) -> Detector:
    """The detector before it sees an image: new, or as `init` left it."""
    detector = build_detector(
        config.detector, config.preset, encoder.channels, encoder.strides, config.image_size,
        stream_seed(seed, "detector"),
    )  # fmt: skip
    if config.penalty != "none" and detector.trained_by == "fit":
        message = f"{config.detector} has no weights for the penalty '{config.penalty}' to hold"
        raise ConfigError(message, "use a detector that is trained by a loss")
    if init is not None:
        _check_same_kind(init, config, header)
        # To fine-tune a memory bank is to replace it: adding to it would keep the old classes.
        if detector.trained_by != "fit" or config.banks == "extend":
            detector.load_state_dict({k: torch.from_numpy(v) for k, v in init.state.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "begin"))
        detector.begin(num_classes, is_first=init is None)
    return detector.to(encoder.device)


def _check_same_kind(init: DetectorArtifact, config: TrainConfig, header: dict[str, Any]) -> None:
    wanted = (config.detector, config.preset, config.image_size, header["weights"])
    known = (init.detector, init.preset, init.image_size, init.header.get("weights"))
    for what, here, there in zip(
        ("detector", "preset", "image_size", "encoder weights"), wanted, known, strict=True
    ):
        if here != there:
            raise ArtifactError(
                f"detector '{config.init}' was trained with another {what}: {there}, not {here}",
                "use the same settings, or train without init",
            )


def _fit(
    detector: Detector,
    mixture: Mixture,
    class_order: Sequence[str],
    features: FeatureCache,
    config: TrainConfig,
    seed: int,
    report: Report,
) -> None:
    """Give a detector without a loss the images of each class once."""
    present = np.unique(mixture.class_index)
    for number, index in enumerate(present, start=1):
        rows = np.flatnonzero(mixture.class_index == index)
        chunks = np.array_split(rows, math.ceil(len(rows) / config.batch_size))
        stream = generator(seed, "fit", class_order[index])
        detector.fit(map(features, chunks), int(index), stream)
        report.step("fit", number, len(present))
    if config.banks == "extend":
        detector.shrink()


def _batching(config: TrainConfig, mixture: Mixture) -> tuple[int, int]:
    """Images of a batch and whole batches of an epoch; a smaller set than a batch is one."""
    size = min(config.batch_size, len(mixture))
    return size, len(mixture) // size


def _num_steps(config: TrainConfig, mixture: Mixture) -> int:
    return config.num_steps or config.epochs * _batching(config, mixture)[1]


def _uses(config: TrainConfig, mixture: Mixture) -> float:
    """How often a training asks for each image."""
    return _num_steps(config, mixture) * _batching(config, mixture)[0] / len(mixture)


class _Loop:
    """Gradient steps; every draw belongs to its step, so a resumed run gives the same weights."""

    def __init__(
        self,
        detector: Detector,
        features: FeatureCache,
        mixture: Mixture,
        config: TrainConfig,
        seed: int,
        report: Report,
        protection: Protection,
    ) -> None:
        self._detector, self._features, self._mixture = detector, features, mixture
        self._protection = protection
        self._config, self._seed, self._report = config, seed, report
        self._batch_size, self._per_epoch = _batching(config, mixture)
        self._ranks = ranks()
        if self._batch_size % self._ranks.count:
            raise ConfigError(
                f"a batch of {self._batch_size} does not divide among {self._ranks.count} "
                "processes", "set train.batch_size to a multiple",
            )  # fmt: skip
        if self._ranks.count > 1:
            share(detector)
        self._total = _num_steps(config, mixture)
        self._training = training_of(config)
        self._optimizers = make_optimizers(detector, self._training, config.learning_rate)

    def run(self, checkpoint: TrainCheckpoint | None, save_every_seconds: float) -> None:
        """Take all steps that are not done yet."""
        done = self._restore(checkpoint)
        if self._config.compile:  # for steps alone: other batch sizes would compile anew
            self._detector.forward = torch.compile(self._detector.forward)  # type: ignore[method-assign]
        wait()  # no rank may save before all have read
        last_save, whole = time.monotonic(), True
        self._detector.train()
        try:
            for indices in self._batches(done):
                whole = False  # an interrupt inside the update leaves half a step
                self._step(done, indices)
                done, whole = done + 1, True
                if checkpoint is not None and time.monotonic() - last_save >= save_every_seconds:
                    checkpoint.save(done, self._state())
                    last_save = time.monotonic()
        except KeyboardInterrupt:
            if checkpoint is not None and whole and done:
                checkpoint.save(done, self._state())
            raise
        finally:
            self._detector.__dict__.pop("forward", None)

    def _batches(self, done: int) -> Iterator[np.ndarray]:
        """Rows of every batch from step `done` on; whole batches only, as batch norm likes them."""
        step = done
        while step < self._total:
            epoch, skipped = divmod(step, self._per_epoch)
            order = list(
                batches(len(self._mixture), self._batch_size, self._seed, epoch, drop_last=True,
                        class_index=self._mixture.class_index if self._config.balance else None)
            )
            for rows in order[skipped:][: self._total - step]:
                yield rows
                step += 1

    def _step(self, done: int, rows: np.ndarray) -> None:
        own = rows[self._ranks.rank :: self._ranks.count]
        features = self._features(own)
        classes = torch.from_numpy(self._mixture.class_index[own]).to(features[0].device)
        # noise and dropout of a step are drawn from its own stream, on each rank from another
        stream = f"noise of rank {self._ranks.rank}" if self._ranks.rank else "noise"
        with global_stream(features[0].device, self._seed, stream, done):
            loss = optimize_step(
                self._detector, self._optimizers, features, self._training, done / self._total,
                penalty=self._protection.penalty(), guard=self._protection.guard,
                class_index=classes,
                average=average_gradients if self._ranks.count > 1 else None,
            )  # fmt: skip
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {done + 1} of {self._total}; the last "
                "checkpoint is kept",
                "use a lower learning_rate",
            )
        self._report.step("train", done + 1, self._total, loss=value)

    def _state(self) -> dict[str, np.ndarray]:
        state = {f"model.{k}": v.cpu().numpy() for k, v in self._detector.state_dict().items()}
        for name, parameter in self._detector.named_parameters():
            for optimizer in self._optimizers:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    state[f"moment.{name}/{moment}"] = value.cpu().numpy()
        return state

    def _restore(self, checkpoint: TrainCheckpoint | None) -> int:
        kept = checkpoint.load() if checkpoint is not None else None
        if kept is None:
            return 0
        done, tensors = kept
        model = {
            name.removeprefix("model."): torch.from_numpy(value)
            for name, value in tensors.items()
            if name.startswith("model.")
        }
        self._detector.load_state_dict(model)
        for optimizer in self._optimizers:
            self._restore_moments(optimizer, tensors)
        self._report.note(f"going on from the checkpoint at step {done} of {self._total}")
        return done

    def _restore_moments(
        self, optimizer: torch.optim.Optimizer, tensors: dict[str, np.ndarray]
    ) -> None:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self._detector.named_parameters():
            start = f"moment.{name}/"
            own_keys = [key for key in tensors if key.startswith(start)]
            if id(parameter) in own and own_keys:
                optimizer.state[parameter] = {
                    key.removeprefix(start): _laid_like(parameter, torch.from_numpy(tensors[key]))
                    for key in own_keys
                }


def _laid_like(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values on the device, and in the memory order, of a parameter, which a fused step assumes.

    A file keeps them in C order; a parameter may lie with its channels last. Counts have no shape.
    """
    if values.shape != parameter.shape:
        return values.to(parameter.device)
    return torch.empty_like(parameter, dtype=values.dtype).copy_(values)
