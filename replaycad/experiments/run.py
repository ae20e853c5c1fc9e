"""Runs a planned sequence step by step and writes its results."""

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
from replaycad.config.stages import TrainConfig
from replaycad.data.layouts import test_samples, train_samples
from replaycad.detectors.registry import preset_for
from replaycad.engine.builder import Builder, Outcome, Stage
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.mask import MaskStage
from replaycad.engine.past import keeps_features
from replaycad.engine.replay import ReplayStage
from replaycad.engine.staleness import digest_of, replaced
from replaycad.engine.train import TrainStage
from replaycad.errors import ArtifactError, BudgetError, ConfigError, ReplayCadError
from replaycad.experiments.plan import Cell, Step, artifact_name, label, steps
from replaycad.experiments.strategies import STRATEGIES
from replaycad.progress import Report

Refused = dict[Cell, str]
Performed = tuple[dict[tuple[str, str], Outcome], Refused]


def run_sequence(
    builder: Builder,
    cells: Sequence[Cell],
    run_name: str,
    perform: Callable[[Builder, Sequence[Step]], Performed] | None = None,
) -> dict[str, Any]:
    """Do everything of a comparison that is not up to date.

    Args:
        builder: that does single stages.
        cells: as `plan.comparison` gives them.
        run_name: of the results and of the detectors.
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
        train_samples(builder.settings.data, class_name)
        test_samples(builder.settings.data, class_name)
    cells = _fitting(builder, cells)
    planned = steps(cells, run_name)
    _check_networks(builder, planned)
    outcomes, refused = (perform or perform_here)(builder, planned)
    if builder.settings.dry_run:
        return {"outcomes": list(outcomes.values())}
    left = [cell for cell in cells if cell not in refused]
    done = steps(left, run_name)
    # Where features are kept of a class, none of its replays were drawn.
    by_step = {
        step: outcomes[step.stage, step.name]
        for step in done if step.stage != "replay" or (step.stage, step.name) in outcomes
    }  # fmt: skip
    named = {cell: label(cell, cells) for cell in left}
    left_out = {label(cell, cells): reason for cell, reason in refused.items()}
    result = _kept_results(builder, named, left_out, run_name, by_step)
    picture = builder.store.path("results", run_name, ".png")
    if result["is_new"] or not picture.exists():
        # PIL is not needed while all is up to date.
        from replaycad.experiments.contact_sheet import draw_sheet  # noqa: PLC0415

        drawing = [cell for cell in left if STRATEGIES[cell.strategy].keeps_classes]
        kinds: dict[str, Cell] = {}
        for cell in drawing:
            kinds.setdefault("replay" if len(drawing) == 1 else cell.strategy, cell)
        stored = {
            one: {kind: artifact_name(one, cell) for kind, cell in kinds.items()}
            or {"replay": one}
            for one in cells[0].classes
        }  # fmt: skip
        draw_sheet(builder.settings.data, builder.store, stored, picture)
    result["files"].append(picture)
    return {"outcomes": list(outcomes.values()), **result}


def _fitting(builder: Builder, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose detector has a use for their strategy; each strategy has to have one."""
    found: list[Cell] = []
    reasons: dict[str, dict[str, ConfigError | None]] = {}
    recipe = builder.settings.config(TrainConfig)
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
            builder.report.note(f"left out: {strategy}: {reason.message}")
    return found


def _misfit(config: TrainConfig, strategy: str) -> ConfigError | None:
    needs = STRATEGIES[strategy].needs
    has_banks = preset_for(config.detector, config.preset).has_memory_banks
    if needs == "loss" and has_banks:
        return ConfigError(
            f"strategy '{strategy}' protects trained weights, but {config.detector} has none",
            "use a detector that trains with a loss, such as invad",
        )
    if needs == "memory banks" and not has_banks:
        return ConfigError(
            f"strategy '{strategy}' keeps memory banks, but {config.detector} has none",
            "use --detector patchcore",
        )
    return None


def stage_of(builder: Builder, step: Step) -> Stage:
    """What a step asks for."""
    class_name, changes = step.class_names[0], dict(step.changes)
    if step.stage == "mask":
        return MaskStage(builder, class_name)
    if step.stage == "compress":
        detectors = list(dict.fromkeys(cell.detector for cell in step.cells))
        return CompressStage(builder, class_name, step.name, step.seed, changes, detectors)
    if step.stage == "replay":
        return ReplayStage(builder, step.name, step.seed, class_name)
    if step.stage == "train":
        return TrainStage(
            builder, step.class_names, step.sources, step.name, step.seed, step.init, changes
        )
    return EvalStage(builder, step.class_names, step.sources[0])


