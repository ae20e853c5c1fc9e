"""Conditions -> images: denoising with guidance, where an image depends on its seed alone."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from replaycad.config.stages import ReplayConfig
from replaycad.diffusion.backbones import SCHEDULE, Diffusion
from replaycad.diffusion.cell_unet import CellUNet, Guess
from replaycad.diffusion.conditioning import Conditions
from replaycad.diffusion.prompts import GENERATION_PROMPTS, Prompts, encode_texts, unconditional
from replaycad.errors import ConfigError
from replaycad.progress import Report, silent
from replaycad.runtime import generator

_CPU_ROWS = 8


def make_scheduler(name: str, scheduler_config: dict) -> SchedulerMixin:
    """Build a sampler on the backbone's noise schedule.

    `ddim` is the paper's: 50 steps visit 981, 961, ..., 1. `dpm++` is DPM-Solver++ 2M, which needs
    20; `unipc` is UniPC (Zhao et al. 2023) of the same order. The folder's own sampler settings are
    overruled: some hub copies lack the offset.

    Raises:
        ConfigError: any other name.
    """
    schedule = {key: scheduler_config[key] for key in SCHEDULE if key in scheduler_config}
    if name == "ddim":
        return DDIMScheduler(
            **schedule,
            timestep_spacing="leading",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        )
    if name == "dpm++":
        return DPMSolverMultistepScheduler(
            **schedule, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
        )
    if name == "unipc":
        return UniPCMultistepScheduler(**schedule, solver_order=2, timestep_spacing="linspace")
    raise ConfigError(f"unknown sampler '{name}'", "use ddim, dpm++ or unipc")


def pass_size(config: ReplayConfig, device: torch.device) -> int:
    """How many images are denoised together, always exactly so many.

    A kernel's last bits change with the shape of a batch, never with an image's place or company in
    it (measured: bit-equal rows under every permutation). So each pass has one fixed shape, filled
    up by repeats at the end. On the CPU that shape is 8 rows of the unet, whatever the batch size
    says: larger ones are no faster there, and so images do not depend on the batch size at all. On
    a GPU it is the batch size, which is part of the artifact's key.
    """
    if device.type != "cpu":
        return config.batch_size
    return _CPU_ROWS if config.guidance_scale == 1 else _CPU_ROWS // 2


def sample(
    diffusion: Diffusion,
    conditions: Conditions,
    object_masks: Iterable[np.ndarray] | None,
    seeds: Sequence[int],
    config: ReplayConfig,
    report: Report = silent,
    coefficients: np.ndarray | None = None,
    starts: Iterable[np.ndarray] | None = None,
) -> Iterator[torch.Tensor]:
    """Draw a class's images again (paper section 4.3).

    Args:
        diffusion: frozen.
        conditions: of one class, on the diffusion model's device.
        object_masks: one `[H, W]` bool mask per seed, read a pass at a time; None (or ignored)
            for conditions without a spatial encoder.
        seeds: one per image, 63 bits; each alone fixes its image's noise and mask sample.
        config: sampler, num_inference_steps, guidance_scale, batch_size; `num_images` is not read.
        report: hears of the images done.
        coefficients: `[N, R]` float32, one row per seed, for conditions that hold variations.
        starts: one image `[3, S, S]` uint8 per seed to start from in place of noise, read a pass at
            a time: it is noised as far as `config.strength` says and denoised from there (SDEdit,
            Meng et al. 2022).

    Yields:
        `[B, 3, H, W]` uint8 RGB on the CPU, B up to `pass_size`, in the order of the seeds.

    Raises:
        ConfigError: fewer masks or starts than seeds, or none where the conditions need them.
    """
    make_scheduler(config.sampler, diffusion.scheduler_config)  # an unknown name fails at once
    spatial = conditions.spatial_encoder is not None
    if spatial and object_masks is None:
        raise ConfigError("these conditions need object masks", "give one mask per image")
    tokenizer, text_encoder = diffusion.tokenizer, diffusion.text_encoder
    texts = [GENERATION_PROMPTS[conditions.placement]]
    prompts = Prompts(tokenizer, text_encoder, texts, conditions.placement, conditions.num_tokens)
    empty_prompt = encode_texts(tokenizer, text_encoder, [""])
    masks = iter(() if object_masks is None else object_masks)
    pictures = None if starts is None else iter(starts)
    size = pass_size(config, diffusion.device)
    for start in range(0, len(seeds), size):
        batch = [int(seed) for seed in seeds[start : start + size]]
        count = len(batch)
        batch += batch[-1:] * (size - count)
        mask_latents = None
        if spatial:
            chosen = _next(masks, count, size, f"object masks for {len(seeds)} images", start)
            mask_latents = _sample_masks(diffusion, chosen, batch)
        started = None
        if pictures is not None:
            shown = _next(pictures, count, size, f"images to start {len(seeds)} from", start)
            started = diffusion.encode_images(torch.from_numpy(np.stack(shown)))[0]
        with torch.no_grad():
            index = torch.zeros(size, dtype=torch.long)
            placed = None
            if coefficients is not None:
                rows = [min(start + i, len(seeds) - 1) for i in range(size)]
                placed = torch.from_numpy(coefficients[rows]).to(diffusion.device)
            hidden_states = conditions(prompts, index, mask_latents, placed)
            latents = _denoise(diffusion, hidden_states, empty_prompt, batch, config, started)
            images = diffusion.decode(latents)[:count]
        yield images
        report.step("replay", start + count, len(seeds))


def _next(
    given: Iterator[np.ndarray], count: int, size: int, what: str, before: int
) -> list[np.ndarray]:
    """The next `count`, filled up to `size` by repeats of the last."""
    found = list(islice(given, count))
    if len(found) < count:
        raise ConfigError(f"{before + len(found)} {what}", "give one per image")
    return found + found[-1:] * (size - count)


def _noise(purpose: str, seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal `[B, *shape]` on the CPU, row i from seed i alone."""
    return torch.stack([torch.randn(*shape, generator=generator(s, purpose)) for s in seeds])


