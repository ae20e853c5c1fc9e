"""Time and memory of training and scoring against the number of classes and of images."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from replaycad.metrics import pixel_metrics
from tests.bench.memory import IMAGE_SIZE, write_replays

CLASSES, PER_CLASS = (2, 4, 8, 16), 100
IMAGES = (100, 1_000, 10_000)
NUM_STEPS = 60
SCORED = (100, 1_000)

_CHILD = """
import sys, time
from pathlib import Path
from replaycad.artifacts.replays import ReplaysReader
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import load_encoder
from replaycad.recipes import TrainConfig
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


def measure() -> list[dict]:
    """One row per size: `ours_s` and `ours_mb`, where there is nothing to compare with."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"class-{number}.safetensors" for number in range(max(CLASSES))]
        for path in paths:
            write_replays(path, PER_CLASS)
        for count in CLASSES:
            row = f"train, {NUM_STEPS} steps, {count} classes of {PER_CLASS} images"
            rows.append(_row(row, *_train(paths[:count])))
    for count in IMAGES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.safetensors"
            write_replays(path, count)
            rows.append(_row(f"train, {NUM_STEPS} steps, 1 class of {count} images",
                             *_train([path])))  # fmt: skip
    rng = np.random.default_rng(0)
    for count in SCORED:
        maps = rng.random((count, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        masks = np.zeros(maps.shape, np.bool_)
        masks[: count // 2, 20:40, 30:60] = True
        start = time.perf_counter()
        pixel_metrics(maps, masks)
        rows.append(_row(f"eval, metrics of {count} maps", time.perf_counter() - start,
                         (maps.nbytes + masks.nbytes) / 2**20))  # fmt: skip
    return rows


def _row(row: str, seconds: float, megabytes: float) -> dict:
    return {"row": row, "ours_s": round(seconds, 2), "ours_mb": round(megabytes, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=1) + "\n")
