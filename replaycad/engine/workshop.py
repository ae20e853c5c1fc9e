"""Loads the frozen models, opens the inputs of one stage, runs it, writes its artifact.

Each stage's networks are imported by the stage alone: training need not wait for diffusers.
"""

# ruff: noqa: PLC0415

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import canonical_json
from replaycad.artifacts.inspection import verify
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.artifacts.store import Store
from replaycad.config.recipes import (
    EXEMPLAR_ENCODER,
    CompressConfig,
    EvalConfig,
    Form,
    MaskConfig,
    ReplayConfig,
    TrainConfig,
)
from replaycad.continual import representations as choice
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.diffusion.presets import backbone_sizes
from replaycad.distributed import ranks
from replaycad.engine.inputs import NO_SEGMENTER
from replaycad.engine.staleness import Plan
from replaycad.errors import ArtifactError, BudgetError, ConfigError
from replaycad.progress import Report
from replaycad.runtime import check_compiler, generator, resolve_device

REMEMBERED = 32  # conditions of this process, some hundred kB each


def shared_out(budget: int, num_classes: int) -> int:
    """Replays of each past class where all together may be `budget`; 0 where any number may.

    Raises:
        ConfigError: if that is not one of each.
    """
    if not budget or not num_classes:
        return 0
    if budget < num_classes:
        message = f"train: {budget} replays are none of some of the {num_classes} past classes"
        raise ConfigError(message, f"set replay_budget to {num_classes} or more")
    return budget // num_classes


