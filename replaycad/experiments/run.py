"""Walks a planned sequence step by step and keeps what it came to."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.digests import file_digest
from replaycad.artifacts.format import read_header
from replaycad.artifacts.scores import SCORES
from replaycad.config.recipes import CompressConfig, MaskConfig, TrainConfig
from replaycad.data.samples import test_samples, train_samples
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.engine.pipeline import Pipeline
from replaycad.engine.staleness import Outcome, digest_of, replaced
from replaycad.errors import ArtifactError, BudgetError, ConfigError, ReplayCadError
from replaycad.experiments import plan as sequence
from replaycad.experiments.plan import Cell, Step
from replaycad.experiments.strategies import STRATEGIES
from replaycad.progress import Report

Refused = dict[Cell, str]
Performed = tuple[dict[tuple[str, str], Outcome], Refused]


def run_sequence(
    pipeline: Pipeline,
    cells: Sequence[Cell],
    run_name: str,
    sheet: Path | None = None,
    perform: Callable[[Pipeline, Sequence[Step]], Performed] | None = None,
) -> dict[str, Any]:
    """Do everything of a comparison that is not up to date.

    Args:
        pipeline: that does single stages.
        cells: as `sequence.comparison` gives them.
        run_name: of the results and of the detectors.
        sheet: where the contact sheet goes; None for beside the results.
        perform: does the steps; None for `perform_here`.

    Returns:
        `outcomes`, and unless it is a dry run the results `document`, the written `files` and
        whether anything behind them `is_new`.

    Raises:
        ConfigError: a strategy that the detector has no use for.
        BudgetError: if no cell that keeps something of its classes fits into its budget.
        DatasetError: before anything is made, if a class lacks training or test images.
        WeightsError: before anything is made, if a frozen network is missing.
    """
    for class_name in cells[0].classes:
        train_samples(pipeline.wishes.data, class_name)
        test_samples(pipeline.wishes.data, class_name)
    cells = _fitting(pipeline, cells)
    planned = sequence.steps(cells, run_name, pipeline.wishes.seed)
    _check_networks(pipeline, planned)
    outcomes, refused = (perform or perform_here)(pipeline, planned)
    if pipeline.wishes.dry_run:
        return {"outcomes": list(outcomes.values())}
    left = [cell for cell in cells if cell not in refused]
    done = sequence.steps(left, run_name, pipeline.wishes.seed)
    by_step = {step: outcomes[step.stage, step.name] for step in done}
    named = {cell: sequence.label(cell, cells) for cell in left}
    left_out = {sequence.label(cell, cells): reason for cell, reason in refused.items()}
    result = _kept_results(pipeline, named, left_out, run_name, by_step)
    picture = sheet or pipeline.store.path("results", run_name, ".png")
    if result["is_new"] or not picture.exists():
        # PIL is not needed while all is up to date.
        from replaycad.experiments.contact_sheet import draw_sheet  # noqa: PLC0415

        drawing = [cell for cell in left if STRATEGIES[cell.strategy].keeps_classes]
        stored = {
            one: sequence.artifact_name(one, drawing[0], pipeline.wishes.seed) if drawing else one
            for one in cells[0].classes
        }
        draw_sheet(pipeline.wishes.data, pipeline.store, stored, picture)
        pipeline.store.publish("results", run_name)
    result["files"].append(picture)
    return {"outcomes": list(outcomes.values()), **result}


def _fitting(pipeline: Pipeline, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose detector has a use for their strategy; each strategy has to have one."""
    found: list[Cell] = []
    reasons: dict[str, dict[str, ConfigError | None]] = {}
    recipe = pipeline.config(TrainConfig)
    for cell in cells:
        config = replace(recipe, detector=cell.detector or recipe.detector)
        reason = _misfit(config, cell.strategy)
        if not reason:
            found.append(cell)
        reasons.setdefault(cell.strategy, {})[config.detector] = reason
    for strategy, by_detector in reasons.items():
        wrong = [reason for reason in by_detector.values() if reason is not None]
        if len(wrong) == len(by_detector):
            raise wrong[0]
        for reason in wrong:
            pipeline.report.note(f"left out: {strategy}: {reason.message}")
    return found


