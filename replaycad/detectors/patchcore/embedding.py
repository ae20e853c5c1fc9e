"""What a memory bank compares: the neighbourhoods of two levels of features as one vector."""

import torch
from torch.nn import functional as F

from replaycad.anomaly import bilinear_matrix

PUBLISHED_WIDTH = 1024  # of the embedding of one place


def embed(middle: torch.Tensor, coarse: torch.Tensor, width: int = PUBLISHED_WIDTH) -> torch.Tensor:
    """Neighbourhood embedding of two levels in closed form.

    The published chain (3x3 unfolding, adaptive pooling per level, up-sampling, pooling of both) is
    a fixed linear filter for the network it was written for, whose levels have `width / 2` and
    `width` channels: a 3x3 kernel of 0.1 with centre 0.2 on `middle`, and a 3x3 mean of adjacent
    channel pairs on `coarse`. Deviation: narrower levels keep their channels, where the chain would
    mix them to fill `width`, and both levels count alike in a distance, as they do there; wider
    ones are pooled to `width / 2`.

    Args:
        middle: `[B, C, H, W]` float.
        coarse: `[B, C', H / 2, W / 2]` float.
        width: at most so many values per place, half of them from each level.

    Returns:
        `[B, min(C, width / 2) + min(C', width / 2), H, W]`.
    """
    channels, coarse_channels = (min(level.shape[1], width // 2) for level in (middle, coarse))
    size = middle.shape[-2:]
    kernel = middle.new_full((channels, 1, 3, 3), 0.1)
    kernel[:, :, 1, 1] = 0.2
    # two small products per map: several times as fast on a CPU as a filter and torch's resizing
    rows, columns = (
        (bilinear_matrix(new, old, align_corners=False) @ _mean_matrix(old)).to(coarse)
        for new, old in zip(size, coarse.shape[-2:], strict=True)
    )
    rows = rows * (channels / coarse_channels) ** 0.5  # 1 for the published widths
    parts = []
    # image by image: what is in between stays where the processor has it at hand; and by number,
    # with nothing written into place, for OpenVINO converts neither
    for row in range(len(middle)):
        narrow = pool_channels(middle[row : row + 1], channels)
        few = pool_channels(coarse[row : row + 1], coarse_channels)[0]
        near = F.conv2d(narrow, kernel, padding=1, groups=channels)[0]
        parts.append(torch.cat([near, rows @ few @ columns.T]))
    return torch.stack(parts)


def pool_channels(level: torch.Tensor, limit: int) -> torch.Tensor:
    """Pool a level `[B, C, H, W]` adaptively to at most `limit` channels."""
    channels = level.shape[1]
    if channels <= limit:
        return level
    if channels == 2 * limit:
        return level[:, ::2].add(level[:, 1::2]).mul_(0.5)
    places = level.flatten(2).transpose(1, 2)  # [B, HW, C]
    pooled = F.adaptive_avg_pool1d(places, limit).transpose(1, 2)
    return pooled.reshape(len(level), limit, *level.shape[-2:])


def _mean_matrix(size: int) -> torch.Tensor:
    """Matrix `[size, size]`: mean of a place and its neighbours, zeros beyond the ends."""
    return torch.ones(size, size, device="cpu").tril(1).triu(-1) / 3
