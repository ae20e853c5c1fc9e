"""Loads the frozen networks that stages ask for, one at a time.

Nothing here imports torch before a network is asked for.
"""


from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.engine.inputs import NO_SEGMENTER

if TYPE_CHECKING:
    import torch

    from replaycad.detectors.encoders import Encoder
    from replaycad.diffusion.backbones import Diffusion
    from replaycad.segmentation.sam import Segmenter


class Models:
    """The frozen networks of one command; the one last asked for stays loaded, and no other.

    Args:
        device: as `runtime.resolve_device` takes it.
    """

    def __init__(self, device: str) -> None:
        self._device_name = device
        self._loaded: tuple[str, str] = ("", "")
        self._network: Any = None

    def check_device(self) -> None:
        """Refuse a device that is not there before any work, also where no network is asked.

        Raises:
            ConfigError: as `device`.
        """
        _ = self.device

    @cached_property
    def device(self) -> "torch.device":
        """Where the networks are put.

        Raises:
            ConfigError: if the device is not there.
        """
        from replaycad.runtime import resolve_device

        return resolve_device(self._device_name)

    def segmenter(self, name: str) -> "Segmenter | None":
        """The segmenter of this name; None for `none`, for which the whole frame is the object."""
        if name == NO_SEGMENTER:
            return None
        from replaycad.segmentation.sam import load_segmenter

        return self.load("segmenter", name, load_segmenter)

    def backbone(self, config: CompressConfig | ReplayConfig) -> "Diffusion":
        """The diffusion model of a config, in its precision."""
        from replaycad.diffusion.backbones import DTYPES, load_backbone

        dtype, is_compiled = DTYPES.get(config.precision), getattr(config, "compile", False)
        return self.load(
            f"backbone in {config.precision}{', compiled' * is_compiled}", config.backbone,
            lambda name, device: load_backbone(name, device, dtype, is_compiled),
        )  # fmt: skip

    def encoder(self, name: str, levels: tuple[int, ...]) -> "Encoder":
        """The encoder of this name, with the levels that a preset reads."""
        from replaycad.detectors.encoders import load_encoder

        return self.load(
            f"encoder {levels}", name, lambda name, device: load_encoder(name, device, levels)
        )

    def load(self, kind: str, name: str, load: Callable[..., Any]) -> Any:
        """The network of this kind and name; loaded, unless it was the last one.

        Args:
            kind: says how it is loaded: another kind of the same name is another network.
            name: of the network.
            load: gives it for a name and a device.
        """
        if self._loaded != (kind, name):
            self._network = None  # gives the memory back before the next network takes its own
            self._network = load(name, self.device)
            self._loaded = (kind, name)
        return self._network
