"""Pre-training of the bundled U-Net for replay: a class as tokens, a place as a mask.

Each batch holds some classes. Their K semantic tokens come from the set encoder, which sees other
images of the class and never the target (or, in part of the batch, from a caption); the spatial
tokens come from the target's own object mask through the shared spatial encoder. So the tokens
learn to carry the class, and the mask the place, as in the paper's compression of a new class.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from torch import nn
from torch.nn import functional as F

from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import TEMPLATES, SpatialEncoder, tokenize
from replaycad.diffusion.patch_codec import PatchCodec
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.mini.pretrain.augment import change_colours
from replaycad.mini.pretrain.loop import LoopConfig, export_module, mixed_precision, train_loop
from replaycad.mini.pretrain.pool import Pool, open_pool
from replaycad.mini.pretrain.text import TEXT_LENGTH, build_text_encoder, build_tokenizer
from replaycad.mini.pretrain.vae import LATENT_CHANNELS
from replaycad.mini.world import HELD_OUT_SEED
from replaycad.runtime import generator

LATENT_SIZE = 16
WIDTH = 192  # D, of every token that the U-Net reads
NUM_TOKENS = (LATENT_SIZE // 2) ** 2  # K
ROW = LATENT_SIZE * LATENT_SIZE  # I: one whole latent channel, so that a token knows its place
ROW_TOKENS = WIDTH // 2  # O: one spatial token for two latent channels
NUM_REFERENCES = 4
SET_SHARE = 0.8  # of the pictures are told by the set's tokens; 0: by captions alone
NUM_CLASSES, TARGETS = 8, 2  # classes in a batch, pictures of each to denoise
GUESS_WEIGHT = 0.2  # of what the tokens must say by themselves: mean picture, spread, mask
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


def draw_classes(
    pool: Pool, rng: torch.Generator, device: torch.device, is_changed: bool = True
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Draw some classes and pictures of each: `NUM_REFERENCES` to look at, `TARGETS` to denoise.

    Args:
        is_changed: turn and mirror each class as a whole, and give half of them other colours, so
            that more classes are seen than were drawn.

    Returns:
        Class numbers `[N]`, pictures `[N, P, 3, S, S]` float in -1..1, masks `[N, P, S, S]` 0/1.
    """
    count = NUM_REFERENCES + TARGETS
    classes = torch.randperm(len(pool.images), generator=rng)[:NUM_CLASSES].numpy()
    numbers = torch.rand(NUM_CLASSES, pool.images.shape[1], generator=rng).argsort(1)[:, :count]
    rows = (classes[:, None], numbers.numpy())
    images = torch.from_numpy(pool.images[rows]).to(device).movedim(-1, 2).float() / 255
    masks = torch.from_numpy(pool.object_masks[rows]).to(device)
    if is_changed:
        recoloured = change_colours(images.flatten(0, 1), rng, count).view_as(images)
        is_recoloured = torch.rand(NUM_CLASSES, generator=rng) < 0.5
        images = torch.where(is_recoloured.view(-1, 1, 1, 1, 1).to(device), recoloured, images)
        turns = torch.randint(8, (NUM_CLASSES,), generator=rng).tolist()
        images = torch.stack([_turn(part, turn) for part, turn in zip(images, turns, strict=True)])
        masks = torch.stack([_turn(part, turn) for part, turn in zip(masks, turns, strict=True)])
    return classes, images * 2 - 1, masks


def _turn(pictures: torch.Tensor, turn: int) -> torch.Tensor:
    """Turn by `turn % 4` quarters and mirror if `turn` is at least 4; the last two axes."""
    return torch.rot90(pictures.flip(-1) if turn >= 4 else pictures, turn % 4, (-2, -1))


