"""Which detectors and encoders exist and where files lie, told without importing torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from replaycad.errors import ConfigError, WeightsError

MINI_ENCODER = Path(__file__).parent.parent / "mini" / "weights" / "encoder"
OUT_INDICES = (1, 2, 3)  # the levels at stride 4, 8 and 16 of the usual convolutional encoders


@dataclass(frozen=True, kw_only=True)
class InvADPreset:
    """Structure of InvAD on some encoder.

    Attributes:
        encoder: name of the frozen encoder that `load_encoder` understands.
        image_size: side of the input images in pixels.
        fuser_width: channels of the fused code and of the style pyramid.
        style_width: channels of the style map that modulates a level.
        num_blocks: residual blocks per level of the generator.
        generator_widths: channels of the generator per level, from fine to coarse; None for those
            of the encoder, as published.
        level_weight: weight of every level in the loss.
    """

    encoder: str
    image_size: int
    fuser_width: int = 64
    style_width: int = 16
    num_blocks: int = 2
    generator_widths: tuple[int, ...] | None = None
    level_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PatchCorePreset:
    """Structure of PatchCore on some encoder.

    Attributes:
        encoder: name of the frozen encoder that `load_encoder` understands.
        image_size: side of the input images in pixels.
        bank_fraction: share of a class's patches that its bank keeps.
        bank_limit: largest number of patches in the bank of one class.
        projection_width: width of the random projection in which the coreset is chosen.
    """

    encoder: str
    image_size: int
    bank_fraction: float = 0.1
    bank_limit: int = 10_000
    projection_width: int = 128


Preset = InvADPreset | PatchCorePreset

# detector -> preset name -> preset; what a detector is trained with (epochs, batch) is in recipes
DETECTORS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {
        "invad": MappingProxyType(
            {
                "full": InvADPreset(encoder="wide_resnet50_2.racm_in1k", image_size=256),
                "lite": InvADPreset(
                    encoder="resnet34.bt_in1k", image_size=256, num_blocks=4, level_weight=5.0
                ),
                "mini": InvADPreset(
                    encoder="mini",
                    image_size=128,
                    fuser_width=32,
                    num_blocks=1,
                    generator_widths=(32, 64, 96),
                ),
            }
        ),
        "patchcore": MappingProxyType(
            {
                "full": PatchCorePreset(encoder="wide_resnet50_2.tv_in1k", image_size=256),
                "lite": PatchCorePreset(encoder="resnet34.bt_in1k", image_size=256),
                "mini": PatchCorePreset(
                    encoder="mini", image_size=128, bank_limit=1000, projection_width=64
                ),
            }
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a detector with a loss is optimised: ReplayCAD's settings for InvAD (detectors.md 1.2).

    Attributes:
        learning_rate_per_image: learning rate divided by the batch size.
        betas: of Adam; both must be floats.
        grad_clip: largest gradient norm over all parameters together; 0 for no clipping.
        lr_drop_at: fraction of all steps after which the learning rate drops.
        lr_drop_factor: what it is multiplied by then.
    """

    learning_rate_per_image: float = 1e-3 / 8
    betas: tuple[float, float] = (0.0, 0.99)
    grad_clip: float = 5.0
    lr_drop_at: float = 0.8
    lr_drop_factor: float = 0.1


def preset_for(detector: str, preset: str) -> Preset:
    """Look a preset up.

    Raises:
        ConfigError: if the detector or its preset is unknown; the hint lists the valid names.
    """
    if detector not in DETECTORS:
        raise ConfigError(f"unknown detector '{detector}'", f"use one of {', '.join(DETECTORS)}")
    presets = DETECTORS[detector]
    if preset not in presets:
        raise ConfigError(
            f"detector '{detector}' has no preset '{preset}'", f"use one of {', '.join(presets)}"
        )
    return presets[preset]


@dataclass(frozen=True, kw_only=True)
class EncoderLocation:
    """Where the frozen encoder called `name` is described and stored.

    Attributes:
        name: as the user wrote it.
        timm_name: architecture in timm.
        out_indices: which of its levels are used.
        files: every file that determines the features; weights last.
        mean: of the input, or None for what timm knows about the architecture.
        std: likewise.
    """

    name: str
    timm_name: str
    out_indices: tuple[int, ...]
    files: tuple[Path, ...]
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def locate_encoder(name: str) -> EncoderLocation:
    """Find an encoder's files without reading the weights.

    Args:
        name: `mini` (bundled), `TIMM_NAME:FILE.safetensors` (a local file), or a timm name with its
            tag, such as `resnet34.bt_in1k`, whose weights lie in the Hugging Face cache.

    Raises:
        WeightsError: if a file is missing or the bundled description is unreadable; the hint says
            which file to put where.
    """
    if name == "mini":
        return _bundled(name, MINI_ENCODER)
    timm_name, colon, file = name.partition(":")
    if colon:
        path = Path(file).expanduser()
        if not path.is_file():
            raise WeightsError(f"encoder '{timm_name}': no file {path}", "check the path after ':'")
        return EncoderLocation(
            name=name, timm_name=timm_name, out_indices=OUT_INDICES, files=(path,)
        )
    cached = _hub_cache_file(f"timm/{name}", "model.safetensors")
    if cached is None:
        raise WeightsError(
            f"encoder '{name}' is not in the Hugging Face cache ({_hub_cache()})",
            f"run `hf download timm/{name} model.safetensors`, or give the file as "
            f"'{name}:FILE.safetensors'",
        )
    return EncoderLocation(name=name, timm_name=name, out_indices=OUT_INDICES, files=(cached,))


def encoder_files(name: str) -> list[Path]:
    """Files whose digests identify the encoder called `name`; errors as `locate_encoder`."""
    return list(locate_encoder(name).files)


def _bundled(name: str, folder: Path) -> EncoderLocation:
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise WeightsError(
                f"the bundled encoder lacks {file}", "install replaycad again with its weights"
            )
    try:
        config = json.loads(config_file.read_text())
        return EncoderLocation(
            name=name,
            timm_name=config["timm_name"],
            out_indices=tuple(config["out_indices"]),
            files=(config_file, weights),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{config_file} does not describe an encoder: {error!r}",
            "expected timm_name, out_indices, mean, std; install replaycad again",
        ) from None


def _hub_cache() -> Path:
    """The hub's cache folder by huggingface_hub's own rules; importing it would be slow."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", cache)).expanduser() / "hub"


def _hub_cache_file(repository: str, file: str) -> Path | None:
    folder = _hub_cache() / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if not reference.is_file():
        return None
    path = folder / "snapshots" / reference.read_text().strip() / file
    return path if path.is_file() else None
