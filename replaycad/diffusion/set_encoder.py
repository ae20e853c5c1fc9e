"""From a handful of images of one class to its K semantic tokens, in one pass."""

import torch
from torch import nn
from torch.nn import functional as F

LEAST_SPREAD = 0.05  # of latents; what counts as no variation at all


class _Block(nn.Module):
    """Pre-norm cross-attention of the queries over the image tokens, then a feed-forward layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_queries = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm_mixed = nn.LayerNorm(width)
        self.mixing = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.norm_tokens(tokens)
        queries = queries + self.attention(
            self.norm_queries(queries), tokens, tokens, need_weights=False
        )[0]
        mixed = self.norm_mixed(queries)
        queries = queries + self.mixing(mixed, mixed, mixed, need_weights=False)[0]
        return queries + self.feed_forward(queries)


class SetEncoder(nn.Module):
    """Reads R reference images of a class; each semantic token stands for one cell of the picture.

    A token is the mean picture of its cell and how far it varies, in a fixed number of directions,
    plus what attention over all cells of all references adds. So K is the number of cells,
    (h / 2) x (w / 2).

    Deviation: the paper searches the semantic embedding from an init word; the bundled models start
    from this network's output, which was pre-trained so that the tokens of some images of a class
    draw its other images.

    Args:
        latent_channels: C of the latents.
        latent_size: h = w of the latents.
        cross_attention_dim: D, width of the tokens that the U-Net reads.
        width: inner width.
        depth: number of cross-attention blocks.
        num_heads: of the attention.
    """

    def __init__(
        self,
        latent_channels: int,
        latent_size: int,
        cross_attention_dim: int,
        width: int = 192,
        depth: int = 2,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        self.config = {
            "latent_channels": latent_channels,
            "latent_size": latent_size,
            "cross_attention_dim": cross_attention_dim,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
        }
        self.num_tokens = (latent_size // 2) ** 2
        self.cells = nn.Conv2d(latent_channels, width, 2, stride=2)
        self.surroundings = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, padding=1),
        )
        self.position = nn.Parameter(torch.randn(self.num_tokens, width) * 0.5)
        self.blocks = nn.ModuleList([_Block(width, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, cross_attention_dim)
        nn.init.zeros_(self.out.weight)  # the statistics alone are where training starts
        nn.init.zeros_(self.out.bias)
        self.statistics = nn.Linear(5 * latent_channels, cross_attention_dim, bias=False)
        nn.init.orthogonal_(self.statistics.weight)  # so that its transpose reads them back

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Encode the references.

        Args:
            latents: `[B, R, C, h, w]` float, scaled latents of R images of one class each.

        Returns:
            `[B, K, D]` float, the semantic tokens, cells row by row.
        """
        batch, references = latents.shape[:2]
        cells = self.cells(latents.flatten(0, 1))
        cells = (cells + self.surroundings(cells)).flatten(2).transpose(1, 2)  # [B*R, K, width]
        cells = (cells + self.position).view(batch, references, self.num_tokens, -1)
        queries, tokens = cells.mean(1), cells.flatten(1, 2)
        for block in self.blocks:
            queries = block(queries, tokens)
        return self.statistics(cell_statistics(latents)) + self.out(self.norm(queries))


def cell_statistics(latents: torch.Tensor) -> torch.Tensor:
    """Mean picture of each cell and the logarithm of how far the references differ there.

    Args:
        latents: `[B, R, C, h, w]` float.

    Returns:
        `[B, K, 5 C]` float, cells row by row: four latents of each channel, then the spreads.
    """
    deviation, mean = torch.std_mean(latents, dim=1, correction=0)
    cells = F.unfold(mean, 2, stride=2)  # [B, 4 C, K], channel by channel
    spread = F.avg_pool2d(deviation.square(), 2).flatten(2)
    return torch.cat([cells, 0.5 * (spread + LEAST_SPREAD**2).log()], 1).transpose(1, 2)
