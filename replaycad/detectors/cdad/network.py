"""CDAD, called One-for-More: an image is noised and drawn again, and what differs is anomalous.

Li et al., CVPR 2025. The U-Net of a latent diffusion model is trained on, and a network that sees
the picture, but at no place its neighbourhood, tells it what to draw. Later classes are learned
with a held step: `continual.guard`.

Deviation: no guidance. Both branches of the released program are the same, and it doubles the cost.

Deviation: the noise is that of the first step of the ladder; the program starts at another one.

Deviation: the autoencoder sees pictures in its own range; the program hands it normalised ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from replaycad.anomaly import apply_both_axes, map_matrix
from replaycad.detectors.cdad.preset import CDADPreset
from replaycad.detectors.cdad.spoil import spoilt
from replaycad.detectors.encoders import images_of, load_encoder
from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.pyramid import check_picture, picture_of
from replaycad.detectors.settings import PICTURE
from replaycad.detectors.tokens import neighbours, to_maps, to_tokens
from replaycad.diffusion.backbones import SCHEDULE, load_backbone
from replaycad.diffusion.cell_unet import CellUNet, Guess
from replaycad.diffusion.prompts import encode_texts
from replaycad.errors import ConfigError
from replaycad.runtime import generator

_TIME = ("time_embedding", "time_emb_proj")


def inner(unet: UNet2DConditionModel | CellUNet) -> UNet2DConditionModel:
    """The U-Net within the one that reads tokens as places; any other is its own."""
    return unet.unet if isinstance(unet, CellUNet) else unet


def sine_places(size: int, width: int) -> torch.Tensor:
    """Fixed places of a square grid, `[size * size, width]`: rows, then columns, in 0 to 2 pi."""
    quarter = width // 4
    turns = (torch.arange(size, device="cpu") + 1.0) / size * 2 * math.pi
    rates = 10_000.0 ** (torch.arange(quarter, device="cpu") / quarter)
    waves = turns[:, None] / rates
    waves = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, size, -1), waves[None].expand(size, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class MaskedLayer(nn.Module):
    """Attention that does not see the neighbourhood, then two layers; norms come last."""

    def __init__(self, preset: CDADPreset) -> None:
        super().__init__()
        width = preset.widths[-1]
        # Four layers of their own, for a guard holds each by what it is given.
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.layers = nn.Sequential(
            nn.Linear(width, preset.hidden_width), nn.ReLU(), nn.Dropout(preset.dropout),
            nn.Linear(preset.hidden_width, width), nn.Dropout(preset.dropout),
        )  # fmt: skip
        self.after, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self._heads, self._dropout = preset.num_heads, preset.dropout

    def attended(
        self, x: torch.Tensor, place: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """What tokens `[B, N, D]` see of each other, `[B, N, D]`; places `[N, D]`, `[N, N]`."""
        placed = x + place
        query, key, value = (
            one.unflatten(2, (self._heads, -1)).transpose(1, 2)
            for one in (self.query(placed), self.key(placed), self.value(x))
        )
        dropout = self._dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, allowed, dropout)
        return self.out(seen.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor, place: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Map tokens `[B, N, D]` to `[B, N, D]`; places `[N, D]`, `[N, N]` true where seen."""
        seen = F.dropout(self.attended(x, place, allowed), self._dropout, self.training)
        x = self.after(x + seen)
        return self.last(x + self.layers(x))


