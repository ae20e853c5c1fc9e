"""Quality against bytes: `python -m tests.bench.budget --data FOLDER --budget 25000 50000`.

The last step of a sequence: all classes but the last are replayed from what is kept of them in so
many bytes, the last is real. Every way to keep a class beside every other, on the same images, and
what joint training on all real images gives, of which the last column is a share.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from replaycad.artifacts.format import read_header
from replaycad.config.stages import TrainConfig
from replaycad.data.layouts import find_classes
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.past import keeps_features
from replaycad.engine.replay import ReplayStage
from replaycad.engine.settings import RunSettings
from replaycad.engine.train import TrainStage
from replaycad.errors import BudgetError
from replaycad.progress import silent

REPRESENTATIONS = ("features", "exemplars", "hybrid", "conditions", "auto")
JOINT = "joint"
FIGURES = ("image_auroc", "pixel_ap")


def joint(builder: Builder, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Figures of one detector that had the real images of all classes."""
    start = time.monotonic()
    name = f"{builder.settings.config(TrainConfig).detector}-{JOINT}-{seed}"
    builder.build(TrainStage(builder, classes, (), name, seed))
    outcome = builder.build(EvalStage(builder, classes, name))
    return _row(outcome.plan.path, classes, {
        "keep": JOINT, "budget": 0, "seed": seed, "seconds": round(time.monotonic() - start),
    })  # fmt: skip


def _row(scores: Path, classes: Sequence[str], told: dict[str, Any]) -> dict[str, Any]:
    """What was kept, the means over all classes but the last, and the figures of each."""
    metrics = read_header(scores)["metrics"]["classes"]
    return {
        **told,
        **{figure: fmean(metrics[one][figure] for one in classes[:-1]) for figure in FIGURES},
        "classes": {one: [metrics[one][figure] for figure in FIGURES] for one in classes},
    }


def last_step(
    builder: Builder, classes: Sequence[str], keep: str, budget: int, seed: int
) -> dict[str, Any]:
    """Figures of one detector, as fractions; `bytes` is the mean of the past classes' files."""
    name = f"{keep}-{budget}-{seed}"
    start = time.monotonic()
    past = [f"{one}-{name}" for one in classes[:-1]]
    for one, stored in zip(classes, past, strict=False):
        builder.build(CompressStage(builder, one, stored, seed, {"keep": keep, "budget": budget}))
        if not keeps_features(builder, stored):
            builder.build(ReplayStage(builder, stored, seed, one))
    detector = f"{builder.settings.config(TrainConfig).detector}-{name}"
    builder.build(TrainStage(builder, classes[-1:], past, detector, seed))
    outcome = builder.build(EvalStage(builder, classes, detector))
    sizes = [builder.store.path("conditions", one).stat().st_size for one in past]
    chosen = [read_header(builder.store.path("conditions", one)).get("form") for one in past]
    return _row(outcome.plan.path, classes, {
        "keep": keep, "budget": budget, "seed": seed, "bytes": round(fmean(sizes)),
        "chosen": chosen, "seconds": round(time.monotonic() - start),
    })  # fmt: skip


def main() -> None:
    """Print a row of JSON for every detector, and the table over seeds at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("build/budget"))
    parser.add_argument("--order", nargs="+", default=[], help="of the classes; default: by name")
    parser.add_argument("--budget", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--keep", nargs="+", default=list(REPRESENTATIONS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--num", type=int, default=120)
    parser.add_argument("--detector", default="patchcore-standard")
    parser.add_argument("--encoder", default="", help="default: the detector's")
    typed = parser.parse_args()
    classes = typed.order or find_classes(typed.data)
    settings = RunSettings(
        data=typed.data, root=typed.store,
        overrides={
            "replay": {"num_images": str(typed.num)},
            "train": {"detector": typed.detector, "encoder": typed.encoder},
        },
    )  # fmt: skip
    with Builder(settings, silent) as builder:
        compare(builder, classes, typed)


def compare(builder: Builder, classes: Sequence[str], typed: argparse.Namespace) -> None:
    """One row per budget and representation; a class is searched once for all of them."""
    whole = [joint(builder, classes, seed) for seed in typed.seed]
    for row in whole:
        sys.stdout.write(json.dumps(row) + "\n")
    bounds = {figure: fmean(row[figure] for row in whole) for figure in FIGURES}
    for budget in typed.budget:
        for keep in typed.keep:
            rows = []
            for seed in typed.seed:
                try:
                    rows.append(last_step(builder, classes, keep, budget, seed))
                except BudgetError as error:
                    sys.stdout.write(f"{keep} {budget}: {error.message}\n")
                    break
                sys.stdout.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.flush()
            if rows:
                columns = [[100 * row[figure] for row in rows] for figure in FIGURES]
                cells = [f"{fmean(column):.1f} +- {pstdev(column):.1f}" for column in columns]
                share = fmean(row["pixel_ap"] for row in rows) / bounds["pixel_ap"]
                told = (str(budget), keep, str(rows[0]["bytes"]), *cells, f"{share:.1%}")
                sys.stdout.write(f"| {' | '.join(told)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
