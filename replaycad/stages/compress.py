"""Turns a class into conditions of a frozen diffusion model (paper section 4.2)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.budget import IMAGE_BUDGET, MAX_POSES, affordable, fitted
from replaycad.data.images import evenly_spaced, load_counted, load_images
from replaycad.data.samples import Sample
from replaycad.diffusion.aligner import Aligner
from replaycad.diffusion.alignment import Alignment, all_to_frame, beyond_border, to_frame
from replaycad.diffusion.backbones import Diffusion, mask_images
from replaycad.diffusion.conditioning import Conditions
from replaycad.diffusion.posterior import encode_posterior
from replaycad.diffusion.presets import BACKBONES
from replaycad.diffusion.search import SearchCheckpoint, search
from replaycad.diffusion.start import start_conditions
from replaycad.diffusion.variation import principal_variation
from replaycad.errors import BudgetError
from replaycad.mask_ops import (
    apply_to_images,
    apply_to_masks,
    augmentations,
    bounding_boxes,
    perturbed,
    resize_masks,
)
from replaycad.progress import Report, silent
from replaycad.runtime import stream_seed

MAX_MASK_SIZE = 256
"""Side in pixels above which stored masks are halved: ten of 512 px would weigh more than all that
the search learns, and the VAE sees an eighth of the side anyway.

