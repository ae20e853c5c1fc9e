"""Where a search starts: from a word, or from what the set encoder sees in the images."""

import copy

import torch

from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder, num_spatial_tokens
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.presets import BACKBONES, BackbonePreset
from replaycad.diffusion.prompts import DEFAULT_INIT_WORD, word_embedding
from replaycad.diffusion.variation import Variation
from replaycad.errors import ConfigError
from replaycad.recipes import CompressConfig
from replaycad.runtime import generator

_NUM_SUBSETS, _SUBSET_SIZE = 8, 8  # what the set encoder's start value is averaged over


def start_conditions(
    diffusion: Diffusion,
    images: Posterior,
    config: CompressConfig,
    seed: int,
    init_word: str = "",
    variation: Variation | None = None,
) -> Conditions:
    """Where the search starts: from a word, or from what the set encoder sees in the images.

    K, I and O of 0 in the config mean the backbone's own.

    Args:
        diffusion: frozen.
        images: posterior of the class's training images; read by `set_encoder` only.
        config: `init`, `init_word`, `conditioning`, `semantic_placement`, sizes.
        seed: of the subsets and of the linear layer's random start.
        init_word: the class policy's word, used where the config names none.
        variation: of the images; with a set encoder the embedding then describes them without it.

    Returns:
        untrained conditions on the diffusion model's device, float32.

    Raises:
        ConfigError: sizes that do not fit, an unknown word, or a backbone without a set encoder.
    """
    embedding = variations = None
    placed = diffusion.num_placed_tokens if config.semantic_placement == "context" else 0
    if placed and config.num_tokens not in (0, placed):
        raise ConfigError(
            f"num_tokens is {config.num_tokens}, but this backbone reads {placed}",
            f"use num_tokens {placed}",
        )
    if config.conditioning != "spatial":
        if config.init == "set_encoder":
            embedding, variations = _set_encoder_start(diffusion, images, config, seed, variation)
        else:
            embedding = word_embedding(
                diffusion.tokenizer,
                diffusion.text_encoder,
                config.init_word or init_word or DEFAULT_INIT_WORD,
                config.num_tokens or placed or BACKBONES["ldm256"].num_tokens,
                config.semantic_placement,
            )
            if variation is not None:
                variations = embedding.new_zeros(len(variation.directions), *embedding.shape)
    spatial_encoder = None
    if config.conditioning != "semantic":
        spatial_encoder = _spatial_start(diffusion, config, seed)
    conditions = Conditions(embedding, spatial_encoder, config.semantic_placement, variations)
    return conditions.to(diffusion.device, torch.float32)


@torch.no_grad()
def _set_encoder_start(
    diffusion: Diffusion,
    images: Posterior,
    config: CompressConfig,
    seed: int,
    variation: Variation | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean of the set encoder's answers to a few random subsets of the class: `[K, D]`.

    And what its answer to the mean latent changes by, a step along each direction: `[R, K, D]`.
    """
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
    latents, device = images.mean[0].float(), diffusion.device
    if variation is not None:
        latents = variation.taken_out(latents)
    embedding = diffusion.set_encoder(latents[torch.stack(picks)].to(device)).mean(0)
    if config.num_tokens not in (0, len(embedding)):
        raise ConfigError(
            f"num_tokens is {config.num_tokens}, but the set encoder gives {len(embedding)}",
            f"use num_tokens {len(embedding)}, or init word",
        )
    if variation is None:
        return embedding, None
    mean = latents.mean(0)
    stepped = torch.stack([mean, *(mean + variation.directions)])[:, None]  # sets of one
    answers = diffusion.set_encoder(stepped.to(device))
    return embedding, answers[1:] - answers[0]


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
