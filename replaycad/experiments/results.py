"""What a sequence came to: the step x class matrices and the numbers read from them."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from replaycad.experiments.plan import Cell, Step
from replaycad.experiments.tables import METRICS, kept_of_a_class
from replaycad.metrics import forgetting, joint_gap, mean_final, mean_past

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
    named: Mapping[Cell, str],
    detector: str,
    planned: Sequence[Step],
    scores: Callable[[Step], Mapping[str, Mapping[str, float | None]]],
    seconds: Callable[[Step], float],
    num_bytes: Callable[[Cell, str], int],
) -> dict[str, Any]:
    """The document that `run` prints and keeps.

    Args:
        named: cells that were run, and what each is called; those of one name make one entry.
        detector: name of the one that cells without one use.
        planned: what `steps` gave of these cells.
        scores: of an eval step: class -> metric -> value.
        seconds: that a step's artifact took to make, whenever it was made.
        num_bytes: (cell, class) -> bytes kept for the class between steps.

    Returns:
        An entry's `matrix` is that of the order that was typed, the mean over seeds. Its other
        figures are means over seeds and orders; where there are several, they stand under `runs`.
    """
    cells = list(named)
    rows: dict[Cell, dict[int, Mapping]] = {cell: {} for cell in cells}
    spent = dict.fromkeys(cells, 0.0)
    for step in planned:
        found = scores(step) if step.stage == "eval" else {}
        taken = seconds(step)
        for cell in step.cells:
            spent[cell] += taken
            if step.stage == "eval":
                rows[cell][len(step.class_names)] = found
    entries: dict[str, list[Cell]] = {}
    for cell in cells:
        entries.setdefault(named[cell], []).append(cell)
    joint = {(c.detector, c.seed): rows[c] for c in cells if c.strategy == "joint"}
    typed = [cell for cell in cells if not cell.order]
    return {
        "classes": list(typed[0].classes),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "strategies": {
            name: _entry(own, detector, rows, joint)
            | {
                "bytes_per_class": {one: num_bytes(own[0], one) for one in typed[0].classes},
                "seconds": round(sum(spent[cell] for cell in own) / len(own), 1),
                "artifacts": _artifacts(own[0], planned),
            }
            for name, own in entries.items()
        },
    }


def _artifacts(cell: Cell, planned: Sequence[Step]) -> dict[str, Any]:
    """Names of a cell's last detector and of what it keeps of each class, if anything."""
    own = [step for step in planned if cell in step.cells]
    return {
        "detector": next(step.name for step in reversed(own) if step.stage == "train"),
        "stored": {step.class_names[0]: step.name for step in own if step.stage == "compress"},
    }


def _entry(
    own: Sequence[Cell],
    detector: str,
    rows: Mapping[Cell, Mapping[int, Mapping]],
    joint: Mapping[tuple[str, int], Mapping[int, Mapping]],
) -> dict[str, Any]:
    """Figures of the cells that differ in seed and order alone."""
    entry: dict[str, Any] = {"detector": own[0].detector or detector}
    entry |= {"budget": own[0].budget} if own[0].budget else {}
    told: list[dict[str, Any]] = [{"seed": c.seed, "order": list(c.classes)} for c in own]
    for metric in METRICS:
        runs = []
        for cell, shown in zip(own, told, strict=True):
            top = joint.get((cell.detector, cell.seed))
            upper = matrix_of(cell.classes, top, metric)[-1] if top else None
            runs.append(figures(matrix_of(cell.classes, rows[cell], metric), upper))
            shown[metric] = {name: runs[-1][name] for name in FIGURES}
        first = [run for run, cell in zip(runs, own, strict=True) if not cell.order]
        entry[metric] = {**spread(runs), "matrix": _over(first, fmean)["matrix"]}
    return entry | ({"runs": told} if len(own) > 1 else {})


def results_csv(document: Mapping[str, Any]) -> str:
    """The document as rows for a spreadsheet: one per strategy, run and metric, values 0..1."""
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("strategy", "detector", "budget", "seed", "order", "metric", *FIGURES,
                         "bytes_per_class", "seconds"))  # fmt: skip
        for name, entry in document["strategies"].items():
            size = kept_of_a_class(entry)
            alone = {"seed": document["seeds"][0], "order": document["classes"]}
            for run in entry.get("runs", [alone | {metric: entry[metric] for metric in METRICS}]):
                for metric in METRICS:
                    writer.writerow((
                        name, entry["detector"], entry.get("budget", ""), run["seed"],
                        " ".join(run["order"]), metric,
                        *(run[metric][figure] for figure in FIGURES),
                        size, entry["seconds"],
                    ))  # fmt: skip
        return file.getvalue()
