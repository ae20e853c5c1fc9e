"""A detector and its encoder's levels: what it asks of them, errors over them, maps from them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, map_matrix
from replaycad.errors import ConfigError

SMOOTHING_SIGMA_PX = 4.0  # at 256 px, as published


def check_pyramid(
    detector: str, strides: Sequence[int], image_size: int, num_levels: int | None = None
) -> None:
    """Refuse levels that do not halve in size, or images that do not divide into them.

    Args:
        detector: name for the message.
        strides: of the encoder's levels.
        image_size: side of the images in pixels.
        num_levels: how many levels there must be; None for any number.

    Raises:
        ConfigError: if they do not fit.
    """
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ConfigError(
            f"{detector} needs encoder levels that halve in size, found strides {tuple(strides)}",
            "use a convolutional encoder, such as resnet34.bt_in1k",
        )
    if num_levels is not None and len(strides) != num_levels:
        raise ConfigError(
            f"{detector} needs {num_levels} encoder levels, found strides {tuple(strides)}",
            "use another preset or another encoder",
        )
    if image_size <= 0 or image_size % strides[-1]:
        raise ConfigError(
            f"image size {image_size} is no multiple of {strides[-1]}, the encoder's last stride",
            f"use {max(1, round(image_size / strides[-1])) * strides[-1]}",
        )


def check_picture(detector: str, channels: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse levels that do not begin with the picture itself; `detector` is for the message.

    Raises:
        ConfigError: if they do not.
    """
    if (channels[0], strides[0]) != (3, 1):
        message = f"{detector} reads pictures"
        raise ConfigError(message, "use a preset whose levels have the picture")


def picture_of(features: Sequence[torch.Tensor], side: int) -> torch.Tensor:
    """The picture, the first of levels `[B, C, H, W]`, as `[B, 3, side, side]` float32."""
    return F.interpolate(
        features[0].float(), side, mode="bilinear", antialias=True, align_corners=False
    )


def smoothing_matrix(image_size: int, in_size: int, *, align_corners: bool = True) -> torch.Tensor:
    """Matrix `[image_size, in_size]` that brings a map to image size and smooths it as published.

    The published sigma of 4 px belongs to 256 px images; other sizes keep that share of the image.
    """
    sigma = SMOOTHING_SIGMA_PX * image_size / 256
    return map_matrix(image_size, in_size, sigma, align_corners=align_corners)


def pyramid_error(rebuilt: Sequence[torch.Tensor], levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over levels `[B, C, H, W]` of the mean squared error, a scalar."""
    pairs = zip(rebuilt, levels, strict=True)
    return torch.stack([F.mse_loss(fake, real.float()) for fake, real in pairs]).sum()


class MeanMap(nn.Module):
    """One smoothed map from one per level: each brought to image size by itself, then the mean.

    Args:
        image_size: side of the images in pixels.
        sizes: sides of the levels' maps.
    """

    def __init__(self, image_size: int, sizes: Sequence[int]) -> None:
        """Compute a matrix per level; none is part of the state."""
        super().__init__()
        for level, size in enumerate(sizes):
            matrix = smoothing_matrix(image_size, size)
            self.register_buffer(f"_to_image{level}", matrix, persistent=False)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps `[B, H, W]`, one per level, to `[B, image_size, image_size]`."""
        enlarged = [
            apply_both_axes(level_map, self.get_buffer(f"_to_image{level}"))
            for level, level_map in enumerate(maps)
        ]
        return torch.stack(enlarged).mean(dim=0)
