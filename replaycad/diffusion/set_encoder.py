"""From a handful of images of one class to its K semantic tokens, in one pass."""

import torch
from torch import nn


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
    """K learned queries read R reference images of a class and become its semantic tokens.

    Deviation: the paper searches the semantic embedding from an init word; the bundled models start
    from this network's output, which was pre-trained so that the tokens of some images of a class
    draw its other images.

    Args:
        latent_channels: C of the VAE.
        latent_size: h = w of the latents.
        cross_attention_dim: D, width of the tokens that the U-Net reads.
        num_tokens: K.
        width: inner width.
        depth: number of cross-attention blocks.
    """

    def __init__(
        self,
        latent_channels: int,
        latent_size: int,
        cross_attention_dim: int,
        num_tokens: int,
        width: int = 192,
        depth: int = 3,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        self.config = {
            "latent_channels": latent_channels,
            "latent_size": latent_size,
            "cross_attention_dim": cross_attention_dim,
            "num_tokens": num_tokens,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
        }
        grid = latent_size // 2
        self.stem = nn.Sequential(
            nn.Conv2d(latent_channels, width // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position = nn.Parameter(torch.randn(grid * grid, width) * 0.5)
        self.queries = nn.Parameter(torch.randn(num_tokens, width) * 0.5)
        self.blocks = nn.ModuleList([_Block(width, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        # Normalised like the text tokens beside them: fainter tokens go unheard in the attention.
        self.out = nn.Sequential(
            nn.Linear(width, cross_attention_dim), nn.LayerNorm(cross_attention_dim)
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Encode the references.

        Args:
            latents: `[B, R, C, h, w]` float, scaled VAE latents of R images of one class each.

        Returns:
            `[B, K, D]` float, the semantic tokens.
        """
        batch, references = latents.shape[:2]
        tokens = self.stem(latents.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B*R, grid^2, width]
        tokens = tokens + self.position
        tokens = tokens.reshape(batch, references * tokens.shape[1], -1)
        queries = self.queries.expand(batch, -1, -1)
        for block in self.blocks:
            queries = block(queries, tokens)
        return self.out(self.norm(queries))
