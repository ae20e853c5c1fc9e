"""From feature pyramids to anomaly maps and scores, where higher always means more anomalous."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

FALSE_ALARM_RATE = 0.01  # of the thresholds, on normal training images

def cosine_distance_map(
    features: Sequence[torch.Tensor], reconstructed_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """1 - cosine similarity of two feature pyramids, all levels together, as in InvAD.

    Each level is L2-normalised along its channels, brought to the size of the finest level, and the
    levels are seen as one long vector per location. Interpolated unit vectors are shorter than 1,
    so this is not the mean of the level cosines.

    Args:
        features: levels from fine to coarse, each `[B, C, H, W]`, any float type.
        reconstructed_features: the same shapes.

    Returns:
        `[B, H, W]` float32 at the finest level's size, in 0..2, higher is more anomalous.
    """
    size = features[0].shape[-2:]
    dot = torch.zeros((), device=features[0].device)
    norm, norm_reconstructed = dot, dot
    with torch.autocast(features[0].device.type, enabled=False):
        for level, reconstructed in zip(features, reconstructed_features, strict=True):
            # below float32 the distances of normal locations collapse into ties
            real, fake = (
                F.interpolate(
                    F.normalize(x.float(), dim=1), size, mode="bilinear", align_corners=True
                )
                for x in (level, reconstructed)
            )
            dot = dot + (real * fake).sum(dim=1)
            norm = norm + real.square().sum(dim=1)
            norm_reconstructed = norm_reconstructed + fake.square().sum(dim=1)
        return 1.0 - dot / (norm * norm_reconstructed).sqrt().clamp_min(1e-12)


def gaussian_matrix(size: int, sigma: float) -> torch.Tensor:
    """Matrix `[size, size]` float32 that smooths a column exactly as scipy's gaussian_filter.

    scipy's border (`reflect`: half-sample symmetric) is not torch's `reflect`; filtering the
    identity once gives the exact operator, border included. `G @ image @ G.T` smooths both axes.
    """
    identity = np.eye(size)
    smoothed = ndimage.gaussian_filter1d(identity, sigma, axis=0) if sigma > 0 else identity
    return torch.from_numpy(smoothed.astype(np.float32))


def bilinear_matrix(out_size: int, in_size: int, *, align_corners: bool) -> torch.Tensor:
    """Matrix `[out_size, in_size]` float32 of a one-dimensional bilinear resize."""
    identity = torch.eye(in_size, device="cpu")[None]  # [1, C=in_size, in_size]
    resized = F.interpolate(identity, out_size, mode="linear", align_corners=align_corners)
    return resized[0].T.contiguous()


def map_matrix(
    out_size: int, in_size: int, sigma: float, *, align_corners: bool = True
) -> torch.Tensor:
    """Matrix `[out_size, in_size]` that resizes to image size and smooths there, in one product."""
    resize = bilinear_matrix(out_size, in_size, align_corners=align_corners)
    return gaussian_matrix(out_size, sigma) @ resize


def apply_both_axes(maps: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`A @ map @ A.T` for every map: `[B, h, h]` and `[H, h]` give `[B, H, H]`."""
    return matrix @ maps @ matrix.T


def smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of square maps `[B, H, H]`, equal to scipy's with its default border."""
    return apply_both_axes(maps, gaussian_matrix(maps.shape[-1], sigma).to(maps))


def normalized_scores(
    scores: torch.Tensor, thresholds: Mapping[str, float], kind: str = "image"
) -> torch.Tensor:
    """Bring scores of any detector to one scale: 0 is typical of normal images, 1 the threshold.

    Linear between the median and the threshold of normal training images of all classes, so the
    order stays, and no class need be known.

    Args:
        scores: image scores `[B]` or maps `[B, H, W]`.
        thresholds: of the detector's artifact.
        kind: `image` or `pixel`, whichever `scores` are of.

    Returns:
        The same shape, float; above 1 is an alarm, below 0 more ordinary than half of the normal.
    """
    typical, alarm = thresholds[f"typical_{kind}"], thresholds[kind]
    return (scores - typical) / max(alarm - typical, 1e-12)


def image_scores(anomaly_maps: torch.Tensor) -> torch.Tensor:
    """Score `[B]` of each image: the maximum of its `[B, H, W]` map; higher is more anomalous."""
    return anomaly_maps.amax(dim=(1, 2))


def limits_of(image_scores: NDArray[Any], map_values: NDArray[Any]) -> dict[str, float]:
    """Image score and map value that 1 % of images and pixels exceed, and their medians.

    Args:
        image_scores: of normal images, any shape.
        map_values: of their pixels, any shape.

    Returns:
        `false_alarm_rate`, and for `image` and `pixel` the limit and the median, `typical_*`.
    """
    limits = {"false_alarm_rate": FALSE_ALARM_RATE}
    for name, values in (("image", image_scores), ("pixel", map_values)):
        limits[name] = float(np.quantile(values, 1 - FALSE_ALARM_RATE))
        limits[f"typical_{name}"] = float(np.median(values))
    return limits