class MaskedNetwork(nn.Module):
    """Sees the picture and tells the U-Net, at each place by what lies around its neighbourhood."""

    _place: torch.Tensor
    _allowed: torch.Tensor

    def __init__(self, preset: CDADPreset, size: int) -> None:
        super().__init__()
        channels = (3, *preset.widths)
        layers: list[nn.Module] = []
        for number, stride in enumerate(preset.strides):
            wide = channels[number], channels[number + 1]
            layers += [nn.Conv2d(*wide, 3, stride, padding=1, bias=False), nn.SiLU()]
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                # As torch draws them eight in a row give 1e-4 of the picture, and 2e-5 of what
                # differs from one picture to the next.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.convolutions = nn.Sequential(*layers[:-1])
        self.layers = nn.ModuleList(MaskedLayer(preset) for _ in range(preset.num_layers))
        self.size = size
        place = sine_places(size, preset.widths[-1])
        self.register_buffer("_place", place, persistent=False)
        self.register_buffer("_allowed", ~neighbours(size, preset.reach), persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the U-Net is told of `[B, 3, S, S]`: `[B, D, h, w]`."""
        return self.told(self.seen(pictures))

    def told(self, seen: torch.Tensor) -> torch.Tensor:
        """What the U-Net is told of what the convolutions saw, both `[B, D, h, w]`."""
        x = to_tokens(seen)
        for layer in self.layers:
            x = layer(x, self._place, self._allowed)
        return to_maps(x, self.size)

    def seen(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the convolutions see of `[B, 3, S, S]`: `[B, D, h, w]`."""
        return self.convolutions(pictures)


class CDAD(Detector):
    """A trained U-Net and what tells it what to draw; codec, text and encoder stay frozen.

    Args:
        channels: of the levels; the picture comes first.
        strides: of the levels.
        image_size: side of the input images in pixels.
        preset: structure.

    Raises:
        ConfigError: if the picture is not among the levels, or the U-Net is of another width.
        WeightsError: if the backbone or the encoder is not there.
    """

    is_graph = False  # it draws by a sampler
    _empty: torch.Tensor
    _noise: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: CDADPreset,
    ) -> None:
        """Start from the backbone's own U-Net, and draw the network that sees the picture."""
        super().__init__()
        check_picture("CDAD", channels, strides)
        self.image_size, self.preset = image_size, preset
        diffusion = load_backbone(preset.backbone, torch.device("cpu"), torch.float32)
        levels = tuple(level for level in preset.levels if level != PICTURE)
        encoder = load_encoder(preset.encoder, levels=levels)
        # In a tuple: neither their weights nor their names belong to this detector.
        self._frozen = (diffusion, encoder)
        self.unet = diffusion.unet
        self._side = preset.picture_px or diffusion.image_size
        size = diffusion.latent_size * self._side // diffusion.image_size
        self.masked = MaskedNetwork(preset, size)
        first = inner(self.unet).conv_in.out_channels
        if first != preset.widths[-1]:
            raise ConfigError(
                f"the U-Net of '{preset.backbone}' begins with {first} channels, and CDAD would "
                f"tell it {preset.widths[-1]}",
                "use the published sd15, or preset=standard",
            )
        trained = {f"{name}.weight" for name in self._layers()}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith("unet.") or name in trained)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster
        text = encode_texts(diffusion.tokenizer, diffusion.text_encoder, [""]).detach()
        self.register_buffer("_empty", text, persistent=False)
        shape = diffusion.latent_channels, size, size
        noise = torch.randn(1, *shape, generator=generator(0, "cdad"))
        self.register_buffer("_noise", noise, persistent=False)
        sigma = preset.sigma_px * image_size / 256
        for number, stride in enumerate(encoder.strides):
            matrix = map_matrix(image_size, image_size // stride, sigma, align_corners=True)
            self.register_buffer(f"_to_image_{number}", matrix, persistent=False)
        self._scheduler = DDIMScheduler(
            **{key: value for key, value in diffusion.scheduler_config.items() if key in SCHEDULE},
            timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False,
        )  # fmt: skip
        self._scheduler.set_timesteps(preset.num_inference_steps)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "CDAD":
        """Take the frozen networks along to another device."""
        diffusion, encoder = self._frozen
        for network in (diffusion.vae, encoder):
            network._apply(fn)
        return super()._apply(fn, recurse)

    def guarded(self) -> list[str]:
        """All trained linear layers and convolutions."""
        return [
            *self._layers(),
            *(f"masked.{name}" for name, one in self.masked.named_modules()
              if isinstance(one, nn.Linear | nn.Conv2d)),
        ]  # fmt: skip

    def _layers(self) -> list[str]:
        """The U-Net's linear layers and convolutions but those that tell it the time.

        Of the bundled one also those of its guess: latents of an unseen class lie 0.1 to 5 times as
        far away as empty text lets it expect, which is drawn as coloured speckle.
        """
        parts = {"unet": inner(self.unet)}
        if isinstance(self.unet, CellUNet):
            parts = {"unet.unet": self.unet.unet, "unet.guess": self.unet.guess}
        return [
            f"{start}.{name}" for start, part in parts.items() for name, one in part.named_modules()
            if isinstance(one, nn.Linear | nn.Conv2d) and not any(word in name for word in _TIME)
        ]  # fmt: skip

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the U-Net predicts, half-way, of the pictures: `[B, C, h, w]`.

        Args:
            features: levels `[B, C, H, W]`, the picture first.
        """
        pictures = self._pictures(features)
        latents, scheduler = self._latents(pictures), self._scheduler
        half = scheduler.config.num_train_timesteps // 2
        times = torch.full((len(latents),), half, device=latents.device)
        noisy = scheduler.add_noise(latents, self._noise.expand_as(latents), times)
        return [self._predict(noisy, times, self.masked(pictures))]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Error of what the U-Net predicts, and of what it is told of spoilt pictures `[B, ...]`.

        The latents are those of the pictures as they are, at a random time of all.
        """
        pictures = self._pictures(features)
        latents = self._latents(pictures)
        changed = spoilt(pictures, self.preset.spoilt_share, self.preset.max_patches)
        rows = (changed != pictures).flatten(1).any(1).nonzero()[:, 0]
        # Those left as they were are seen once.
        seen, others = self.masked.seen(torch.cat([pictures, changed[rows]])).split(
            [len(pictures), len(rows)]
        )
        told = self.masked.told(seen.index_copy(0, rows, others))
        many = self._scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, many, (len(latents),), device="cpu").to(latents.device)
        noise = torch.randn_like(latents)
        noisy = self._scheduler.add_noise(latents, noise, timesteps)
        if self._scheduler.config.prediction_type == "v_prediction":
            wanted = self._scheduler.get_velocity(latents, noise, timesteps)
        else:
            wanted = noise
        error = F.mse_loss(self._predict(noisy, timesteps, told), wanted)
        return error + self.preset.masked_weight * F.mse_loss(told, seen)

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """How far an image lies from itself drawn again: `[B, image_size, image_size]`, >= 0.

        Both are decoded, and their features compared at each level: the sum of distances.
        """
        diffusion, encoder = self._frozen
        with evaluating(self):
            pictures = self._pictures(features)
            latents = self._latents(pictures)
            drawn = self.redrawn(latents, self.masked(pictures))
            both = diffusion.decode(torch.cat([latents, drawn])).to(latents.device)
            sized = F.interpolate(both.float(), self.image_size, mode="bilinear", antialias=True)
            levels = encoder.encode_images(sized.round().byte())
            total = latents.new_zeros(len(latents), self.image_size, self.image_size)
            for number, level in enumerate(levels):
                seen, again = level.float().chunk(2)
                distance = (seen - again).norm(dim=1)
                total += apply_both_axes(distance, getattr(self, f"_to_image_{number}"))
        return total

    @torch.no_grad()
    def redrawn(self, latents: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Latents `[B, C, h, w]` noised as far as the ladder begins and drawn again.

        Args:
            latents: of the pictures.
            told: `[B, D, h, w]`.
        """
        scheduler = self._scheduler
        noise = self._noise.expand_as(latents)
        first = scheduler.timesteps[:1].to(latents.device)
        now = scheduler.add_noise(latents, noise, first.expand(len(latents)))
        guess = self._guess()
        for timestep in scheduler.timesteps:
            times = timestep.to(latents.device).expand(len(latents))
            predicted = self._predict(now, times, told, guess)
            now = scheduler.step(predicted, timestep, now).prev_sample
        return now

    def _guess(self) -> Guess | None:
        """What the bundled U-Net reads of empty text, the same for all; None of any other."""
        return self.unet.read(self._empty) if isinstance(self.unet, CellUNet) else None

    def _predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        told: torch.Tensor,
        guess: Guess | None = None,
    ) -> torch.Tensor:
        """The U-Net's prediction; what it is told is added behind its first convolution."""
        guess = guess or self._guess()
        known = {"guess": Guess(*(one.expand_as(noisy) for one in guess))} if guess else {}
        first = inner(self.unet).conv_in
        handle = first.register_forward_hook(lambda _, __, output: output + told)
        try:
            states = self._empty.expand(len(noisy), -1, -1)
            return self.unet(noisy, timesteps, states, **known).sample
        finally:
            handle.remove()

    def _pictures(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The pictures at the size that they are redrawn in, `[B, 3, S, S]`, normalised."""
        return picture_of(features, self._side)

    @torch.no_grad()
    def _latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """Means of the latents of normalised pictures `[B, 3, S, S]`."""
        return self._frozen[0].encode_images(images_of(pictures))[0]
