"""Every detector on all classes of a folder at once: `python -m tests.bench.joint --data FOLDER`.

Trains on the real images of all classes (no replays), tests on all, and writes down what it took.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.registry import DETECTORS

COLUMNS = ("detector", "encoder", "million numbers", "train s", "eval s", "peak GB", "image AUROC",
           "pixel AP")  # fmt: skip


def command(arguments: list[str]) -> tuple[float, float]:
    """Run one command of the program; seconds and peak resident GB of its process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "replaycad", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def row(detector: str, encoder: str, data: Path, store: Path, extra: list[str]) -> tuple:
    """Train and test one detector."""
    label = encoder.partition(":")[0]
    name = f"{detector}-{label}"
    shared = ["--data", str(data), "--store", str(store), "--encoder", encoder, "--name", name,
              "--quiet"]  # fmt: skip
    typed = ["train", "--class", "all", "--detector", detector, *shared, *extra]
    trained, peak = command(typed)
    tested, _ = command(["eval", "--class", "all", *shared])
    found = json.loads((store / "scores" / f"{name}.json").read_text())["metrics"]["mean"]
    state = DetectorArtifact.load(store / "detectors" / f"{name}.safetensors").state
    size = sum(values.size for values in state.values()) / 1e6
    figures = (f"{100 * found[key]:.1f}" for key in ("image_auroc", "pixel_ap"))
    return (detector, label, f"{size:.2f}", f"{trained:.0f}", f"{tested:.0f}", f"{peak:.1f}",
            *figures)  # fmt: skip


def main() -> None:
    """Print the table, row by row as markdown and whole at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("build/joint"))
    parser.add_argument("--encoder", nargs="+", default=["mini"])
    parser.add_argument("--detector", nargs="+", default=list(DETECTORS))
    parser.add_argument("--set", nargs="*", default=[], help="settings of train")
    typed = parser.parse_args()
    extra = [part for setting in typed.set for part in ("--set", setting)]
    table = Table(*COLUMNS)
    for encoder in typed.encoder:
        for detector in typed.detector:
            cells = row(detector, encoder, typed.data, typed.store, extra)
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()
            table.add_row(*cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
