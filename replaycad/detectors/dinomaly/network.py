"""Dinomaly: a noisy bottleneck and blocks of linear attention rebuild a transformer's features.

Guo et al., CVPR 2025.

Deviation: Dinomaly also decodes the encoder's class and register tokens; here its features are maps
of patch tokens, like those of every other encoder.

Deviation: Dinomaly crops the centre of a larger image and measures at 256 px; here images are
resized whole, and maps have their size.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, bilinear_matrix
from replaycad.detectors.dinomaly.preset import DinomalyPreset
from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.pyramid import check_pyramid
from replaycad.detectors.tokens import to_maps, to_tokens
from replaycad.errors import ConfigError

NORM_EPS = 1e-8
DENOMINATOR_EPS = 1e-6
MLP_RATIO = 4
INIT_STD = 0.01
HARD_FRACTION = 0.9  # share of the locations that count as easy in the end
HARD_RAMP = 0.1  # of the training: 1,000 of 10,000 steps
EASY_GRADIENT = 0.1
KERNEL_PX, KERNEL_SIGMA_PX = 5, 4.0  # nearly a box, as published
TOP_FRACTION = 0.01  # of the pixels that make the image score


class LinearAttention(nn.Module):
    """Attention without softmax: phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)), phi = elu + 1."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens `[B, N, D]` to `[B, N, D]`."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, N, D / heads]
        q, k = F.elu(q) + 1.0, F.elu(k) + 1.0
        summed = q @ (k.transpose(-2, -1) @ v)
        weight = (q * k.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True) + DENOMINATOR_EPS
        return self.proj((summed / weight).transpose(1, 2).reshape(batch, length, width))


