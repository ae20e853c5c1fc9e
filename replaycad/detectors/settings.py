"""What every detector's preset says: its input and how it is optimised; imports no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

STANDARD_ENCODER = "efficientnet-lite0"
"""Of the presets `standard`: what `pip install replaycad` brings along."""
PICTURE = -1
"""Among a preset's levels, the first: the picture itself, 3 channels at stride 1, normalised by
ImageNet's mean and standard deviation whatever the encoder expects."""
MINI_LEVELS = (1, 2, 3)  # stride 4, 8 and 16 of the usual convolutional encoders


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """One optimiser over some of a detector's parameters.

    Attributes:
        kind: `adam` (weight decay added to the gradient), `adamw` (decay apart from it),
            `stable_adamw`, or `sgd` without momentum.
        learning_rate: at the preset's batch size.
        betas: decay rates of the two moments; both must be floats.
        weight_decay: per step, times the learning rate.
        parameters: prefix of the names of the parameters it moves; empty for all.
    """

    kind: Literal["adam", "adamw", "stable_adamw", "sgd"] = "adam"
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
        has_memory_banks: whether the detector keeps a memory bank per class in place of weights.
        encoder: name of the frozen encoder that `load_encoder` understands.
        backbone: diffusion model that is a part of it; empty for none.
        transformer: vision transformer that is a part of it, as an encoder or as the bundled Sam's;
            empty for none.
        segmenter: Sam that it learns with; empty for none.
        levels: which of the encoder's levels are read, in timm's numbers.
        image_size: side of the input images in pixels.
        training: settings of the optimisation.
        later: those of classes after the first, where a guard holds the steps; None for the same.
    """

    has_memory_banks: ClassVar[bool] = False
    encoder: str = "mini"
    backbone: str = ""
    transformer: str = ""
    segmenter: str = ""
    levels: tuple[int, ...] = MINI_LEVELS
    image_size: int = 128
    training: TrainingSettings = TrainingSettings()
    later: TrainingSettings | None = None
