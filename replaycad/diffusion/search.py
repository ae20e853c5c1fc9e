"""The optimisation loop of compress: gradient descent on a class's conditions, all else frozen.

Every random draw of step n comes from the stream `(seed, "search", n)`. So no generator state is
saved, a resumed search gives the same bits as an undisturbed one, and so does the same seed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.config.stages import CompressConfig
from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import Conditions
from replaycad.diffusion.memory import Passes, alive_of, choose_passes
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.prompts import TEMPLATES, Prompts
from replaycad.diffusion.stopping import DRAWS, Plateau
from replaycad.errors import ConfigError, TrainingError
from replaycad.progress import Report, silent
from replaycad.runtime import free_memory_bytes, generator

CHECK_EVERY = 25
"""Steps between two looks at the loss; looking makes a GPU wait."""
_FLOAT16_SCALE = 2.0**14
_VARIATION_RATE = 0.2  # of the embedding's; 0 and 1 drew held-out classes worse (model card)
_LOOKS = "plateau.losses"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of one parameter


class SearchCheckpoint(Protocol):
    """Where a search keeps its state between two runs."""

    def load(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Return steps done and tensors, or None where there is nothing usable."""

    def save(self, step: int, tensors: dict[str, np.ndarray]) -> None:
        """Replace what was kept."""


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
    coefficients: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> Conditions:
    """Fit a class's conditions to its images (paper section 4.2): noise loss, AdamW, two rates.

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
        coefficients: `[A, N, R]` float, where each image lies along the conditions' variations.
        weights: `[A, N, 1, h, w]` float, how much each latent counts; None for all alike.

    Returns:
        the same `conditions`.

    Raises:
        TrainingError: if the loss stops being finite; the checkpoint stays at the last good state.
        ConfigError: masks missing, or not of the images' shape.
    """
    _check_masks(conditions, images, masks)
    prompts = _prompts(diffusion, conditions)
    alphas_cumprod = diffusion.alphas_cumprod.to(diffusion.device)
    optimizer = _optimizer(conditions, config)
    done, seen = _restore(checkpoint, conditions, optimizer)
    if done:
        report.note(f"going on from the checkpoint at step {done} of {config.num_steps}")
    losses, plateau = _Losses(done), Plateau(config.stop_window, seen)
    last_save, whole = time.monotonic(), True
    passes = _passes(diffusion, config, report)
    fixed = _draw(images, masks, coefficients, weights, replace(config, batch_size=DRAWS),
                  len(alphas_cumprod), generator(seed, "plateau"))  # fmt: skip
    try:
        with _checkpointing(diffusion, passes.checkpointing):
            while done < config.num_steps:
                if plateau.lacks(done) and plateau.add(
                    _look(diffusion, conditions, prompts, fixed, alphas_cumprod, passes.size)
                ):
                    losses.mean(done)  # a loss that is not finite is no rest
                    report.note(f"the loss came to rest after {done} of {config.num_steps} steps")
                    break
                draws = _draw(images, masks, coefficients, weights, config, len(alphas_cumprod),
                              generator(seed, "search", done))  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                loss = _backward(
                    diffusion, conditions, prompts, draws, alphas_cumprod, passes.size
                )
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
                    checkpoint.save(done, _state(conditions, optimizer, plateau))
                    last_save = time.monotonic()
    except KeyboardInterrupt:
        if checkpoint is not None and whole and done and losses.are_finite():
            checkpoint.save(done, _state(conditions, optimizer, plateau))
        raise
    return conditions


def _prompts(diffusion: Diffusion, conditions: Conditions) -> Prompts:
    """The training prompts; what the text encoder says of them is constant beside the tokens."""
    encoded = diffusion.prompt_states if conditions.placement == "context" else None
    return Prompts(
        diffusion.tokenizer, diffusion.text_encoder, TEMPLATES, conditions.placement,
        conditions.num_tokens, encoded,
    )  # fmt: skip


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
    if conditions.semantic_variations is not None:
        rate = config.embedding_learning_rate * _VARIATION_RATE
        groups.append({"params": [conditions.semantic_variations], "lr": rate})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


@dataclass(frozen=True)
class _Draws:
    """What the images of one step are drawn to be: tensors of B rows, on the CPU."""

    latents: torch.Tensor
    mask_latents: torch.Tensor | None
    noise: torch.Tensor
    timesteps: torch.Tensor
    template: torch.Tensor
    coefficients: torch.Tensor | None
    weights: torch.Tensor | None

    def rows(self, start: int, stop: int) -> "_Draws":
        present = {name: part for name, part in vars(self).items() if part is not None}
        return replace(self, **{name: part[start:stop] for name, part in present.items()})


def _draw(
    images: Posterior,
    masks: Posterior | None,
    coefficients: torch.Tensor | None,
    weights: torch.Tensor | None,
    config: CompressConfig,
    num_timesteps: int,
    rng: torch.Generator,
) -> _Draws:
    """Draw one batch, the same however many passes it is divided into."""
    num_augmentations, num_images, *shape = images.mean.shape
    size = config.batch_size
    augmentation = torch.randint(num_augmentations, (size,), generator=rng)
    index = torch.randint(num_images, (size,), generator=rng)
    template = torch.randint(len(TEMPLATES), (size,), generator=rng)
    timesteps = draw_timesteps(config.timestep_law, size, num_timesteps, rng)
    draws = torch.randn(3, size, *shape, generator=rng)  # image latents, mask latents, noise
    latents = images.sample(augmentation, index, draws[0])
    mask_latents = None if masks is None else masks.sample(augmentation, index, draws[1])
    placed = None if coefficients is None else coefficients[augmentation, index]
    counting = None if weights is None else weights[augmentation, index]
    return _Draws(latents, mask_latents, draws[2], timesteps, template, placed, counting)