def _misfit(config: TrainConfig, strategy: str) -> ConfigError | None:
    needs = STRATEGIES[strategy].needs
    has_banks = preset_for(config.detector, config.preset).has_memory_banks
    if needs == "loss" and has_banks:
        return ConfigError(
            f"strategy '{strategy}' holds weights still, and {config.detector} has none",
            "use a detector that is trained by a loss",
        )
    if needs == "memory banks" and not has_banks:
        return ConfigError(
            f"strategy '{strategy}' keeps memory banks, and {config.detector} has none",
            "use --detector patchcore",
        )
    return None


def perform_step(pipeline: Pipeline, step: Step) -> Outcome:
    """Do one step of a sequence."""
    first = step.class_names[0]
    if step.stage == "mask":
        return pipeline.mask(first)
    if step.stage == "compress":
        return pipeline.compress(first, step.name, step.seed, dict(step.changes))
    if step.stage == "replay":
        return pipeline.replay(step.name, step.seed, first)
    if step.stage == "train":
        return pipeline.train(
            step.class_names, step.sources, step.name, step.seed, step.init, dict(step.changes)
        )
    return pipeline.evaluate(step.class_names, step.sources[0])


def perform_here(pipeline: Pipeline, planned: Sequence[Step]) -> Performed:
    """Do the steps one by one; a cell whose budget is too small is left out, and is told why.

    Returns:
        outcomes by stage and name, and the reasons of the cells that were left out.
    """
    outcomes: dict[tuple[str, str], Outcome] = {}
    refused: Refused = {}
    everyone = {cell for step in planned for cell in step.cells}
    for number, step in enumerate(planned):
        pipeline.report.step("sequence", number, len(planned))
        if all(cell in refused for cell in step.cells):
            continue
        try:
            outcomes[step.stage, step.name] = perform_step(pipeline, step)
        except BudgetError as error:
            refuse(error, step, refused, everyone, pipeline.report)
    pipeline.report.step("sequence", len(planned), len(planned))
    return outcomes, refused


def refuse(
    error: ReplayCadError, step: Step, refused: Refused, everyone: set[Cell], report: Report
) -> None:
    """Leave out the cells of a step whose budget is too small.

    Raises:
        ReplayCadError: it is another error, or no other budget is left to be compared.
    """
    if not isinstance(error, BudgetError):
        raise error
    is_known = all(cell in refused for cell in step.cells)
    refused |= dict.fromkeys(step.cells, error.message)
    if not any(cell.budget for cell in everyone - set(refused)):
        raise error
    if not is_known:
        report.note(f"left out: {step.name}: {error.message}")


def _check_networks(pipeline: Pipeline, planned: Sequence[Step]) -> None:
    """Miss a network now, not after hours of work with the others."""
    for step in planned:
        if step.stage == "mask":
            masking = pipeline.config(MaskConfig, step.class_names[0])
            pipeline.frozen.segmenter(masking.segmenter)
        elif step.stage == "compress":
            compressing = pipeline.config(CompressConfig, step.class_names[0])
            compressing = replace(compressing, **dict(step.changes))
            pipeline.weights_of_compress(compressing)
            pipeline.check_fits(compressing)
        elif step.stage == "train":
            config = pipeline.config(TrainConfig)
            named = dict(step.changes).get("detector", config.detector)
            pipeline.frozen.encoder(resolve_defaults(replace(config, detector=named)).encoder)


