"""One small sound example of every artifact, and a way to write files that are not sound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import LENGTH_BYTES, canonical_json, content_id, header_id
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.artifacts.scores import ScoresArtifact

FACTS = {
    "stage": "mask",
    "stage_version": 1,
    "config": {"rule": "policy"},
    "seed": 0,
    "inputs": {"images": "ab" * 32},
    "weights": {"segmenter": "cd" * 32},
    "key": "ef" * 32,
    "versions": {"replaycad": "0.1.0"},
}


def random(seed: int = 0) -> np.random.Generator:
    """A generator of its own."""
    return np.random.default_rng(seed)


def masks() -> MasksArtifact:
    """Three masks of 6 x 11."""
    object_masks = random().random((3, 6, 11)) > 0.5
    fraction = object_masks.mean(axis=(1, 2)).astype(np.float32)
    ids = ["train/good/000.png", "train/good/äöü \udc80.png", "c"]
    return MasksArtifact("bottle", ids, object_masks, fraction, "corners", FACTS)


def conditions(**changes) -> ConditionsArtifact:
    """K 2, D 3, O 4, I 5, two masks of 4 x 9."""
    numbers = random()
    values = {
        "class_name": "bottle",
        "semantic_embedding": numbers.normal(size=(2, 3)).astype(np.float32),
        "spatial_weight": numbers.normal(size=(4, 5)).astype(np.float32),
        "spatial_bias": numbers.normal(size=4).astype(np.float32),
        "object_masks": numbers.random((2, 4, 9)) > 0.5,
        "policy": {"mask_rule": "corners", "area_range": [0.05, 0.9]},
        "header": FACTS,
    }
    return ConditionsArtifact(**(values | changes))


def detector() -> DetectorArtifact:
    """One layer, one counter, one penalty."""
    state = {
        "layer.weight": random().normal(size=(3, 2)).astype(np.float32),
        "norm.num_batches_tracked": np.array(7, dtype=np.int64),
    }
    penalty = {"importance.layer.weight": np.ones((3, 2), dtype=np.float32)}
    return DetectorArtifact(
        "invad", "mini", "mini", 32, ["bottle", "grid"], state, {"bottle": 0.5}, FACTS,
        penalty=penalty,
    )  # fmt: skip


def scores() -> ScoresArtifact:
    """Four images of two classes, with maps."""
    return ScoresArtifact(
        classes=["bottle", "grid"],
        image_scores=np.array([0.1, 0.9, 0.2, 0.8], dtype=np.float32),
        image_labels=np.array([0, 1, 0, 1], dtype=np.uint8),
        class_index=np.array([0, 0, 1, 1], dtype=np.int64),
        image_ids=["a", "b", "c", "d"],
        metrics={"bottle": {"image_auroc": 1.0, "pixel_ap": float("nan")}},
        anomaly_maps=random().random((4, 2, 2)).astype(np.float16),
        header=FACTS,
    )


def rows(num_images: int, image_size: int = 4):
    """Images, masks and seeds of a replay set."""
    numbers = random()
    images = numbers.integers(0, 256, (num_images, 3, image_size, image_size), dtype=np.uint8)
    object_masks = numbers.random((num_images, image_size, image_size)) > 0.5
    return images, object_masks, np.arange(num_images, dtype=np.int64) * 10**15


def write_replays(path: Path, num_images: int = 5, shard_images: int = 0) -> str:
    """A replay set of 4 px images."""
    writer = ReplaysWriter(path, FACTS, num_images, 4, shard_images)
    writer.append(*rows(num_images))
    return writer.close()


WRITERS = {
    "masks": lambda path: masks().save(path),
    "conditions": lambda path: conditions().save(path),
    "replays": write_replays,
    "detector": lambda path: detector().save(path),
    "scores": lambda path: scores().save(path),
}
LOADERS = {
    "masks": MasksArtifact.load,
    "conditions": ConditionsArtifact.load,
    "replays": ReplaysReader,
    "detector": DetectorArtifact.load,
    "scores": ScoresArtifact.load,
}


def run_python(program: str, *arguments: object) -> int:
    """Run a program in a process that finds the same modules; return its exit status."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False).returncode


def header_of(path: Path) -> dict:
    """The JSON under our key, read with nothing but the definition of the format."""
    content = path.read_bytes()
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    entries = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    return json.loads(entries["__metadata__"]["replaycad"])


def rewrite(path: Path, change) -> None:
    """Let `change(tensors, header)` spoil an artifact; digests are made to fit what it left."""
    tensors, header = load_file(path), header_of(path)
    digests = {name: header[name] for name in ("content_id", "header_id")}
    change(tensors, header)
    if {name: header.get(name) for name in digests} == digests:
        header["content_id"] = content_id(tensors)
        header["header_id"] = header_id(header)
    save_file(tensors, path, metadata={"replaycad": canonical_json(header)})
