"""The frozen encoder: timm features of some levels, and the normalisation they expect."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from replaycad.detectors.encoder_files import EncoderLocation, locate_encoder
from replaycad.detectors.settings import MINI_LEVELS, PICTURE
from replaycad.errors import ConfigError, WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CPU_PIXELS = 4 * 256 * 256
"""Pixels that a CPU encodes at once. More spill out of its caches, and memory for them comes from
the system anew each time: EfficientNet-Lite0 at 256 px took 10.5 ms an image by 4, 19.7 by 32; at
384 px 21.7 by 2 and 45.1 by 32; the bundled encoder at 128 px 3.7 by 16 and 5.5 by 1."""
_WRAPPED = "model."


class Encoder(nn.Module):
    """A frozen network that gives a feature pyramid; always in eval mode and without gradient.

    The levels of a vision transformer are the outputs of its blocks, the patch tokens laid out as
    maps of one size; class and register tokens are left out.

    Attributes:
        channels: channels per level, from fine to coarse.
        strides: input pixels per feature location, per level.
        mean: per input channel, for images in 0..1.
        std: likewise.
    """

    _scale: torch.Tensor
    _shift: torch.Tensor
    _to_std: torch.Tensor
    _to_mean: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        with_picture: bool = False,
    ) -> None:
        """Wrap a timm `features_only` model; the picture may come before its levels."""
        super().__init__()
        # Channels last: 1.1 to 1.4 times as fast on a CPU, and what a GPU's tensor cores want.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.eval().requires_grad_(requires_grad=False)
        levels: Any = model.feature_info  # timm's; nn.Module does not declare it
        own = tuple(levels.reduction())
        # a transformer cannot pad: its patches are its stride
        is_transformer = len(own) > 1 and len(set(own)) == 1
        self.patch_px = own[0] if is_transformer else 1
        self._with_picture = with_picture
        channels = tuple(levels.channels())
        self.channels: tuple[int, ...] = (3, *channels) if with_picture else channels
        self.strides: tuple[int, ...] = (1, *own) if with_picture else own
        self.mean, self.std = tuple(mean), tuple(std)
        scale, shift = _affine(self.mean, self.std)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)
        # From its own normalisation to ImageNet's; by 1 and 0 where it is the same.
        wanted = torch.tensor(IMAGENET_STD)
        moved = torch.tensor(self.mean) - torch.tensor(IMAGENET_MEAN)
        to_std = torch.tensor(self.std) / wanted
        self.register_buffer("_to_std", to_std[:, None, None], persistent=False)
        self.register_buffer("_to_mean", (moved / wanted)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self._scale.device

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in eval mode: batch statistics of a frozen encoder never move."""
        return super().train(mode=False)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turn stored images into network inputs.

        Args:
            images: `[B, 3, H, W]` uint8, RGB, on any device.

        Returns:
            `[B, 3, H, W]` float32 on the encoder's device: (images / 255 - mean) / std.
        """
        return torch.addcmul(self._shift, images.to(self.device).float(), self._scale)

    @torch.no_grad()  # not inference mode: a detector keeps the features for its backward pass
    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature pyramid.

        Args:
            inputs: `[B, 3, H, W]` float, normalised as `normalize` does.

        Returns:
            Levels from fine to coarse, each `[B, channels, H / stride, W / stride]` float; before
            them the pictures as ImageNet's networks expect them, if they are asked for.

        Raises:
            ConfigError: if the images do not divide into patches.
        """
        if inputs.shape[-1] % self.patch_px or inputs.shape[-2] % self.patch_px:
            raise ConfigError(
                f"{inputs.shape[-1]} px images do not divide into patches of {self.patch_px} px",
                f"use an image size that is a multiple of {self.patch_px}",
            )
        levels = list(self.model(inputs.contiguous(memory_format=torch.channels_last)))
        if not self._with_picture:
            return levels
        return [torch.addcmul(self._to_mean, inputs, self._to_std), *levels]

    def encode_images(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature pyramid of `[B, 3, H, W]` uint8 images: `normalize`, then `forward`.

        On a CPU that is done a few images at a time.
        """
        if self.device.type != "cpu" or torch.jit.is_tracing():  # a traced shape is no number
            return self(self.normalize(images))
        few = max(1, round(CPU_PIXELS / (images.shape[-2] * images.shape[-1])))
        if len(images) <= few:
            return self(self.normalize(images))
        parts = [self(self.normalize(chunk)) for chunk in images.split(few)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]


def _affine(
    mean: Sequence[float], std: Sequence[float], device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What images in 0..255 are multiplied by, and what is added then, `[3, 1, 1]` each."""
    scale = 1.0 / (255.0 * torch.tensor(std, device=device))
    shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)
    return scale[:, None, None], shift[:, None, None]


