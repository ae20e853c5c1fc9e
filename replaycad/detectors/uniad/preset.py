"""Presets of UniAD; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)


@dataclass(frozen=True, kw_only=True)
class UniADPreset(Preset):
    """Structure of UniAD.

    Attributes:
        grid_level: place in `levels` of the level whose size all others take.
        width: of the tokens.
        num_heads: of every attention.
        hidden_width: of the feed-forward part.
        num_layers: of the encoder, and of the decoder.
        reach: places around the query, along either axis, that it may not see; -1 if it sees all.
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


_ADAMW = OptimizerSettings(kind="adamw", learning_rate=1e-4, weight_decay=1e-4)

_MINI = UniADPreset(
    grid_level=1,
    width=128,
    num_heads=4,
    hidden_width=256,
    num_layers=2,
    reach=2,
    dropout=0.0,
    training=TrainingSettings(
        optimizers=(replace(_ADAMW, learning_rate=1e-3),), num_steps=600
    ),
)

PRESETS: dict[str, Preset] = {
    "full": UniADPreset(
        encoder="tf_efficientnet_b4.aa_in1k",
        levels=(0, 1, 2, 3),
        image_size=256,
        training=TrainingSettings(optimizers=(_ADAMW,), epochs=100),
    ),
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256),
    "mini": _MINI,
}
