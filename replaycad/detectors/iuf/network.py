"""IUF: UniAD without its window, whose encoder asks by what the object is (ECCV 2024).

A discriminator learns which class an image is of; what its blocks see of the object multiplies the
queries of UniAD's encoder. Later classes are learned with a held step: `continual.guard`.

Deviation: the classes to come are not known; the head grows by a row with each.

Deviation: the loss that keeps features in few directions has a gradient. In the released program
all that it reads is detached, and so it is a constant.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.detectors.interface import make_room
from replaycad.detectors.iuf.preset import IUFPreset
from replaycad.detectors.tokens import jitter, to_maps, to_tokens
from replaycad.detectors.uniad.network import POOL_PX, UniAD


class RowBlock(nn.Module):
    """Attention among the places of one row, then two layers; norms come first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.between = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, H, W, D]` to `[B, H, W, D]`; no row sees another."""
        rows = self.before(x).flatten(0, 1)
        x = x + self.attention(rows, rows, rows, need_weights=False)[0].view_as(x)
        return x + self.layers(self.between(x))


class Discriminator(nn.Module):
    """Tells classes apart, and what it saw on the way.

    Args:
        channels: of what it is given.
        width: of its places, as of UniAD's tokens.
        num_heads: of its attention.
        num_blocks: one for each layer of UniAD's encoder.
    """

    def __init__(self, channels: int, width: int, num_heads: int, num_blocks: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList(RowBlock(width, num_heads) for _ in range(num_blocks))
        self.hidden = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))

    def forward(self, picture: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Of `[B, C, H, W]`: what each block gives, `[B, D, H, W]`, and logits `[B, classes]`."""
        x, seen = self.embed(picture).permute(0, 2, 3, 1), []
        for block in self.blocks:
            x = block(x)
            seen.append(x.permute(0, 3, 1, 2))
        hidden = F.relu(self.hidden(x.mean(dim=(1, 2))))
        return seen, F.linear(hidden, self.weight, self.bias)

    def know(self, num_classes: int) -> None:
        """Have a row for each class; new ones are drawn as those of a linear layer."""
        new = num_classes - len(self.bias)
        if new > 0:
            fresh = nn.Linear(self.weight.shape[1], new)
            self.weight = nn.Parameter(torch.cat([self.weight.data, fresh.weight.data]))
            self.bias = nn.Parameter(torch.cat([self.bias.data, fresh.bias.data]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let the head know as many classes as it was saved with."""
        for name in ("weight", "bias"):
            saved = state_dict.get(prefix + name)
            # One of the same size stays: an optimiser may hold it already.
            if saved is not None and len(saved) != len(self.bias):
                setattr(self, name, nn.Parameter(getattr(self, name).new_empty(saved.shape)))
        super()._load_from_state_dict(state_dict, prefix, *args)


class IUF(UniAD):
    """UniAD whose encoder's queries are multiplied by what a discriminator sees.

    Args:
        channels: of the levels, from fine to coarse; of the picture first, if the preset wants it.
        strides: likewise; but for the picture's each is twice the one before.
        image_size: side of the input images in pixels, a multiple of the last stride.
        preset: structure and weights of the losses.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    name = "IUF"
    preset: IUFPreset
    _rows: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: IUFPreset,
    ) -> None:
        """Draw the parameters; no class is known yet."""
        first = 1 if preset.picture_px else 0
        super().__init__(channels[first:], strides[first:], image_size, preset)
        self.discriminator = Discriminator(
            channels[0], preset.width, preset.object_heads, preset.num_layers
        )
        self.norm = nn.LayerNorm(preset.width)  # one for all layers of the decoder
        self.pool_px = max(1, POOL_PX * image_size // 224)
        self.register_buffer("_rows", self._no_rows())
        self._compresses = False

    def begin(self, num_classes: int, is_first: bool) -> None:
        """Give the head a row for each class; the first training alone compresses."""
        self.discriminator.know(num_classes)
        self._rows, self._compresses = self._no_rows(), is_first

    def guarded(self) -> list[str]:
        """The second feed-forward layers of encoder and decoder (ECCV 2024, section 3.4)."""
        return [
            f"{part}.{layer}.feed_forward.layers.3"
            for part in ("encoder", "decoder") for layer in range(self.preset.num_layers)
        ]  # fmt: skip

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the fused features: one map `[B, C, H, W]`, C the sum over the levels."""
        objects = self.objects(features)[0]
        return [self._rebuilt(to_tokens(self.fused(features)), objects)[0]]

    def fused(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """All levels `[B, C, H, W]` but the picture, resized to one size and concatenated."""
        return super().fused(features[1:] if self.preset.picture_px else features)

    def objects(
        self, features: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What is seen of the object, of levels `[B, C, H, W]`.

        Returns:
            for each layer of the encoder `[B, N, D]` without gradient, and logits `[B, classes]`.
        """
        side = self.preset.picture_px or self.size
        seen, logits = self.discriminator(F.adaptive_avg_pool2d(features[0].float(), side))
        pooled = [F.adaptive_avg_pool2d(one.detach(), self.size) for one in seen]
        return [to_tokens(one) for one in pooled], logits

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Mean squared error of what is rebuilt from jittered tokens of levels `[B, C, H, W]`."""
        fused, objects = self.fused(features), self.objects(features)[0]
        noisy = jitter(to_tokens(fused), self.preset.jitter)
        return F.mse_loss(self._rebuilt(noisy, objects)[0], fused)

    def labelled_loss(
        self, features: Sequence[torch.Tensor], class_index: torch.Tensor, progress: float = 0.0
    ) -> torch.Tensor:
        """The error, the cross-entropy over classes `[B]` and, at first, the compression loss."""
        fused, (objects, logits) = self.fused(features), self.objects(features)
        noisy = jitter(to_tokens(fused), self.preset.jitter)
        rebuilt, outputs = self._rebuilt(noisy, objects)
        loss = F.mse_loss(rebuilt, fused)
        loss = loss + self.preset.class_weight * F.cross_entropy(logits, class_index)
        if self._compresses:
            means = torch.stack([one.mean(dim=1) for one in outputs[:-1]])
            loss = loss + self.preset.compression_weight * self.compression(means)
        return loss

    def compression(self, means: torch.Tensor) -> torch.Tensor:
        """Share of the singular values behind the leading ones, a scalar: the mean over layers.

        It is of the images of this batch, which have a gradient, below those of the past.

        Args:
            means: token means of the layers, `[L, B, D]`.
        """
        rows = torch.cat([self._rows, means], dim=1)[:, -self.preset.num_rows :]
        self._rows = rows.detach()
        values = torch.linalg.svdvals(rows)
        return (values[:, self.preset.rank :].sum(1) / values.sum(1)).mean()

    def _rebuilt(
        self, tokens: torch.Tensor, objects: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Of tokens `[B, N, C]` a map `[B, C, H, W]`, and the decoder's outputs `[B, N, D]`."""
        place, memory = self.places(), self.project(tokens)
        for layer, seen in zip(self.encoder, objects, strict=True):
            memory = layer(memory, place, self._forbidden, seen)
        x, outputs = memory, list[torch.Tensor]()
        for layer in self.decoder:
            x = layer(memory, x, place, self._forbidden)
            outputs.append(self.norm(x))
        return to_maps(self.restore(outputs[-1]), self.size), outputs

    def _no_rows(self) -> torch.Tensor:
        preset = self.preset
        return self.norm.weight.new_zeros(preset.num_layers - 1, 0, preset.width)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let as many rows come back as were saved."""
        make_room(self, ["_rows"], state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