@torch.no_grad()
def encode(codec: PatchCodec, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures `[..., 3, S, S]` in -1..1, or masks `[..., S, S]` 0/1 -> `[..., C, h, w]`."""
    if not pictures.is_floating_point():
        pictures = (pictures.float() * 2 - 1).unsqueeze(-3).expand(*pictures.shape[:-2], 3, -1, -1)
    latents = codec.encode(pictures.reshape(-1, *pictures.shape[-3:])).latent_dist.mean
    return latents.view(*pictures.shape[:-3], *latents.shape[1:])


class Generator(nn.Module):
    """The four networks that learn together; each is exported by itself."""

    def __init__(self, tokenizer, captions: list[str], device: torch.device) -> None:
        super().__init__()
        self.unet = CellUNet(
            LATENT_SIZE, LATENT_CHANNELS, cross_attention_dim=WIDTH, text_length=TEXT_LENGTH,
            num_spatial_tokens=LATENT_CHANNELS * ROW_TOKENS // WIDTH,
            beta_start=SCHEDULE["beta_start"], beta_end=SCHEDULE["beta_end"],
        )  # fmt: skip
        self.text_encoder = build_text_encoder(tokenizer, WIDTH)
        self.set_encoder = SetEncoder(LATENT_CHANNELS, LATENT_SIZE, WIDTH)
        self.spatial_encoder = SpatialEncoder(ROW, ROW_TOKENS, WIDTH)
        self.unet.read_statistics(self.set_encoder.statistics.weight)
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


def train_unet(
    pool: Pool, work: Path, weights: Path, config: LoopConfig, device: torch.device
) -> Generator:
    """Train on the pool and export unet, text encoder, set and spatial encoder."""
    codec = PatchCodec.from_pretrained(weights / "vae").to(device)
    tokenizer = build_tokenizer(weights / "tokenizer")
    model = Generator(tokenizer, pool.captions, device)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device)

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = generator(0, "unet", step)
        classes, pictures, masks = draw_classes(pool, rng, device)
        latents = encode(codec, pictures)
        # Two to four references, so that the tokens of a small class are as good a start.
        seen = latents[:, : 2 + step % (NUM_REFERENCES - 1)]
        target = latents[:, NUM_REFERENCES:].flatten(0, 1)
        mask_latents = encode(codec, masks[:, NUM_REFERENCES:]).flatten(0, 1)
        batch = len(target)
        mode = torch.rand(batch, generator=rng)
        # Else the caption alone, or nothing at all; few are told by both.
        keep_semantic = (mode < SET_SHARE).float().to(device)
        keep_spatial = (torch.rand(batch, generator=rng) < 0.85).float().to(device)
        unconditional = (mode > 0.9).to(device)
        keep_spatial = keep_spatial * ~unconditional
        which = torch.randint(len(model.templates), (batch,), generator=rng).to(device)
        with_caption = ((mode > SET_SHARE - 0.05) & (mode <= 0.9)).to(device)
        captions = model.captions[torch.from_numpy(np.repeat(classes, TARGETS)).to(device)]
        input_ids = torch.where(with_caption[:, None], captions, model.templates[which])
        input_ids = torch.where(unconditional[:, None], model.empty, input_ids)
        noise = torch.randn(target.shape, generator=rng).to(device)
        timesteps = torch.randint(1000, (batch,), generator=rng).to(device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
        with mixed_precision(device):
            semantic = model.set_encoder(seen)
            tokens = model.condition(input_ids, semantic, mask_latents, keep_semantic, keep_spatial)
            guess = model.unet.read(tokens)
            prediction = model.unet(noisy_latents, timesteps, tokens, guess).sample.float()
        guess_loss = guess.loss(target)
        place_error = (guess.places.float() - mask_latents).square().mean((1, 2, 3))
        guess_loss = guess_loss + 0.5 * (keep_spatial * place_error).mean()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * target
        loss = F.mse_loss(prediction, velocity, reduction="none").mean((1, 2, 3))
        total = loss.mean() + GUESS_WEIGHT * guess_loss
        if step % config.log_every != config.log_every - 1:
            return total, {}
        told = loss[keep_semantic.bool()].mean().item() if SET_SHARE else 0.0
        return total, {"set": told, "guess": guess_loss.item()}

    def sample_sheet(step: int) -> None:
        held_out = open_pool(work, 16, first_class=HELD_OUT_SEED)
        sheet = draw_sheet(model, held_out, codec, device)
        Image.fromarray(sheet).save(work / f"unet-{step:06d}.png")

    train_loop("unet", {"generator": model}, loss_function, work, config, sample_sheet)
    export(model, weights)
    return model


@torch.no_grad()
def draw_sheet(model: Generator, pool: Pool, codec: PatchCodec, device: torch.device) -> np.ndarray:
    """Held-out classes: three real pictures above what their tokens and those masks draw."""
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULE)
    scheduler.set_timesteps(20)
    columns = []
    chosen = slice(NUM_REFERENCES, NUM_REFERENCES + 3)
    images = torch.from_numpy(pool.images[:, :NUM_REFERENCES]).to(device).movedim(-1, 2)
    references = encode(codec, images.float() / 127.5 - 1)
    masks = torch.from_numpy(pool.object_masks[:, chosen]).to(device)
    mask_latents = encode(codec, masks).flatten(0, 1)
    batch = len(mask_latents)
    input_ids = model.templates[:1].expand(batch, -1)
    ones = torch.ones(batch, device=device)
    tokens = model.condition(input_ids, model.set_encoder(references), mask_latents, ones, ones)
    sample = torch.randn(mask_latents.shape, generator=generator(0, "sheet")).to(device)
    for timestep in scheduler.timesteps:
        prediction = model.unet(sample, timestep, tokens).sample
        sample = scheduler.step(prediction, timestep, sample).prev_sample
    drawn = codec.decode(sample).sample
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
        "unet": ["replaycad.diffusion.cell_unet", "CellUNet"],
        "vae": ["replaycad.diffusion.patch_codec", "PatchCodec"],
    }
    (weights / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