def mlp(width: int, dropout: float = 0.0) -> nn.Sequential:
    """Two layers with GELU; `dropout` before the first, between and after, as in the bottleneck."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, MLP_RATIO * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(MLP_RATIO * width, width),
        nn.Dropout(dropout),
    )


class Block(nn.Module):
    """Pre-norm transformer block with linear attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = LinearAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens `[B, N, D]` to `[B, N, D]`."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Dinomaly(Detector):
    """Bottleneck and decoder; the reconstruction is compared group by group.

    Deviation: the mini preset reads a convolutional encoder: its levels, brought to the size of the
    middle one, are concatenated and narrowed to tokens, and each level is a group of its own.

    Args:
        channels: of the encoder's levels; one width, unless the preset narrows them.
        strides: likewise.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: depth, groups, dropout.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: DinomalyPreset,
    ) -> None:
        """Draw all weights from a truncated normal."""
        super().__init__()
        _check_fit(channels, strides, image_size, preset)
        self.preset = preset
        self.grid = image_size // strides[len(strides) // 2]
        width = preset.width or channels[0]
        self.channels = list(channels)
        self.narrow = nn.Linear(sum(channels), width) if preset.width else nn.Identity()
        self.bottleneck = mlp(width, preset.dropout)
        num_heads = max(1, width // 64)
        num_blocks = preset.num_blocks or len(channels)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.widen = nn.Linear(width, sum(channels)) if preset.width else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-3 * INIT_STD, b=3 * INIT_STD)
                nn.init.zeros_(module.bias)
        resize = bilinear_matrix(image_size, self.grid, align_corners=True)
        self.register_buffer("_to_image", _kernel_matrix(image_size) @ resize, persistent=False)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct every group of levels: maps `[B, C, H, W]` like those of `targets`."""
        levels = self._of_one_size(features)
        tokens = [to_tokens(level) for level in levels]
        if self.preset.width:
            x = self.narrow(torch.cat(tokens, dim=2))
        else:
            x = torch.stack(tokens).mean(dim=0)
        x = self.bottleneck(x)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        if self.preset.width:
            groups = list(self.widen(x).split(self.channels, dim=2))
        else:  # the deepest output answers the shallowest level
            groups = _group_means(outputs[::-1], self.preset.num_groups)
        return [to_maps(group, levels[0].shape[-1]) for group in groups]

    def targets(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the reconstruction is compared with: a map `[B, C, H, W]` per group of levels."""
        levels = self._of_one_size(features)
        return levels if self.preset.width else _group_means(levels, self.preset.num_groups)

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Mean over groups of 1 - cosine of whole maps `[B, C, H, W]`, hard locations first.

        Locations that are reconstructed well send back a tenth of their gradient; their share grows
        from none to 90 % during the first tenth of the training.
        """
        easy_share = HARD_FRACTION * min(1.0, progress / HARD_RAMP)
        if self.preset.thinning > 1:
            features = thinned(self._of_one_size(features), self.preset.thinning)
        losses = []
        for real, fake in zip(self.targets(features), self(features), strict=True):
            distance = 1.0 - F.cosine_similarity(real, fake.detach(), dim=1)  # [B, H, W]
            num_hard = max(1, int(distance.numel() * (1.0 - easy_share)))
            limit = distance.flatten().topk(num_hard).values[-1]
            share = torch.where(distance < limit, EASY_GRADIENT, 1.0)[:, None]
            fake = share * fake + (1.0 - share) * fake.detach()
            losses.append(1.0 - F.cosine_similarity(real.flatten(1), fake.flatten(1)).mean())
        return torch.stack(losses).mean()

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean over groups of 1 - cosine: `[B, image_size, image_size]` float32 in 0..2."""
        with evaluating(self):
            pairs = zip(self.targets(features), self(features), strict=True)
            maps = [1.0 - F.cosine_similarity(real, fake, dim=1) for real, fake in pairs]
        return apply_both_axes(torch.stack(maps).mean(dim=0), self._to_image)

    def image_scores(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Scores `[B]`: mean of the highest hundredth of the pixels of `[B, H, W]` maps."""
        pixels = anomaly_maps.flatten(1)
        count = max(1, int(TOP_FRACTION * pixels.shape[1]))
        return pixels.topk(count, dim=1).values.mean(dim=1)

    def _of_one_size(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Levels `[B, C, H, W]` brought to the grid; those of one size, thinned or not, stay."""
        if len({level.shape[-1] for level in features}) == 1:
            return [level.float() for level in features]
        return [self._on_grid(level) for level in features]

    def _on_grid(self, level: torch.Tensor) -> torch.Tensor:
        if level.shape[-1] > self.grid:
            return F.adaptive_avg_pool2d(level.float(), self.grid)
        if level.shape[-1] < self.grid:
            return F.interpolate(level.float(), self.grid, mode="bilinear", align_corners=False)
        return level.float()


def thinned(levels: Sequence[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Every `step`-th row and column of maps `[B, C, H, W]`, from a drawn row and column.

    Draws from torch's global stream on the CPU, whatever the device.
    """
    row, column = torch.randint(step, (2,), device="cpu").tolist()
    return [level[:, :, row::step, column::step] for level in levels]


def _group_means(levels: Sequence[torch.Tensor], num_groups: int) -> list[torch.Tensor]:
    """Means of consecutive levels, in groups of one size."""
    size = len(levels) // num_groups
    chunks = (levels[start : start + size] for start in range(0, len(levels), size))
    return [torch.stack(list(chunk)).mean(dim=0) for chunk in chunks]


def _kernel_matrix(size: int) -> torch.Tensor:
    """Matrix `[size, size]` of the small Gaussian kernel with zeros beyond the border."""
    places = torch.arange(KERNEL_PX, device="cpu") - KERNEL_PX // 2
    kernel = torch.exp(-places.square() / (2.0 * KERNEL_SIGMA_PX**2))
    offsets = torch.arange(size, device="cpu") - torch.arange(size, device="cpu")[:, None]
    inside = offsets.abs() <= KERNEL_PX // 2
    index = (offsets + KERNEL_PX // 2).clamp(0, KERNEL_PX - 1)
    return torch.where(inside, (kernel / kernel.sum())[index], 0.0)


def _check_fit(
    channels: Sequence[int], strides: Sequence[int], image_size: int, preset: DinomalyPreset
) -> None:
    is_one_size = len(set(channels)) == len(set(strides)) == 1
    if not preset.width and (not is_one_size or len(channels) % preset.num_groups):
        raise ConfigError(
            f"Dinomaly needs blocks of one vision transformer, in {preset.num_groups} groups; "
            f"found channels {tuple(channels)} at strides {tuple(strides)}",
            "use an encoder such as vit_small_patch14_reg4_dinov2.lvd142m",
        )
    # equal strides divide alike, so that the last one stands for all
    check_pyramid("Dinomaly", strides[-1:] if is_one_size else strides, image_size)
