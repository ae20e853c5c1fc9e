"""Presets of InvAD; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)


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


# Deviation: section 5.1 trains InvAD as its authors do; those train 300 epochs of MVTec AD and 100
# of VisA, and 200 of both is what ReplayCAD's release trains.
_ADAM = OptimizerSettings(learning_rate=4e-3, betas=(0.0, 0.99))
_TRAINING = TrainingSettings(optimizers=(_ADAM,), batch_size=32, epochs=200)

_MINI = InvADPreset(
    fuser_width=32,
    num_blocks=1,
    generator_widths=(32, 64, 96),
    training=TrainingSettings(
        optimizers=(replace(_ADAM, learning_rate=1e-2),), num_steps=1500
    ),
)

PRESETS: dict[str, Preset] = {
    "full": InvADPreset(encoder="wide_resnet50_2.racm_in1k", image_size=256, training=_TRAINING),
    "lite": InvADPreset(
        encoder="resnet34.bt_in1k",
        image_size=256,
        num_blocks=4,
        level_weight=5.0,
        training=replace(_TRAINING, epochs=300),
    ),
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256),
    "mini": _MINI,
}
