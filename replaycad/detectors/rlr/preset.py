"""Presets of RLR; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)


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


_TRAINING = TrainingSettings(
    optimizers=(OptimizerSettings(learning_rate=1e-4),),
    batch_size=4,
    epochs=200,
    grad_clip=0.0,
    schedule="constant",
)

_MINI = RLRPreset(
    widths=(128, 128),
    reaches=(2, 1),
    num_heads=4,
    num_layers=2,
    training=replace(
        _TRAINING,
        optimizers=(OptimizerSettings(learning_rate=2e-3),),
        batch_size=8,
        epochs=0,
        num_steps=400,
    ),
)

PRESETS: dict[str, Preset] = {
    "full": RLRPreset(
        encoder="tf_efficientnet_b6.aa_in1k", image_size=256, training=_TRAINING
    ),
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256),
    "mini": _MINI,
}
