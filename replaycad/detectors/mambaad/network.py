"""MambaAD: state-space blocks that read maps along a Hilbert curve rebuild the features.

He et al., NeurIPS 2024. Details that the paper leaves open (affine instance norms, which
convolutions have a bias) are chosen to give the published size.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.detectors.interface import Detector, evaluating
from replaycad.detectors.mambaad.preset import MambaADPreset
from replaycad.detectors.mambaad.selective_scan import selective_scan
from replaycad.detectors.pyramid import MeanMap, check_pyramid, pyramid_error
from replaycad.errors import ConfigError

NUM_DIRECTIONS = 8
MIN_STEP, MAX_STEP = 1e-3, 0.1  # of the state-space model at the start
KERNELS = (7, 5)  # of the two convolutional branches


def hilbert_curve(size: int) -> torch.Tensor:
    """Places `[size * size]` int64 of a square grid, a power of two a side, along the curve."""
    if size == 1:
        return torch.zeros(1, dtype=torch.int64, device="cpu")
    half = size // 2
    row, column = hilbert_curve(half) // half, hilbert_curve(half) % half
    quarters = (  # of a curve that enters at the upper left and leaves at the upper right
        (column, row),
        (row + half, column),
        (row + half, column + half),
        (half - 1 - column, size - 1 - row),
    )
    return torch.cat([r * size + c for r, c in quarters])


def scan_orders(size: int) -> torch.Tensor:
    """Eight orders of the places of a grid, `[8, size * size]`: four curves there and back."""
    curve = hilbert_curve(size)
    row, column = curve // size, curve % size
    turned_row, turned_column = column, size - 1 - row  # by a quarter
    curves = [
        row * size + column,
        column * size + row,
        turned_row * size + turned_column,
        turned_column * size + turned_row,
    ]
    return torch.stack(curves + [curve.flip(0) for curve in curves])


class SelectiveScan2D(nn.Module):
    """State-space model over a map, read in eight directions whose outputs are summed."""

    _orders: torch.Tensor
    _places: torch.Tensor

    def __init__(self, width: int, size: int, state_width: int) -> None:
        super().__init__()
        inner, rank = 2 * width, math.ceil(width / 16)
        self.split = (rank, state_width, state_width)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        bound = inner**-0.5
        shape = (NUM_DIRECTIONS, sum(self.split), inner)
        self.read = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        bound = rank**-0.5
        shape = (NUM_DIRECTIONS, inner, rank)
        self.step_weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        log_steps = torch.empty(NUM_DIRECTIONS, inner).uniform_(
            math.log(MIN_STEP), math.log(MAX_STEP)
        )
        steps = log_steps.exp()
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # softplus^-1
        rates = torch.arange(1.0, state_width + 1).log().expand(NUM_DIRECTIONS, inner, -1)
        self.log_rates = nn.Parameter(rates.clone())
        self.skip = nn.Parameter(torch.ones(NUM_DIRECTIONS, inner))
        self.norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, width, bias=False)
        orders = scan_orders(size)
        self.register_buffer("_orders", orders, persistent=False)
        self.register_buffer("_places", orders.argsort(dim=1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, H, W, C]` to `[B, H, W, C]`."""
        x, gate = self.enter(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).flatten(2)  # [B, D, L]
        sequences = x[:, :, self._orders].transpose(1, 2)  # [B, K, D, L]
        read = torch.einsum("kcd,bkdl->bkcl", self.read, sequences)
        steps, b, c = read.split(self.split, dim=2)
        steps = torch.einsum("kdr,bkrl->bkdl", self.step_weight, steps)
        steps = F.softplus(steps + self.step_bias[..., None])
        y = selective_scan(sequences, steps, -self.log_rates.exp(), b, c, self.skip)
        back = self._places[None, :, None].expand(y.shape)
        y = y.gather(3, back).sum(dim=1).transpose(1, 2).reshape(gate.shape)
        return self.leave(self.norm(y) * F.silu(gate))


class DropPath(nn.Module):
    """Leaves a branch out for whole samples `[B, ...]` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero samples of `[B, ...]` with probability `rate`, scale the others up."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (len(x),) + (1,) * (x.dim() - 1)
        return x * (torch.rand(shape, device=x.device) >= self.rate) / (1.0 - self.rate)


def convolutions(width: int, kernel_size: int) -> nn.Sequential:
    """Local branch: 1x1, depthwise and 1x1 convolution, each with instance norm and SiLU."""
    depthwise = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
    layers: list[nn.Module] = []
    for conv in (
        nn.Conv2d(width, width, 1, bias=False), depthwise, nn.Conv2d(width, width, 1, bias=False)
    ):  # fmt: skip
        layers += [conv, nn.InstanceNorm2d(width, affine=True), nn.SiLU()]
    return nn.Sequential(*layers)


class Unit(nn.Module):
    """Some state-space blocks beside two convolutional branches, concatenated and fused."""

    def __init__(self, width: int, size: int, state_width: int, drops: Sequence[float]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in drops)
        self.scans = nn.ModuleList(SelectiveScan2D(width, size, state_width) for _ in drops)
        self.drops = nn.ModuleList(DropPath(rate) for rate in drops)
        self.branches = nn.ModuleList(convolutions(width, kernel) for kernel in KERNELS)
        self.fuse = nn.Conv2d((1 + len(KERNELS)) * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`."""
        y = x.permute(0, 2, 3, 1)
        for norm, scan, drop in zip(self.norms, self.scans, self.drops, strict=True):
            y = y + drop(scan(norm(y)))
        local = [branch(x) for branch in self.branches]
        return x + self.fuse(torch.cat([y.permute(0, 3, 1, 2), *local], dim=1))


