"""How much memory compress and replay need, and how to divide a batch where there is less.

Imports no torch: a dry run tells it before anything is loaded.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.diffusion.presets import (
    BACKBONES,
    backbone_files,
    backbone_sizes,
    locate_backbone,
    read_json,
    split_name,
)
from replaycad.errors import WeightsError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Precision -> bytes of one number of unet and text encoder; the VAE always takes 4."""

RESERVE_BYTES = 700 * 10**6  # what the driver, its libraries and fragmentation take of a GPU


@dataclass(frozen=True, kw_only=True)
class Alive:
    """Numbers that are alive at once for one image, in millions, beside the weights.

    Counted on the meta device with the published configs (tests/full), attention as the fused
    kernels keep it; exactly proportional to the number of images.
    """

    search: float  # forward and backward through text encoder and unet
    checkpointed: float  # the same with gradient checkpointing of the unet
    drawing: float  # forward through the unet
    codec: float  # the VAE, encoding or decoding, whichever takes more


ALIVE = {
    "sd15": Alive(search=392.1, checkpointed=122.9, drawing=34.2, codec=201.4),
    "ldm256": Alive(search=121.4, checkpointed=52.8, drawing=8.6, codec=50.4),
}


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How the images of one optimiser step go through the networks.

    Args:
        size: images at once; the gradients of all passes are added up.
        checkpointing: whether the unet computes its activations twice and keeps few of them.
    """

    size: int
    checkpointing: bool


def codec_batch(image_size: int) -> int:
    """Images that the VAE sees at once, always exactly so many: at 512 px one takes 0.8 GB."""
    return 4 if image_size <= 256 else 1


def alive_of(name: str | Path, latent_area: int) -> Alive:
    """Of a backbone; one that is not in the table counts as sd15 at another latent size.

    Args:
        name: as `locate_backbone` takes it.
        latent_area: h*w of its latents.
    """
    known = ALIVE.get(split_name(name)[0])
    if known is not None:
        return known
    share = latent_area / math.prod(BACKBONES["sd15"].latent_shape[1:])
    large = ALIVE["sd15"]
    return Alive(
        search=large.search * share, checkpointed=large.checkpointed * share,
        drawing=large.drawing * share, codec=large.codec * share,
    )  # fmt: skip


def choose_passes(config: CompressConfig, alive: Alive, width: int, free: int | None) -> Passes:
    """Divide a batch so that it fits: whole if it can be, smaller, checkpointed at last.

    Args:
        config: `batch_size`, `pass_size`, `gradient_checkpointing`.
        alive: of the backbone.
        width: bytes of one number.
        free: bytes beside the loaded networks; None where memory is not asked (on a CPU, whose
            results must not depend on what else runs there).
    """
    size = min(config.pass_size or config.batch_size, config.batch_size)
    if config.gradient_checkpointing != "auto" or free is None:
        checkpointing = config.gradient_checkpointing == "on"
    else:
        smallest = size if config.pass_size else 1
        checkpointing = _num_bytes(smallest, alive.search, width) > free
    if not config.pass_size and free is not None:
        each = _num_bytes(1, alive.checkpointed if checkpointing else alive.search, width)
        size = max(1, min(size, free // each))
    return Passes(size=size, checkpointing=checkpointing)


def needed_bytes(config: CompressConfig | ReplayConfig, on_gpu: bool) -> int:
    """About how much memory a stage takes at its peak, weights included; nothing is loaded.

    Args:
        config: of the stage; of the backbone only headers are read.
        on_gpu: in 16 bits there, unless the config says otherwise; in 32 on a CPU.

    Raises:
        WeightsError: the backbone's files are missing or damaged.
    """
    sizes, image_size, latent_area = _sizes(config.backbone)
    default = "bf16" if on_gpu else "fp32"
    width = BYTES[default if config.precision == "auto" else config.precision]
    weights = sizes["vae"] * 4 + (sizes["unet"] + sizes["text_encoder"]) * width
    alive = alive_of(config.backbone, latent_area)
    if isinstance(config, CompressConfig):
        passes = choose_passes(config, alive, width, None)
        each = alive.checkpointed if passes.checkpointing else alive.search
        busy = _num_bytes(passes.size, each, width)
    else:
        rows = config.batch_size * (1 if config.guidance_scale == 1 else 2)
        busy = _num_bytes(rows if on_gpu else 8, alive.drawing, width)
    codec = _num_bytes(codec_batch(image_size), alive.codec, 4)
    return weights + max(busy, codec) + (RESERVE_BYTES if on_gpu else 0)


def _num_bytes(images: int, millions: float, width: int) -> int:
    return round(images * millions * 1e6) * width


def _sizes(name: str) -> tuple[dict[str, int], int, int]:
    """Parameters per network, image size in pixels, and h*w of a latent."""
    place, variant = split_name(name)
    preset = BACKBONES.get(place)
    if preset is not None and preset.parameters:
        return preset.parameters, preset.image_size, math.prod(preset.latent_shape[1:])
    files = backbone_files(locate_backbone(name), variant)
    counts = {part: _parameters(files[part][1]) for part in ("vae", "unet", "text_encoder")}
    if preset is not None:
        return counts, preset.image_size, math.prod(preset.latent_shape[1:])
    side = int(read_json(files["unet"][0]).get("sample_size", 64))
    return counts, backbone_sizes(name)[1], side * side


def _parameters(weights: Path) -> int:
    """Numbers in a safetensors file, read off its header."""
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 10**8)))
        return sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise WeightsError(f"{weights} cannot be read: {error}", "fetch the file again") from None
