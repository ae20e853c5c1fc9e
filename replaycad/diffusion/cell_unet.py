"""The bundled U-Net: diffusers' own, around a picture that the tokens alone already show."""

import math
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from torch.nn import functional as F

_LOG_SPREAD = (-4.0, 1.0)


class Guess(NamedTuple):
    """What the tokens say of the latents before a single noisy one is seen: independent normals.

    Attributes:
        mean: `[B, C, h, w]` float.
        log_spread: the same shape, logarithm of the standard deviation.
        places: the same shape, the mask's latents as the spatial tokens tell them.
    """

    mean: torch.Tensor
    log_spread: torch.Tensor
    places: torch.Tensor

    def narrowed(self, spread: float) -> "Guess":
        """The same guess with its spread multiplied by a factor."""
        return self._replace(log_spread=self.log_spread + math.log(spread))

    def loss(self, latents: torch.Tensor) -> torch.Tensor:
        """How far clean latents `[B, C, h, w]` lie from the mean, and how unlikely that was.

        Returns:
            a scalar: squared error of the mean plus a part of the normal log-likelihood, in which
            the spread alone is judged, for its gradient would overrate the sharpest latents' means.
        """
        error, log_spread = (self.mean.float() - latents).square(), self.log_spread.float()
        surprise = 0.5 * error.detach() * (-2 * log_spread).exp() + log_spread
        return error.mean() + 0.3 * surprise.mean()


