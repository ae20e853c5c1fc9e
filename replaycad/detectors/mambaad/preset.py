"""Presets of MambaAD; imports no torch."""

from dataclasses import dataclass, replace

from replaycad.detectors.settings import (
    STANDARD_ENCODER,
    OptimizerSettings,
    Preset,
    TrainingSettings,
)


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


_ADAMW = OptimizerSettings(kind="adamw", learning_rate=5e-3, weight_decay=1e-4)

_MINI = MambaADPreset(
    depths=(1, 1, 1, 1),
    widths=(64, 48, 24, 16),
    state_width=8,
    training=TrainingSettings(optimizers=(_ADAMW,), num_steps=400),
)

PRESETS: dict[str, Preset] = {
    "full": MambaADPreset(
        encoder="resnet34.bt_in1k",
        image_size=256,
        training=TrainingSettings(optimizers=(_ADAMW,), batch_size=16, epochs=100),
    ),
    "standard": replace(_MINI, encoder=STANDARD_ENCODER, image_size=256),
    "mini": _MINI,
}