def _backward(
    diffusion: Diffusion,
    conditions: Conditions,
    prompts: Prompts,
    draws: _Draws,
    alphas_cumprod: torch.Tensor,
    pass_size: int,
) -> torch.Tensor:
    """Add up the gradients of all passes of one batch; returns its mean loss, a scalar."""
    size, total = len(draws.latents), torch.zeros((), device=diffusion.device)
    # float16 would round the smallest gradients to zero; scaled up they live, and are scaled back.
    scale = _FLOAT16_SCALE if diffusion.dtype == torch.float16 else 1.0
    for start in range(0, size, pass_size):
        part = draws.rows(start, start + pass_size)
        loss = _loss(diffusion, conditions, prompts, part, alphas_cumprod)
        loss = loss * (len(part.latents) / size)
        (loss * scale).backward()
        total = total + loss.detach()
    if scale != 1:
        _unscale(conditions, scale)
    return total


@torch.no_grad()
def _look(
    diffusion: Diffusion,
    conditions: Conditions,
    prompts: Prompts,
    draws: _Draws,
    alphas_cumprod: torch.Tensor,
    pass_size: int,
) -> float:
    """Mean loss of draws that stay the same."""
    parts = [draws.rows(at, at + pass_size) for at in range(0, len(draws.latents), pass_size)]
    found = [_loss(diffusion, conditions, prompts, part, alphas_cumprod) for part in parts]
    weighed = [loss * len(part.latents) for loss, part in zip(found, parts, strict=True)]
    return float(torch.stack(weighed).sum()) / len(draws.latents)


def _unscale(conditions: Conditions, scale: float) -> None:
    """Undo the loss's scale; gradients that overflowed 16 bits count as none in this step."""
    gradients = [p.grad for p in conditions.parameters() if p.grad is not None]
    finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
    for gradient in gradients:
        gradient.copy_(torch.where(finite, gradient / scale, 0.0))


@contextmanager
def _checkpointing(diffusion: Diffusion, wanted: bool) -> Iterator[None]:
    """While open, the unet keeps few activations and computes the others again."""
    unet = diffusion.unet
    if not wanted or isinstance(unet, CellUNet):
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def _passes(diffusion: Diffusion, config: CompressConfig, report: Report) -> Passes:
    """How a batch is divided, told where it is not the whole."""
    if isinstance(diffusion.unet, CellUNet):  # too small for checkpointing, see `check_fits`
        config = replace(config, gradient_checkpointing="off")
    area = diffusion.latent_size**2
    width = diffusion.dtype.itemsize
    free = free_memory_bytes(diffusion.device)
    passes = choose_passes(config, alive_of(config.backbone, area), width, free)
    if passes.size < config.batch_size or passes.checkpointing:
        how = "with" if passes.checkpointing else "without"
        report.note(
            f"a batch of {config.batch_size} goes in passes of {passes.size}, {how} gradient "
            "checkpointing"
        )
    return passes


def _loss(
    diffusion: Diffusion,
    conditions: Conditions,
    prompts: Prompts,
    draws: _Draws,
    alphas_cumprod: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the unet's prediction for the rows of one pass: a scalar."""
    device = diffusion.device
    latents, noise = draws.latents.to(device), draws.noise.to(device)
    timesteps = draws.timesteps.to(device)
    mask_latents = None if draws.mask_latents is None else draws.mask_latents.to(device)

    signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy_latents = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    placed = None if draws.coefficients is None else draws.coefficients.to(device)
    encoder_hidden_states = conditions(prompts, draws.template, mask_latents, placed)
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
    if draws.weights is None:
        loss = F.mse_loss(prediction.float(), target)
    else:
        weights = draws.weights.to(device).expand_as(target)
        loss = (weights * (prediction.float() - target).square()).sum() / weights.sum()
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


def _state(
    conditions: Conditions, optimizer: torch.optim.AdamW, plateau: Plateau
) -> dict[str, np.ndarray]:
    tensors = {_LOOKS: np.array(plateau.losses, np.float64)}
    for name, parameter in conditions.named_parameters():
        tensors[name] = parameter.detach().cpu().numpy().copy()
        for moment in _MOMENTS:
            tensors[f"{name}.{moment}"] = optimizer.state[parameter][moment].cpu().numpy().copy()
    return tensors


def _restore(
    checkpoint: SearchCheckpoint | None, conditions: Conditions, optimizer: torch.optim.AdamW
) -> tuple[int, list[float]]:
    """Put a kept state back; returns the steps done and the losses seen, 0 and none without."""
    kept = checkpoint.load() if checkpoint is not None else None
    if kept is None:
        return 0, []
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
    return step, tensors[_LOOKS].tolist()
