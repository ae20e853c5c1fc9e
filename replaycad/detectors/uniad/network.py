"""UniAD: a transformer with a query of its own in every layer, blind to the neighbourhood.

You et al., NeurIPS 2022.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, bilinear_matrix
from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.pyramid import check_pyramid
from replaycad.detectors.tokens import jitter, neighbours, to_maps, to_tokens
from replaycad.detectors.uniad.preset import UniADPreset
from replaycad.errors import ConfigError

POOL_PX = 16  # of the image score, at 256 px


class Attention(nn.Module):
    """Masked attention, residual and norm; places are added to queries and keys, not to values."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, place: torch.Tensor, forbidden: torch.Tensor,
        objects: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Let `[B, N, D]` tokens query `[B, N, D]` memory; places `[N, D]`, mask `[N, N]` bool.

        Queries are multiplied by `objects` `[B, N, D]`, if given.
        """
        query = x + place if objects is None else (x + place) * objects
        attended, _ = self.attention(
            query, memory + place, memory, attn_mask=forbidden, need_weights=False
        )
        return self.norm(x + self.dropout(attended))


class FeedForward(nn.Module):
    """Two layers with ReLU, residual and norm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens `[B, N, D]` to `[B, N, D]`."""
        return self.norm(x + self.layers(x))


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward part."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)

    def forward(
        self, x: torch.Tensor, place: torch.Tensor, forbidden: torch.Tensor,
        objects: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map tokens `[B, N, D]` to `[B, N, D]`; places `[N, D]`, mask `[N, N]` bool.

        Queries are multiplied by `objects` `[B, N, D]`, if given.
        """
        return self.feed_forward(self.attention(x, x, place, forbidden, objects))


class DecoderLayer(nn.Module):
    """Starts from a learned query, asks the encoder's memory, then the previous layer's output."""

    def __init__(
        self, num_tokens: int, width: int, num_heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_tokens, width))
        self.ask_memory = Attention(width, num_heads, dropout)
        self.ask_previous = Attention(width, num_heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)

    def forward(
        self,
        memory: torch.Tensor,
        previous: torch.Tensor,
        place: torch.Tensor,
        forbidden: torch.Tensor,
    ) -> torch.Tensor:
        """Map `[B, N, D]` memory and previous output to `[B, N, D]`; mask `[N, N]` bool."""
        x = self.query.expand(len(memory), -1, -1)
        x = self.ask_memory(x, memory, place, forbidden)
        return self.feed_forward(self.ask_previous(x, previous, place, forbidden))


class UniAD(Detector):
    """All levels at one size, through encoder and layer-wise query decoder, back to features.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels, each twice the one before.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: widths, depths, window and noise.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    name = "UniAD"
    _forbidden: torch.Tensor
    _to_image: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: UniADPreset,
    ) -> None:
        """Draw matrices by Xavier's rule and places uniformly."""
        super().__init__()
        check_pyramid(self.name, strides, image_size)
        self.preset = preset
        self.size = image_size // strides[preset.grid_level]
        if preset.reach >= self.size // 2:  # the token in the middle would see nothing
            raise ConfigError(
                f"{self.name}'s window reaches {preset.reach} places to all sides and covers its "
                f"grid, {self.size} a side",
                "use larger images",
            )
        width, total = preset.width, sum(channels)
        self.project = nn.Linear(total, width)
        self.rows = nn.Parameter(torch.empty(self.size, width // 2))
        self.columns = nn.Parameter(torch.empty(self.size, width // 2))
        sizes = (width, preset.num_heads, preset.hidden_width, preset.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(preset.num_layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(self.size**2, *sizes) for _ in range(preset.num_layers)
        )
        self.restore = nn.Linear(width, total)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.uniform_(self.rows)
        nn.init.uniform_(self.columns)
        self.register_buffer("_forbidden", neighbours(self.size, preset.reach), persistent=False)
        to_image = bilinear_matrix(image_size, self.size, align_corners=True)
        self.register_buffer("_to_image", to_image, persistent=False)
        self.pool_px = max(1, POOL_PX * image_size // 256)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the fused features: one map `[B, C, H, W]`, C the sum over the levels."""
        return [self._reconstruct(to_tokens(self.fused(features)))]

    def fused(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """All levels `[B, C, H, W]` resized to one size and concatenated."""
        resized = [
            F.interpolate(level.float(), self.size, mode="bilinear", align_corners=True)
            for level in features
        ]
        return torch.cat(resized, dim=1)

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Mean squared error of what is rebuilt from jittered tokens of levels `[B, C, H, W]`."""
        fused = self.fused(features)
        return F.mse_loss(self._reconstruct(jitter(to_tokens(fused), self.preset.jitter)), fused)

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Norm of the residual: `[B, image_size, image_size]` float32, at least 0."""
        with evaluating(self):
            residual = self(features)[0] - self.fused(features)
        return apply_both_axes(residual.norm(dim=1), self._to_image)

    def image_scores(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Scores `[B]`: the highest mean over a window of 16 px at 256 of `[B, H, W]` maps."""
        pooled = F.avg_pool2d(anomaly_maps[:, None], self.pool_px, stride=1)
        return pooled.amax(dim=(1, 2, 3))

    def _reconstruct(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, C]` to a reconstructed map `[B, C, H, W]`."""
        place = self.places()
        memory = self.project(tokens)
        for layer in self.encoder:
            memory = layer(memory, place, self._forbidden)
        x = memory
        for layer in self.decoder:
            x = layer(memory, x, place, self._forbidden)
        return to_maps(self.restore(x), self.size)

    def places(self) -> torch.Tensor:
        """Of the tokens, `[N, D]`: a learned row and a learned column beside each other."""
        size = self.size
        row, column = self.rows[:, None], self.columns[None]
        both = [row.expand(-1, size, -1), column.expand(size, -1, -1)]
        return torch.cat(both, dim=2).flatten(0, 1)
