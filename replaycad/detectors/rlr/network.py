"""RLR: features are rebuilt from a learned reference, with the image as the question alone.

He et al., ECCV 2024.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.pyramid import MeanMap, check_pyramid
from replaycad.detectors.rlr.preset import RLRPreset
from replaycad.detectors.tokens import jitter, neighbours, to_maps, to_tokens
from replaycad.errors import ConfigError

LOCAL_WEIGHT = 2.0  # of the attention to the reference beside the one to the image
MLP_RATIO = 4
LONGEST_WAVE = 10_000.0


def place_code(size: int, width: int) -> torch.Tensor:
    """Fixed code `[size * size, width]` of a grid's places: sines and cosines of row and column."""
    waves = LONGEST_WAVE ** -(torch.arange(0, width // 2, 2, device="cpu") / (width // 2))
    angles = torch.arange(size, device="cpu")[:, None] * waves
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [size, width / 2]
    rows = axis[:, None].expand(-1, size, -1)
    columns = axis[None].expand(size, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class Layer(nn.Module):
    """Two attentions with the reference as key, nothing of the image as a residual.

    Inside the window around a token the values are the reference's, outside they are the image's:
    a defect can neither answer for itself nor for its neighbours.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.local = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.distant = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, reference: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Map tokens `[B, N, D]` with a reference `[B, N, D]`; `near` is `[N, N]` bool."""
        local, _ = self.local(x, reference, reference, attn_mask=~near, need_weights=False)
        distant, _ = self.distant(x, reference, x, attn_mask=near, need_weights=False)
        x = self.norm1(LOCAL_WEIGHT * local + distant)
        return self.norm2(x + self.feed_forward(x))


class LevelModel(nn.Module):
    """Rebuilds one level of the pyramid.

    Args:
        channels: of the level.
        size: places a side.
        width: of the tokens.
        reach: of the window, in places to all sides.
        preset: heads and depth.
    """

    _place: torch.Tensor
    _near: torch.Tensor

    def __init__(
        self, channels: int, size: int, width: int, reach: int, preset: RLRPreset
    ) -> None:
        super().__init__()
        self.size = size
        self.project = nn.Linear(channels, width)
        self.reference = nn.Parameter(torch.randn(size * size, channels))
        self.project_reference = nn.Linear(channels, width)
        self.layers = nn.ModuleList(
            Layer(width, preset.num_heads) for _ in range(preset.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.restore = nn.Linear(width, channels)
        self.register_buffer("_place", place_code(size, width), persistent=False)
        self.register_buffer("_near", neighbours(size, reach), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map `[B, N, C]` to `[B, N, C]`."""
        reference = self.project_reference(self.reference) + self._place
        reference = reference.expand(len(tokens), -1, -1)
        x = self.project(tokens) + self._place
        for layer in self.layers:
            x = layer(x, reference, self._near)
        return self.restore(self.norm(x))


class RLR(Detector):
    """One model per level; each level's loss reaches its own model alone.

    So their sum moves every model as a step of its own would.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels, each twice the one before.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: widths and windows per level, depth and noise.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: RLRPreset,
    ) -> None:
        """Build one model per level with random weights from torch's global stream."""
        super().__init__()
        check_pyramid("RLR", strides, image_size, len(preset.widths))
        self.jitter = preset.jitter
        sizes = [image_size // stride for stride in strides]
        for size, reach in zip(sizes, preset.reaches, strict=True):
            if reach >= size // 2:  # nothing would be outside the window of the middle
                raise ConfigError(
                    f"RLR's window reaches {reach} places to all sides and covers its grid, "
                    f"{size} a side",
                    "use larger images",
                )
        self.models = nn.ModuleList(
            LevelModel(*sizes_of_level, preset)
            for sizes_of_level in zip(channels, sizes, preset.widths, preset.reaches, strict=True)
        )
        self.mean_map = MeanMap(image_size, sizes)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the pooled pyramid: levels `[B, C, H, W]` like those of `pooled`."""
        return [
            to_maps(model(to_tokens(level)), level.shape[-1])
            for model, level in zip(self.models, self.pooled(features), strict=True)
        ]

    def pooled(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Levels `[B, C, H, W]` averaged over 3x3 places, which is what is rebuilt."""
        return [F.avg_pool2d(level.float(), 3, stride=1, padding=1) for level in features]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Sum over levels `[B, C, H, W]` of mean squared error and 1 - cosine per token."""
        losses = []
        for model, level in zip(self.models, self.pooled(features), strict=True):
            tokens = to_tokens(level)
            rebuilt = model(jitter(tokens, self.jitter))
            distance = 1.0 - F.cosine_similarity(rebuilt, tokens, dim=2).mean()
            losses.append(F.mse_loss(rebuilt, tokens) + distance)
        return torch.stack(losses).sum()

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed mean of squared error and 1 - cosine: `[B, image_size, image_size]` float32."""
        maps = []
        with evaluating(self):
            pairs = zip(self(features), self.pooled(features), strict=True)
            for rebuilt, real in pairs:
                error = (rebuilt - real).square().mean(dim=1)
                maps.append(error + 1.0 - F.cosine_similarity(rebuilt, real, dim=1))
        return self.mean_map(maps)
