"""`python -m tests.bench.gpu`: full-size networks of random weights on a GPU; build/gpu.json."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from replaycad.config.recipes import stage_config
from replaycad.config.stages import ReplayConfig
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.sampling import sample
from replaycad.diffusion.start import start_conditions
from replaycad.mini.world import demo
from replaycad.runtime import resolve_device
from tests.bench import backbone
from tests.bench.backbone import CLASSES
from tests.bench.pairs import paired
from tests.bench.published import published_images
from tests.bench.stages import REPLAY_BAR, compress_step, full_size, train_step

TARGET = Path("build/gpu.json")
STEPS = 40  # of InvAD


def replay(name: str, device: torch.device, num_images: int = 4) -> dict:
    """Images by the published sampler, and by the recipe `fast`; guidance in both."""
    exact, diffusion = full_size(name, device)
    drawing = stage_config("fast", "replay", {}, CLASSES[name])
    assert isinstance(drawing, ReplayConfig)
    shape = (1, 4, *diffusion.latent_shape)
    seen = Posterior(torch.zeros(shape), torch.ones(shape))
    config = replace(backbone.configs(name)[0], init_word="screw")
    plain, conditions = (start_conditions(one, seen, config, 0) for one in (exact, diffusion))
    masks = [np.ones((64, 64), np.bool_)] * num_images
    scale = drawing.guidance_scale
    drawing = replace(drawing, batch_size=num_images)
    return paired(
        f"replay, {num_images} images ({name}, {drawing.num_inference_steps} steps, not 50)",
        lambda: published_images(exact, plain, masks, 50, scale),
        lambda: list(sample(diffusion, conditions, masks, range(num_images), drawing)),
        REPLAY_BAR,
    )  # fmt: skip


def backbones(device: torch.device) -> Iterator[dict]:
    """A step of compress, a replay and the speed of each full-size backbone."""
    for name in CLASSES:
        yield compress_step(name, backbone.configs(name)[0].batch_size, device=device)
        yield replay(name, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield backbone.run(name, device.type)


def detectors(device: torch.device) -> Iterator[dict]:
    """Steps of InvAD: small, as published, and that compiled, where it can be."""
    with tempfile.TemporaryDirectory() as folder:
        demo.main(Path(folder))
        for preset, is_compiled in (("mini", False), ("full", False), ("full", True)):
            if device.type == "cuda" or not is_compiled:
                yield train_step(
                    Path(folder), "screw", STEPS, device, preset, is_compiled=is_compiled
                )


def main(device_name: str = "cuda", *parts: str) -> None:
    """Measure `backbones`, `detectors` or both, and write each row when it is known."""
    device, rows = resolve_device(device_name), []
    for part in parts or ("backbones", "detectors"):
        for row in {"backbones": backbones, "detectors": detectors}[part](device):
            rows.append(row)
            TARGET.parent.mkdir(exist_ok=True)
            TARGET.write_text(json.dumps({"device": _named(device), "rows": rows}, indent=1) + "\n")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main(*sys.argv[1:])
