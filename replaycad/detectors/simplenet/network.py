"""SimpleNet: a small discriminator tells adapted features from the same with noise added.

Liu et al., CVPR 2023.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes
from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.pyramid import check_pyramid, smoothing_matrix
from replaycad.detectors.simplenet.preset import SimpleNetPreset
from replaycad.errors import ConfigError


def embed(middle: torch.Tensor, coarse: torch.Tensor, width: int) -> torch.Tensor:
    """Neighbourhood embedding of two levels in closed form.

    The published chain (3x3 unfolding, adaptive pooling per level, up-sampling, pooling of both) is
    a fixed linear filter where the widths divide: means over three pixels in a row, listed by
    (channel, row), and of those consecutive groups.

    Args:
        middle: `[B, C, H, W]` float.
        coarse: `[B, C', H / 2, W / 2]` float.
        width: even; half of it comes from each level.

    Returns:
        `[B, width, H, W]`.
    """
    near, far = (_pool_rows(level, width // 2) for level in (middle, coarse))
    far = F.interpolate(far, middle.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([near, far], dim=1)


def _pool_rows(level: torch.Tensor, width: int) -> torch.Tensor:
    """Row means of every 3x3 neighbourhood, `[B, C, H, W]`, pooled to `[B, width, H, W]`."""
    batch, channels, height, size = level.shape
    means = F.avg_pool2d(F.pad(level, (1, 1, 1, 1)), (1, 3), stride=1)  # [B, C, H + 2, W]
    rows = torch.stack([means[:, :, row : row + height] for row in range(3)], dim=2)
    rows = rows.flatten(1, 2)  # [B, 3C, H, W]
    if 3 * channels % width == 0:
        return rows.unflatten(1, (width, 3 * channels // width)).mean(dim=2)
    places = F.adaptive_avg_pool1d(rows.flatten(2).transpose(1, 2), width)
    return places.transpose(1, 2).reshape(batch, width, height, size)


class SimpleNet(Detector):
    """Adaptor and discriminator over neighbourhood embeddings of the last two levels.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels, each twice the one before.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: widths, noise and margin.

    Raises:
        ConfigError: if encoder and image size do not fit.
    """

    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: SimpleNetPreset,
    ) -> None:
        """Draw both networks by Xavier's rule."""
        super().__init__()
        check_pyramid("SimpleNet", strides, image_size)
        if len(channels) < 2:
            raise ConfigError(
                f"SimpleNet needs two encoder levels, found channels {tuple(channels)}",
                "use another encoder, such as resnet34.bt_in1k",
            )
        self.preset = preset
        width, hidden = preset.width, preset.hidden_width
        self.adaptor = nn.Linear(width, width)
        self.discriminator = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1, bias=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        to_image = smoothing_matrix(image_size, image_size // strides[-2], align_corners=False)
        self.register_buffer("_to_image", to_image, persistent=False)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One map of logits `[B, 1, H, W]`: high where the discriminator finds normal features."""
        adapted = self._adapted(features)
        height, width = features[-2].shape[-2:]
        return [self.discriminator(adapted).reshape(-1, 1, height, width)]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Hinge loss of adapted features `[B, C, H, W]` against the same with Gaussian noise."""
        real = self._adapted(features)
        fake = real + self.preset.noise_std * torch.randn_like(real)
        # one batch for both halves, so that they share the statistics of the batch norm
        logits = self.discriminator(torch.cat([real, fake]))
        real_logits, fake_logits = logits.chunk(2)
        margin = self.preset.margin
        return F.relu(margin - real_logits).mean() + F.relu(margin + fake_logits).mean()

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed negative logits: `[B, image_size, image_size]` float32, of either sign."""
        with evaluating(self):
            (logits,) = self(features)
        return apply_both_axes(-logits[:, 0], self._to_image)

    def _adapted(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Adapted embeddings `[B * H * W, width]`."""
        embedding = embed(features[-2].float(), features[-1].float(), self.preset.width)
        return self.adaptor(embedding.permute(0, 2, 3, 1).flatten(0, 2))
