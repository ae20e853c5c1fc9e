"""InvAD: rebuilds frozen features from a narrow code and distrusts where that fails."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, cosine_distance_map
from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.invad.blocks import EqualizedConv, EqualizedUp, ResidualBlock
from replaycad.detectors.invad.preset import InvADPreset
from replaycad.detectors.pyramid import check_pyramid, pyramid_error, smoothing_matrix
from replaycad.errors import ConfigError

STYLE_LR_MULTIPLIER = 0.01


class Fuser(nn.Module):
    """Feature pyramid to a code at the coarsest size, and from it one style source per level.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels.
        width: channels of the code.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        """Build alignment, fusion, bottleneck and style pyramid."""
        super().__init__()
        coarsest = strides[-1]
        self.align = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, c, coarsest // stride, coarsest // stride),
                nn.BatchNorm2d(c, eps=1e-6),
            )
            for c, stride in zip(channels, strides, strict=True)
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(sum(channels), width, 1, bias=False),
            nn.BatchNorm2d(width, eps=1e-6),
            nn.ReLU(),
        )
        narrow = width // 4
        self.bottleneck = nn.Sequential(
            nn.Conv2d(width, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(
                EqualizedUp(width, width, 3, lr_multiplier=STYLE_LR_MULTIPLIER)
                if level
                else EqualizedConv(width, width, 3),
                EqualizedConv(width, width, 3),
            )
            for level in range(len(channels))
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map levels `[B, C, H, W]`, fine first, to styles `[B, width, H, W]`, coarse first."""
        aligned = [align(level) for align, level in zip(self.align, features, strict=True)]
        x = self.fuse(torch.cat(aligned, dim=1))
        x = F.relu(x + self.bottleneck(x))
        styles = []
        for stage in self.pyramid:
            x = stage(x)
            styles.append(x)
        return styles


class Generator(nn.Module):
    """Draws the feature pyramid from a learned constant, steered place by place by the styles.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        coarsest_size: height and width of the last level.
        preset: widths and depths.
    """

    def __init__(self, channels: Sequence[int], coarsest_size: int, preset: InvADPreset) -> None:
        """Build constant, stem, style heads and levels."""
        super().__init__()
        coarse_to_fine = list(reversed(channels))
        widths = list(reversed(preset.generator_widths or channels))
        fused, style = preset.fuser_width, preset.style_width
        self.constant = nn.Parameter(torch.randn(1, widths[0], coarsest_size, coarsest_size))
        self.stem = EqualizedConv(widths[0], widths[0], 3)
        self.heads = nn.ModuleList(
            nn.Sequential(EqualizedConv(fused, fused, 3), EqualizedConv(fused, style, 3))
            for _ in channels
        )
        self.levels = nn.ModuleList()
        previous = widths[0]
        for level, width in enumerate(widths):
            blocks = [ResidualBlock(previous, width, style, up=level > 0)]
            blocks += [ResidualBlock(width, width, style) for _ in range(preset.num_blocks - 1)]
            self.levels.append(nn.ModuleList(blocks))
            previous = width
        # Deviation: the mini preset's generator is narrower than its encoder and ends each level
        # in a 1x1 convolution to the encoder's channels; the published one is as wide as those.
        self.project = nn.ModuleList(
            EqualizedConv(width, c, 1, activate=False) if preset.generator_widths else nn.Identity()
            for width, c in zip(widths, coarse_to_fine, strict=True)
        )

    def forward(self, styles: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map style sources, coarse first, to reconstructed levels `[B, C, H, W]`, fine first."""
        x = self.stem(self.constant)  # independent of the input: computed once, broadcast later
        outputs = []
        for source, head, blocks, project in zip(
            styles, self.heads, self.levels, self.project, strict=True
        ):
            style = head(source)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, style)
            outputs.append(project(x))
        return outputs[::-1]


class InvAD(Detector):
    """Fuser and generator, and how far what they draw is from the features.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels, each twice the one before.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: widths, depths and the loss weight.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: InvADPreset,
    ) -> None:
        """Build fuser and generator with random weights from torch's global stream."""
        super().__init__()
        _check_fit(channels, strides, image_size, preset)
        self.image_size = image_size
        self.level_weight = preset.level_weight
        self.fuser = Fuser(channels, strides, preset.fuser_width)
        self.generator = Generator(channels, image_size // strides[-1], preset)
        to_image = smoothing_matrix(image_size, image_size // strides[0])
        self.register_buffer("_to_image", to_image, persistent=False)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the pyramid: levels `[B, C, H, W]` of the same shapes, fine to coarse."""
        return self.generator(self.fuser([level.float() for level in features]))

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Weighted sum over the levels of the mean squared error of levels `[B, C, H, W]`."""
        return self.level_weight * pyramid_error(self(features), features)

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed cosine distance of the pyramid and its reconstruction, in eval mode.

        Returns:
            `[B, image_size, image_size]` float32 in 0..2, higher is more anomalous.
        """
        with evaluating(self):
            maps = cosine_distance_map(features, self(features))
        return apply_both_axes(maps, self._to_image)


def _check_fit(
    channels: Sequence[int], strides: Sequence[int], image_size: int, preset: InvADPreset
) -> None:
    check_pyramid("InvAD", strides, image_size)
    if preset.generator_widths and len(preset.generator_widths) != len(channels):
        raise ConfigError(
            f"the preset has {len(preset.generator_widths)} generator widths, the encoder "
            f"{len(channels)} levels",
            "use another preset or another encoder",
        )
