"""The table of detectors: presets by name, and the network of each; imports no torch by itself.

A new detector is a folder of its name and a line in `NETWORKS`. The folder holds `preset.py` (the
dataclass of its structure and `PRESETS`, among them `mini` for the bundled encoder) and
`network.py` (a `Detector` that is built from channels, strides, image size and preset).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from replaycad.config.stages import TrainConfig
from replaycad.detectors.settings import Preset, TrainingSettings
from replaycad.errors import ConfigError

if TYPE_CHECKING:
    from replaycad.detectors.interface import Detector

NETWORKS: Mapping[str, str] = MappingProxyType(
    {
        "invad": "InvAD",
        "patchcore": "PatchCore",
        "simplenet": "SimpleNet",
        "dinomaly": "Dinomaly",
        "uniad": "UniAD",
        "rlr": "RLR",
        "mambaad": "MambaAD",
        "dne": "DNE",
        "iuf": "IUF",
        "cdad": "CDAD",
        "ucad": "UCAD",
    }
)
"""Detector, which is the name of its folder -> class in the `network.py` of that folder."""

DETECTORS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {name: import_module(f"{__package__}.{name}.preset").PRESETS for name in NETWORKS}
)
"""Detector -> preset name -> preset."""

FIRST_OPTIMIZER = ("iuf-adam",)
"""Guards under which later classes are trained with the optimiser of the first."""


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


def variant_of(detector: str, preset: str, variant: str) -> str:
    """The preset that is a variant of another where there is one of its size, else the variant."""
    own = f"{preset}-{variant}"
    return own if own in DETECTORS[detector] else variant


def training_of(config: TrainConfig) -> TrainingSettings:
    """How the preset of a config trains: its first class, or a later one under a guard.

    Raises:
        ConfigError: if the detector or its preset is unknown.
    """
    preset = preset_for(config.detector, config.preset)
    if not config.init or config.guard == "none" or preset.later is None:
        return preset.training
    if config.guard in FIRST_OPTIMIZER:
        return replace(preset.later, optimizers=preset.training.optimizers)
    return preset.later


def resolve_defaults(config: TrainConfig) -> TrainConfig:
    """The config with every 0 and "" replaced by what the detector's preset says.

    Raises:
        ConfigError: if the detector or its preset is unknown.
    """
    preset, training = preset_for(config.detector, config.preset), training_of(config)
    is_counted = config.num_steps or config.epochs
    rates = [settings.learning_rate for settings in training.optimizers]
    return replace(
        config,
        encoder=config.encoder or preset.encoder,
        image_size=config.image_size or preset.image_size,
        num_steps=config.num_steps if is_counted else training.num_steps,
        epochs=config.epochs if is_counted else training.epochs,
        batch_size=config.batch_size or training.batch_size,
        learning_rate=config.learning_rate or (rates[0] if rates else 0.0),
    )


def detector_class(detector: str) -> "type[Detector]":
    """The class of a detector's network; this imports torch.

    Args:
        detector: a key of `DETECTORS`.
    """
    module = import_module(f"{__package__}.{detector}.network")
    network: type[Detector] = getattr(module, NETWORKS[detector])
    return network


def build_detector(
    detector: str,
    preset: str,
    channels: Sequence[int],
    strides: Sequence[int],
    image_size: int,
    seed: int = 0,
) -> "Detector":
    """Build an untrained detector for an encoder.

    Args:
        detector: a key of `DETECTORS`.
        preset: a key of `DETECTORS[detector]`.
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels.
        image_size: side of the input images in pixels.
        seed: of the initial weights; torch's global stream is left as it was.

    Returns:
        On the CPU.

    Raises:
        ConfigError: if a name is unknown or encoder, image size and preset do not fit together.
    """
    import torch  # noqa: PLC0415  # presets are told without it

    chosen = preset_for(detector, preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return detector_class(detector)(channels, strides, image_size, chosen)
