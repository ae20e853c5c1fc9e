"""Loads the frozen models, opens the inputs of one stage, runs it, writes its artifact.

Each stage's networks are imported by the stage alone: training need not wait for diffusers.
"""

# ruff: noqa: PLC0415

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replay_writer import ReplaysWriter
from replaycad.artifacts.replays import ReplaysReader
from replaycad.artifacts.store import Store
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.diffusion.presets import backbone_sizes
from replaycad.errors import ArtifactError
from replaycad.frozen import NO_SEGMENTER
from replaycad.plans import Plan
from replaycad.progress import Report
from replaycad.recipes import (
    EXEMPLAR_ENCODER,
    CompressConfig,
    EvalConfig,
    MaskConfig,
    ReplayConfig,
    TrainConfig,
)
from replaycad.runtime import resolve_device


class Workshop:
    """Runs stages on one device; holds one frozen model at a time, the one last used.

    Args:
        store: that artifacts are read from and written to.
        device: as `runtime.resolve_device` takes it.
        report: hears of progress.
        save_every_seconds: time between two checkpoints.

    Raises:
        ConfigError: if the device is not there.
    """

    def __init__(
        self, store: Store, device: str, report: Report, save_every_seconds: float
    ) -> None:
        self._store, self._report = store, report
        self._device = resolve_device(device)
        self._save_every_seconds = save_every_seconds
        self._loaded: tuple[str, str] = ("", "")
        self._model: Any = None

    def mask(
        self, plan: Plan, class_name: str, samples: Sequence[Sample], config: MaskConfig
    ) -> None:
        """Make masks of a class."""
        from replaycad.stages.mask import make_masks

        segmenter = None
        if config.segmenter != NO_SEGMENTER:
            from replaycad.segmentation.sam import load_segmenter

            segmenter = self._load("segmenter", config.segmenter, load_segmenter)
        header = plan.header((class_name,))
        make_masks(class_name, samples, segmenter, config, header, self._report).save(plan.path)

    def compress(
        self,
        plan: Plan,
        class_name: str,
        samples: Sequence[Sample],
        masks_path: Path,
        config: CompressConfig,
        seed: int,
    ) -> None:
        """Search the conditions of a class."""
        from replaycad.stages.compress import compress_class, keep_exemplars

        masks = MasksArtifact.load(masks_path)
        if masks.image_ids != [sample.image_id for sample in samples]:
            raise ArtifactError(
                f"{masks_path} holds the masks of other images", "run `replaycad mask --force`"
            )
        checkpoint, header = self._checkpoint(plan), plan.header((class_name,))
        kept = None
        if config.keep != "exemplars":
            kept = compress_class(
                samples, masks, self._load_backbone(config), config, seed, header, self._report,
                checkpoint, self._save_every_seconds,
            )  # fmt: skip
        if kept is None or config.keep == "hybrid":
            from replaycad.detectors.encoders import load_encoder

            encoder = self._load("encoder of exemplars", EXEMPLAR_ENCODER, load_encoder)
            size = backbone_sizes(config.backbone)[1]
            kept = keep_exemplars(
                samples, masks, encoder, size, config, seed, header, self._report, kept
            )
        kept.save(plan.path)
        checkpoint.clear()

    def replay(
        self, plan: Plan, conditions_path: Path, config: ReplayConfig, seed: int
    ) -> None:
        """Draw the images of a class."""
        from replaycad.stages.replay import replay_class, vary_exemplars

        conditions = ConditionsArtifact.load(conditions_path)
        if not conditions.is_drawn:
            header = plan.header((conditions.class_name,))
            size = conditions.exemplar_size
            with ReplaysWriter(plan.path, header, config.num_images, size) as writer:
                vary_exemplars(conditions, config, seed, writer, self._report)
                writer.close()
            return
        diffusion = self._load_backbone(config)
        header = plan.header((conditions.class_name,))
        writer = ReplaysWriter(plan.path, header, config.num_images, diffusion.image_size)
        with writer:
            if writer.rows_done:
                self._report.note(f"going on from image {writer.rows_done} of {config.num_images}")
            replay_class(conditions, diffusion, config, seed, writer, self._report)
            writer.close()

    def train(
        self,
        plan: Plan,
        samples: Mapping[str, Sequence[Sample]],
        past: Sequence[str],
        config: TrainConfig,
        seed: int,
    ) -> None:
        """Train a detector."""
        from replaycad.stages.train import train_detector

        init = None
        if config.init:
            init = DetectorArtifact.load(self._store.path("detectors", config.init))
        replays = [ReplaysReader(self._store.path("replays", name)) for name in past]
        drawn = [reader.header["class_name"] for reader in replays]
        known = list(dict.fromkeys([*(init.class_order if init else ()), *drawn, *samples]))
        sources = [
            Source(class_index=known.index(name), replays=reader)
            for name, reader in zip(drawn, replays, strict=True)
        ] + [Source(class_index=known.index(name), samples=real) for name, real in samples.items()]
        encoder = self._encoder(config.encoder, config.detector, config.preset)
        checkpoint = self._checkpoint(plan)
        detector = train_detector(
            Mixture(sources, config.image_size, self._report), known, encoder, config, seed,
            plan.header(known), self._report, checkpoint, init, self._save_every_seconds,
        )  # fmt: skip
        detector.save(plan.path)
        checkpoint.clear()

    def evaluate(
        self,
        plan: Plan,
        detector_path: Path,
        samples: Mapping[str, Sequence[Sample]],
        config: EvalConfig,
    ) -> None:
        """Score test images."""
        from replaycad.stages.eval import evaluate

        trained = DetectorArtifact.load(detector_path)
        encoder = self._encoder(config.encoder, trained.detector, trained.preset)
        header = plan.header(list(samples))
        evaluate(samples, trained, encoder, config, header, self._report).save(plan.path)

    def _encoder(self, name: str, detector: str, preset: str) -> Any:
        """The encoder with the levels that this detector reads."""
        from replaycad.detectors.encoders import load_encoder
        from replaycad.detectors.presets import preset_for

        levels = preset_for(detector, preset).levels
        return self._load(
            f"encoder {levels}", name, lambda name, device: load_encoder(name, device, levels)
        )

    def _checkpoint(self, plan: Plan) -> Checkpoint:
        """The checkpoint of this very output; those of outputs no longer wanted are removed."""
        self._store.drop_partials(plan.kind, plan.name, keep=plan.key)
        return Checkpoint(self._store.partial(plan.kind, plan.name, plan.key), plan.key)

    def _load_backbone(self, config: CompressConfig | ReplayConfig) -> Any:
        from replaycad.diffusion.backbones import DTYPES, load_backbone

        dtype = DTYPES.get(config.precision)
        return self._load(
            f"backbone in {config.precision}", config.backbone,
            lambda name, device: load_backbone(name, device, dtype),
        )  # fmt: skip

    def _load(self, kind: str, name: str, load: Callable[..., Any]) -> Any:
        if self._loaded != (kind, name):
            self._model = None  # gives the memory back before the next model takes its own
            self._model = load(name, self._device)
            self._loaded = (kind, name)
        return self._model
