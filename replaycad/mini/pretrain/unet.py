"""Pre-training of the bundled U-Net for replay: a class as tokens, a place as a mask.

Each batch holds some classes. Their K semantic tokens come from the set encoder, which sees other
images of the class and never the target, and from how far the target lies along the directions in
which still others vary (or, in part of the batch, from a caption); the spatial
tokens come from the target's own object mask through the shared spatial encoder. So the tokens
learn to carry the class, and the mask the place, as in the paper's compression of a new class.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
from replaycad.mini.world.pictures import HELD_OUT_SEED
from replaycad.runtime import generator, stream_seed

LATENT_SIZE = 16
WIDTH = 192  # D, of every token that the U-Net reads
NUM_TOKENS = (LATENT_SIZE // 2) ** 2  # K
ROW = LATENT_SIZE * LATENT_SIZE  # I: one whole latent channel, so that a token knows its place
ROW_TOKENS = WIDTH // 2  # O: one spatial token for two latent channels
SET_SHARE = 0.8  # of the pictures are told by the set's tokens; 0: by captions alone
TARGETS, NUM_REFERENCES, SEEN = 2, 6, 8  # pictures of a class: to denoise, to tell it by, to vary
MAX_VARIATIONS = 6  # directions in which a class may be told to vary
NUM_CLASSES, NUM_CLASSES_ON_GPU = 8, 128  # in a batch
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


def open_unet_pool(work: Path, num_classes: int, first_class: int = 0) -> Pool:
    """The pictures that the U-Net learns from: most classes lie still, for compress moves them."""
    count = TARGETS + NUM_REFERENCES + SEEN
    return open_pool(work, num_classes, count, 1, first_class=first_class, is_still=True)


@dataclass(frozen=True)
class Shown:
    """A pool's pictures as tensors, on the device where one holds them all.

    Attributes:
        images: uint8 `[C, P, S, S, 3]`.
        object_masks: uint8 `[C, P, S, S]`.
    """

    images: torch.Tensor
    object_masks: torch.Tensor

    @classmethod
    def of(cls, pool: Pool, device: torch.device) -> "Shown":
        """Memory maps stay such on a CPU."""
        where = device if device.type == "cuda" else torch.device("cpu")
        return cls(*(torch.from_numpy(part).to(where) for part in (pool.images, pool.object_masks)))


def draw_classes(
    shown: Shown, rng: torch.Generator, device: torch.device, is_changed: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw some classes, and pictures of each: `TARGETS`, `NUM_REFERENCES` and `SEEN`, in order.

    Args:
        is_changed: turn and mirror each class as a whole, and give half of them other colours, so
            that more classes are seen than were drawn.

    Returns:
        Class numbers `[N]`, pictures `[N, P, 3, S, S]` float in -1..1, masks `[N, P, S, S]` 0/1.
    """
    num_classes = NUM_CLASSES_ON_GPU if device.type == "cuda" else NUM_CLASSES
    count = TARGETS + NUM_REFERENCES + SEEN
    classes = torch.randperm(len(shown.images), generator=rng)[:num_classes]
    numbers = torch.rand(len(classes), shown.images.shape[1], generator=rng).argsort(1)[:, :count]
    rows = tuple(index.to(shown.images.device) for index in (classes[:, None], numbers))
    images = shown.images[rows].to(device).movedim(-1, 2).float() / 255
    masks = shown.object_masks[rows].to(device)
    if is_changed:
        recoloured = change_colours(images.flatten(0, 1), rng, count).view_as(images)
        is_recoloured = torch.rand(len(classes), generator=rng) < 0.5
        images = torch.where(is_recoloured.view(-1, 1, 1, 1, 1).to(device), recoloured, images)
        turns = torch.rand(3, len(classes), generator=rng).to(device) < 0.5
        images, masks = turn_each(images, turns), turn_each(masks, turns)
    return classes, images * 2 - 1, masks


