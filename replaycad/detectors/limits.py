"""Limits of normal scores: what an image and a pixel of a class may have before it is an alarm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.interface import Detector

FALSE_ALARM_RATE = 0.01  # of the limits, on normal images
SKETCH = 1001  # quantiles that stand for the pixels of a class where classes are taken together
PRODUCT_MARGIN = 1.5
"""Times the distance to its class that 1 % of normal images exceed: farther, it is no such product.
On 20 procedural classes, each also left out of the detector, 1.2 to 1.8 told every image; on six
real ones 1.5 lost 1 of 464 images, a bottle half gone, and told all others, 1.8 lost none and took
11 % of the others for their neighbours."""
SLACK = 1e-3  # of the way to a limit: scores differ so much between batches, devices and exports
PIXEL_STEP = 2  # every second pixel of every second row is looked at

LIMITS = ("false_alarm_rate", "image", "typical_image", "pixel", "typical_pixel", "product")

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images, small enough to be kept.

    Attributes:
        image_scores: `[N]`, one per image.
        map_values: `[N, P]` or `[P]`, of the pixels of their maps, NaN where one does not count; or
            `SKETCH` quantiles of these, rising.
        num_tiles: of how many images a picture is made, at most.
        distances: `[N]`, of each image to its class, where a detector tells classes apart.
    """

    image_scores: FloatArray
    map_values: FloatArray
    num_tiles: int = 1
    distances: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, row: int, num_tiles: int) -> "NormalScores":
        """Those of one image."""
        return NormalScores(self.image_scores[row : row + 1], self.map_values[row], num_tiles)

    def sketched(self) -> "NormalScores":
        """The same with quantiles in place of all pixels, to be taken together with other classes.

        No distance is kept: one to its class says nothing of another.
        """
        quantiles = np.nanquantile(self.map_values, np.linspace(0, 1, SKETCH))
        return NormalScores(self.image_scores, quantiles.astype(np.float32), self.num_tiles)

    def moved(self, wanted: Mapping[str, float]) -> "NormalScores":
        """The same, so stretched that medians and limits of images and pixels are those wanted."""
        own, moved = self.limits(), []
        for kind, values in (("image", self.image_scores), ("pixel", self.map_values)):
            low, new_low = own[f"typical_{kind}"], wanted[f"typical_{kind}"]
            scale = (wanted[kind] - new_low) / max(own[kind] - low, 1e-12)
            moved.append((new_low + (values - low) * scale).astype(np.float32))
        return replace(self, image_scores=moved[0], map_values=moved[1])

    def limits(self, rate: float = FALSE_ALARM_RATE) -> dict[str, float]:
        """Image score and map value that `rate` of images and pixels exceed, and their medians.

        With distances also `product`, beyond which an image is of no class that is known.

        A picture of many tiles scores as its highest: where each of n stays below a limit in
        0.99^(1/n) of all cases, n of them do in 99 %.
        """
        found = {"false_alarm_rate": rate}
        for name, values in (("image", self.image_scores), ("pixel", self.map_values)):
            counted = values[~np.isnan(values)]
            root = 1 / self.num_tiles if name == "image" else 1.0
            found[name] = float(np.quantile(counted, (1 - rate) ** root))
            typical = np.median(counted) if root == 1 else np.quantile(counted, 0.5**root)
            found[f"typical_{name}"] = float(typical)
        if len(self.distances):
            usual = np.quantile(self.distances, 1 - FALSE_ALARM_RATE)
            found["product"] = float(PRODUCT_MARGIN * usual)
        return found


def together(parts: Sequence[NormalScores]) -> NormalScores:
    """The scores of several images or classes as one; sketched classes count alike."""
    return NormalScores(
        np.concatenate([part.image_scores for part in parts]),
        np.concatenate([part.map_values.ravel() for part in parts]),
        max(part.num_tiles for part in parts),
        np.concatenate([part.distances for part in parts]),
    )


def combined(
    before: Mapping[str, float], added: Mapping[str, float], num_before: int, num_added: int
) -> dict[str, float]:
    """Limits of a class of which some images are gone, from theirs and from those of new photos.

    Of the images that are gone only quantiles are left. So a limit is the higher of the two, with
    at most as many false alarms in either part; what is typical is the mean of both, each counted
    by its images.

    Args:
        before: as `NormalScores.limits` gave them.
        added: likewise, of the new photos.
        num_before: images behind the first.
        num_added: new photos.
    """
    share = num_added / (num_before + num_added)
    found = dict(before)
    for name in ("image", "pixel", "product"):
        known = [part[name] for part in (before, added) if name in part]
        found |= {name: max(known)} if known else {}
    for name in ("typical_image", "typical_pixel"):
        found[name] = (1 - share) * before[name] + share * added[name]
    return found


