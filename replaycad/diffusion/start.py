"""Where a search starts: at random, from a word, or from what the set encoder sees."""

import copy

import torch

from replaycad.config.stages import CompressConfig
from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.fitting import Shape, check_fits, default_spatial_sizes
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.presets import BACKBONES
from replaycad.diffusion.prompts import DEFAULT_INIT_WORD, random_embedding, word_embedding
from replaycad.diffusion.variation import Variation
from replaycad.errors import ConfigError
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
    """Where the search starts: at random, from a word, or from what the set encoder sees.

    K, I and O of 0 in the config mean the backbone's own.

    Args:
        diffusion: frozen.
        images: posterior of the class's training images; read by `set_encoder` only.
        config: `init`, `init_word`, `conditioning`, `semantic_placement`, sizes.
        seed: of the subsets, the random vectors and the linear layer's random start.
        init_word: the class policy's word, used where the config names none.
        variation: of the images; with a set encoder the embedding then describes them without it.

    Returns:
        untrained conditions on the diffusion model's device, float32.

    Raises:
        ConfigError: sizes that do not fit, an unknown word, copies of a word that a search could
            not tell apart, or a backbone without a set encoder.
    """
    embedding = variations = None
    shape = _shape(diffusion)
    check_fits(config, config.backbone, shape)
    if config.conditioning != "spatial":
        if config.init == "set_encoder":
            embedding, variations = _set_encoder_start(diffusion, images, config, seed, variation)
        else:
            embedding = _text_start(diffusion, config, seed, init_word)
            if variation is not None:
                variations = embedding.new_zeros(len(variation.directions), *embedding.shape)
    spatial_encoder = None
    if config.conditioning != "semantic":
        spatial_encoder = _spatial_start(diffusion, config, shape, seed)
    conditions = Conditions(embedding, spatial_encoder, config.semantic_placement, variations)
    return conditions.to(diffusion.device, torch.float32)


def _shape(diffusion: Diffusion) -> Shape:
    """What `fitting.shape_of` reads off the configs, of networks that are loaded."""
    trained = diffusion.spatial_init
    default = default_spatial_sizes(diffusion.latent_shape, diffusion.cross_attention_dim)
    return Shape(
        latent_shape=diffusion.latent_shape,
        cross_attention_dim=diffusion.cross_attention_dim,
        text_length=diffusion.text_encoder.config.max_position_embeddings,
        num_placed_tokens=diffusion.num_placed_tokens,
        has_set_encoder=diffusion.set_encoder is not None,
        spatial_sizes=(trained.in_features, trained.out_features) if trained else default,
    )


def _text_start(
    diffusion: Diffusion, config: CompressConfig, seed: int, init_word: str
) -> torch.Tensor:
    """`[K, D]`: random vectors at the text's scale, or copies of a word's vector."""
    networks, placement = (diffusion.tokenizer, diffusion.text_encoder), config.semantic_placement
    placed = diffusion.num_placed_tokens if placement == "context" else 0
    num_tokens = config.num_tokens or placed or BACKBONES["ldm256"].num_tokens
    if config.init == "random":
        rng = generator(seed, "embedding-start")
        embeddings = diffusion.text_encoder.get_input_embeddings().weight
        among = diffusion.prompt_states if placement == "context" else embeddings
        return random_embedding(among, num_tokens, rng)
    word = config.init_word or init_word or DEFAULT_INIT_WORD
    return word_embedding(*networks, word, num_tokens, placement)


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
    assert diffusion.set_encoder is not None  # `check_fits`
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


def _spatial_start(
    diffusion: Diffusion, config: CompressConfig, shape: Shape, seed: int
) -> SpatialEncoder:
    """The backbone's pre-trained layer where the sizes are its own, else a random one."""
    trained, default = diffusion.spatial_init, shape.spatial_sizes
    wanted = (config.in_features or default[0], config.out_features or default[1])
    if trained is not None and wanted == (trained.in_features, trained.out_features):
        return copy.deepcopy(trained).requires_grad_(True)
    spatial_encoder = SpatialEncoder(*wanted, diffusion.cross_attention_dim)
    bound, rng = wanted[0] ** -0.5, generator(seed, "spatial-start")  # the law of nn.Linear itself
    for parameter in spatial_encoder.parameters():
        torch.nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return spatial_encoder
