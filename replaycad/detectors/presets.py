"""Which detectors there are and how each is built and trained, told without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from replaycad.errors import ConfigError
from replaycad.recipes import TrainConfig

MINI_LEVELS = (1, 2, 3)  # stride 4, 8 and 16 of the usual convolutional encoders


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """One optimiser over some of a detector's parameters.

    Attributes:
        kind: `adam` (weight decay added to the gradient), `adamw` (decay apart from it) or
            `stable_adamw`.
        learning_rate: at the preset's batch size.
        betas: decay rates of the two moments; both must be floats.
        weight_decay: per step, times the learning rate.
        parameters: prefix of the names of the parameters it moves; empty for all.
    """

    kind: Literal["adam", "adamw", "stable_adamw"] = "adam"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    parameters: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a detector is trained unless the user says otherwise.

    Attributes:
        optimizers: they step together, each on its own parameters.
        batch_size: images per step.
        num_steps: optimiser steps; 0 to count in epochs.
        epochs: passes over the training set.
        grad_clip: largest gradient norm over all parameters together; 0 for no clipping.
        schedule: `drop` (once, at `drop_at`), `cosine` (down to `final_factor`) or `constant`.
        drop_at: fraction of all steps after which a `drop` happens.
        final_factor: what the learning rate is multiplied by in the end.
        warmup: fraction of all steps in which the learning rate rises from 0.
    """

    optimizers: tuple[OptimizerSettings, ...] = ()
    batch_size: int = 8
    num_steps: int = 0
    epochs: int = 0
    grad_clip: float = 5.0
    schedule: Literal["drop", "cosine", "constant"] = "drop"
    drop_at: float = 0.8
    final_factor: float = 0.1
    warmup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What every detector's preset has; the structure stands in the subclass.

    Attributes:
        encoder: name of the frozen encoder that `load_encoder` understands.
        levels: which of the encoder's levels are read, in timm's numbers.
        image_size: side of the input images in pixels.
        training: settings of the optimisation.
    """

    encoder: str = "mini"
    levels: tuple[int, ...] = MINI_LEVELS
    image_size: int = 128
    training: TrainingSettings = TrainingSettings()


@dataclass(frozen=True, kw_only=True)
class InvADPreset(Preset):
    """Structure of InvAD.

    Attributes:
        fuser_width: channels of the fused code and of the style pyramid.
        style_width: channels of the style map that modulates a level.
        num_blocks: residual blocks per level of the generator.
        generator_widths: channels of the generator per level, from fine to coarse; None for those
            of the encoder, as published.
        level_weight: weight of every level in the loss.
    """

    fuser_width: int = 64
    style_width: int = 16
    num_blocks: int = 2
    generator_widths: tuple[int, ...] | None = None
    level_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PatchCorePreset(Preset):
    """Structure of PatchCore.

    Attributes:
        bank_fraction: share of a class's patches that its bank keeps.
        bank_limit: largest number of patches in the bank of one class.
        projection_width: width of the random projection in which the coreset is chosen.
    """

    levels: tuple[int, ...] = (2, 3)
    bank_fraction: float = 0.1
    bank_limit: int = 10_000
    projection_width: int = 128


@dataclass(frozen=True, kw_only=True)
class SimpleNetPreset(Preset):
    """Structure of SimpleNet.

    Attributes:
        width: of the embedding and of the adaptor.
        hidden_width: of the discriminator.
        noise_std: of what is added to adapted features.
        margin: of the hinge loss.
    """

    levels: tuple[int, ...] = (2, 3)
    width: int = 1536
    hidden_width: int = 1024
    noise_std: float = 0.015
    margin: float = 0.5


@dataclass(frozen=True, kw_only=True)
class DinomalyPreset(Preset):
    """Structure of Dinomaly.

    Attributes:
        num_groups: groups of consecutive levels that are compared by their mean.
        num_blocks: of the decoder; 0 for one per level, as published.
        width: of the tokens; 0 for that of the encoder, as published.
        dropout: in the bottleneck, the only noise.
    """

    num_groups: int = 2
    num_blocks: int = 0
    width: int = 0
    dropout: float = 0.2


@dataclass(frozen=True, kw_only=True)
class UniADPreset(Preset):
    """Structure of UniAD.

    Attributes:
        grid_level: place in `levels` of the level whose size all others take.
        width: of the tokens.
        num_heads: of every attention.
        hidden_width: of the feed-forward part.
        num_layers: of the encoder, and of the decoder.
        reach: places around the query, along either axis, that it may not see.
        jitter: scale of the noise on the tokens while training.
        dropout: in attention and feed-forward part.
    """

    grid_level: int = -1
    width: int = 256
    num_heads: int = 8
    hidden_width: int = 1024
    num_layers: int = 4
    reach: int = 4
    jitter: float = 20.0
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class RLRPreset(Preset):
    """Structure of RLR.

    Attributes:
        widths: of the tokens, per level.
        reaches: of the window around a token, in places to all sides, per level.
        num_heads: of every attention.
        num_layers: per level.
        jitter: scale of the noise on the tokens while training.
    """

    levels: tuple[int, ...] = (2, 3)
    widths: tuple[int, ...] = (256, 512)
    reaches: tuple[int, ...] = (3, 2)
    num_heads: int = 8
    num_layers: int = 4
    jitter: float = 4.0


@dataclass(frozen=True, kw_only=True)
class MambaADPreset(Preset):
    """Structure of MambaAD.

    Attributes:
        depths: state-space blocks per stage of the decoder, from the code to the finest level.
        widths: channels of those stages; None for twice the coarsest level's, then those of the
            encoder, as published.
        state_width: of every state-space model.
        drop_path: largest rate at which a block is left out while training.
        level_weight: weight of every level in the loss.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] | None = None
    state_width: int = 16
    drop_path: float = 0.2
    level_weight: float = 5.0