def turn_each(pictures: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn and mirror each row of `[N, ..., S, S]` as `[3, N]` bool say: across, down, diagonal."""
    across, down, diagonal = turns.view(3, -1, *[1] * (pictures.ndim - 1))
    pictures = torch.where(across, pictures.flip(-1), pictures)
    pictures = torch.where(down, pictures.flip(-2), pictures)
    return torch.where(diagonal, pictures.transpose(-2, -1), pictures)


class Variations(NamedTuple):
    """How some classes vary, each in its own number of directions; absent ones are zero.

    What `diffusion.variation` finds for one class at a time, for a whole batch of them.

    Attributes:
        mean: `[N, C, h, w]`, of the latents that the directions were found in.
        directions: `[N, R, C, h, w]`, one standard deviation long.
    """

    mean: torch.Tensor
    directions: torch.Tensor

    @classmethod
    def of(cls, latents: torch.Tensor, counts: torch.Tensor) -> "Variations":
        """Principal components of latents `[N, P, C, h, w]`, the first `counts` `[N]` of each."""
        mean = latents.mean(1)
        rows = (latents - mean[:, None]).flatten(2)
        values, vectors = torch.linalg.eigh(rows @ rows.mT / rows.shape[1])
        most = min(MAX_VARIATIONS, rows.shape[1] - 1)
        values, vectors = values[:, -most:].flip(1), vectors[:, :, -most:].flip(2)
        is_kept = torch.arange(most, device=counts.device) < counts[:, None]
        is_kept &= values > 1e-4 * values[:, :1]
        directions = vectors.mT @ rows / rows.shape[1] ** 0.5 * is_kept[:, :, None]
        return cls(mean, directions.view(len(latents), most, *latents.shape[2:]))

    def coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """Where latents `[N, P, C, h, w]` lie along the directions: `[N, P, R]`, 0 if absent."""
        flat = self.directions.flatten(2)
        along = (latents - self.mean[:, None]).flatten(2) @ flat.mT
        return along / flat.square().sum(2).clamp_min(1e-6)[:, None]

    def taken_out(self, latents: torch.Tensor) -> torch.Tensor:
        """What is left of latents `[N, P, C, h, w]` at coefficients of 0."""
        told = self.coefficients(latents) @ self.directions.flatten(2)
        return latents - told.view_as(latents)


def tell(
    set_encoder: SetEncoder, latents: torch.Tensor, num_seen: int, counts: torch.Tensor
) -> torch.Tensor:
    """Semantic tokens of each target, as `compress` starts them: the class, and where each lies.

    The directions are found in other pictures than those that tell the class and those to denoise,
    so that what they leave of all of these is alike, as among the many images of a real class.

    Args:
        set_encoder: is trained.
        latents: `[N, P, C, h, w]`, of pictures as `draw_classes` orders them.
        num_seen: references that tell the class.
        counts: `[N]` int64, directions in which each class may vary.

    Returns:
        `[N * TARGETS, K, D]`.
    """
    targets, references, others = latents.split([TARGETS, NUM_REFERENCES, SEEN], 1)
    references = references[:, :num_seen]
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        vary = Variations.of(others, counts)
        references, coefficients = vary.taken_out(references), vary.coefficients(targets)
        mean = references.mean(1, keepdim=True)
        stepped = torch.cat([mean, mean + vary.directions], 1)  # sets of one, of R + 1 pictures
    answers = set_encoder(stepped.flatten(0, 1)[:, None]).unflatten(0, stepped.shape[:2])
    steps = answers[:, 1:] - answers[:, :1]
    shifts = torch.einsum("ntr,nrkd->ntkd", coefficients.to(steps.dtype), steps)
    return (set_encoder(references)[:, None] + shifts).flatten(0, 1)


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
            semantic: `[B, K, D]`.
            mask_latents: `[B, C, h, w]`.
            keep_semantic, keep_spatial: `[B]` float, 0 or 1.
        """
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
    alphas, shown = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device), Shown.of(pool, device)

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = generator(0, "unet", step)
        classes, pictures, masks = draw_classes(shown, rng, device)
        latents = encode(codec, pictures)
        # Two references or more, so that the tokens of a small class are as good a start.
        num_seen = 2 + step % (NUM_REFERENCES - 1)
        counts = torch.randint(MAX_VARIATIONS + 1, (len(classes),), generator=rng).to(device)
        target = latents[:, :TARGETS].flatten(0, 1)
        mask_latents = encode(codec, masks[:, :TARGETS]).flatten(0, 1)
        batch = len(target)
        mode = torch.rand(batch, generator=rng)
        # Else the caption alone, or nothing at all; few are told by both.
        keep_semantic = (mode < SET_SHARE).float().to(device)
        keep_spatial = (torch.rand(batch, generator=rng) < 0.85).float().to(device)
        unconditional = (mode > 0.9).to(device)
        keep_spatial = keep_spatial * ~unconditional
        which = torch.randint(len(model.templates), (batch,), generator=rng).to(device)
        with_caption = ((mode > SET_SHARE - 0.05) & (mode <= 0.9)).to(device)
        captions = model.captions[classes.repeat_interleave(TARGETS).to(device)]
        input_ids = torch.where(with_caption[:, None], captions, model.templates[which])
        input_ids = torch.where(unconditional[:, None], model.empty, input_ids)
        grain = torch.Generator(device).manual_seed(stream_seed(0, "unet-noise", step))
        noise = torch.randn(target.shape, generator=grain, device=device)
        timesteps = torch.randint(1000, (batch,), generator=rng).to(device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy_latents = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
        with mixed_precision(device):
            semantic = tell(model.set_encoder, latents, num_seen, counts)
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
        held_out = open_unet_pool(work, 16, HELD_OUT_SEED)
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
    semantic = model.set_encoder(references).repeat_interleave(batch // len(references), 0)
    tokens = model.condition(input_ids, semantic, mask_latents, ones, ones)
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
