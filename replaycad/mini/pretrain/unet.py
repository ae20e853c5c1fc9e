"""Pre-training of the bundled U-Net for replay: a class as tokens, a place as a mask.

Each batch holds some classes. Their K semantic tokens come from the set encoder, which sees other
images of the class and never the target (or, in part of the batch, from a caption); the spatial
tokens come from the target's own object mask through the shared spatial encoder. So the tokens
learn to carry the class, and the mask the place, as in the paper's compression of a new class.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn
from torch.nn import functional as F

from replaycad.diffusion.conditioning import TEMPLATES, SpatialEncoder, tokenize
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.mini.pretrain.loop import LoopConfig, export_module, train_loop
from replaycad.mini.pretrain.pool import Pool, open_pool
from replaycad.mini.pretrain.text import build_text_encoder, build_tokenizer
from replaycad.mini.pretrain.vae import LATENT_CHANNELS, to_pixel_values
from replaycad.mini.world import HELD_OUT_SEED
from replaycad.runtime import generator

LATENT_SIZE = 16
WIDTH = 192  # D, of every token that the U-Net reads
NUM_TOKENS = 16  # K
ROW = LATENT_SIZE * LATENT_SIZE  # I: one whole latent channel, so that a token knows its place
ROW_TOKENS = WIDTH  # O: one spatial token for each latent channel
NUM_REFERENCES = 4
CELLS = 4  # the 16 semantic tokens learn to know the 4 x 4 cells of the class's mean picture
CELL_WEIGHT = 0.2
NUM_CLASSES, TARGETS = 16, 2  # classes in a batch, pictures of each to denoise
NUM_PICTURES = NUM_REFERENCES + TARGETS
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    # The velocity at late timesteps is the picture itself, so that class and place pay at once:
    # with epsilon the set's tokens still went unused after 1,100 steps of the same training.
    "prediction_type": "v_prediction",
}


def build_unet() -> UNet2DConditionModel:
    """The bundled U-Net, untrained: two resolutions, 4.1 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        # Attention at 8 x 8 alone: at 16 x 16 it would take as long as all the rest.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


@dataclass(frozen=True)
class Latents:
    """The pool as the U-Net sees it.

    Attributes:
        images, object_masks: fp16 `[C, NUM_PICTURES, 8, 16, 16]`, scaled.
        captions: one per class.
    """

    images: np.ndarray
    object_masks: np.ndarray
    captions: list[str]


@torch.no_grad()
def encode_pool(pool: Pool, vae: AutoencoderKL, work: Path, device: torch.device) -> Latents:
    """Encode `NUM_PICTURES` of every class and their masks once, into `work`; later calls read."""
    arrays = {}
    for name in ("images", "object_masks"):
        path = work / f"latents-{name}-{len(pool.captions)}-{vae.config.scaling_factor}.npy"
        if not path.exists():
            pictures = getattr(pool, name)[:, :NUM_PICTURES]
            np.save(path, np.stack([_encode_class(rows, vae, device) for rows in pictures]))
        arrays[name] = np.load(path)
    return Latents(**arrays, captions=pool.captions)


def _encode_class(pictures: np.ndarray, vae: AutoencoderKL, device: torch.device) -> np.ndarray:
    """Pictures `[P, S, S, 3]` or masks `[P, S, S]` uint8 -> latents `[P, C, h, w]` fp16, scaled."""
    if pictures.ndim == 3:
        pictures = np.repeat(pictures[..., None] * 255, 3, -1)
    # The masks of a surface are all the same, and so are those of a part that never moves.
    codes = [picture.tobytes() for picture in pictures]
    first = {code: number for number, code in reversed(list(enumerate(codes)))}
    order = sorted(first.values())
    distinct = pictures[order]
    with torch.autocast(device.type, torch.bfloat16):
        latents = vae.encode(to_pixel_values(distinct, device)).latent_dist.mean
    latents = (latents.float() * vae.config.scaling_factor).half().cpu().numpy()
    return latents[[order.index(first[code]) for code in codes]]