# ReplayCAD's settings for InvAD (detectors.md 1.2)
_INVAD_ADAM = OptimizerSettings(learning_rate=4e-3, betas=(0.0, 0.99))
_INVAD_TRAINING = TrainingSettings(optimizers=(_INVAD_ADAM,), batch_size=32, epochs=200)

_SIMPLENET_TRAINING = TrainingSettings(
    optimizers=(
        OptimizerSettings(
            kind="adamw", learning_rate=1e-4, weight_decay=1e-2, parameters="adaptor."
        ),
        OptimizerSettings(learning_rate=2e-4, weight_decay=1e-5, parameters="discriminator."),
    ),
    batch_size=32,
    epochs=100,
)

_DINOMALY_TRAINING = TrainingSettings(
    optimizers=(
        OptimizerSettings(kind="stable_adamw", learning_rate=2e-3, weight_decay=1e-4),
    ),
    batch_size=16,
    num_steps=10_000,
    grad_clip=0.1,
    schedule="cosine",
    warmup=0.01,
)
_DINOMALY_BASE = DinomalyPreset(
    encoder="vit_base_patch14_reg4_dinov2.lvd142m",
    levels=tuple(range(2, 10)),
    image_size=392,
    training=_DINOMALY_TRAINING,
)

_UNIAD_TRAINING = TrainingSettings(
    optimizers=(OptimizerSettings(kind="adamw", learning_rate=1e-4, weight_decay=1e-4),),
    batch_size=8,
    epochs=100,
)

_MAMBAAD_TRAINING = TrainingSettings(
    optimizers=(OptimizerSettings(kind="adamw", learning_rate=5e-3, weight_decay=1e-4),),
    batch_size=16,
    epochs=100,
)

_RLR_TRAINING = TrainingSettings(
    optimizers=(OptimizerSettings(learning_rate=1e-4),),
    batch_size=4,
    epochs=200,
    grad_clip=0.0,
    schedule="constant",
)