Deviation: section 4.2 draws from masks as they were learned from; `sd15` learns from 512 px.
"""

LEAST_IMAGES = 1000
"""Images that a search reads, if there are so many: poses and variations are estimated from them. A
short search sees fewer, and 10,000 took eleven times as long and four times the memory."""
MAX_LATENT_BYTES = 2 * 10**9  # above this many the latents of all augmentations are kept in 16 bits


def compress_class(
    samples: Sequence[Sample],
    masks: MasksArtifact,
    diffusion: Diffusion,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    report: Report = silent,
    checkpoint: SearchCheckpoint | None = None,
    save_every_seconds: float = 60.0,
    aligner: Aligner | None = None,
) -> ConditionsArtifact:
    """Search the conditions of one class.

    Args:
        samples: training images, in the order of the masks; of very many, as many evenly spaced
            ones as the steps can see, but no fewer than `LEAST_IMAGES`.
        masks: of these images, with the class's policy in the header.
        diffusion: frozen.
        config: of the stage; what it says of a budget is left to `searchable` and `within_budget`.
        seed: of every random draw.
        header: common part of the artifact's header.
        report: hears of encoding and search.
        checkpoint: keeps the state of the search.
        save_every_seconds: time between two savings of it.
        aligner: finds the poses, if it does not know them; None for a new one.

    Returns:
        the conditions, with M of the masks at the backbone's image size, at most `MAX_MASK_SIZE`.

    Raises:
        DatasetError: if an image cannot be read.
        TrainingError: if the loss stops being finite.
    """
    policy = masks.header["policy"]
    augmentation = "none" if config.augmentation == "none" else policy["train_augmentation"]
    read = evenly_spaced(len(samples), max(config.num_steps * config.batch_size, LEAST_IMAGES))
    samples = [samples[row] for row in read]
    images = load_images(samples, diffusion.image_size)
    spatial = config.conditioning != "semantic"
    resized = resize_masks(masks.object_masks[read], diffusion.image_size)
    resized = _spoilt(resized, config, seed)
    poses = found = None
    if config.alignment == "auto":
        # The poses say how the class moves, better than the policy's guess.
        augmentation = "none"
        found, images, resized = _into_frame(
            images, resized, policy["mask_rule"], seed, aligner or Aligner()
        )
        _tell_poses(masks.class_name, found, report)
        poses = found.poses[evenly_spaced(len(samples), MAX_POSES)].numpy()
    operations = augmentations(augmentation)
    dtype = _latent_dtype(diffusion, len(operations) * len(samples))
    encoded = encode_posterior(diffusion, _augmented_images(images, operations, report), dtype)
    encoded_masks = None
    if spatial:
        pictures = _augmented_masks(resized, operations, diffusion)
        encoded_masks = encode_posterior(diffusion, pictures, dtype)
    variation = None
    has_places = config.conditioning != "spatial" and config.semantic_placement == "context"
    if has_places and config.num_variations:
        variation = principal_variation(encoded.mean, config.num_variations)
    start = start_conditions(diffusion, encoded, config, seed, policy["init_word"], variation)
    coefficients = None if variation is None else variation.coefficients
    conditions = search(
        diffusion, start, encoded, encoded_masks, config, seed, report, checkpoint,
        save_every_seconds, coefficients,
        _latent_weights(samples, found, policy["mask_rule"], operations, diffusion),
    )  # fmt: skip
    if coefficients is not None:
        rows = coefficients.flatten(0, 1)
        coefficients = rows[evenly_spaced(len(rows), MAX_POSES)]
    kept = _masks_to_keep(resized, masks.class_name, config, report)
    return _artifact(
        masks.class_name, conditions, kept, poses, coefficients, policy, config, header
    )


def _masks_to_keep(
    object_masks: np.ndarray, class_name: str, config: CompressConfig, report: Report
) -> np.ndarray:
    """M of `[N, H, W]` bool, at most `MAX_MASK_SIZE` wide."""
    chosen = evenly_spaced(len(object_masks), config.num_masks)
    if len(chosen) < config.num_masks:
        report.note(
            f"{class_name}: {len(chosen)} masks stored, for there are no more "
            f"({config.num_masks} wanted)"
        )
    return resize_masks(object_masks[chosen], min(object_masks.shape[-1], MAX_MASK_SIZE))


def searchable(
    config: CompressConfig, diffusion: Diffusion, masks: MasksArtifact
) -> CompressConfig:
    """What is worth searching for, as the budget cannot hold all of it.

    Raises:
        BudgetError: if it is certain not to hold the tokens.
    """
    room = _room(config)
    if not room:
        return config
    preset = BACKBONES["ldm256"]
    num_tokens = config.num_tokens or diffusion.num_placed_tokens or preset.num_tokens
    trained = diffusion.spatial_init or preset
    size = min(diffusion.image_size, MAX_MASK_SIZE)
    found = affordable(
        config, room,
        tokens=num_tokens * diffusion.cross_attention_dim,
        spatial=(config.out_features or trained.out_features)
        * ((config.in_features or trained.in_features) + 1),
        mask_bytes=size * -(-size // 8),
        num_images=len(masks.object_masks),
    )  # fmt: skip
    if found is None:
        raise _too_few(config, masks)
    return found


def within_budget(
    found: ConditionsArtifact, config: CompressConfig, masks: MasksArtifact
) -> ConditionsArtifact:
    """Conditions stored as finely as the budget of the config allows.

    Raises:
        BudgetError: if it does not hold the tokens.
    """
    room = _room(config)
    packed = fitted(found, room) if room else found
    if packed is None:
        raise _too_few(config, masks)
    return packed


def _room(config: CompressConfig) -> int:
    """Bytes that conditions may take; half of them where real images lie beside; 0 for no limit."""
    if config.keep == "hybrid":
        return (config.budget or IMAGE_BUDGET) // 2
    return config.budget


def _too_few(config: CompressConfig, masks: MasksArtifact) -> BudgetError:
    return BudgetError(
        f"compress: {_room(config)} bytes do not hold the tokens of {masks.class_name}",
        "give more, or keep=exemplars",
    )


def _spoilt(object_masks: np.ndarray, config: CompressConfig, seed: int) -> np.ndarray:
    """Masks `[N, H, W]` bool as worse segmenters would make them (paper Table 5)."""
    if config.spoil_masks == "box":
        return bounding_boxes(object_masks)
    if config.spoil_masks == "noisy":
        return perturbed(object_masks, np.random.default_rng(stream_seed(seed, "noisy-masks")))
    return object_masks


def _tell_poses(class_name: str, found: Alignment, report: Report) -> None:
    how = "turn freely" if found.is_free else "lie alike"
    report.note(
        f"{class_name}: images {how}; moved onto each other they keep {found.left:.0%} of their "
        "variance"
    )


def _into_frame(
    images: np.ndarray, object_masks: np.ndarray, mask_rule: str, seed: int, aligner: Aligner
) -> tuple[Alignment, np.ndarray, np.ndarray]:
    """Find the poses; images `[N, 3, S, S]` and masks `[N, S, S]` moved into the class's frame."""
    found = aligner(images, seed)
    fill = beyond_border(mask_rule)
    moved = all_to_frame(torch.from_numpy(images), found.poses, fill).numpy()
    return found, moved, _masks_into_frame(object_masks, found, fill)