def images_of(pictures: torch.Tensor) -> torch.Tensor:
    """Turn pictures back into images.

    Args:
        pictures: `[B, 3, H, W]` float, normalised as those of the level `PICTURE`.

    Returns:
        `[B, 3, H, W]` uint8, RGB.
    """
    scale, shift = _affine(IMAGENET_MEAN, IMAGENET_STD, pictures.device)
    return ((pictures.float() - shift) / scale).clamp(0, 255).round().byte()


def load_encoder(
    name: str, device: torch.device | str = "cpu", levels: Sequence[int] | None = None
) -> Encoder:
    """Load a frozen encoder; nothing is downloaded.

    Args:
        name: `mini`, `efficientnet-lite0` (1, 2) of a pip package, `TIMM_NAME:FILE.safetensors`, or
            a timm name whose weights are in the hub's cache.
        device: where it shall live.
        levels: which of its levels to give, in timm's numbers: stages of a convolutional network,
            blocks of a transformer; `PICTURE` first for the picture itself. None for those at
            stride 4, 8 and 16.

    Raises:
        WeightsError: if the files are missing, damaged or of another architecture, or timm does not
            know the name.
    """
    location = locate_encoder(name)
    wanted = tuple(level for level in levels or () if level != PICTURE)
    model = _build(location.timm_name, wanted or location.out_indices or MINI_LEVELS)
    _load_weights(model, location)
    if location.packaged:
        fold_batch_norms(model)
    known = timm.get_pretrained_cfg(location.timm_name)
    mean = location.mean or (known.mean if known else IMAGENET_MEAN)
    std = location.std or (known.std if known else IMAGENET_STD)
    with_picture = levels is not None and PICTURE in levels
    return Encoder(model, mean, std, with_picture=with_picture).to(device)


def _build(timm_name: str, levels: tuple[int, ...]) -> nn.Module:
    """Untrained network; a transformer's position table is stretched to the images it gets."""
    settings = {"pretrained": False, "features_only": True, "out_indices": levels}
    try:
        try:
            return timm.create_model(timm_name, dynamic_img_size=True, **settings)
        except TypeError:  # a convolutional network takes any size and has no such argument
            return timm.create_model(timm_name, **settings)
    except (RuntimeError, IndexError, AssertionError, ValueError) as error:
        raise WeightsError(
            f"timm {timm.__version__} makes no encoder '{timm_name}' with levels {levels}: {error}",
            "use a timm name with its tag, such as resnet34.bt_in1k, and a detector preset made "
            "for such an encoder",
        ) from None


def fold_batch_norms(model: nn.Module) -> None:
    """Let every convolution do the batch norm behind it: features are equal up to rounding.

    Measured on the CPU, efficientnet-lite0 at 256 px: 1.2 times as fast one image at a time, 1.5
    times in batches of 16.

    Args:
        model: frozen, in which a batch norm follows the convolution that stands before it.
    """
    before: nn.Conv2d | None = None
    for name, module in model.named_children():
        if isinstance(module, nn.Conv2d):
            before = module
        elif isinstance(module, nn.BatchNorm2d) and before is not None:
            variance, mean = module.running_var, module.running_mean
            assert variance is not None
            assert mean is not None
            scale = module.weight / (variance + module.eps).sqrt()
            bias = 0.0 if before.bias is None else before.bias
            before.weight = nn.Parameter(before.weight * scale[:, None, None, None])
            before.bias = nn.Parameter(module.bias + (bias - mean) * scale)
            # timm keeps the activation in the batch norm
            setattr(model, name, getattr(module, "act", nn.Identity()))
            before = None
        else:
            fold_batch_norms(module)


def _of_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is no readable safetensors file: {error}", "fetch the file again"
        ) from None


def _of_package(file: Path, location: EncoderLocation) -> dict[str, torch.Tensor]:
    """Tensors under timm's names: the file holds the same ones, in the same order, under others."""
    if hashlib.sha256(file.read_bytes()).hexdigest() != location.sha256:
        hint = location.packaged.hint if location.packaged else ""
        raise WeightsError(f"{file} does not hold the weights of {location.name}", hint)
    # The digest says what is in it; `weights_only` has torch run nothing of it all the same.
    stored = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model(location.timm_name, pretrained=False).state_dict()
    return dict(zip(names, stored.values(), strict=True))


def _load_weights(model: nn.Module, location: EncoderLocation) -> None:
    """Fill `model`; a classifier and later levels may lie in the file unused."""
    file = location.files[-1]
    state = _of_package(file, location) if location.packaged else _of_safetensors(file)
    wanted = model.state_dict()
    if all(key.startswith(_WRAPPED) for key in wanted):  # timm wraps its transformers
        state = {_WRAPPED + key: value for key, value in state.items()}
    # batch counters matter only while training; some converters drop them
    missing = [key for key in wanted if key not in state and "num_batches_tracked" not in key]
    misfits = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misfits:
        raise WeightsError(
            f"{file} does not fit '{location.timm_name}': {len(missing)} tensors missing, "
            f"{len(misfits)} of another shape, first {(missing + misfits)[0]}",
            "give the weights of this very architecture",
        )
    model.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