class CellUNet(ModelMixin, ConfigMixin):
    """A conditional U-Net whose semantic and spatial tokens have places in the picture.

    Semantic token k stands for cell k (2 x 2 latents, row by row), a spatial token for whole
    channels of the mask's latents. Both are attended to, as in any latent diffusion model, and also
    read by linear layers into maps: the mean and spread of every latent as the semantic tokens tell
    them, which two convolutions correct by all maps. Under that guess the best denoiser is known in
    closed form; the U-Net predicts what is left, in units of what is left (the preconditioning of
    Karras et al. 2022, around this guess).

    Deviation: the paper's backbones know their conditions through cross-attention alone. A U-Net of
    this size drew noise after 600 steps of attending to the tokens, the colours and outlines of
    unseen classes after 440 steps of reading them as maps.

    Args:
        sample_size: h = w of the latents.
        latent_channels: C.
        block_out_channels: of the two resolutions.
        cross_attention_dim: D, width of a token.
        text_length: T, tokens before the semantic ones.
        num_spatial_tokens: S, at the end of the sequence.
        cell_channels: maps read from the semantic tokens, at least 2 C: mean, log-spread, others.
        norm_num_groups: groups of the normalisation.
        beta_start, beta_end: of the noise schedule (scaled linear).
        num_train_timesteps: its length.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        latent_channels: int = 24,
        block_out_channels: tuple[int, ...] = (64, 128),
        cross_attention_dim: int = 192,
        text_length: int = 24,  # noqa: ARG002 - read from the config
        num_spatial_tokens: int = 12,
        cell_channels: int = 64,
        norm_num_groups: int = 16,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=4 * latent_channels,
            out_channels=latent_channels,
            block_out_channels=block_out_channels,
            layers_per_block=1,
            # Attention at half size alone: at full size it would take as long as all the rest.
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=4,
            norm_num_groups=norm_num_groups,
        )
        self.cells = nn.Linear(cross_attention_dim, 4 * cell_channels)
        per_token = latent_channels // num_spatial_tokens * sample_size**2
        self.places = nn.Linear(cross_attention_dim, per_token)
        hidden = block_out_channels[-1]
        last = nn.Conv2d(hidden, 2 * latent_channels, 3, padding=1)
        self.guess = nn.Sequential(
            nn.Conv2d(cell_channels + latent_channels, hidden, 3, padding=1), nn.SiLU(), last
        )
        # What the tokens tell by themselves is the first guess, and the guess the first prediction.
        for parameter in (*last.parameters(), *self.unet.conv_out.parameters()):
            nn.init.zeros_(parameter)
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        # No buffer: half precision would round away the little noise of the first timesteps.
        self._signal = torch.from_numpy(np.cumprod(1 - betas).astype(np.float32))

    @property
    def num_cells(self) -> int:
        """K."""
        return (self.config.sample_size // 2) ** 2

    @torch.no_grad()
    def read_statistics(self, statistics: torch.Tensor) -> None:
        """Start from reading a set encoder's statistics back, weights `[D, 5 C]` orthonormal."""
        pictures = 4 * self.config.latent_channels
        rows = statistics.T.detach()
        self.cells.weight[:pictures] = rows[:pictures]
        self.cells.weight[pictures : 2 * pictures] = rows[pictures:].repeat_interleave(4, 0)
        self.cells.bias[: 2 * pictures] = 0

    def read(self, encoder_hidden_states: torch.Tensor) -> Guess:
        """Read the tokens as pictures; a kind of token that is missing counts as zero tokens.

        Args:
            encoder_hidden_states: `[B, T, D]`, `[B, T + K, D]`, `[B, T + S, D]` or
                `[B, T + K + S, D]`, K = (h / 2) x (w / 2).

        Raises:
            ValueError: if the sequence has another length.
        """
        config, num_cells = self.config, self.num_cells
        batch, size, half = len(encoder_hidden_states), config.sample_size, config.sample_size // 2
        tokens = encoder_hidden_states[:, config.text_length :]
        has_semantic, num_spatial = divmod(tokens.shape[1], num_cells)
        if has_semantic > 1 or num_spatial not in (0, config.num_spatial_tokens):
            raise ValueError(
                f"{encoder_hidden_states.shape[1]} tokens are not {config.text_length} of text, "
                f"{num_cells} or no semantic and {config.num_spatial_tokens} or no spatial ones"
            )
        semantic, spatial = tokens[:, :num_cells], tokens[:, -config.num_spatial_tokens :]
        if not has_semantic:
            semantic = tokens.new_zeros(batch, num_cells, tokens.shape[2])
        if not num_spatial:
            spatial = tokens.new_zeros(batch, config.num_spatial_tokens, tokens.shape[2])
        rows = self.cells(semantic).transpose(1, 2)
        cells = F.pixel_shuffle(rows.unflatten(2, (half, half)), 2)
        places = self.places(spatial).view(batch, -1, size, size)
        told = cells[:, : 2 * config.latent_channels]
        mean, log_spread = (told + self.guess(torch.cat([cells, places], 1))).chunk(2, 1)
        return Guess(mean, log_spread.clamp(*_LOG_SPREAD), places)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        guess: Guess | None = None,
    ) -> UNet2DConditionOutput:
        """Predict the velocity of noisy latents.

        Args:
            sample: `[B, C, h, w]`, alpha x + sigma noise.
            timestep: int64, one or `[B]`.
            encoder_hidden_states: as `read` takes them.
            guess: what `read` said of them, where it is already known.
        """
        mean, log_spread, places = guess or self.read(encoder_hidden_states)
        self._signal = self._signal.to(sample.device)
        signal = self._signal[timestep].view(-1, 1, 1, 1)
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        mean, spread, noisy = mean.float(), log_spread.float().exp(), sample.float()
        width = (signal * spread.square() + 1 - signal).sqrt()  # of `noisy` around alpha mean
        offset = (noisy - alpha * mean) / width
        inputs = torch.cat([offset.to(sample.dtype), mean.to(sample.dtype), log_spread, places], 1)
        left = self.unet(inputs, timestep, encoder_hidden_states).sample.float()
        # Mean of the latents given `noisy`, then what the U-Net adds in units of their spread.
        clean = mean + spread / width * (alpha * spread * offset + sigma * left)
        velocity = (alpha * noisy - clean) / sigma
        return UNet2DConditionOutput(sample=velocity.to(sample.dtype))
