"""Presets of UCAD; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    PICTURE,
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)


@dataclass(frozen=True, kw_only=True)
class UCADPreset(Preset):
    """Structure of UCAD. Of its levels it reads the picture; the others tell classes apart.

    Attributes:
        transformer_px: side of the pictures that it reads.
        num_blocks: whose prefixes are learned and behind which features are taken.
        loss_weight: of it; 0 leaves the prompts as they are drawn.
        temperature: of the loss.
        num_picks: vectors that a key and a knowledge have.
        projection_width: in which they are picked.
        compared_width: to which vectors are stretched by averages before they are compared; 0 to
            compare them as they are.
        sigma_px: of the smoothing of maps, at 224 px.
    """

    levels: tuple[int, ...] = (PICTURE, 2, 3)
    transformer: str = "mini"
    transformer_px: int = 128
    num_blocks: int = 2
    segmenter: str = "mini"
    loss_weight: float = 1.0
    temperature: float = 0.5
    num_picks: int = 196
    projection_width: int = 128
    compared_width: int = 0
    sigma_px: float = 4.0


_TRAINING = TrainingSettings(
    optimizers=(OptimizerSettings(learning_rate=5e-4),), num_steps=100, grad_clip=1.0,
    schedule="constant",
)  # fmt: skip

_MINI = UCADPreset(training=_TRAINING)

_FULL = UCADPreset(
    encoder="resnet50.a1_in1k",  # tells classes apart for thresholds; UCAD routes by itself
    image_size=224,
    transformer="vit_base_patch16_224.augreg_in21k",
    transformer_px=224,
    num_blocks=6,
    segmenter="vit_b",
    compared_width=1024,
    training=replace(_TRAINING, num_steps=0, epochs=25),
)

PRESETS: dict[str, Preset] = {
    "full": _FULL,
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256),
    "mini": _MINI,
    # The controls: prompts as they are drawn.
    "untrained": replace(_MINI, loss_weight=0.0),
    "full-untrained": replace(_FULL, loss_weight=0.0),
}
