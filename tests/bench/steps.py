"""What a step of a sequence costs as classes come: `python -m tests.bench.steps --data FOLDER`.

Classes beyond those of the folder are the same ones under other names. Every class is kept as the
default recipe keeps it, then the detector of step t is trained and measured on all classes so far.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from replaycad.data.layouts import find_classes
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.train import TrainStage


def named_again(data: Path, folder: Path, wanted: int) -> list[str]:
    """Link the classes of a folder under as many names as are wanted."""
    found = find_classes(data)
    names = [f"{name}-{turn}" for turn in range(wanted) for name in found][:wanted]
    for name in names:
        (folder / name).symlink_to((data / name.rpartition("-")[0]).resolve())
    return names


def seconds(builder: Builder, stage: Stage) -> float:
    """How long a stage takes."""
    start = time.perf_counter()
    builder.build(stage)
    return time.perf_counter() - start


def main() -> None:
    """Print one line of JSON per step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--measured", type=int, nargs="+", default=[2, 4, 8, 16])
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data, store = Path(name) / "data", Path(name) / "store"
        data.mkdir()
        names = named_again(typed.data, data, typed.steps)
        with Builder.of(data, store, {"compress.budget": 50_000}, recipe="standard") as builder:
            for step, newest in enumerate(names, start=1):
                row = {"step": step, "train": seconds(builder, TrainStage(
                    builder, [newest], names[: step - 1], f"step-{step}"))}  # fmt: skip
                row["keep"] = seconds(builder, CompressStage(builder, newest))
                if step in typed.measured:
                    row["eval, all"] = seconds(
                        builder, EvalStage(builder, names[:step], f"step-{step}")
                    )
                sys.stdout.write(json.dumps({k: round(v, 1) for k, v in row.items()}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
