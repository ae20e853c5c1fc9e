"""Feature maps as tokens on a grid: their neighbourhoods, and the noise they are trained with."""

import torch


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` to `[B, H * W, C]`, row by row."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """`[B, size * size, C]` to `[B, C, size, size]`."""
    return tokens.transpose(1, 2).unflatten(2, (size, size))


def neighbours(size: int, reach: int) -> torch.Tensor:
    """Which places of a square grid are near each other.

    Args:
        size: side of the grid.
        reach: largest distance along either axis; 0 for the place itself alone, -1 for none.

    Returns:
        `[size * size, size * size]` bool, true within the window around the row's place.
    """
    places = torch.arange(size, device="cpu")
    near = (places[:, None] - places).abs() <= reach  # [size, size], along one axis
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(size**2, size**2)


def jitter(tokens: torch.Tensor, scale: float) -> torch.Tensor:
    """Add noise to `[B, N, C]` tokens: standard normal, times norm / C of each token and `scale`.

    It draws from torch's global stream.
    """
    size = tokens.norm(dim=2, keepdim=True) / tokens.shape[2]
    return tokens + torch.randn_like(tokens) * size * scale