class Generator(nn.Module):
    """The four networks that learn together; each is exported by itself."""

    def __init__(self, tokenizer, captions: list[str], device: torch.device) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(tokenizer, WIDTH)
        self.set_encoder = SetEncoder(LATENT_CHANNELS, LATENT_SIZE, WIDTH, NUM_TOKENS)
        self.spatial_encoder = SpatialEncoder(ROW, ROW_TOKENS, WIDTH)
        self.cells = nn.Linear(WIDTH, 2 * LATENT_CHANNELS)  # learnt beside, thrown away
        self.to(device)
        plain = [template.replace("*", "").strip() for template in TEMPLATES]
        prompts = [f"a photo of {caption}" for caption in captions]
        self.templates = tokenize(tokenizer, self.text_encoder, plain)
        self.captions = tokenize(tokenizer, self.text_encoder, prompts)
        self.empty = tokenize(tokenizer, self.text_encoder, [""])

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` -> `[B, T, D]`, no padding mask."""
        return self.text_encoder(input_ids).last_hidden_state

    def condition(
        self, input_ids: torch.Tensor, semantic: torch.Tensor, mask_latents: torch.Tensor,
        keep_semantic: torch.Tensor, keep_spatial: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Text, K semantic and S spatial tokens; dropped ones become zeros, as in guidance.

        Args:
            input_ids: `[B, T]` int64.
            semantic: `[N, K, D]` of the set encoder, B a multiple of N: each serves B / N targets.
            mask_latents: `[B, C, h, w]`.
            keep_semantic, keep_spatial: `[B]` float, 0 or 1.
        """
        semantic = semantic.repeat_interleave(len(input_ids) // len(semantic), 0)
        spatial = self.spatial_encoder(mask_latents)
        return torch.cat(
            [
                self.encode_text(input_ids),
                semantic * keep_semantic[:, None, None],
                spatial * keep_spatial[:, None, None],
            ],
            1,
        )


def cell_statistics(references: torch.Tensor) -> torch.Tensor:
    """What each semantic token shall know: mean and spread of its cell over the references.

    Args:
        references: `[N, R, C, h, w]` float.

    Returns:
        `[N, K, 2 C]` float, cells row by row.
    """
    rows, references_each = references.shape[:2]
    cells = F.unfold(references.flatten(0, 1), LATENT_SIZE // CELLS, stride=LATENT_SIZE // CELLS)
    cells = cells.view(rows, references_each, LATENT_CHANNELS, -1, CELLS * CELLS)
    std, mean = torch.std_mean(cells, dim=(1, 3))  # [N, C, K]
    return torch.cat([mean, std], 1).transpose(1, 2)


def train_unet(
    pool: Pool, work: Path, weights: Path, config: LoopConfig, device: torch.device
) -> Generator:
    """Train on the pool's latents and export unet, text encoder, set and spatial encoder."""
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32).to(device)
    latents = encode_pool(pool, vae, work, device)
    tokenizer = build_tokenizer(weights / "tokenizer")
    model = Generator(tokenizer, latents.captions, device)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device)

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = generator(0, "unet", step)
        classes = torch.randperm(len(latents.images), generator=rng)[:NUM_CLASSES].numpy()
        pictures = (
            torch.rand(NUM_CLASSES, latents.images.shape[1], generator=rng).argsort(1).numpy()
        )
        references = latents.images[classes[:, None], pictures[:, :NUM_REFERENCES]]
        # One to four references, so that the tokens of a small class are as good a start.
        references = references[:, : 1 + step % NUM_REFERENCES]
        chosen = pictures[:, NUM_REFERENCES : NUM_REFERENCES + TARGETS]
        rows = (np.repeat(classes, TARGETS), chosen.reshape(-1))
        target = torch.from_numpy(latents.images[rows]).float().to(device)
        mask_latents = torch.from_numpy(latents.object_masks[rows]).float().to(device)
        batch = len(target)
        mode = torch.rand(batch, generator=rng)
        keep_semantic = (mode < 0.75).float().to(device)  # else caption alone, or nothing at all
        keep_spatial = (torch.rand(batch, generator=rng) < 0.85).float().to(device)
        unconditional = (mode > 0.9).to(device)
        keep_spatial = keep_spatial * ~unconditional
        which = torch.randint(len(model.templates), (batch,), generator=rng).to(device)
        with_caption = ((mode > 0.65) & (mode <= 0.9)).to(device)
        captions = model.captions[torch.from_numpy(rows[0]).to(device)]
        input_ids = torch.where(with_caption[:, None], captions, model.templates[which])
        input_ids = torch.where(unconditional[:, None], model.empty, input_ids)
        noise = torch.randn(target.shape, generator=rng).to(device)
        timesteps = torch.randint(1000, (batch,), generator=rng).to(device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
        seen = torch.from_numpy(references).float().to(device)
        with torch.autocast(device.type, torch.bfloat16):
            semantic = model.set_encoder(seen)
            cell_loss = F.mse_loss(model.cells(semantic).float(), cell_statistics(seen))
            tokens = model.condition(input_ids, semantic, mask_latents, keep_semantic, keep_spatial)
            prediction = model.unet(noisy_latents, timesteps, tokens).sample.float()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * target
        loss = F.mse_loss(prediction, velocity, reduction="none").mean((1, 2, 3))
        if step % config.log_every != config.log_every - 1:
            return loss.mean() + CELL_WEIGHT * cell_loss, {}
        figures = {"set": loss[keep_semantic.bool()].mean().item(), "cells": cell_loss.item()}
        return loss.mean() + CELL_WEIGHT * cell_loss, figures

    def sample_sheet(step: int) -> None:
        held_out = open_pool(work, 16, first_class=HELD_OUT_SEED)
        sheet = draw_sheet(model, encode_pool(held_out, vae, work, device), held_out, vae, device)
        Image.fromarray(sheet).save(work / f"unet-{step:06d}.png")

    train_loop("unet", {"generator": model}, loss_function, work, config, sample_sheet)
    export(model, weights)
    return model


@torch.no_grad()
def draw_sheet(
    model: Generator, latents: Latents, pool: Pool, vae: AutoencoderKL, device: torch.device
) -> np.ndarray:
    """Held-out classes: three real pictures above what their tokens and those masks draw."""
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULE)
    scheduler.set_timesteps(20)
    columns = []
    references = torch.from_numpy(latents.images[:, :NUM_REFERENCES]).float().to(device)
    chosen = slice(NUM_REFERENCES, NUM_REFERENCES + 3)
    mask_latents = (
        torch.from_numpy(latents.object_masks[:, chosen]).float().to(device).flatten(0, 1)
    )
    batch = len(mask_latents)
    input_ids = model.templates[:1].expand(batch, -1)
    ones = torch.ones(batch, device=device)
    tokens = model.condition(input_ids, model.set_encoder(references), mask_latents, ones, ones)
    empty = F.pad(model.encode_text(model.empty), (0, 0, tokens.shape[1] - input_ids.shape[1], 0))
    both = torch.cat([tokens, empty.expand(batch, -1, -1)])
    sample = torch.randn(mask_latents.shape, generator=generator(0, "sheet")).to(device)
    for timestep in scheduler.timesteps:
        guided, free = model.unet(sample.repeat(2, 1, 1, 1), timestep, both).sample.chunk(2)
        sample = scheduler.step(free + 2.0 * (guided - free), timestep, sample).prev_sample
    drawn = torch.cat(
        [vae.decode(part / vae.config.scaling_factor).sample for part in sample.split(8)]
    )
    pictures = ((drawn.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    pictures = pictures.reshape(len(references), 3, *pictures.shape[1:])
    for real, ours in zip(pool.images[:, chosen], pictures, strict=True):
        columns.append(np.concatenate([*real, *ours], 0))
    half = len(columns) // 2
    return np.concatenate(
        [np.concatenate(columns[:half], 1), np.concatenate(columns[half : 2 * half], 1)], 0
    )


def export(model: Generator, weights: Path) -> None:
    """Write the diffusers-layout folder, fp16."""
    model.unet.half().save_pretrained(weights / "unet")
    model.text_encoder.half().save_pretrained(weights / "text_encoder")
    export_module(model.set_encoder, weights / "set_encoder", model.set_encoder.config)
    export_module(
        model.spatial_encoder,
        weights / "spatial_encoder",
        {"in_features": ROW, "out_features": ROW_TOKENS},
    )
    DDIMScheduler(**SCHEDULE).save_pretrained(weights / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (weights / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
