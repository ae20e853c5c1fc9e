"""Walks a planned sequence step by step and keeps what it came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaycad import sequence
from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.data.samples import test_samples, train_samples
from replaycad.detectors.presets import preset_for, settle
from replaycad.errors import ConfigError
from replaycad.pipeline import Pipeline
from replaycad.plans import Outcome, digest_of
from replaycad.recipes import CompressConfig, MaskConfig, TrainConfig
from replaycad.sequence import Step


def run_sequence(
    pipeline: Pipeline,
    classes: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    run_name: str,
    sheet: Path | None,
) -> dict[str, Any]:
    """Do everything of the sequence that is not up to date.

    Args:
        pipeline: that does single stages.
        classes: in the order in which the detector meets them.
        strategies: of `sequence.STRATEGIES`.
        seeds: one whole sequence each.
        run_name: of the results and of the detectors.
        sheet: where the contact sheet goes; None for beside the results.

    Returns:
        `outcomes`, and unless it is a dry run the results `document` and the written `files`.

    Raises:
        ConfigError: unknown strategy, or one that the detector has no use for.
        DatasetError: before anything is made, if a class lacks training or test images.
        WeightsError: before anything is made, if a frozen network is missing.
    """
    strategies = sequence.check_strategies(strategies)
    target = pipeline.store.path("results", run_name, ".json")
    for class_name in classes:
        train_samples(pipeline.wishes.data, class_name)
        test_samples(pipeline.wishes.data, class_name)
    planned = sequence.steps(classes, strategies, seeds, run_name)
    _check_networks(pipeline, planned)
    outcomes: list[Outcome] = []
    for number, step in enumerate(planned):
        pipeline.report.step("sequence", number, len(planned))
        outcomes.append(pipeline.perform(step))
    pipeline.report.step("sequence", len(planned), len(planned))
    if pipeline.wishes.dry_run:
        return {"outcomes": outcomes}
    digest = digest_of({
        "keys": [outcome.plan.key for outcome in outcomes], "classes": list(classes),
        "strategies": list(strategies), "seeds": list(seeds),
    })  # fmt: skip
    picture = sheet or pipeline.store.path("results", run_name, ".png")
    document = _unchanged(pipeline, run_name, target, digest)
    if document is None:
        document = _document(pipeline, classes, strategies, seeds, planned, outcomes)
        write_text(target, json.dumps(document, indent=2) + "\n")
        write_text(_digest_path(pipeline, run_name), digest)
    elif picture.exists():
        return {"outcomes": outcomes, "document": document, "files": [target, picture]}
    # PIL is not needed while all is up to date.
    from replaycad.contact_sheet import draw_sheet  # noqa: PLC0415

    draw_sheet(pipeline.wishes.data, pipeline.store, classes, picture)
    return {"outcomes": outcomes, "document": document, "files": [target, picture]}


def _check_networks(pipeline: Pipeline, planned: Sequence[Step]) -> None:
    """Miss a network now, not after hours of work with the others."""
    for step in planned:
        if step.stage == "mask":
            masking = pipeline.config(MaskConfig, step.class_names[0])
            pipeline.frozen.segmenter(masking.segmenter)
        elif step.stage == "compress":
            compressing = pipeline.config(CompressConfig, step.class_names[0])
            pipeline.weights_of_compress(replace(compressing, **dict(step.changes)))
        elif step.stage == "train":
            config = settle(pipeline.config(TrainConfig))
            pipeline.frozen.encoder(config.encoder)
            _check_fits(config, step)


def _check_fits(config: TrainConfig, step: Step) -> None:
    has_weights = bool(preset_for(config.detector, config.preset).training.optimizers)
    changes = dict(step.changes)
    if "penalty" in changes and not has_weights:
        raise ConfigError(
            f"strategy '{changes['penalty']}' holds weights still, and {config.detector} has none",
            "use a detector that is trained by a loss",
        )
    if "banks" in changes and has_weights:
        raise ConfigError(
            f"the strategy of '{step.name}' keeps memory banks, and {config.detector} has none",
            "use --detector patchcore",
        )


def _digest_path(pipeline: Pipeline, run_name: str) -> Path:
    return pipeline.store.root / ".timings" / "results" / f"{run_name}.txt"


def _unchanged(
    pipeline: Pipeline, run_name: str, target: Path, digest: str
) -> dict[str, Any] | None:
    """The document of the run before, if it was written from these very artifacts."""
    try:
        if _digest_path(pipeline, run_name).read_text() != digest:
            return None
        return json.loads(target.read_text())
    except (OSError, ValueError):
        return None


def _document(
    pipeline: Pipeline,
    classes: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    planned: Sequence[Step],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    # Its scipy takes longer to import than an up-to-date run may last.
    from replaycad.results import results_document  # noqa: PLC0415

    by_step = dict(zip(planned, outcomes, strict=True))
    return results_document(
        classes=classes, strategies=strategies, seeds=seeds,
        detector=pipeline.config(TrainConfig).detector, planned=planned,
        scores=lambda step: _scores(by_step[step]),
        seconds=lambda step: by_step[step].seconds,
        num_bytes=lambda strategy, name: _bytes_kept(pipeline, planned, strategy, name),
    )  # fmt: skip


def _scores(outcome: Outcome) -> Mapping[str, Mapping[str, float | None]]:
    return read_header(outcome.plan.path)["metrics"]["classes"]


def _bytes_kept(pipeline: Pipeline, planned: Sequence[Step], strategy: str, name: str) -> int:
    """What a strategy keeps of a class between steps, beside a detector such as `joint` has.

    Nothing, conditions, all images, or its part of the importances or banks of all classes.
    """
    if strategy == "finetune":
        return 0
    if strategy in (*sequence.PENALIZED, *sequence.BANKED):
        last = next(s for s in reversed(planned) if s.stage == "train" and strategy in s.strategies)
        detector = DetectorArtifact.load(pipeline.store.path("detectors", last.name))
        kept = detector.state if strategy in sequence.BANKED else detector.penalty
        num_classes = max(len(s.class_names) for s in planned if s.stage == "eval")
        return sum(values.nbytes for values in kept.values()) // num_classes
    if strategy == "joint":
        images = train_samples(pipeline.wishes.data, name)
        return sum(sample.path.stat().st_size for sample in images)
    stored = next(
        s for s in planned
        if s.stage == "compress" and s.class_names == (name,) and strategy in s.strategies
    )  # fmt: skip
    return pipeline.store.path("conditions", stored.name).stat().st_size