def _sample_masks(
    diffusion: Diffusion, object_masks: list[np.ndarray], seeds: Sequence[int]
) -> torch.Tensor:
    """Sampled posterior of masks, as in the search: `[B, C, h, w]` float32."""
    mean, std = diffusion.encode_masks(object_masks)
    return mean + std * _noise("mask-latents", seeds, mean.shape[1:]).to(mean.device)


def _denoise(
    diffusion: Diffusion,
    hidden_states: torch.Tensor,
    empty_prompt: torch.Tensor,
    seeds: Sequence[int],
    config: ReplayConfig,
    started: torch.Tensor | None = None,
) -> torch.Tensor:
    """Noise -> latents `[B, C, h, w]` float32, scaled, by the config's sampler and guidance.

    `started` are latents likewise, to be noised and denoised by a part of the steps; None for none.
    """
    scale = config.guidance_scale
    padded = config.zero_padding or isinstance(diffusion.unet, CellUNet)
    if scale != 1 and padded:  # the bundled unet tells its tokens apart by their places
        empty = unconditional(empty_prompt, hidden_states.shape[1])
        hidden_states = torch.cat([empty.expand_as(hidden_states), hidden_states])
    scheduler = make_scheduler(config.sampler, diffusion.scheduler_config)
    scheduler.set_timesteps(config.num_inference_steps, device=diffusion.device)
    known: tuple[Guess, ...] = ()
    if isinstance(diffusion.unet, CellUNet):
        known = (diffusion.unet.read(hidden_states).narrowed(config.spread),)
    latents = _noise("latents", seeds, diffusion.latent_shape).to(diffusion.device)
    timesteps = scheduler.timesteps
    if started is not None:
        first = min(round((1 - config.strength) * len(timesteps)), len(timesteps) - 1)
        timesteps = timesteps[first:]
        if config.sampler != "ddim":  # the others count their steps themselves
            scheduler.set_begin_index(first)
        latents = scheduler.add_noise(started.float(), latents, timesteps[:1].expand(len(latents)))
    for timestep in timesteps:
        if scale == 1 or padded:
            noise_pred = _predict(diffusion, latents, timestep, (hidden_states, *known), scale)
        else:
            noise_cond = _predict(diffusion, latents, timestep, (hidden_states,), 1)
            alone = (empty_prompt.expand(len(latents), -1, -1),)
            noise_uncond = _predict(diffusion, latents, timestep, alone, 1)
            noise_pred = noise_uncond + scale * (noise_cond - noise_uncond)
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return latents


def _predict(
    diffusion: Diffusion,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    told: tuple,
    scale: float,
) -> torch.Tensor:
    """Noise estimate with guidance, e_u + s (e_c - e_u), both branches in one pass: float32.

    `told` is what the unet is told of the class: its tokens, the bundled one what they show too.
    """
    if scale == 1:
        inputs = latents.to(diffusion.dtype)
        return diffusion.unet(inputs, timestep, *told).sample.float()
    inputs = torch.cat([latents, latents]).to(diffusion.dtype)
    both = diffusion.unet(inputs, timestep, *told).sample.float()
    noise_uncond, noise_cond = both.chunk(2)
    return noise_uncond + scale * (noise_cond - noise_uncond)
