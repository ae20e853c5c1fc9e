"""The optimisation loop of compress: gradient descent on a class's conditions, all else frozen.

Every random draw of step n comes from the stream `(seed, "search", n)`. So no generator state is
saved, a resumed search gives the same bits as an undisturbed one, and so does the same seed.
"""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder, num_spatial_tokens
from replaycad.diffusion.presets import BACKBONES, BackbonePreset
from replaycad.diffusion.prompts import DEFAULT_INIT_WORD, TEMPLATES, Prompts, word_embedding
from replaycad.errors import ConfigError, TrainingError
from replaycad.progress import Report, silent
from replaycad.recipes import CompressConfig
from replaycad.runtime import generator

CHECK_EVERY = 25
"""Steps between two looks at the loss; looking makes a GPU wait."""

_NUM_SUBSETS, _SUBSET_SIZE = 8, 8  # what the set encoder's start value is averaged over
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of one parameter


class SearchCheckpoint(Protocol):
    """Where a search keeps its state between two runs."""

    def load(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Return steps done and tensors, or None where there is nothing usable."""

    def save(self, step: int, tensors: dict[str, np.ndarray]) -> None:
        """Replace what was kept."""


@dataclass(frozen=True)
class Posterior:
    """What the VAE says of N pictures under A augmentations, kept instead of the pictures.

    Attributes:
        mean: `[A, N, C, h, w]` float16 or float32, scaled.
        std: the same shape and dtype.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def sample(
        self, augmentation: torch.Tensor, index: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Draw latents anew: `[B, C, h, w]` float32 from `[B]`, `[B]` int64, `[B, C, h, w]`."""
        mean, std = self.mean[augmentation, index].float(), self.std[augmentation, index].float()
        return mean + std * noise


def encode_posterior(
    diffusion: Diffusion, augmented: Iterable[torch.Tensor], dtype: torch.dtype = torch.float32
) -> Posterior:
    """Encode every picture under every augmentation once, before the search.

    Args:
        diffusion: frozen.
        augmented: per augmentation `[N, 3, H, W]` uint8 RGB at the backbone's image size; for
            masks, what `mask_images` draws.
        dtype: float16 halves the memory.

    Returns:
        a posterior on the CPU.
    """
    encoded = [diffusion.encode_images(images) for images in augmented]
    mean, std = (torch.stack(part).to("cpu", dtype) for part in zip(*encoded, strict=True))
    return Posterior(mean, std)


def start_conditions(
    diffusion: Diffusion,
    images: Posterior,
    config: CompressConfig,
    seed: int,
    init_word: str = "",
) -> Conditions:
    """Where the search starts: from a word, or from what the set encoder sees in the images.

    K, I and O of 0 in the config mean the backbone's own.

    Args:
        diffusion: frozen.
        images: posterior of the class's training images; read by `set_encoder` only.
        config: `init`, `init_word`, `conditioning`, `semantic_placement`, sizes.
        seed: of the subsets and of the linear layer's random start.
        init_word: the class policy's word, used where the config names none.

    Returns:
        untrained conditions on the diffusion model's device, float32.

    Raises:
        ConfigError: sizes that do not fit, an unknown word, or a backbone without a set encoder.
    """
    embedding = None
    placed = diffusion.num_placed_tokens if config.semantic_placement == "context" else 0
    if placed and config.num_tokens not in (0, placed):
        raise ConfigError(
            f"num_tokens is {config.num_tokens}, but this backbone reads {placed}",
            f"use num_tokens {placed}",
        )
    if config.conditioning != "spatial":
        if config.init == "set_encoder":
            embedding = _set_encoder_start(diffusion, images, config, seed)
        else:
            embedding = word_embedding(
                diffusion.tokenizer,
                diffusion.text_encoder,
                config.init_word or init_word or DEFAULT_INIT_WORD,
                config.num_tokens or placed or BACKBONES["ldm256"].num_tokens,
                config.semantic_placement,
            )
    spatial_encoder = None
    if config.conditioning != "semantic":
        spatial_encoder = _spatial_start(diffusion, config, seed)
    conditions = Conditions(embedding, spatial_encoder, config.semantic_placement)
    return conditions.to(diffusion.device, torch.float32)


@torch.no_grad()
def _set_encoder_start(
    diffusion: Diffusion, images: Posterior, config: CompressConfig, seed: int
) -> torch.Tensor:
    """Mean of the set encoder's answers to a few random subsets of the class: `[K, D]`."""
    if diffusion.set_encoder is None:
        raise ConfigError("this backbone has no set encoder to start from", "use init word")
    if config.semantic_placement != "context":
        raise ConfigError(
            "the set encoder gives vectors for the context placement",
            "use semantic_placement context, or init word",
        )
    rng, num_images = generator(seed, "search-start"), images.mean.shape[1]
    size = min(_SUBSET_SIZE, num_images)
    picks = [torch.randperm(num_images, generator=rng)[:size] for _ in range(_NUM_SUBSETS)]
    latents = images.mean[0][torch.stack(picks)].float().to(diffusion.device)  # [8, R, C, h, w]
    embedding = diffusion.set_encoder(latents).mean(0)
    if config.num_tokens not in (0, len(embedding)):
        raise ConfigError(
            f"num_tokens is {config.num_tokens}, but the set encoder gives {len(embedding)}",
            f"use num_tokens {len(embedding)}, or init word",
        )
    return embedding


def _spatial_start(diffusion: Diffusion, config: CompressConfig, seed: int) -> SpatialEncoder:
    """The backbone's pre-trained layer where the sizes are its own, else a random one."""
    trained, wanted = diffusion.spatial_init, (config.in_features, config.out_features)
    if not all(wanted):
        default = trained or _default_sizes(diffusion)
        wanted = (wanted[0] or default.in_features, wanted[1] or default.out_features)
    num_spatial_tokens(diffusion.latent_shape, *wanted, diffusion.cross_attention_dim)
    if trained is not None and wanted == (trained.in_features, trained.out_features):
        return copy.deepcopy(trained).requires_grad_(True)
    spatial_encoder = SpatialEncoder(*wanted, diffusion.cross_attention_dim)
    bound, rng = wanted[0] ** -0.5, generator(seed, "spatial-start")  # the law of nn.Linear itself
    for parameter in spatial_encoder.parameters():
        torch.nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return spatial_encoder


def _default_sizes(diffusion: Diffusion) -> BackbonePreset:
    for preset in BACKBONES.values():
        if (preset.latent_shape, preset.cross_attention_dim) == (
            diffusion.latent_shape,
            diffusion.cross_attention_dim,
        ):
            return preset
    # Rows of 128 and 192 fill whole tokens in every published Stable Diffusion 1 and 2.
    return BACKBONES["sd15"]


def draw_timesteps(
    law: str, batch_size: int, num_timesteps: int, rng: torch.Generator
) -> torch.Tensor:
    """Draw diffusion times `[B]` int64 in 0..num_timesteps-1.

    Law `uniform`, or `cubic`: p(t) proportional to t^3, whose distribution u = (t/T)^4 is inverted.
    """
    u = torch.rand(batch_size, generator=rng, dtype=torch.float64)
    if law == "cubic":
        u = u**0.25
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


def search(
    diffusion: Diffusion,
    conditions: Conditions,
    images: Posterior,
    masks: Posterior | None,
    config: CompressConfig,
    seed: int,
    report: Report = silent,
    checkpoint: SearchCheckpoint | None = None,
    save_every_seconds: float = 60.0,
) -> Conditions:
    """Fit a class's conditions to its images (paper section 3.2): noise loss, AdamW, two rates.

    Args:
        diffusion: frozen; gradients pass through it into the conditions.
        conditions: start value, trained in place.
        images: posterior of the training images under every augmentation, `[A, N, C, h, w]`.
        masks: posterior of their object masks, same shape; None without a spatial encoder.
        config: steps, batch, rates (absolute, never scaled by hardware), timestep law.
        seed: of every draw.
        report: hears of each step, and of the mean loss every `CHECK_EVERY` steps.
        checkpoint: state is kept there now and then and when the user interrupts.
        save_every_seconds: time between two saves.

    Returns:
        the same `conditions`.

    Raises:
        TrainingError: if the loss stops being finite; the checkpoint stays at the last good state.
        ConfigError: masks missing, or not of the images' shape.
    """
    _check_masks(conditions, images, masks)
    prompts = Prompts(
        diffusion.tokenizer, diffusion.text_encoder, TEMPLATES, conditions.placement,
        conditions.num_tokens,
    )  # fmt: skip
    alphas_cumprod = diffusion.alphas_cumprod.to(diffusion.device)
    optimizer = _optimizer(conditions, config)
    done = _restore(checkpoint, conditions, optimizer)
    losses = _Losses(done)
    last_save, whole = time.monotonic(), True
    try:
        while done < config.num_steps:
            loss = _loss(diffusion, conditions, prompts, images, masks, alphas_cumprod, config,
                         generator(seed, "search", done))  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            whole = False  # an interrupt inside the update leaves half a step
            optimizer.step()
            done, whole = done + 1, True
            losses.add(loss)
            due = time.monotonic() - last_save >= save_every_seconds
            if due or done % CHECK_EVERY == 0 or done == config.num_steps:
                report.step("search", done, config.num_steps, loss=losses.mean(done))
            else:
                report.step("search", done, config.num_steps)
            if due and checkpoint is not None:
                checkpoint.save(done, _state(conditions, optimizer))
                last_save = time.monotonic()
    except KeyboardInterrupt:
        if checkpoint is not None and whole and losses.are_finite():
            checkpoint.save(done, _state(conditions, optimizer))
        raise
    return conditions


def _check_masks(conditions: Conditions, images: Posterior, masks: Posterior | None) -> None:
    if conditions.spatial_encoder is None:
        return
    if masks is None:
        raise ConfigError("spatial conditioning needs object masks", "use conditioning semantic")
    if masks.mean.shape != images.mean.shape:
        raise ConfigError(
            f"mask latents are {list(masks.mean.shape)}, image latents {list(images.mean.shape)}",
            "give one mask to every image under every augmentation",
        )


def _optimizer(conditions: Conditions, config: CompressConfig) -> torch.optim.AdamW:
    """AdamW over two groups; decay acts on the embedding too and at its high rate matters."""
    groups = []
    if conditions.spatial_encoder is not None:
        parameters = list(conditions.spatial_encoder.parameters())
        groups.append({"params": parameters, "lr": config.learning_rate})
    if conditions.semantic_embedding is not None:
        parameters = [conditions.semantic_embedding]
        groups.append({"params": parameters, "lr": config.embedding_learning_rate})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _loss(
    diffusion: Diffusion,
    conditions: Conditions,
    prompts: Prompts,
    images: Posterior,
    masks: Posterior | None,
    alphas_cumprod: torch.Tensor,
    config: CompressConfig,
    rng: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the unet's prediction for one random batch: a scalar."""
    num_augmentations, num_images, *shape = images.mean.shape
    size, device = config.batch_size, diffusion.device
    augmentation = torch.randint(num_augmentations, (size,), generator=rng)
    index = torch.randint(num_images, (size,), generator=rng)
    template = torch.randint(len(prompts), (size,), generator=rng)
    timesteps = draw_timesteps(config.timestep_law, size, len(alphas_cumprod), rng).to(device)
    draws = torch.randn(3, size, *shape, generator=rng)  # image latents, mask latents, noise
    latents = images.sample(augmentation, index, draws[0]).to(device)
    mask_latents = None
    if masks is not None:
        mask_latents = masks.sample(augmentation, index, draws[1]).to(device)
    noise = draws[2].to(device)

    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy_latents = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    encoder_hidden_states = conditions(prompts, template, mask_latents)
    inputs = (noisy_latents.to(diffusion.dtype), timesteps, encoder_hidden_states)
    guess = None
    if isinstance(diffusion.unet, CellUNet):
        guess = diffusion.unet.read(encoder_hidden_states)
        prediction = diffusion.unet(*inputs, guess).sample
    else:
        prediction = diffusion.unet(*inputs).sample
    target = noise
    if diffusion.prediction_type == "v_prediction":
        # Deviation: the bundled unet predicts the velocity (Salimans and Ho 2022, eq. 10), and so
        # the loss compares velocities; the paper's backbones predict the noise.
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    loss = F.mse_loss(prediction.float(), target)
    if guess is not None:
        # Deviation: the bundled unet's guess is fitted beside the paper's loss, which hardly feels
        # how far the class varies and would leave the replays noisier than the class.
        loss = loss + guess.loss(latents)
    return loss


class _Losses:
    """Sum of the losses since the last look, kept on the device; one NaN spoils the sum."""

    def __init__(self, done: int) -> None:
        self._sum: torch.Tensor | float = 0.0
        self._since = done

    def add(self, loss: torch.Tensor) -> None:
        self._sum = self._sum + loss.detach()

    def are_finite(self) -> bool:
        return bool(np.isfinite(float(self._sum)))

    def mean(self, done: int) -> float:
        """Mean since the last call; TrainingError if any loss was not finite."""
        if not self.are_finite():
            raise TrainingError(
                f"the search's loss stopped being finite between steps {self._since} and {done}",
                "use a lower learning_rate and embedding_learning_rate",
            )
        mean = float(self._sum) / max(done - self._since, 1)
        self._sum, self._since = 0.0, done
        return mean


def _state(conditions: Conditions, optimizer: torch.optim.AdamW) -> dict[str, np.ndarray]:
    tensors = {}
    for name, parameter in conditions.named_parameters():
        tensors[name] = parameter.detach().cpu().numpy().copy()
        for moment in _MOMENTS:
            tensors[f"{name}.{moment}"] = optimizer.state[parameter][moment].cpu().numpy().copy()
    return tensors


def _restore(
    checkpoint: SearchCheckpoint | None, conditions: Conditions, optimizer: torch.optim.AdamW
) -> int:
    """Put a kept state back; returns the steps it had done, 0 where there is none."""
    kept = checkpoint.load() if checkpoint is not None else None
    if kept is None:
        return 0
    step, tensors = kept
    with torch.no_grad():
        for name, parameter in conditions.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[name]))
            optimizer.state[parameter] = {
                moment: torch.from_numpy(tensors[f"{name}.{moment}"].copy()).to(
                    "cpu" if moment == "step" else parameter.device
                )
                for moment in _MOMENTS
            }
    return step