def measured(
    detector: Detector, maps: torch.Tensor, counted: NDArray[np.bool_] | None
) -> NormalScores:
    """Scores of images with maps `[N, S, S]`.

    Args:
        detector: whose maps they are.
        maps: float.
        counted: `[N, S, S]`, false on padding and ignored pixels; None if all count.
    """
    if counted is not None:  # low for a score, no pixel
        maps, least = maps.clone(), maps.amin()
        maps[torch.from_numpy(~counted).to(maps.device)] = least
    values = maps[:, ::PIXEL_STEP, ::PIXEL_STEP].flatten(1).cpu().numpy()
    if counted is not None:
        seen = counted[:, ::PIXEL_STEP, ::PIXEL_STEP].reshape(values.shape)
        values = np.where(seen, values, np.float32(np.nan))
    return NormalScores(detector.image_scores(maps).cpu().numpy(), values)


def rank(num_photos: int, rate: float) -> int:
    """Which of the scores of good photos, in rising order from 1, a new one exceeds so rarely.

    A good photo is as likely to come first as second or last among them and itself. So the k-th
    lowest of n is exceeded by (n + 1 - k) / (n + 1) of all, in the mean over sets of n (conformal
    prediction). More than n: no score of a photo is rare enough.
    """
    return math.ceil(round((num_photos + 1) * (1 - rate), 6))


def promised(num_photos: int, rate: float) -> float:
    """False alarms that a limit from so many photos allows at most, in the mean; in 0..1."""
    return (num_photos + 1 - min(rank(num_photos, rate), num_photos)) / (num_photos + 1)


def needed_photos(rate: float) -> int:
    """From how many photos on that is `rate` or less."""
    return math.ceil(round(1 / rate - 1, 6))


def calibrated(
    photos: NormalScores, before: Mapping[str, Any], rate: float = FALSE_ALARM_RATE
) -> dict[str, Any]:
    """Limits of a class from good photos that the detector was not trained on.

    From `needed_photos` on, the limit of image scores is that of `rank`. Below, it is the highest
    score, which promises 1 / (n + 1), or the limit of training times how much higher the median of
    the photos is than that of training, if that is more. Measured on good test images of six real
    classes, drawn at random, at a target of 1 %: with 10, 20 and 50 photos the highest score alone
    had 9.1, 4.9 and 2.0 % false alarms, this limit 3.0, 2.4 and 1.7 %; of pictures made darker,
    blurred and compressed, where the limit of training had 65 %, 2.2, 1.7 and 1.7 %. A log-normal
    prediction limit from the photos alone had 3.9 % with 10 and found fewer defects (76 % for
    78 %); with 3 photos it found 41 % for 78 %.

    Args:
        photos: their scores, at least one.
        before: limits of the class, of training or of an earlier calibration.
        rate: of false alarms that is wanted, in 0..1.

    Returns:
        limits as `NormalScores.limits`, with `photos`, their number; `promised`, as the function;
        and `trained`, the limits of training, which every later calibration starts from.
    """
    trained = of_training(before)
    found: dict[str, Any] = photos.limits(rate)
    scores, typical = np.sort(photos.image_scores), found["typical_image"]
    place = rank(len(scores), rate)
    limit = float(scores[min(place, len(scores)) - 1])
    if place > len(scores):
        limit = max(limit, score_at(trained, rate, typical))
    found["image"] = limit + SLACK * (limit - typical)
    found |= {"photos": len(scores), "promised": promised(len(scores), rate)}
    return {**found, "trained": dict(trained)}


def of_training(limits: Mapping[str, Any]) -> Mapping[str, Any]:
    """The limits that a class was trained with, of those that it has by now."""
    trained: Mapping[str, Any] = limits.get("trained", limits)
    return trained


def score_at(limits: Mapping[str, Any], rate: float, typical: float | None = None) -> float:
    """The score that a share `rate` of good photos is expected to exceed.

    Scores are taken for log-normal, with the spread between the median and the limit of a class;
    where they are not above 0, for normal.

    Args:
        limits: of the class.
        rate: in 0..1.
        typical: median of the photos, if it is another than that of the class.
    """
    usual, limit = float(limits["typical_image"]), float(limits["image"])
    typical = usual if typical is None else typical
    stretch = NormalDist().inv_cdf(rate) / NormalDist().inv_cdf(limits["false_alarm_rate"])
    if min(usual, limit, typical) > 0:
        return float(typical * (limit / usual) ** stretch)
    return float(typical + (limit - usual) * stretch)