# detector -> preset name -> preset
DETECTORS: Mapping[str, Mapping[str, Preset]] = MappingProxyType(
    {
        "invad": {
            "full": InvADPreset(
                encoder="wide_resnet50_2.racm_in1k", image_size=256, training=_INVAD_TRAINING
            ),
            "lite": InvADPreset(
                encoder="resnet34.bt_in1k",
                image_size=256,
                num_blocks=4,
                level_weight=5.0,
                training=replace(_INVAD_TRAINING, epochs=300),
            ),
            "mini": InvADPreset(
                fuser_width=32,
                num_blocks=1,
                generator_widths=(32, 64, 96),
                training=TrainingSettings(
                    optimizers=(replace(_INVAD_ADAM, learning_rate=1e-2),), num_steps=600
                ),
            ),
        },
        "patchcore": {
            "full": PatchCorePreset(encoder="wide_resnet50_2.tv_in1k", image_size=256),
            "lite": PatchCorePreset(encoder="resnet34.bt_in1k", image_size=256),
            "mini": PatchCorePreset(bank_limit=1000, projection_width=64),
        },
        "simplenet": {
            "full": SimpleNetPreset(
                encoder="wide_resnet50_2.tv_in1k", image_size=256, training=_SIMPLENET_TRAINING
            ),
            "mini": SimpleNetPreset(
                width=384,
                hidden_width=256,
                training=replace(_SIMPLENET_TRAINING, batch_size=8, epochs=0, num_steps=600),
            ),
        },
        "dinomaly": {
            "full": _DINOMALY_BASE,
            "lite": replace(_DINOMALY_BASE, encoder="vit_small_patch14_reg4_dinov2.lvd142m"),
            "mini": DinomalyPreset(
                width=128,
                num_blocks=2,
                training=replace(_DINOMALY_TRAINING, batch_size=8, num_steps=600),
            ),
        },
        "uniad": {
            "full": UniADPreset(
                encoder="tf_efficientnet_b4.aa_in1k",
                levels=(0, 1, 2, 3),
                image_size=256,
                training=_UNIAD_TRAINING,
            ),
            "mini": UniADPreset(
                grid_level=1,
                width=128,
                num_heads=4,
                hidden_width=256,
                num_layers=2,
                reach=2,
                dropout=0.0,
                training=replace(
                    _UNIAD_TRAINING,
                    optimizers=(replace(_UNIAD_TRAINING.optimizers[0], learning_rate=1e-3),),
                    epochs=0,
                    num_steps=600,
                ),
            ),
        },
        "rlr": {
            "full": RLRPreset(
                encoder="tf_efficientnet_b6.aa_in1k", image_size=256, training=_RLR_TRAINING
            ),
            "mini": RLRPreset(
                widths=(128, 128),
                reaches=(2, 1),
                num_heads=4,
                num_layers=2,
                training=replace(
                    _RLR_TRAINING,
                    optimizers=(OptimizerSettings(learning_rate=1e-3),),
                    batch_size=8,
                    epochs=0,
                    num_steps=400,
                ),
            ),
        },
        "mambaad": {
            "full": MambaADPreset(
                encoder="resnet34.bt_in1k", image_size=256, training=_MAMBAAD_TRAINING
            ),
            "mini": MambaADPreset(
                depths=(1, 1, 1, 1),
                widths=(64, 48, 24, 16),
                state_width=8,
                training=replace(_MAMBAAD_TRAINING, batch_size=8, epochs=0, num_steps=400),
            ),
        },
    }
)


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


def settle(config: TrainConfig) -> TrainConfig:
    """The config with every 0 and "" replaced by what the detector's preset says.

    Raises:
        ConfigError: if the detector or its preset is unknown.
    """
    preset = preset_for(config.detector, config.preset)
    training = preset.training
    is_counted = config.num_steps or config.epochs
    rates = [one.learning_rate for one in training.optimizers]
    return replace(
        config,
        encoder=config.encoder or preset.encoder,
        image_size=config.image_size or preset.image_size,
        num_steps=config.num_steps if is_counted else training.num_steps,
        epochs=config.epochs if is_counted else training.epochs,
        batch_size=config.batch_size or training.batch_size,
        learning_rate=config.learning_rate or (rates[0] if rates else 0.0),
    )
