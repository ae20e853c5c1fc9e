"""What a preset says: the structure of each detector, and how it is optimised; imports no torch."""

from dataclasses import dataclass
from typing import Literal

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
        is_routed: whether an image is held against the bank of one class alone, the one that lies
            nearest to all its patches together.
    """

    levels: tuple[int, ...] = (2, 3)
    bank_fraction: float = 0.1
    bank_limit: int = 8_000
    projection_width: int = 128
    is_routed: bool = False


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
class DNEPreset(Preset):
    """What DNE learns and keeps.

    Attributes:
        hidden_width: of the layers on the features.
        task: what they learn: `cutpaste`, or `compactness` as in PANDA.
        keeps_past: whether past classes are remembered; as published not with CutPaste alone.
    """

    levels: tuple[int, ...] = (2, 3)
    hidden_width: int = 128
    task: Literal["cutpaste", "compactness"] = "cutpaste"
    keeps_past: bool = True


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