def perform_step(builder: Builder, step: Step) -> Outcome | None:
    """Do one step; nothing, where features are kept of a class and none of its replays are drawn.

    Raises:
        ReplayCadError: whatever the stage failed with.
    """
    if step.stage == "replay" and keeps_features(builder, step.sources[0]):
        return None
    return builder.build(stage_of(builder, step))


def perform_here(builder: Builder, planned: Sequence[Step]) -> Performed:
    """Do the steps one by one; a cell whose budget is too small is left out, and is told why.

    Returns:
        outcomes by stage and name, and the reasons of the cells that were left out.
    """
    outcomes: dict[tuple[str, str], Outcome] = {}
    refused: Refused = {}
    everyone = {cell for step in planned for cell in step.cells}
    for number, step in enumerate(planned):
        builder.report.step("sequence", number, len(planned))
        if all(cell in refused for cell in step.cells):
            continue
        try:
            outcome = perform_step(builder, step)
        except BudgetError as error:
            refuse(error, step, refused, everyone, builder.report)
        else:
            if outcome is not None:
                outcomes[step.stage, step.name] = outcome
    builder.report.step("sequence", len(planned), len(planned))
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


def _check_networks(builder: Builder, planned: Sequence[Step]) -> None:
    """Miss a network now, not after hours of work with the others."""
    for step in planned:
        if step.stage in ("mask", "compress", "train"):  # the others read what is not there yet
            stage_of(builder, step)


def _kept_results(
    builder: Builder,
    named: Mapping[Cell, str],
    left_out: Mapping[str, str],
    run_name: str,
    by_step: Mapping[Step, Outcome],
) -> dict[str, Any]:
    """The document and its files; written anew only if anything behind it changed."""
    target = builder.store.path("results", run_name, ".json")
    table = builder.store.path("results", run_name, ".csv")
    digest = digest_of({
        "keys": [outcome.plan.key for outcome in by_step.values()],
        "cells": [asdict(cell) for cell in named], "left_out": left_out,
    })  # fmt: skip
    document = _unchanged(builder, run_name, (target, table), digest)
    is_new = document is None
    if document is None:
        # Its scipy takes longer to import than an up-to-date run may last.
        from replaycad.experiments.results import results_csv, results_document  # noqa: PLC0415

        remembered = cache(lambda cell: _remembered(by_step, cell))
        document = results_document(
            named=named, planned=list(by_step),
            detector=builder.settings.config(TrainConfig).detector,
            scores=lambda step: _scores(by_step[step]),
            seconds=lambda step: by_step[step].seconds,
            num_bytes=lambda cell, name: (
                remembered(cell) if STRATEGIES[cell.strategy].goes_on
                else _bytes_kept(builder, by_step, cell, name)
            ),
        )  # fmt: skip
        document |= {"left_out": left_out} if left_out else {}
        write_text(target, json.dumps(document, indent=2) + "\n")
        write_text(table, results_csv(document))
        write_text(_digest_path(builder, run_name), _digest_with(digest, (target, table)))
    return {"document": document, "files": [target, table], "is_new": is_new}


def _digest_path(builder: Builder, run_name: str) -> Path:
    return builder.store.root / ".timings" / "results" / f"{run_name}.txt"


def _unchanged(
    builder: Builder, run_name: str, files: Sequence[Path], digest: str
) -> dict[str, Any] | None:
    """The document of the run before, if it was written from these very artifacts."""
    try:
        if _digest_path(builder, run_name).read_text() != _digest_with(digest, files):
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
    kept = [*detector.penalty.values(), *detector.guard.values()]
    if STRATEGIES[cell.strategy].needs == "memory banks":
        kept += detector.state.values()
    elif len(detector.state.get("memory_class", ())) > 1:
        kept += [value for name, value in detector.state.items() if name.startswith("memory_")]
    return sum(values.nbytes for values in kept) // len(cell.classes)


def _bytes_kept(
    builder: Builder, by_step: Mapping[Step, Outcome], cell: Cell, name: str
) -> int:
    """What a strategy keeps of a class between steps, beside a detector such as `joint` has.

    Conditions or all images; importances, banks and Gaussians are `_remembered`.
    """
    if STRATEGIES[cell.strategy].uses_all_images:
        images = train_samples(builder.settings.data, name)
        return sum(sample.path.stat().st_size for sample in images)
    own = [step for step in by_step if cell in step.cells]
    stored = [s for s in own if s.stage == "compress" and s.class_names == (name,)]
    # `final` keeps nothing of its last class, which is real.
    return by_step[stored[0]].plan.path.stat().st_size if stored else 0
