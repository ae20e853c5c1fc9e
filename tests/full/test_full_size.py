"""Compress and replay through full-size networks of random weights, and what memory that takes."""

import dataclasses
import gc
import math

import numpy as np
import pytest
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.data.classes import POLICIES
from replaycad.data.layouts import train_samples
from replaycad.diffusion.memory import ALIVE
from replaycad.diffusion.presets import BACKBONES
from replaycad.diffusion.prompts import tokenize
from replaycad.runtime import peak_memory_bytes
from replaycad.stages.compress import compress_class
from replaycad.stages.replay import replay_class
from tests.diffusion.published import networks
from tests.full_size import random_diffusion
from tests.memory_meter import peak_values
from tests.tiny import IN_FEATURES, OUT_FEATURES, tiny_diffusion

CLASSES = {"ldm256": "bottle", "sd15": "pcb1"}
MAX_BYTES = 20 * 10**9


def compress_and_replay(diffusion, config, data, folder):
    """One optimiser step and one image of one denoising step; returns conditions and images."""
    samples = train_samples(data, "disc")[:2]
    policy = {**POLICIES["pill"].as_dict(), "class_name": "disc"}
    masks = MasksArtifact(
        class_name="disc", image_ids=[sample.image_id for sample in samples],
        object_masks=np.ones((2, 64, 64), bool), area_fraction=np.ones(2, np.float32),
        rule="frame", header={"policy": policy},
    )  # fmt: skip
    compress_class(samples, masks, diffusion, config, 0, {"key": "k"}).save(folder / "disc")
    kept = ConditionsArtifact.load(folder / "disc")
    drawing = ReplayConfig(num_images=1, num_inference_steps=1, sampler="ddim", guidance_scale=1)
    size = diffusion.image_size
    writer = ReplaysWriter(folder / "replays", {"class_name": "disc", "key": "k"}, 1, size)
    replay_class(kept, diffusion, drawing, 0, writer)
    writer.close()
    return kept, ReplaysReader(folder / "replays").images([0])


def one_step(recipe_class: str, **changes) -> CompressConfig:
    """The paper's setting for a class, for one step of one image."""
    config = stage_config("paper", "compress", {}, recipe_class)
    assert isinstance(config, CompressConfig)
    small = {"num_steps": 1, "batch_size": 1, "init_word": "screw", "semantic_placement": "prompt"}
    return dataclasses.replace(config, **small, **changes)


def test_the_same_code_runs_on_a_tiny_backbone(data, tmp_path):
    config = one_step(
        "bottle", num_tokens=3, in_features=IN_FEATURES, out_features=OUT_FEATURES
    )

    kept, images = compress_and_replay(tiny_diffusion(tmp_path / "tiny"), config, data, tmp_path)

    assert np.isfinite(kept.semantic_embedding).all()
    assert images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ALIVE)
def test_the_stand_ins_have_the_sizes_of_the_presets(name, tmp_path):
    diffusion = random_diffusion(name, torch.device("meta"), tmp_path / "tokenizer")
    preset = BACKBONES[name]

    assert (diffusion.image_size, diffusion.latent_shape) == (
        preset.image_size, preset.latent_shape,
    )  # fmt: skip
    assert diffusion.scaling_factor == 0.18215
    ids = tokenize(diffusion.tokenizer, diffusion.text_encoder, ["a photo of *"])
    assert ids.shape == (1, preset.text_length)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_bytes"), [("ldm256", 205_600), ("sd15", 160_512)])
def test_a_step_of_compress_and_an_image_at_full_size(name, num_bytes, data, tmp_path):
    gc.collect()
    diffusion = random_diffusion(name, torch.device("cpu"), tmp_path / "tokenizer")
    preset = BACKBONES[name]

    kept, images = compress_and_replay(diffusion, one_step(CLASSES[name]), data, tmp_path)

    assert diffusion.image_size == preset.image_size
    assert diffusion.latent_shape == preset.latent_shape
    assert kept.num_bytes_without_masks == num_bytes
    assert np.isfinite(kept.semantic_embedding).all()
    assert np.isfinite(kept.spatial_weight).all()
    assert images.shape == (1, 3, preset.image_size, preset.image_size)
    assert peak_memory_bytes() < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIVE)
def test_numbers_alive_are_those_of_the_table(name):
    nets = {k: net.eval().requires_grad_(False) for k, net in networks(name, "meta").items()}
    shape, width = BACKBONES[name].latent_shape, BACKBONES[name].cross_attention_dim
    vae, unet, text_encoder = nets["vae"], nets["unet"], nets["text_encoder"]
    vectors = torch.zeros(20, width, device="meta", requires_grad=True)
    length = {"sd15": 109, "ldm256": 82}[name]

    def forward(images, states):
        latents = torch.zeros(images, *shape, device="meta")
        return unet(latents, torch.zeros(images, device="meta"), states).sample

    def step(images):
        hook = text_encoder.get_input_embeddings().register_forward_hook(
            lambda _module, _args, rows: rows + vectors.sum()
        )
        ids = torch.zeros(images, 77, dtype=torch.long, device="meta")
        text = text_encoder(ids, return_dict=True).last_hidden_state
        hook.remove()
        spatial = torch.zeros(images, length - 77, width, device="meta")
        forward(images, torch.cat([text, spatial], 1)).square().mean().backward()
        vectors.grad = None

    found = {"search": peak_values(lambda: step(2)) / 2}
    unet.enable_gradient_checkpointing()
    found["checkpointed"] = peak_values(lambda: step(2)) / 2
    with torch.no_grad():
        states = torch.zeros(2, length, width, device="meta")
        found["drawing"] = peak_values(lambda: forward(2, states)) / 2
        pictures = torch.zeros(1, 3, 8 * shape[1], 8 * shape[2], device="meta")
        latents = torch.zeros(1, *shape, device="meta")
        found["codec"] = max(
            peak_values(lambda: vae.encode(pictures)), peak_values(lambda: vae.decode(latents))
        )

    for part, value in dataclasses.asdict(ALIVE[name]).items():
        assert math.isclose(found[part] / 1e6, value, rel_tol=0.01), (part, found[part])
