"""Building blocks of InvAD: equalised convolutions and the spatially modulated residual block.

The published generator computes its modulated convolutions per sample, although their weights do
not depend on the sample; ordinary convolutions give identical outputs.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

GAIN = math.sqrt(2.0)  # keeps the variance behind a leaky ReLU
SLOPE = 0.2
NORM_EPS = 1e-5


class EqualizedConv(nn.Module):
    """Convolution with a weight stored at unit variance and scaled when used.

    With `activate` the result is `leaky_relu(conv(x) + bias, 0.2) * sqrt(2)`; the gain is folded
    into weight and bias, which a leaky ReLU allows.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd; the input is padded with zeros so that the size stays.
        bias: value the bias starts at, per part of the output channels; empty for none.
        activate: whether the activation follows.
        gain: constant factor of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: tuple[float, ...] = (0.0,),
        activate: bool = True,
        gain: float = 1.0,
    ) -> None:
        """Draw the weight from a standard normal."""
        super().__init__()
        self.activate = activate
        self.gain = gain * (GAIN if activate else 1.0)
        self.scale = self.gain / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        starts = torch.tensor(bias).repeat_interleave(out_channels // max(len(bias), 1))
        self.bias = nn.Parameter(starts) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, I, H, W]` to `[B, O, H, W]`."""
        bias = None if self.bias is None else self.bias * self.gain
        x = F.conv2d(x, self.weight * self.scale, bias, padding=self.padding)
        return F.leaky_relu(x, SLOPE, inplace=True) if self.activate else x


class EqualizedUp(nn.Module):
    """Doubles the size: transposed convolution at stride 2, then the binomial blur [1, 3, 3, 1].

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 3 or 1.
        activate: whether bias and activation follow.
        lr_multiplier: the weight is stored this many times larger, so that Adam moves it that much
            less.
        gain: constant factor of the output.
    """

    blur: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activate: bool = True,
        lr_multiplier: float = 1.0,
        gain: float = 1.0,
    ) -> None:
        """Draw the weight from a normal of deviation 1 / `lr_multiplier`."""
        super().__init__()
        self.activate = activate
        self.gain = gain * (GAIN if activate else 1.0)
        self.scale = self.gain * lr_multiplier / math.sqrt(in_channels * kernel_size**2)
        self.kernel_size = kernel_size
        shape = (in_channels, out_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(shape) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activate else None
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
        blur = 4.0 * taps[:, None] * taps  # sum 4: a quarter of the up-sampled values is not zero
        self.register_buffer("blur", blur.repeat(out_channels, 1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, I, H, W]` to `[B, O, 2H, 2W]`."""
        weight = self.weight * self.scale
        groups = weight.shape[1]
        bias = None if self.bias is None else self.bias * self.gain
        if self.kernel_size == 1:
            # zeros between the values, then the blur: together a depthwise transposed convolution
            x = F.conv2d(x, weight.transpose(0, 1))
            x = F.conv_transpose2d(x, self.blur, bias, stride=2, padding=1, groups=groups)
        else:
            x = F.conv_transpose2d(x, weight, stride=2)  # [B, O, 2H + 1, 2W + 1]
            x = F.conv2d(x, self.blur, bias, padding=1, groups=groups)
        return F.leaky_relu(x, SLOPE, inplace=True) if self.activate else x


def normalize_sample(x: torch.Tensor) -> torch.Tensor:
    """Bring each sample of `[B, C, H, W]` to mean 0 and variance 1 over all its values."""
    return F.group_norm(x, 1, eps=NORM_EPS)


class ModulatedConv(nn.Module):
    """Normalise each sample, scale and shift it place by place by a style, convolve, activate.

    No demodulation follows. `gain` multiplies the output.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style_width: int, gain: float = 1.0
    ) -> None:
        """Start with scale 1 and shift 0 on average."""
        super().__init__()
        self.style = EqualizedConv(style_width, 2 * in_channels, 3, bias=(1.0, 0.0), activate=False)
        self.conv = EqualizedConv(in_channels, out_channels, 3, gain=gain)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map `[B or 1, I, H, W]` and a style `[B, style_width, H, W]` to `[B, O, H, W]`."""
        scale, shift = self.style(style).chunk(2, dim=1)
        return self.conv(torch.addcmul(shift, normalize_sample(x), scale))


class ResidualBlock(nn.Module):
    """Two convolutions beside a linear skip: (branch + skip) / sqrt(2), perhaps at twice the size.

    When the size doubles, the first convolution up-samples and is not modulated.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style_width: int, *, up: bool = False
    ) -> None:
        """Fold the division by sqrt(2) into the gains of the two branches."""
        super().__init__()
        half = 1.0 / GAIN
        self.up = up
        self.first: nn.Module
        self.skip: nn.Module
        if up:
            self.first = EqualizedUp(in_channels, out_channels, 3)
            self.skip = EqualizedUp(in_channels, out_channels, 1, activate=False, gain=half)
        else:
            self.first = ModulatedConv(in_channels, out_channels, style_width)
            self.skip = EqualizedConv(
                in_channels, out_channels, 1, bias=(), activate=False, gain=half
            )
        self.second = ModulatedConv(out_channels, out_channels, style_width, gain=half)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map `[B or 1, I, H, W]` and `[B, style_width, H', W']` to `[B, O, H', W']`."""
        branch = self.first(normalize_sample(x)) if self.up else self.first(x, style)
        return self.second(branch, style) + self.skip(x)