class Expand(nn.Module):
    """Doubles the size of a map: each place gives four."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(width, 4 * out_width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, C', 2H, 2W]`."""
        return F.pixel_shuffle(self.linear(x), 2)


def _conv_norm(i: int, o: int, kernel_size: int, stride: int, *, bias: bool) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel_size, stride, kernel_size // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


class Bottleneck(nn.Module):
    """ResNet's bottleneck block of `[B, C, H, W]`, narrowed to a quarter inside."""

    def __init__(self, width: int, out_width: int, stride: int) -> None:
        super().__init__()
        inner = out_width // 4
        self.branch = nn.Sequential(
            _conv_norm(width, inner, 1, 1, bias=False),
            nn.ReLU(),
            _conv_norm(inner, inner, 3, stride, bias=False),
            nn.ReLU(),
            _conv_norm(inner, out_width, 1, 1, bias=False),
        )
        self.skip: nn.Module = nn.Identity()
        if width != out_width or stride != 1:
            self.skip = _conv_norm(width, out_width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        return F.relu(self.branch(x) + self.skip(x))


class Fusion(nn.Module):
    """The pyramid as one code at half the size of its coarsest level."""

    def __init__(self, channels: Sequence[int], out_width: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(_conv_norm(i, o, 3, 2, bias=False) for i, o in pairs)
        self.side = nn.ModuleList(_conv_norm(o, o, 1, 1, bias=True) for _, o in pairs)
        self.fuse = nn.Conv2d(channels[-1], channels[-1], 1)
        self.code = nn.Sequential(
            Bottleneck(channels[-1], out_width, 2),
            Bottleneck(out_width, out_width, 1),
            Bottleneck(out_width, out_width, 1),
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map levels `[B, C, H, W]`, fine first, to `[B, out_width, H', W']`."""
        x = features[0]
        for down, side, level in zip(self.down, self.side, features[1:], strict=True):
            x = F.relu(down(x)) + F.relu(side(level))
        return self.code(self.fuse(x))


class MambaAD(Detector):
    """Fusion and decoder; the decoder's stages are compared with the encoder's levels.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels, each twice the one before.
        image_size: side of the input images in pixels; every level has a power of two a side.
        preset: widths, depths and the loss weight.

    Raises:
        ConfigError: if encoder, image size and preset do not fit together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: MambaADPreset,
    ) -> None:
        """Build fusion and decoder with random weights from torch's global stream."""
        super().__init__()
        check_pyramid("MambaAD", strides, image_size, len(preset.depths) - 1)
        smallest = image_size // strides[-1] // 2
        if smallest < 2 or smallest & (smallest - 1):
            raise ConfigError(
                f"MambaAD needs maps of a power of two a side, found {2 * smallest}",
                f"use an image size such as {8 * strides[-1]} or {16 * strides[-1]}",
            )
        self.level_weight = preset.level_weight
        widths = preset.widths or (2 * channels[-1], *reversed(channels))
        self.fusion = Fusion(channels, widths[0])
        rates = torch.linspace(0, preset.drop_path, sum(preset.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        self.expands = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(widths, preset.depths, strict=True)):
            if stage:
                self.expands.append(Expand(widths[stage - 1], width))
            own, rates = rates[:depth], rates[depth:]
            per_unit = next(count for count in (3, 2, 1) if depth % count == 0)
            units = [
                Unit(width, smallest * 2**stage, preset.state_width, own[first : first + per_unit])
                for first in range(0, depth, per_unit)
            ]
            self.stages.append(nn.Sequential(*units))
        # Deviation: the mini preset's decoder is narrower than its encoder and ends each stage in a
        # 1x1 convolution to the encoder's channels; the published one is as wide as those.
        self.project = nn.ModuleList(
            nn.Conv2d(width, c, 1) if preset.widths else nn.Identity()
            for width, c in zip(widths[1:], reversed(channels), strict=True)
        )
        self.mean_map = MeanMap(image_size, [image_size // stride for stride in strides])

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Reconstruct the pyramid: levels `[B, C, H, W]` of the same shapes, fine to coarse."""
        x = self.stages[0](self.fusion([level.float() for level in features]))
        levels = []
        for expand, stage, project in zip(
            self.expands, self.stages[1:], self.project, strict=True
        ):
            x = stage(expand(x))
            levels.append(project(x))
        return levels[::-1]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Weighted sum over the levels of the mean squared error of levels `[B, C, H, W]`."""
        return self.level_weight * pyramid_error(self(features), features)

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smoothed mean of 1 - cosine: `[B, image_size, image_size]` float32 in 0..2."""
        with evaluating(self):
            pairs = zip(self(features), features, strict=True)
            maps = [1.0 - F.cosine_similarity(fake, real.float(), dim=1) for fake, real in pairs]
        return self.mean_map(maps)
