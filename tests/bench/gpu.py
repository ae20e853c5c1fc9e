"""`python -m tests.bench.gpu`: full-size backbones of random weights on a GPU; build/gpu.json."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.sampling import sample
from replaycad.diffusion.start import start_conditions
from replaycad.mini import demo
from replaycad.recipes import ReplayConfig, stage_config
from replaycad.runtime import resolve_device
from tests.bench import backbone
from tests.bench.backbone import CLASSES
from tests.bench.pairs import paired
from tests.bench.published import published_images
from tests.bench.stages import REPLAY_BAR, compress_step, full_size, train_step

TARGET = Path("build/gpu.json")


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


def main(device_name: str = "cuda") -> None:
    """Measure, and write each row when it is known."""
    device = resolve_device(device_name)
    rows: list[dict] = []

    def keep(row: dict) -> None:
        rows.append(row)
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(json.dumps({"device": _named(device), "rows": rows}, indent=1) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    for name in CLASSES:
        keep(compress_step(name, backbone.configs(name)[0].batch_size, device=device))
        keep(replay(name, device))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        keep(backbone.run(name, device_name))
    with tempfile.TemporaryDirectory() as folder:
        demo.main(Path(folder))
        keep(train_step(Path(folder), "screw", device=device))


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main(*sys.argv[1:2])
