"""Presets of IUF; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    PICTURE,
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)
from replaycad.detectors.uniad.preset import UniADPreset


@dataclass(frozen=True, kw_only=True)
class IUFPreset(UniADPreset):
    """Structure of IUF: UniAD's, without its window, and the network that tells objects apart.

    Attributes:
        picture_px: side of the picture that tells the object; 0 for the encoder's finest level,
            averaged to the grid of tokens.
        object_heads: of every attention of that network.
        class_weight: of the cross-entropy over classes.
        compression_weight: of what decoders need beside their leading directions.
        rank: how many directions are the leading ones.
        num_rows: images of the past whose directions count.
    """

    reach: int = -1
    picture_px: int = 0
    object_heads: int = 4
    class_weight: float = 1.0
    compression_weight: float = 10.0
    rank: int = 64
    num_rows: int = 768


_ADAMW = OptimizerSettings(learning_rate=1e-4, kind="adamw", weight_decay=1e-4)
# The program's rate, whatever its settings: a step is at most `grad_clip` long, and the pull leaves
# weights within 2 of where they were, of about 30 that AdamW moves them. After three procedural
# classes outside any training the newest have by 0.3, 1.0 and 3.0 image AUROC 85, 86 and 87 and
# pixel AP 34, 35 and 37, the past ones 62, 61 and 59, and 7 whatever the rate; after three others,
# by 0.3 and 1.0, 45, 45, 4, 4 and 61, 59, 22, 22 (one seed each).
_SGD = OptimizerSettings(learning_rate=1.0, kind="sgd")

# Deviation: at full size steps stand for epochs, whose number suited fourteen classes at once.
_FULL = IUFPreset(
    encoder="tf_efficientnet_b4.aa_in1k",
    levels=(PICTURE, 0, 1, 2, 3),
    image_size=224,
    picture_px=224,
    training=TrainingSettings(
        optimizers=(_ADAMW,), batch_size=24, num_steps=14_000, grad_clip=0.1, drop_at=0.5
    ),
    later=TrainingSettings(
        optimizers=(_SGD,), batch_size=24, num_steps=5_000, grad_clip=0.1, schedule="constant"
    ),
)

# Deviation: the object is told by features, which are there, and not by pixels.
_MINI = IUFPreset(
    grid_level=1,
    width=128,
    num_heads=4,
    hidden_width=256,
    num_layers=2,
    dropout=0.0,
    rank=32,
    num_rows=256,
    training=TrainingSettings(
        optimizers=(replace(_ADAMW, learning_rate=1e-3),), num_steps=600, grad_clip=0.1
    ),
    later=TrainingSettings(
        optimizers=(_SGD,), num_steps=300, grad_clip=0.1, schedule="constant"
    ),
)

PRESETS: dict[str, Preset] = {
    "full": _FULL,
    # Deviation: pictures of 56 px, whose rows take a twentieth of the work.
    "lite": replace(_FULL, picture_px=56),
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256, grid_level=2),
    "mini": _MINI,
}
