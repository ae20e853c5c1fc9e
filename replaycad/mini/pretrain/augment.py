"""Random changes of drawn pictures, so that what is learnt holds for photographs too."""

import math

import torch
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)


def uniform(
    count: int, low: float, high: float, g: torch.Generator, groups: int = 1
) -> torch.Tensor:
    """Random `[count, 1, 1, 1]` in low..high; each run of `groups` neighbours shares one."""
    draws = torch.rand(count // groups, generator=g) * (high - low) + low
    return draws.repeat_interleave(groups).view(count, 1, 1, 1)


def chance(count: int, probability: float, g: torch.Generator, groups: int = 1) -> torch.Tensor:
    """Random booleans `[count, 1, 1, 1]`; each run of `groups` neighbours shares one."""
    return uniform(count, 0.0, 1.0, g, groups) < probability


def smooth_field(
    count: int, channels: int, cells: int, size: int, g: torch.Generator
) -> torch.Tensor:
    """Smooth normal noise `[count, channels, size, size]` with about `cells` bumps along a side."""
    knots = torch.randn(count, channels, cells + 1, cells + 1, generator=g)
    return F.interpolate(knots, size=(size, size), mode="bilinear", align_corners=True)


def random_windows(
    count: int, smallest: float, g: torch.Generator, groups: int = 1
) -> torch.Tensor:
    """Affine maps `[count, 2, 3]` to a random square window, turned by quarters or mirrored.

    Args:
        smallest: side of the smallest window, as a fraction of the picture.
        groups: each run of so many neighbours gets the same window.
    """
    num = count // groups
    side = torch.rand(num, generator=g) * (1 - smallest) + smallest
    shift = (torch.rand(num, 2, generator=g) * 2 - 1) * (1 - side[:, None])
    quarter = torch.randint(4, (num,), generator=g) * (math.pi / 2)
    mirror = torch.randint(2, (num,), generator=g) * 2.0 - 1
    cosine, sine = quarter.cos() * side, quarter.sin() * side
    rows = torch.stack([cosine * mirror, -sine, sine * mirror, cosine], 1).view(num, 2, 2)
    return torch.cat([rows, shift[:, :, None]], 2).repeat_interleave(groups, 0)


def warp(images: torch.Tensor, windows: torch.Tensor, size: int) -> torch.Tensor:
    """Cut windows `[B, 2, 3]` out of pictures `[B, C, H, W]`, bilinear, to `[B, C, size, size]`."""
    shape = [len(images), images.shape[1], size, size]
    grid = F.affine_grid(windows.to(images), shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def change_colours(images: torch.Tensor, g: torch.Generator, groups: int = 1) -> torch.Tensor:
    """Give pictures `[B, 3, H, W]` (0..1) the colours and tones another product would have.

    Args:
        groups: each run of so many neighbours is changed alike.
    """
    count = len(images)
    mix = torch.eye(3) + 0.25 * torch.randn(count // groups, 3, 3, generator=g)
    mix = (mix / mix.sum(2, keepdim=True).clamp_min(0.3)).repeat_interleave(groups, 0)
    images = torch.einsum("bij,bjhw->bihw", mix.to(images), images)
    grey = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    images = torch.lerp(images, grey, chance(count, 0.3, g, groups).to(images))
    images = torch.where(chance(count, 0.15, g, groups).to(images.device), 1 - images, images)
    gamma = uniform(count, -0.5, 0.5, g, groups).exp().to(images)
    contrast = uniform(count, 0.5, 1.3, g, groups).to(images)
    offset = uniform(count, -0.15, 0.15, g, groups).to(images)
    return ((images.clamp(1e-3, 1).pow(gamma) - 0.5) * contrast + 0.5 + offset).clamp(0, 1)


def change_light(images: torch.Tensor, strength: float, g: torch.Generator) -> torch.Tensor:
    """Light each picture `[B, 3, H, W]` (0..1) a little differently: gain, tint, uneven lamps."""
    count, _, size, _ = images.shape
    gain = 0.15 * torch.randn(count, 1, 1, 1, generator=g)
    gain = gain + 0.04 * torch.randn(count, 3, 1, 1, generator=g)
    gain = gain + 0.12 * smooth_field(count, 1, 2, size, g)
    return (images * (gain * strength).exp().to(images)).clamp(0, 1)


def change_sharpness(images: torch.Tensor, strength: float, g: torch.Generator) -> torch.Tensor:
    """Blur each picture `[B, 3, H, W]` (0..1) and add noise, each by its own random amount.

    Args:
        strength: 1 blurs with a sigma of up to 1.2 px and adds noise of up to 0.06.
    """
    count, channels, height, width = images.shape
    sigma = (1.2 * strength * torch.rand(count, generator=g) - 0.2).clamp_min(0.05)
    place = torch.arange(-2, 3).float()
    kernel = torch.exp(-0.5 * (place[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0).to(images)
    rows = images.reshape(1, count * channels, height, width)
    rows = F.pad(rows, (2, 2, 2, 2), mode="replicate")
    rows = F.conv2d(rows, kernel[:, None, :, None], groups=count * channels)
    rows = F.conv2d(rows, kernel[:, None, None, :], groups=count * channels)
    amount = (0.06 * strength * torch.rand(count, 1, 1, 1, generator=g) ** 2).to(images)
    noise = torch.randn(images.shape, generator=g).to(images)
    # Half of the pictures get colourless noise, as grey cameras have.
    noise = torch.where(chance(count, 0.5, g).to(images.device), noise[:, :1], noise)
    return (rows.view_as(images) + amount * noise).clamp(0, 1)