def _kept_results(
    pipeline: Pipeline,
    named: Mapping[Cell, str],
    left_out: Mapping[str, str],
    run_name: str,
    by_step: Mapping[Step, Outcome],
) -> dict[str, Any]:
    """The document and its files; written anew only if anything behind it changed."""
    target = pipeline.store.path("results", run_name, ".json")
    table = pipeline.store.path("results", run_name, ".csv")
    digest = digest_of({
        "keys": [outcome.plan.key for outcome in by_step.values()],
        "cells": [asdict(cell) for cell in named], "left_out": left_out,
    })  # fmt: skip
    document = _unchanged(pipeline, run_name, (target, table), digest)
    is_new = document is None
    if document is None:
        # Its scipy takes longer to import than an up-to-date run may last.
        from replaycad.experiments.results import results_csv, results_document  # noqa: PLC0415

        remembered = cache(lambda cell: _remembered(by_step, cell))
        document = results_document(
            named=named, detector=pipeline.config(TrainConfig).detector, planned=list(by_step),
            scores=lambda step: _scores(by_step[step]),
            seconds=lambda step: by_step[step].seconds,
            num_bytes=lambda cell, name: (
                remembered(cell) if STRATEGIES[cell.strategy].goes_on
                else _bytes_kept(pipeline, by_step, cell, name)
            ),
        )  # fmt: skip
        document |= {"left_out": left_out} if left_out else {}
        write_text(target, json.dumps(document, indent=2) + "\n")
        write_text(table, results_csv(document))
        write_text(_digest_path(pipeline, run_name), _digest_with(digest, (target, table)))
    return {"document": document, "files": [target, table], "is_new": is_new}


def _digest_path(pipeline: Pipeline, run_name: str) -> Path:
    return pipeline.store.root / ".timings" / "results" / f"{run_name}.txt"


def _unchanged(
    pipeline: Pipeline, run_name: str, files: Sequence[Path], digest: str
) -> dict[str, Any] | None:
    """The document of the run before, if it was written from these very artifacts."""
    try:
        if _digest_path(pipeline, run_name).read_text() != _digest_with(digest, files):
            return None
        return json.loads(files[0].read_text())
    except (OSError, ValueError, ArtifactError):
        return None


def _digest_with(digest: str, files: Sequence[Path]) -> str:
    """One digest over what results come from and over what they are."""
    return digest_of({"from": digest, **{path.suffix: file_digest(path) for path in files}})


def _scores(outcome: Outcome) -> Mapping[str, Mapping[str, float | None]]:
    header = read_header(outcome.plan.path, SCORES)
    if header.get("key") != outcome.plan.key:
        raise replaced(outcome.plan.label)
    return header["metrics"]["classes"]


def _remembered(by_step: Mapping[Step, Outcome], cell: Cell) -> int:
    """A class's part of what the last detector of a cell remembers, in bytes, if anything."""
    last = [step for step in by_step if cell in step.cells and step.stage == "train"][-1]
    detector = DetectorArtifact.load(by_step[last].plan.path)
    kept = [*detector.penalty.values()]
    if STRATEGIES[cell.strategy].needs == "memory banks":
        kept += detector.state.values()
    elif len(detector.state.get("memory_class", ())) > 1:
        kept += [value for name, value in detector.state.items() if name.startswith("memory_")]
    return sum(values.nbytes for values in kept) // len(cell.classes)


def _bytes_kept(
    pipeline: Pipeline, by_step: Mapping[Step, Outcome], cell: Cell, name: str
) -> int:
    """What a strategy keeps of a class between steps, beside a detector such as `joint` has.

    Conditions or all images; importances, banks and Gaussians are `_remembered`.
    """
    if STRATEGIES[cell.strategy].uses_all_images:
        images = train_samples(pipeline.wishes.data, name)
        return sum(sample.path.stat().st_size for sample in images)
    own = [step for step in by_step if cell in step.cells]
    stored = [s for s in own if s.stage == "compress" and s.class_names == (name,)]
    # `final` keeps nothing of its last class, which is real.
    return by_step[stored[0]].plan.path.stat().st_size if stored else 0
