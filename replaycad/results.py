"""What a sequence came to: the step x class matrices and the numbers read from them."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from replaycad.metrics import forgetting, joint_gap, mean_final, mean_past
from replaycad.sequence import Step

METRICS = ("image_auroc", "pixel_ap")
FIGURES = ("mean", "mean_past", "fm", "joint_gap")

Matrix = list[list[float | None]]


def matrix_of(
    classes: Sequence[str],
    rows: Mapping[int, Mapping[str, Mapping[str, float | None]]],
    metric: str,
) -> Matrix:
    """Step x class matrix of one metric, fractions 0..1, higher is better; null where not measured.

    Args:
        classes: columns, in order.
        rows: step (from 1) -> class -> metric -> value.
        metric: a key of the innermost mapping.
    """
    return [
        [rows.get(step, {}).get(name, {}).get(metric) for name in classes]
        for step in range(1, len(classes) + 1)
    ]


def figures(matrix: Matrix, joint_row: Sequence[float | None] | None) -> dict[str, Any]:
    """The matrix and the four numbers read from it.

    Args:
        matrix: step x class.
        joint_row: last row of the joint training's matrix, or None where it was not run.

    Returns:
        `matrix`; `mean` of the last row; `mean_past`, the same without the last class; `fm`, best
        earlier minus final over the past classes; `joint_gap`, joint mean minus this mean. A number
        that is not defined is None.
    """
    scores = np.array(matrix, dtype=np.float64)  # None becomes NaN
    joint = np.full(len(matrix), np.nan) if joint_row is None else np.array(joint_row, np.float64)
    numbers = {
        "mean": mean_final(scores),
        "mean_past": mean_past(scores),
        "fm": forgetting(scores),
        "joint_gap": joint_gap(joint, scores),
    }
    known = {name: value if isfinite(value) else None for name, value in numbers.items()}
    return {"matrix": matrix, **known}


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures over seeds: means in place, deviations under `std`; one seed stays as it is."""
    if len(runs) == 1:
        return runs[0]
    merged = _over(runs, fmean)
    return {**merged, "std": _over(runs, pstdev)}


def _over(runs: Sequence[dict[str, Any]], of: Callable[[list[float]], float]) -> dict[str, Any]:
    def cell(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return of(known) if len(known) == len(values) else None

    size = range(len(runs[0]["matrix"]))
    matrix = [[cell([run["matrix"][row][col] for run in runs]) for col in size] for row in size]
    return {"matrix": matrix} | {name: cell([run[name] for run in runs]) for name in FIGURES}


def results_document(
    *,
    classes: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    detector: str,
    planned: Sequence[Step],
    scores: Callable[[Step], Mapping[str, Mapping[str, float | None]]],
    seconds: Callable[[Step], float],
    num_bytes: Callable[[str, str], int],
) -> dict[str, Any]:
    """The document that `run` prints and keeps (design section 2).

    Args:
        classes: in order.
        strategies: that were run.
        seeds: that were run.
        detector: its name.
        planned: what `steps` gave.
        scores: of an eval step: class -> metric -> value.
        seconds: that a step's artifact took to make, whenever it was made.
        num_bytes: (strategy, class) -> bytes kept for the class between steps.
    """
    rows: dict[tuple[int, str], dict[int, Mapping]] = {}
    for step in planned:
        if step.stage == "eval":
            for strategy in step.strategies:
                rows.setdefault((step.seed, strategy), {})[len(step.class_names)] = scores(step)
    document: dict[str, Any] = {"classes": list(classes), "seeds": list(seeds), "strategies": {}}
    for strategy in strategies:
        entry: dict[str, Any] = {"detector": detector}
        for metric in METRICS:
            runs = []
            for seed in seeds:
                matrix = matrix_of(classes, rows[seed, strategy], metric)
                joint = rows.get((seed, "joint"))
                top = matrix_of(classes, joint, metric)[-1] if joint else None
                runs.append(figures(matrix, top))
            entry[metric] = spread(runs)
        entry["bytes_per_class"] = {name: num_bytes(strategy, name) for name in classes}
        own = [step for step in planned if strategy in step.strategies]
        entry["seconds"] = round(sum(seconds(step) for step in own) / len(seeds), 1)
        document["strategies"][strategy] = entry
    return document