class _ReadOnly(Checkpoint):
    """A checkpoint as those see it who share a training and do not keep it."""

    def save(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Leave it to rank 0."""


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
        self._known: dict[tuple, ConditionsArtifact] = {}
        self._model: Any = None
        self._sound: dict[Path, str] = {}

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
        masks = make_masks(class_name, samples, segmenter, config, header, self._report)
        plan.check_inputs()
        masks.save(plan.path)

    def compress(
        self,
        plan: Plan,
        class_name: str,
        samples: Sequence[Sample],
        masks_path: Path,
        config: CompressConfig,
        drawing: ReplayConfig,
        seed: int,
    ) -> None:
        """Make of a class what is kept; `drawing` is how replays would be drawn, for a choice."""
        masks = MasksArtifact.load(masks_path)
        if masks.image_ids != [sample.image_id for sample in samples]:
            raise ArtifactError(
                f"{masks_path} holds the masks of other images", "run `replaycad mask --force`"
            )
        checkpoint, header = self._checkpoint(plan), plan.header((class_name,))
        if config.keep == "auto":
            kept = self._choose(samples, masks, config, drawing, header, seed, checkpoint)
        else:
            kept, _ = self._keep(samples, masks, config, header, seed, checkpoint)
        plan.check_inputs()
        kept.save(plan.path)
        checkpoint.clear()

    def _keep(
        self,
        samples: Sequence[Sample],
        masks: MasksArtifact,
        config: CompressConfig,
        header: dict[str, Any],
        seed: int,
        checkpoint: Checkpoint,
    ) -> tuple[ConditionsArtifact, list[int]]:
        """Conditions, real images, or both, and which of the samples are the images."""
        from replaycad.stages.compress import keep_exemplars, within_budget

        header = {**header, "form": config.keep}
        kept, rows = None, list[int]()
        if config.keep != "exemplars":
            found = self._searched(samples, masks, config, header, seed, checkpoint)
            kept = within_budget(found, config, masks)
        if kept is None or config.keep == "hybrid":
            size = backbone_sizes(config.backbone)[1]
            kept, rows = keep_exemplars(
                samples, masks, self._judge(), size, config, seed, header, self._report, kept
            )
        return kept, rows

    def _searched(
        self,
        samples: Sequence[Sample],
        masks: MasksArtifact,
        config: CompressConfig,
        header: dict[str, Any],
        seed: int,
        checkpoint: Checkpoint,
    ) -> ConditionsArtifact:
        """Conditions as searched, before they are fitted into a budget: the same for many of them.

        The last few are remembered, for every budget and form that is tried asks for them again.
        """
        from replaycad.stages.compress import compress_class, searchable

        diffusion = self._load_backbone(config)
        config = searchable(config, diffusion, masks)
        bare = replace(config, keep="conditions", budget=0)
        key = (canonical_json(header["inputs"]), bare, seed, diffusion.device)
        if key not in self._known:
            while len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[key] = compress_class(
                samples, masks, diffusion, config, seed, header, self._report, checkpoint,
                self._save_every_seconds,
            )  # fmt: skip
        found = self._known[key]
        return replace(found, header={**header, "placement": found.header["placement"]})

    def _judge(self) -> Any:
        """The encoder that says which images are alike."""
        from replaycad.detectors.encoders import load_encoder

        return self._load("encoder of exemplars", EXEMPLAR_ENCODER, load_encoder)

    def _choose(
        self,
        samples: Sequence[Sample],
        masks: MasksArtifact,
        config: CompressConfig,
        drawing: ReplayConfig,
        header: dict[str, Any],
        seed: int,
        checkpoint: Checkpoint,
    ) -> ConditionsArtifact:
        """The class in each form, and of these the one whose replays tell images apart best.

        It is the very file that this form would be without a choice, but for what its header says
        of the choice, where there is room for it. Where all images fit in but a few, these are kept
        and nothing is tried.

        Raises:
            BudgetError: if no form fits into the budget.
        """
        budget = config.budget or IMAGE_BUDGET
        tried: dict[Form, ConditionsArtifact] = {}
        unseen = np.ones(len(samples), np.bool_)  # images that no form has in it
        for form in choice.FORMS:
            alone = choice.header_alone(header, form)
            trial = replace(config, keep=form, budget=budget)
            own = Checkpoint(checkpoint.path, f"{checkpoint.key} {form}", checkpoint.check)
            try:
                tried[form], rows = self._keep(samples, masks, trial, alone, seed, own)
            except BudgetError as error:
                self._report.note(f"{masks.class_name}: not as {form}: {error.message}")
                continue
            unseen[rows] = False
            if unseen.sum() < choice.TRIED_LEAST:
                break
        if not tried:
            message = f"compress: a budget of {config.budget} bytes is too small for any form"
            raise BudgetError(message, "give more")
        separations: dict[Form, float] = {}
        if len(tried) > 1:
            rest = np.flatnonzero(unseen)
            images = [samples[row] for row in rest[evenly_spaced(len(rest), choice.TRIED_ON)]]
            separations = self._separations(tried, images, drawing, header, seed)
        best = choice.chosen_form(separations) if separations else next(iter(tried))
        told = "".join(f"; {form} tells {value:.3f} apart" for form, value in separations.items())
        self._report.note(f"{masks.class_name}: kept as {best}{told}")
        kept = replace(tried[best], header={**tried[best].header, "config": header["config"]})
        explained = replace(kept, header={**kept.header, "separations": separations})
        return explained if explained.file_bytes() <= budget else kept

    def _separations(
        self,
        tried: Mapping[Form, ConditionsArtifact],
        samples: Sequence[Sample],
        drawing: ReplayConfig,
        header: dict[str, Any],
        seed: int,
    ) -> dict[Form, float]:
        """How well replays of each form tell these images from the same with a piece pasted."""
        from replaycad.continual.coverage import separations

        drawn = {}
        for form, kept in tried.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "replays.safetensors"
                self._draw(kept, path, {**header, "key": form}, drawing, seed)
                replays = ReplaysReader(path)
                drawn[form] = replays.images(range(len(replays)))
        size = next(iter(drawn.values())).shape[-1]
        real = load_images(samples, size)
        found = separations(drawn, real, self._judge(), generator(seed, "auto"))
        return {form: round(value, 4) for form, value in found.items()}

    def replay(
        self, plan: Plan, conditions_path: Path, config: ReplayConfig, seed: int
    ) -> None:
        """Draw the images of a class."""
        conditions = ConditionsArtifact.load(conditions_path)
        header = plan.header((conditions.class_name,))
        self._draw(conditions, plan.path, header, config, seed, plan.check_inputs)

    def _draw(
        self,
        conditions: ConditionsArtifact,
        path: Path,
        header: dict[str, Any],
        config: ReplayConfig,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        from replaycad.stages.replay import replay_class, vary_exemplars

        diffusion = self._load_backbone(config) if conditions.is_drawn else None
        size = diffusion.image_size if diffusion else conditions.exemplar_size
        writer = ReplaysWriter(path, header, config.num_images, size)
        if writer.rows_done:
            self._report.note(f"going on from image {writer.rows_done} of {config.num_images}")
        if diffusion:
            replay_class(conditions, diffusion, config, seed, writer, self._report)
        else:
            vary_exemplars(conditions, config, seed, writer, self._report)
        check()
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

        if config.compile:
            check_compiler(self._device)
        init = None
        if config.init:
            init = DetectorArtifact.load(self._store.path("detectors", config.init))
        replays = [self._replays(name) for name in past]
        drawn = [reader.header["class_name"] for reader in replays]
        known = list(dict.fromkeys([*(init.class_order if init else ()), *drawn, *samples]))
        limit = shared_out(config.replay_budget, len(past))
        sources = [
            Source(class_index=known.index(name), replays=reader, limit=limit)
            for name, reader in zip(drawn, replays, strict=True)
        ] + [Source(class_index=known.index(name), samples=real) for name, real in samples.items()]
        counts = [f"{len(one)} {'replays' if one.replays else 'images'} of {known[one.class_index]}"
                  for one in sources]  # fmt: skip
        self._report.note(f"{plan.name} learns from {', '.join(counts)}")
        encoder = self._encoder(config.encoder, config.detector, config.preset)
        checkpoint = self._checkpoint(plan) if not ranks().rank else _ReadOnly(
            self._store.partial(plan.kind, plan.name, plan.key), plan.key)  # fmt: skip
        detector = train_detector(
            Mixture(sources, config.image_size, self._report), known, encoder, config, seed,
            plan.header(known), self._report, checkpoint, init, self._save_every_seconds,
        )  # fmt: skip
        plan.check_inputs()
        if not ranks().rank:  # all of them have the same
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
        scores = evaluate(samples, trained, encoder, config, header, self._report)
        plan.check_inputs()
        scores.save(plan.path)

    def _replays(self, name: str) -> ReplaysReader:
        """Open replays; every byte of them is verified, once as long as the file is the same."""
        path = self._store.path("replays", name)
        reader = ReplaysReader(path)
        content = reader.header["content_id"]
        if self._sound.get(path) != content:
            verify(path)
            self._sound[path] = content
        return reader

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
        path = self._store.partial(plan.kind, plan.name, plan.key)
        return Checkpoint(path, plan.key, plan.check_inputs)

    def _load_backbone(self, config: CompressConfig | ReplayConfig) -> Any:
        from replaycad.diffusion.backbones import DTYPES, load_backbone

        dtype, is_compiled = DTYPES.get(config.precision), getattr(config, "compile", False)
        return self._load(
            f"backbone in {config.precision}{', compiled' * is_compiled}", config.backbone,
            lambda name, device: load_backbone(name, device, dtype, is_compiled),
        )  # fmt: skip

    def _load(self, kind: str, name: str, load: Callable[..., Any]) -> Any:
        if self._loaded != (kind, name):
            self._model = None  # gives the memory back before the next model takes its own
            self._model = load(name, self._device)
            self._loaded = (kind, name)
        return self._model
