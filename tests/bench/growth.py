"""Time and memory of every stage against the number of classes and of images, and their plot."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from replaycad.metrics import pixel_metrics
from replaycad.mini.world.demo import CLASSES as DRAWN
from replaycad.mini.world.pictures import write_dataset
from tests.bench.memory import IMAGE_SIZE, write_replays

CLASSES, PER_CLASS = (2, 4, 8, 16), 100
IMAGES = (100, 1_000, 10_000)
THROUGH_STAGES = (100, 1_000)  # images of a class that walk through all five, as commands;
# `python -m tests.bench.growth 100 1000 10000` takes most of an hour
NUM_STEPS = 60
SCORED = (100, 1_000)
CLASS = {"pill": DRAWN["pill"]}

_CHILD = """
import sys, time
from pathlib import Path
from replaycad.artifacts.replays import ReplaysReader
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import load_encoder
from replaycad.config.recipes import TrainConfig
from replaycad.runtime import peak_memory_bytes
from replaycad.stages.train import train_detector

readers = [ReplaysReader(Path(path)) for path in sys.argv[1:]]
sources = [Source(class_index=number, replays=one) for number, one in enumerate(readers)]
config = TrainConfig(num_steps={steps}, image_size={size})
header = {{"config": {{"encoder": "mini"}}, "weights": {{}}}}
names = [str(number) for number in range(len(readers))]
encoder = load_encoder("mini")
start = time.perf_counter()
train_detector(Mixture(sources, {size}), names, encoder, config, 0, header)
print(time.perf_counter() - start, peak_memory_bytes())
"""


def _train(paths: list[Path]) -> tuple[float, float]:
    """Seconds and peak MB of a process that trains InvAD on replays, `NUM_STEPS` steps."""
    code = _CHILD.format(size=IMAGE_SIZE, steps=NUM_STEPS)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], check=True, capture_output=True, text=True
    )
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak) / 2**20


def measure(through: Sequence[int] = THROUGH_STAGES) -> list[dict]:
    """One row per size: `ours_s` and `ours_mb`, where there is nothing to compare with."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"class-{number}.safetensors" for number in range(max(CLASSES))]
        for path in paths:
            write_replays(path, PER_CLASS)
        for count in CLASSES:
            line = f"train, {NUM_STEPS} steps, classes of {PER_CLASS} images"
            rows.append(_row(line, count, *_train(paths[:count])))
    for count in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.safetensors"
            write_replays(path, count)
            rows.append(_row(f"train, {NUM_STEPS} steps, images", count, *_train([path])))
    for count in through:
        rows += _stages(count)
    rng = np.random.default_rng(0)
    for count in SCORED:
        maps = rng.random((count, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        masks = np.zeros(maps.shape, np.bool_)
        masks[: count // 2, 20:40, 30:60] = True
        start = time.perf_counter()
        pixel_metrics(maps, masks)
        rows.append(_row("metrics, maps", count, time.perf_counter() - start,
                         (maps.nbytes + masks.nbytes) / 2**20))  # fmt: skip
    return rows


def _stages(count: int) -> list[dict]:
    """Each stage as a command of its own on a class of so many images."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        (name,) = CLASS
        write_dataset(data, CLASS, count, count - 10, 10, seed=0, size=IMAGE_SIZE)
        rows = []
        for stage, more in (
            ("mask", []), ("compress", []), ("replay", ["--num", str(count)]),
            ("train", ["--detector", "patchcore"]), ("eval", []),
        ):  # fmt: skip
            typed = [stage, "--class", name, "--store", f"{folder}/store", "--json", "--quiet"]
            typed += [] if stage == "replay" else ["--data", str(data)]
            done = subprocess.run(
                [sys.executable, "-m", "replaycad", *typed, *more],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            (made,) = json.loads(done.stdout)["outcomes"]
            peak = made["peak_memory_bytes"] / 2**20
            rows.append(_row(f"{stage}, images", count, made["seconds"], peak))
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Seconds and memory of each row against its number, both axes by powers of ten."""
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        name, _, number = row["row"].partition(": ")
        lines.setdefault(name, []).append((int(number), row["ours_s"], row["ours_mb"]))
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for plot, column, label in zip(figure.subplots(1, 2), (1, 2), ("seconds", "MB"), strict=True):
        for name, points in lines.items():
            plot.plot([p[0] for p in points], [p[column] for p in points], marker="o", label=name)
        plot.set(xscale="log", yscale="log", xlabel="number of images or classes", ylabel=label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)


def _row(line: str, number: int, seconds: float, megabytes: float) -> dict:
    """A point of a line: what is counted stands before the colon, how many behind it.

    It is told at once, for nobody should wait an hour to lose what was measured.
    """
    row = {
        "row": f"{line}: {number}", "ours_s": round(seconds, 2), "ours_mb": round(megabytes, 1)
    }  # fmt: skip
    sys.stderr.write(json.dumps(row) + "\n")
    return row


if __name__ == "__main__":
    target = Path("build/growth.png")
    target.parent.mkdir(exist_ok=True)
    measured = measure(list(map(int, sys.argv[1:])) or THROUGH_STAGES)
    sys.stdout.write(json.dumps(measured, indent=1) + "\n")
    draw(measured, target)
