"""Speed and memory of compress and replay through one backbone; full sizes have random weights."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.sampling import pass_size, sample
from replaycad.diffusion.search import search
from replaycad.diffusion.start import start_conditions
from replaycad.runtime import peak_memory_bytes, resolve_device
from tests.full_size import random_diffusion

CLASSES = {"sd15": "pcb1", "ldm256": "bottle"}  # whose setting of the paper is timed
NUM_IMAGES = 4
STEPS = {"cuda": 20, "cpu": 2}
STEPS_ON_CPU = 5  # of the sampler's 50
PASS_ON_CPU = 2  # images; a batch of full-size images at once would not fit in 20 GB


def configs(name: str) -> tuple[CompressConfig, ReplayConfig]:
    """The paper's settings, or the bundled model's own."""
    recipe = "paper" if name in CLASSES else "mini"
    found = [stage_config(recipe, stage, {}, CLASSES.get(name, "")) for stage in
             ("compress", "replay")]  # fmt: skip
    assert isinstance(found[0], CompressConfig)
    assert isinstance(found[1], ReplayConfig)
    return found[0], found[1]


def run(name: str, device_name: str) -> dict:
    """One row: seconds after a first step that warms up and, where it is fast, a first pass."""
    device = resolve_device(device_name)
    with tempfile.TemporaryDirectory() as folder:
        diffusion = (
            random_diffusion(name, device, Path(folder) / "tokenizer")
            if name in CLASSES
            else load_backbone(name, device)
        )
    compress, replay = configs(name)
    slow = name in CLASSES and device.type == "cpu"
    at_once = PASS_ON_CPU if slow else compress.pass_size
    compress = replace(compress, num_steps=1, init_word="screw", pass_size=at_once)
    shape = (1, NUM_IMAGES, *diffusion.latent_shape)
    latents = Posterior(torch.zeros(shape), torch.ones(shape))
    conditions = start_conditions(diffusion, latents, compress, 0)
    search(diffusion, conditions, latents, latents, compress, 0)
    steps = STEPS["cuda" if device.type == "cuda" else "cpu"]
    start = now(device)
    search(diffusion, conditions, latents, latents, replace(compress, num_steps=steps), 0)
    per_second = steps / (now(device) - start)

    if slow:  # a step takes as long as any other, and one pass of images is what a CPU draws
        replay = replace(replay, num_inference_steps=STEPS_ON_CPU)
    count = pass_size(replay, device) if slow else replay.batch_size
    masks = [np.ones((64, 64), bool)] * count
    for _ in range(1 if slow else 2):
        start = now(device)
        images = sample(diffusion, conditions, masks, range(count), replay)
        drawn = sum(len(part) for part in images)
        seconds = now(device) - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes()
    return {
        "row": f"{name} on {device.type}, {str(diffusion.dtype).removeprefix('torch.')}",
        "compress_batch": compress.batch_size,
        "compress_steps_per_second": round(per_second, 4),
        "replay_images_per_second": round(drawn / seconds, 4),
        "replay_inference_steps": replay.num_inference_steps,
        "peak_gb": round(peak / 1e9, 2),
    }


def now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, device: str) -> dict:
    """One row, in a process of its own, whose peak memory is that of nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.backbone", name, device],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*sys.argv[1:3])) + "\n")