def _masks_into_frame(masks: np.ndarray, found: Alignment, fill: str) -> np.ndarray:
    """Masks `[N, S, S]` bool moved into the class's frame."""
    moved = to_frame(torch.from_numpy(masks)[:, None].float(), found.poses, fill)
    return moved[:, 0].numpy() > 0.5


def _latent_weights(
    samples: Sequence[Sample],
    found: Alignment | None,
    mask_rule: str,
    operations: Sequence[Any],
    diffusion: Diffusion,
) -> torch.Tensor | None:
    """How much of each latent counts, `[A, N, 1, h, w]` in 0..1; None where all of them do.

    Padding and ignored pixels count for nothing.
    """
    counted = load_counted(samples, diffusion.image_size)
    if counted is None:
        return None
    if found is not None:
        counted = _masks_into_frame(counted, found, beyond_border(mask_rule))
    turned = np.stack([apply_to_masks(operation, counted) for operation in operations])
    shares = F.adaptive_avg_pool2d(torch.from_numpy(turned).float(), diffusion.latent_size)
    return shares[:, :, None]


def _artifact(
    class_name: str,
    found: Conditions,
    object_masks: np.ndarray,
    poses: np.ndarray | None,
    coefficients: torch.Tensor | None,
    policy: dict[str, Any],
    config: CompressConfig,
    header: dict[str, Any],
) -> ConditionsArtifact:
    semantic, spatial = found.semantic_embedding, found.spatial_encoder
    variations = found.semantic_variations
    width = 0 if spatial is None else spatial.cross_attention_dim
    return ConditionsArtifact(
        class_name=class_name,
        semantic_embedding=(
            np.zeros((0, width), np.float32) if semantic is None else _array(semantic)
        ),
        spatial_weight=None if spatial is None else _array(spatial.weight),
        spatial_bias=None if spatial is None else _array(spatial.bias),
        object_masks=object_masks,
        policy=policy,
        header={**header, "placement": found.placement},
        half=config.half,
        poses=poses,
        semantic_variations=None if variations is None else _array(variations),
        coefficients=None if coefficients is None else _array(coefficients),
    )


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().float().cpu().numpy()


def _latent_dtype(diffusion: Diffusion, num_latents: int) -> torch.dtype:
    values = num_latents * int(np.prod(diffusion.latent_shape)) * 2 * 2  # mean, std; images, masks
    return torch.float32 if 4 * values <= MAX_LATENT_BYTES else torch.float16


def _augmented_images(
    images: np.ndarray, operations: Sequence[Any], report: Report
) -> Iterator[torch.Tensor]:
    for number, operation in enumerate(operations, start=1):
        yield torch.from_numpy(apply_to_images(operation, images))
        report.step("encode", number, len(operations))


def _augmented_masks(
    object_masks: np.ndarray, operations: Sequence[Any], diffusion: Diffusion
) -> Iterator[torch.Tensor]:
    for operation in operations:
        yield mask_images(list(apply_to_masks(operation, object_masks)), diffusion.image_size)
