"""A frozen vision transformer whose blocks attend to a learned key and value of each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.detectors.encoders import load_encoder
from replaycad.errors import WeightsError
from replaycad.segmentation.sam import load_sam

BUNDLED = "mini"


class Blocks:
    """The first blocks of a transformer, frozen; no module, for no weight of it is a detector's.

    Args:
        owner: of the blocks and of what gives them tokens.
        embed: normalised pictures `[B, 3, S, S]` -> tokens `[B, N, D]`.
        blocks: with `norm1`, `attn` (`qkv`, `proj`, `num_heads`), `norm2` and `mlp`, as those of
            timm and of segment-anything are.
        skipped: tokens at the start that stand for no place.

    Attributes:
        width: D.
    """

    def __init__(
        self,
        owner: nn.Module,
        embed: Callable[[torch.Tensor], torch.Tensor],
        blocks: Sequence[Any],
        skipped: int,
    ) -> None:
        self.owner = owner.eval().requires_grad_(requires_grad=False)
        self._embed, self._blocks, self._skipped = embed, blocks, skipped
        self.width: int = blocks[0].attn.qkv.in_features

    def grid(self, side: int) -> int:
        """How many places lie along a side of pictures of so many pixels."""
        tokens = self.embedded(torch.zeros(1, 3, side, side))
        return round((tokens.shape[1] - self._skipped) ** 0.5)

    @torch.no_grad()
    def embedded(self, pictures: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, D]` before the first block, of normalised pictures `[B, 3, S, S]`."""
        return self._embed(pictures)

    def features(
        self, tokens: torch.Tensor, prompt: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens of places behind the last block.

        Args:
            tokens: `[B, N, D]`, as `embedded` gives them.
            prompt: `[L, 2, D]`, for each block the key and the value that it attends to beside its
                tokens (prefix tuning); None for none.

        Returns:
            `[B, H * W, D]`, row by row.
        """
        x = tokens
        for number, block in enumerate(self._blocks):
            own = None if prompt is None else prompt[number]
            x = x + _scaled(block, "ls1", _attended(block.attn, block.norm1(x), own))
            x = x + _scaled(block, "ls2", block.mlp(block.norm2(x)))
        return x[:, self._skipped :]


def _scaled(block: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """What a block adds, times the scale that some of timm's transformers learn for it."""
    scale = getattr(block, name, None)
    return x if scale is None else scale(x)


def _attended(attention: Any, x: torch.Tensor, prefix: torch.Tensor | None) -> torch.Tensor:
    """Self-attention of tokens `[B, N, D]`, with a key and a value `[2, D]` before theirs."""
    heads = attention.num_heads
    split = attention.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)  # each [B, heads, N, D / heads]
    if prefix is not None:
        own = prefix.unflatten(1, (heads, -1))[:, None, :, None].expand(-1, len(x), -1, -1, -1)
        key, value = torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)
    seen = F.scaled_dot_product_attention(query, key, value)
    projected: torch.Tensor = attention.proj(seen.transpose(1, 2).flatten(2))
    return projected


def load_blocks(name: str, num_blocks: int) -> Blocks:
    """Load the first blocks of a transformer.

    Args:
        name: `mini` for that of the bundled Sam, else as `load_encoder` takes it.
        num_blocks: that are wanted.

    Raises:
        WeightsError: if the files are missing, or it has fewer blocks or none of this kind.
    """
    if name == BUNDLED:
        sam = load_sam(name).image_encoder

        def embed(pictures: torch.Tensor) -> torch.Tensor:
            return (sam.patch_embed(pictures) + sam.pos_embed).flatten(1, 2)

        return Blocks(sam, embed, list(sam.blocks)[:num_blocks], 0)
    encoder = load_encoder(name, levels=(num_blocks - 1,))
    network: Any = getattr(encoder.model, "model", None)
    if network is None or not hasattr(network, "blocks") or len(network.blocks) < num_blocks:
        raise WeightsError(
            f"'{name}' is no vision transformer of {num_blocks} blocks or more",
            "use vit_base_patch16_224.augreg_in21k",
        )

    def placed(pictures: torch.Tensor) -> torch.Tensor:
        tokens = network._pos_embed(network.patch_embed(pictures))
        before: torch.Tensor = network.norm_pre(tokens)
        return before

    return Blocks(encoder, placed, list(network.blocks)[:num_blocks], network.num_prefix_tokens)
