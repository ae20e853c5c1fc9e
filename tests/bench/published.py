"""Compress and replay as the published recipe words them, in plain loops, to hold ours against.

Nothing is kept between two steps: pictures and masks go through the VAE anew, prompts through the
text encoder, all in 32 bits. The networks are the same, and so are conditions and loss.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.config.stages import CompressConfig
from replaycad.diffusion.backbones import Diffusion, mask_images
from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import Conditions
from replaycad.diffusion.prompts import (
    GENERATION_PROMPTS,
    TEMPLATES,
    Prompts,
    encode_texts,
    unconditional,
)
from replaycad.diffusion.sampling import make_scheduler


class PublishedSearch:
    """The optimisation of a class's conditions, one uncached step at a time.

    Args:
        diffusion: frozen.
        conditions: trained in place.
        images: `[N, 3, S, S]` uint8.
        object_masks: `[N, S, S]` bool.
        config: batch size and rates.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        conditions: Conditions,
        images: np.ndarray,
        object_masks: np.ndarray,
        config: CompressConfig,
    ) -> None:
        self._diffusion, self._conditions, self._config = diffusion, conditions, config
        self._images, self._masks = images, object_masks
        self._alphas = diffusion.alphas_cumprod.to(diffusion.device)
        self._rng = np.random.default_rng(0)
        groups = [
            {"params": [one], "lr": config.embedding_learning_rate if "semantic" in name
             else config.learning_rate}
            for name, one in conditions.named_parameters()
        ]  # fmt: skip
        self._optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    def step(self) -> float:
        """One step; returns its loss."""
        size, diffusion = self._config.batch_size, self._diffusion
        rows = self._rng.integers(0, len(self._images), size)
        latents = _encoded(diffusion, torch.from_numpy(self._images[rows]))
        mask_latents = None
        if self._conditions.spatial_encoder is not None:
            pictures = mask_images(list(self._masks[rows]), diffusion.image_size)
            mask_latents = _encoded(diffusion, pictures)
        texts = [TEMPLATES[int(pick)] for pick in self._rng.integers(0, len(TEMPLATES), size)]
        timesteps = torch.randint(len(self._alphas), (size,), device=latents.device)
        loss = noise_loss(
            diffusion, self._conditions, latents, mask_latents, texts, timesteps,
            torch.randn_like(latents), self._alphas,
        )  # fmt: skip
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def _encoded(diffusion: Diffusion, images: torch.Tensor) -> torch.Tensor:
    """Sampled latents of just these images; ours fills them up to a batch of one fixed shape."""
    posterior = diffusion.vae.encode(images.to(diffusion.device).float() / 127.5 - 1).latent_dist
    mean, std = posterior.mean, posterior.std
    return (mean + std * torch.randn_like(mean)) * diffusion.scaling_factor


def noise_loss(
    diffusion: Diffusion,
    conditions: Conditions,
    latents: torch.Tensor,
    mask_latents: torch.Tensor | None,
    texts: Sequence[str],
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    coefficients: torch.Tensor | None = None,
) -> torch.Tensor:
    """The paper's loss: mean squared error of what the unet predicts, a scalar."""
    prompts = Prompts(
        diffusion.tokenizer, diffusion.text_encoder, texts, conditions.placement,
        conditions.num_tokens,
    )  # fmt: skip
    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    states = conditions(prompts, torch.arange(len(texts)), mask_latents, coefficients)
    known = (diffusion.unet.read(states),) if isinstance(diffusion.unet, CellUNet) else ()
    found = diffusion.unet(noisy.to(diffusion.dtype), timesteps, states, *known).sample.float()
    target = noise
    if diffusion.prediction_type == "v_prediction":
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    return F.mse_loss(found, target)


@torch.no_grad()
def published_images(
    diffusion: Diffusion,
    conditions: Conditions,
    object_masks: Sequence[np.ndarray],
    num_steps: int,
    scale: float,
    coefficients: np.ndarray | None = None,
) -> np.ndarray:
    """One batch by DDIM with guidance, two runs of the unet a step: `[B, 3, S, S]` uint8.

    At a scale of 1 guidance changes nothing, and there is one run a step.
    """
    count = len(object_masks)
    texts = [GENERATION_PROMPTS[conditions.placement]] * count
    prompts = Prompts(
        diffusion.tokenizer, diffusion.text_encoder, texts, conditions.placement,
        conditions.num_tokens,
    )  # fmt: skip
    mask_latents = None
    if conditions.spatial_encoder is not None:
        mean, std = diffusion.encode_masks(list(object_masks))
        mask_latents = mean + std * torch.randn_like(mean)
    device = diffusion.device
    placed = None if coefficients is None else torch.from_numpy(coefficients).to(device)
    states = conditions(prompts, torch.arange(count), mask_latents, placed)
    empty = unconditional(
        encode_texts(diffusion.tokenizer, diffusion.text_encoder, [""]), states.shape[1]
    ).expand_as(states)
    scheduler = make_scheduler("ddim", diffusion.scheduler_config)
    scheduler.set_timesteps(num_steps)
    latents = torch.randn(count, *diffusion.latent_shape, device=device)
    for timestep in scheduler.timesteps:
        found = _predicted(diffusion, latents, timestep, states)
        if scale != 1:
            alone = _predicted(diffusion, latents, timestep, empty)
            found = alone + scale * (found - alone)
        latents = scheduler.step(found, timestep, latents).prev_sample
    return diffusion.decode(latents).numpy()


def _predicted(
    diffusion: Diffusion, latents: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    known = (diffusion.unet.read(states),) if isinstance(diffusion.unet, CellUNet) else ()
    return diffusion.unet(latents.to(diffusion.dtype), timestep, states, *known).sample.float()
