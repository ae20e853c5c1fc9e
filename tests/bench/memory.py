"""Peak memory of a training with 100 and with 10,000 replayed images."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from replaycad.artifacts.replays import ReplaysWriter

IMAGE_SIZE = 128
CHUNK = 100
NUM_STEPS = 12
BAR_MB = 300

_CHILD = """
import sys
from pathlib import Path
import torch
from replaycad.artifacts.replays import ReplaysReader
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import load_encoder
from replaycad.config.recipes import TrainConfig
from replaycad.runtime import peak_memory_bytes
from replaycad.stages.train import train_detector

torch.set_num_threads(1)
replays = ReplaysReader(Path(sys.argv[1]))
mixture = Mixture([Source(class_index=0, replays=replays)], {size})
config = TrainConfig(num_steps={steps}, image_size={size})
header = {{"config": {{"encoder": "mini"}}, "weights": {{}}}}
encoder = load_encoder("mini", torch.device("cpu"))
train_detector(mixture, ["one"], encoder, config, 0, header)
print(peak_memory_bytes())
"""


def write_replays(path: Path, num_images: int) -> None:
    """Random images: what they show does not change how much memory they take."""
    rng = np.random.default_rng(0)
    header = {
        "class_name": "one",
        "config": {},
        "inputs": {},
        "key": f"bench-{num_images}",
        "policy": {},
        "seed": 0,
        "stage": "replay",
        "versions": {},
        "weights": {},
    }
    masks = np.ones((CHUNK, IMAGE_SIZE, IMAGE_SIZE), bool)
    writer = ReplaysWriter(path, header, num_images, IMAGE_SIZE)
    for start in range(0, num_images, CHUNK):
        images = rng.integers(0, 256, (CHUNK, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        writer.append(images, masks, np.arange(start, start + CHUNK))
    writer.close()


def peak_bytes_of_training(path: Path) -> int:
    """Peak resident bytes of a process that does nothing but train on the replays in `path`."""
    code = _CHILD.format(size=IMAGE_SIZE, steps=NUM_STEPS)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


def measure() -> dict:
    """One row of the table."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (100, 10_000):
            path = Path(folder) / f"{count}.safetensors"
            write_replays(path, count)
            peaks[count] = peak_bytes_of_training(path) / 2**20
    return {
        "row": "train, peak memory: 10,000 replays against 100",
        "reference_mb": round(peaks[100], 1),
        "ours_mb": round(peaks[10_000], 1),
        "difference_mb": round(peaks[10_000] - peaks[100], 1),
        "bar": f"at most {BAR_MB} MB more",
        "met": peaks[10_000] - peaks[100] <= BAR_MB,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
