"""The paper's contribution: a class kept as a few vectors that a frozen diffusion model attends to.

Letters: B batch, C latent channels, h w latent size, T text tokens, K semantic tokens, S spatial
tokens, D cross-attention width, I and O the row lengths entering and leaving the spatial layer.
"""

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.diffusion.fitting import num_spatial_tokens
from replaycad.diffusion.prompts import GENERATION_PROMPTS, TEMPLATES, Prompts, tokenize
from replaycad.errors import ConfigError

__all__ = ["TEMPLATES", "Conditions", "SpatialEncoder", "num_spatial_tokens", "tokenize"]


class SpatialEncoder(nn.Linear):
    """Turns the latent of an object mask into cross-attention tokens: rows of I, Linear, ReLU.

    It is the linear layer itself, so its state is exactly what an artifact stores: `weight`
    [O, I] and `bias` [O].

    Deviation: the paper's VisA size 128 -> 196 does not reshape to tokens of 768; 192 does.

    Args:
        in_features: I, latent values per row (consecutive in C, h, w order).
        out_features: O, values that a row becomes.
        cross_attention_dim: D, width of a token.
    """

    def __init__(self, in_features: int, out_features: int, cross_attention_dim: int) -> None:
        super().__init__(in_features, out_features)
        self.cross_attention_dim = cross_attention_dim

    def forward(self, mask_latents: torch.Tensor) -> torch.Tensor:
        """Encode masks.

        Args:
            mask_latents: `[B, C, h, w]` float, posterior samples already times the scaling factor.

        Returns:
            `[B, S, D]` spatial tokens, dtype of the weights, none negative.

        Raises:
            ConfigError: if S would not be whole.
        """
        batch, *shape = mask_latents.shape
        tokens = num_spatial_tokens(
            shape, self.in_features, self.out_features, self.cross_attention_dim
        )
        rows = mask_latents.reshape(batch, -1, self.in_features).to(self.weight.dtype)
        return F.relu(super().forward(rows)).reshape(batch, tokens, self.cross_attention_dim)


class Conditions(nn.Module):
    """All that a class is kept as, and all that is trained.

    Args:
        semantic_embedding: `[K, D]` float start value, or None for spatial conditioning alone.
        spatial_encoder: or None for semantic conditioning alone.
        placement: `prompt` or `context`: where the K vectors belong, the same in search and replay.
        semantic_variations: `[R, K, D]` float start value: an image with coefficients c is
            described by `semantic_embedding + sum of c_r semantic_variations_r`. None for R = 0.

    Deviation: the paper's embedding is the same for every image of a class (R = 0). A small frozen
    model draws what varies as noise; told how far along a few directions it lies, it need not.

    Raises:
        ConfigError: if both are None, or the placement is unknown, or variations stand elsewhere
            than beside the prompt.
    """

    def __init__(
        self, semantic_embedding: torch.Tensor | None, spatial_encoder: SpatialEncoder | None,
        placement: str, semantic_variations: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if placement not in GENERATION_PROMPTS:
            raise ConfigError(f"unknown placement '{placement}'", "use prompt or context")
        self.placement = placement
        if semantic_embedding is None and spatial_encoder is None:
            raise ConfigError(
                "conditions need a semantic embedding, a spatial encoder or both",
                "use conditioning both, semantic or spatial",
            )
        self.semantic_embedding = (
            None if semantic_embedding is None else nn.Parameter(semantic_embedding.clone())
        )
        outside = placement == "prompt" or semantic_embedding is None
        if semantic_variations is not None and outside:
            raise ConfigError(
                "variations need a semantic embedding in the context placement",
                "use num_variations 0",
            )
        self.semantic_variations = (
            None if semantic_variations is None else nn.Parameter(semantic_variations.clone())
        )
        self.spatial_encoder = spatial_encoder

    @property
    def num_tokens(self) -> int:
        """K, 0 without a semantic embedding."""
        return 0 if self.semantic_embedding is None else len(self.semantic_embedding)

    def forward(
        self, prompts: Prompts, indices: torch.Tensor, mask_latents: torch.Tensor | None,
        coefficients: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Build the sequence that the UNet attends to: text first, spatial tokens last.

        Args:
            prompts: made for this K.
            indices: `[B]` int64 on the CPU, which prompt each image gets.
            mask_latents: `[B, C, h, w]` float, scaled; ignored without a spatial encoder.
            coefficients: `[B, R]` float, of the variations; ignored without them.

        Returns:
            encoder_hidden_states `[B, T + S, D]`, or `[B, T + K + S, D]` with context placement.
        """
        semantic = self.semantic_embedding
        if self.semantic_variations is not None and coefficients is not None:
            semantic = semantic + torch.tensordot(coefficients, self.semantic_variations, 1)
        text = prompts.encode(indices, semantic)
        if self.spatial_encoder is None:
            return text
        spatial_tokens = self.spatial_encoder(mask_latents)
        return torch.cat([text, spatial_tokens.to(text.dtype)], dim=1)
