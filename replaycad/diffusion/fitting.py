"""Whether a compress config fits a backbone, told from its configs before any work; no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from replaycad.config.stages import CompressConfig
from replaycad.diffusion.presets import (
    BACKBONES,
    backbone_files,
    locate_backbone,
    read_json,
    split_name,
)
from replaycad.errors import ConfigError

_LONGEST_TEMPLATE = 8  # tokens before the placeholder: a start and "a close-up photo of the"
_UNET_WIDTH = 1280  # diffusers' own, where a config names none


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a backbone's configs say of its sizes.

    Attributes:
        latent_shape: `(C, h, w)`.
        cross_attention_dim: D, width of a token.
        text_length: T.
        num_placed_tokens: K that the unet reads as cells of the picture; 0 where tokens have no
            place.
        has_set_encoder: whether a search may start from what a set encoder sees.
        spatial_sizes: I and O where a config names none.
    """

    latent_shape: tuple[int, int, int]
    cross_attention_dim: int
    text_length: int
    num_placed_tokens: int
    has_set_encoder: bool
    spatial_sizes: tuple[int, int]


def is_bundled_kind(name: str) -> bool:
    """Whether a backbone is the bundled one or another of its kind: small, with a set encoder.

    Raises:
        WeightsError: if its files are not there.
    """
    place = split_name(name)[0]
    if place in BACKBONES:
        return not BACKBONES[place].hub_id
    return "set_encoder" in backbone_files(locate_backbone(name))


def shape_of(name: str) -> Shape:
    """Read the sizes of a backbone off its configs.

    Raises:
        WeightsError: if its files are not there or a config cannot be read.
    """
    files = backbone_files(locate_backbone(name), split_name(name)[1])
    unet, vae, text = (read_json(files[part][0]) for part in ("unet", "vae", "text_encoder"))
    side = int(unet.get("sample_size") or 0)
    is_placed = unet.get("_class_name") == "CellUNet"
    latent_shape = (int(vae.get("latent_channels", 4)), side, side)
    width = int(unet.get("cross_attention_dim") or _UNET_WIDTH)
    if "spatial_encoder" in files:
        trained = read_json(files["spatial_encoder"][0])
        spatial = (int(trained["in_features"]), int(trained["out_features"]))
    else:
        spatial = default_spatial_sizes(latent_shape, width)
    return Shape(
        latent_shape=latent_shape, cross_attention_dim=width,
        text_length=int(text.get("max_position_embeddings", 77)),
        num_placed_tokens=(side // 2) ** 2 if is_placed else 0,
        has_set_encoder="set_encoder" in files, spatial_sizes=spatial,
    )  # fmt: skip


def default_spatial_sizes(latent_shape: Sequence[int], width: int) -> tuple[int, int]:
    """I and O for a backbone of this shape: those of the published one that has it."""
    for preset in BACKBONES.values():
        if (preset.latent_shape, preset.cross_attention_dim) == (tuple(latent_shape), width):
            return preset.in_features, preset.out_features
    # Rows of 128 and 192 fill whole tokens in every published Stable Diffusion 1 and 2.
    return BACKBONES["sd15"].in_features, BACKBONES["sd15"].out_features


def check_fits(config: CompressConfig, name: str, shape: Shape) -> None:
    """Refuse a search that this backbone cannot do.

    Args:
        config: of the stage.
        name: of the backbone, as typed.
        shape: what `shape_of` found.

    Raises:
        ConfigError: what does not fit, and what to type instead.
    """
    if config.conditioning != "spatial":
        _check_tokens(config, name, shape)
    if config.conditioning != "semantic":
        num_spatial_tokens(
            shape.latent_shape, config.in_features or shape.spatial_sizes[0],
            config.out_features or shape.spatial_sizes[1], shape.cross_attention_dim,
        )  # fmt: skip
    if config.gradient_checkpointing == "on" and shape.num_placed_tokens:
        raise ConfigError(
            "the bundled unet is too small for gradient checkpointing",
            "use gradient_checkpointing off",
        )


def _check_tokens(config: CompressConfig, name: str, shape: Shape) -> None:
    placement = config.semantic_placement
    if config.init == "set_encoder" and not shape.has_set_encoder:
        raise ConfigError(
            f"backbone '{name}' has no set encoder to start from, and the settings are those of "
            "the bundled backbone",
            "leave out --recipe, or use --recipe fast",
        )
    if config.init == "set_encoder" and placement != "context":
        raise ConfigError(
            "the set encoder gives vectors for the context placement",
            "use semantic_placement context, or init word",
        )
    placed = shape.num_placed_tokens if placement == "context" else 0
    if placed and config.num_tokens not in (0, placed):
        raise ConfigError(
            f"num_tokens is {config.num_tokens}, but backbone '{name}' reads {placed}",
            f"use --set compress.num_tokens={placed}, or leave out --recipe",
        )
    num_tokens = config.num_tokens or placed or BACKBONES["ldm256"].num_tokens
    check_told_apart(config, num_tokens, bool(placed))
    room = shape.text_length - _LONGEST_TEMPLATE
    if placement == "prompt" and num_tokens > room:
        raise ConfigError(
            f"{num_tokens} semantic tokens do not fit into a prompt of {shape.text_length} tokens",
            f"use --set compress.num_tokens={max(room, 1)} or fewer",
        )


def check_told_apart(config: CompressConfig, num_tokens: int, have_places: bool) -> None:
    """Refuse tokens that start equal and would stay so, for nothing gives them a place.

    Raises:
        ConfigError: if a search over copies of a word in the `context` placement is asked for.
    """
    is_tied = config.init == "word" and config.semantic_placement == "context" and not have_places
    if is_tied and num_tokens > 1 and config.num_steps:
        raise ConfigError(
            f"{num_tokens} copies of a word beside the prompt would all learn the same",
            "use --set compress.init=random, or compress.semantic_placement=prompt",
        )


def num_spatial_tokens(
    latent_shape: Sequence[int], in_features: int, out_features: int, cross_attention_dim: int
) -> int:
    """S = C*h*w * O / (I * D), the tokens that one mask latent becomes.

    Args:
        latent_shape: `(C, h, w)` of the mask latent.
        in_features: I, latent values per row.
        out_features: O, values that a row becomes.
        cross_attention_dim: D.

    Raises:
        ConfigError: if the values fill no whole number of rows or tokens; names sizes that do.
    """
    values = math.prod(latent_shape)
    shape = "x".join(str(size) for size in latent_shape)
    if in_features < 1 or values % in_features:
        rows = [n for n in range(1, values + 1) if values % n == 0]
        near = sorted(sorted(rows, key=lambda n: abs(n - in_features))[:4])
        raise ConfigError(
            f"in_features {in_features} does not divide the {values} values of a {shape} latent",
            f"use in_features {', '.join(map(str, near))}",
        )
    num_rows = values // in_features
    if out_features < 1 or num_rows * out_features % cross_attention_dim:
        step = cross_attention_dim // math.gcd(num_rows, cross_attention_dim)
        below = out_features // step * step
        near = [n for n in (below, below + step) if n > 0]
        raise ConfigError(
            f"{num_rows} rows of out_features {out_features} are "
            f"{num_rows * out_features / cross_attention_dim:.2f} tokens of width "
            f"{cross_attention_dim}, not a whole number",
            f"use out_features {' or '.join(map(str, near))}",
        )
    return num_rows * out_features // cross_attention_dim
