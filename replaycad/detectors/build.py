"""From a detector's name to its untrained network, drawn from one seed."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from replaycad.detectors.dinomaly import Dinomaly
from replaycad.detectors.dne import DNE
from replaycad.detectors.interface import Detector
from replaycad.detectors.invad import InvAD
from replaycad.detectors.mambaad import MambaAD
from replaycad.detectors.patchcore import PatchCore
from replaycad.detectors.presets import preset_for
from replaycad.detectors.rlr import RLR
from replaycad.detectors.simplenet import SimpleNet
from replaycad.detectors.uniad import UniAD

BUILDERS: Mapping[str, Callable[..., Detector]] = MappingProxyType(
    {
        "invad": InvAD,
        "patchcore": PatchCore,
        "simplenet": SimpleNet,
        "dinomaly": Dinomaly,
        "uniad": UniAD,
        "rlr": RLR,
        "mambaad": MambaAD,
        "dne": DNE,
    }
)


def build_detector(
    detector: str,
    preset: str,
    channels: Sequence[int],
    strides: Sequence[int],
    image_size: int,
    seed: int = 0,
) -> Detector:
    """Build an untrained detector for an encoder.

    Args:
        detector: a key of `DETECTORS`.
        preset: a key of `DETECTORS[detector]`.
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels.
        image_size: side of the input images in pixels.
        seed: of the initial weights; torch's global stream is left as it was.

    Returns:
        On the CPU.

    Raises:
        ConfigError: if a name is unknown or encoder, image size and preset do not fit together.
    """
    chosen = preset_for(detector, preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[detector](channels, strides, image_size, chosen)
