"""Presets of PatchCore; imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from replaycad.detectors.settings import STANDARD_ENCODER, Preset


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

    has_memory_banks: ClassVar[bool] = True
    levels: tuple[int, ...] = (2, 3)
    bank_fraction: float = 0.1
    bank_limit: int = 8_000
    projection_width: int = 128
    is_routed: bool = False


PRESETS: dict[str, Preset] = {
    "full": PatchCorePreset(encoder="wide_resnet50_2.tv_in1k", image_size=256),
    "lite": PatchCorePreset(encoder="resnet34.bt_in1k", image_size=256),
    "standard": PatchCorePreset(
        encoder=STANDARD_ENCODER, image_size=256, bank_limit=4000, is_routed=True
    ),
    "mini": PatchCorePreset(bank_fraction=0.25, bank_limit=4000, projection_width=64),
    # UCAD's memory without its prompts (Liu et al. 2024): 196 patches a class, which are keys and
    # knowledge at once.
    "ucad": PatchCorePreset(bank_fraction=1.0, bank_limit=196, is_routed=True),
}
