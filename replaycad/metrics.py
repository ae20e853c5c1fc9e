"""Exact detection and forgetting figures from sorted scores.

One class is the unit: its positives and its negatives are sorted apart, and every figure follows
from where the positives fall among the negatives. Higher scores mean more
anomalous. All figures are fractions in 0..1, and NaN where a class does not define them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

PRO_LIMIT = 0.3
PART = 2**21  # negatives that one thread sorts at once
METRICS = ("image_auroc", "pixel_ap", "pixel_auroc", "aupro30", "f1_max")

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # scipy's own default is 4-connected


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where the positives of one class fall among its negatives; counts are int64.

    Attributes:
        below: `[P]`, for each positive in ascending order, how many negatives score less.
        not_above: `[P]`, likewise, how many negatives score less or the same.
        true_positives: `[P]`, how many positives score at least as much.
        order: `[P]`, index of each ascending positive among the positives as they were given.
        num_negatives: how many negatives there are.
    """

    below: NDArray[np.int64]
    not_above: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    order: NDArray[np.int64]
    num_negatives: int

    @property
    def num_positives(self) -> int:
        """How many positives there are."""
        return len(self.below)


def rank(scores: NDArray[Any], is_positive: NDArray[Any]) -> Ranks:
    """Sort positives and negatives apart and place the former among the latter.

    Places among parts of the negatives add up to places among all, so the parts are sorted side by
    side and never merged; a negative below all positives need not be sorted at all.

    Args:
        scores: float, any shape, higher is more anomalous.
        is_positive: same shape, true where the answer is "anomalous".

    Raises:
        ValueError: if the shapes differ or a score is not finite.
    """
    scores, is_positive = np.asarray(scores), np.asarray(is_positive).astype(bool)
    if scores.shape != is_positive.shape:
        raise ValueError(f"scores are {scores.shape}, labels are {is_positive.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite values")
    positives, negatives = scores[is_positive], scores[~is_positive]
    order = np.argsort(positives)
    positives = positives[order]
    below, not_above = np.zeros((2, len(positives)), np.int64)
    parts = [negatives[start : start + PART] for start in range(0, len(negatives), PART)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for lower, upper in threads.map(partial(_place, positives), parts):
            below += lower
            not_above += upper
    return Ranks(
        below=below,
        not_above=not_above,
        true_positives=len(positives) - np.searchsorted(positives, positives, side="left"),
        order=order,
        num_negatives=len(negatives),
    )


def rank_pictures(
    maps: Iterable[NDArray[Any]], masks: Iterable[NDArray[Any]], counted: Iterable[Any]
) -> Ranks:
    """`rank` of pictures of any sizes, one by one: two of their maps are in memory at a time.

    Args:
        maps: `[h, w]` float of each, higher is more anomalous; gone through twice.
        masks: `[h, w]` bool of each, true on the defect.
        counted: `[h, w]` bool of each, false where a pixel is in no figure; or None.

    Raises:
        ValueError: as `rank`.
    """
    parts = []
    for one_map, mask, own in zip(maps, masks, counted, strict=True):
        if one_map.shape != mask.shape:
            raise ValueError(f"scores are {one_map.shape}, labels are {mask.shape}")
        if not np.isfinite(one_map).all():
            raise ValueError("scores hold NaN or infinite values")
        parts.append(one_map[mask if own is None else mask & own])
    found = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    order = np.argsort(found)
    positives = found[order]
    below, not_above = np.zeros((2, len(positives)), np.int64)
    num_negatives = 0
    for one_map, mask, own in zip(maps, masks, counted, strict=True):
        negatives = one_map[~mask if own is None else ~mask & own]
        lower, upper = _place(positives, negatives)
        below += lower
        not_above += upper
        num_negatives += len(negatives)
    return Ranks(
        below=below,
        not_above=not_above,
        true_positives=len(positives) - np.searchsorted(positives, positives, side="left"),
        order=order,
        num_negatives=num_negatives,
    )


def _place(
    positives: NDArray[Any], negatives: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of some negatives are below each sorted positive, and how many are not above it."""
    if not len(positives):
        return (np.zeros(0, np.int64),) * 2
    near = np.sort(negatives[negatives >= positives[0]])
    far = len(negatives) - len(near)
    lower, upper = (np.searchsorted(near, positives, side=side) for side in ("left", "right"))
    return far + lower, far + upper


def auroc(ranks: Ranks) -> float:
    """Area under the ROC curve; ties between a positive and a negative count one half."""
    if not ranks.num_positives or not ranks.num_negatives:
        return float("nan")
    pairs = ranks.num_positives * ranks.num_negatives
    twice_won = int(ranks.below.sum()) + int(ranks.not_above.sum())
    return twice_won / (2 * pairs)


def average_precision(ranks: Ranks) -> float:
    """Area under the precision-recall curve by scikit-learn's step rule, not by trapezoids.

    A threshold at which k positives tie adds k/P of its precision: the mean over the positives.
    """
    if not ranks.num_positives:
        return float("nan")
    false_positives = ranks.num_negatives - ranks.below
    return float(np.mean(ranks.true_positives / (ranks.true_positives + false_positives)))


def best_f1(ranks: Ranks) -> float:
    """Largest F1 over all thresholds; only the positives' own scores can attain it."""
    if not ranks.num_positives:
        return float("nan")
    predicted = ranks.true_positives + (ranks.num_negatives - ranks.below)
    return float(np.max(2 * ranks.true_positives / (predicted + ranks.num_positives)))


def aupro(ranks: Ranks, weights: NDArray[np.float64], limit: float = PRO_LIMIT) -> float:
    """Area under the per-region overlap curve up to a false positive rate, divided by that rate.

    A positive pixel enters the curve while the threshold crosses its score: the false positive rate
    goes from `start` to `stop` (equal unless negatives tie with it) and the overlap rises linearly
    by the pixel's weight. So each pixel adds a ramp and a plateau, both cut at `limit`, which
    interpolates the end point exactly.

    Args:
        ranks: pixels of one class.
        weights: `[P]`, in the order the positives were given, summing to 1: 1 / (regions x region
            size).
        limit: largest false positive rate, over all normal pixels of the class.
    """
    if not ranks.num_positives or not ranks.num_negatives:
        return float("nan")
    start = (ranks.num_negatives - ranks.not_above) / ranks.num_negatives
    stop = (ranks.num_negatives - ranks.below) / ranks.num_negatives
    reached = np.clip(limit - start, 0.0, stop - start)
    width = np.where(stop > start, stop - start, 1.0)
    area = reached * reached / (2.0 * width) + np.maximum(limit - stop, 0.0)
    return float(np.sum(weights[ranks.order] * area) / limit)


def region_weights(anomaly_masks: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """Weight of every anomalous pixel: 1 / (number of regions x pixels of its region).

    Args:
        anomaly_masks: `[N, H, W]` bool, or N of any sizes; regions are 8-connected and end at the
            image.

    Returns:
        `[P]` in the order of `anomaly_maps[anomaly_masks]`.
    """
    parts, num_regions = [], 0
    for one_mask in anomaly_masks:
        mask = np.asarray(one_mask, dtype=bool)
        if not mask.any():
            continue
        labels, found = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
        inside = labels[mask]
        parts.append(1.0 / np.bincount(inside, minlength=found + 1)[inside])
        num_regions += found
    return np.concatenate(parts) / num_regions if parts else np.zeros(0)


def image_auroc(image_scores: ArrayLike, image_labels: ArrayLike) -> float:
    """AUROC of `[N]` image scores and `[N]` labels (1 anomalous); NaN if one kind is missing."""
    return auroc(rank(np.asarray(image_scores), np.asarray(image_labels)))


def pixel_metrics(
    anomaly_maps: NDArray[Any] | Sequence[NDArray[Any]],
    anomaly_masks: NDArray[Any] | Sequence[NDArray[Any]],
    counted: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Pixel figures of one class from two sorts.

    Args:
        anomaly_maps: `[N, H, W]` float, higher is more anomalous; or N maps of any sizes, which are
            asked for one by one.
        anomaly_masks: `[N, H, W]` bool, true on the defect; or N of the maps' sizes.
        counted: for maps of any sizes, `[h, w]` bool of each or None: a pixel where it is false is
            in no figure, and a region of a defect ends there.

    Returns:
        `pixel_ap`, `pixel_auroc`, `aupro30`, `f1_max`; NaN without an anomalous pixel.

    Raises:
        ValueError: if the shapes differ, are not three-dimensional, or a score is not finite.
    """
    if isinstance(anomaly_maps, np.ndarray) and counted is None:
        anomaly_masks = np.asarray(anomaly_masks, dtype=bool)
        if anomaly_masks.ndim != 3:
            raise ValueError(f"anomaly masks are {anomaly_masks.shape}, expected [N, H, W]")
        # float16 maps would sort ten times slower than float32 ones and mean the same order
        maps = anomaly_maps
        maps = maps.astype(np.float32) if maps.dtype == np.float16 else maps
        ranks, weights = rank(maps, anomaly_masks), region_weights(anomaly_masks)
    else:
        own = counted if counted is not None else [None] * len(anomaly_maps)
        ranks = rank_pictures(anomaly_maps, anomaly_masks, own)
        pairs = zip(anomaly_masks, own, strict=True)
        weights = region_weights(mask if one is None else mask & one for mask, one in pairs)
    return {
        "pixel_ap": average_precision(ranks),
        "pixel_auroc": auroc(ranks),
        "aupro30": aupro(ranks, weights),
        "f1_max": best_f1(ranks),
    }


def pixel_auroc(anomaly_maps: NDArray[Any], anomaly_masks: NDArray[Any]) -> float:
    """AUROC over all pixels of one class; `[N, H, W]` maps and masks."""
    return auroc(rank(anomaly_maps, anomaly_masks))


def pixel_ap(anomaly_maps: NDArray[Any], anomaly_masks: NDArray[Any]) -> float:
    """Average precision over all pixels of one class; `[N, H, W]` maps and masks."""
    return average_precision(rank(anomaly_maps, anomaly_masks))


def f1_max(anomaly_maps: NDArray[Any], anomaly_masks: NDArray[Any]) -> float:
    """Largest pixel F1 over all thresholds; `[N, H, W]` maps and masks."""
    return best_f1(rank(anomaly_maps, anomaly_masks))


def aupro30(anomaly_maps: NDArray[Any], anomaly_masks: NDArray[Any]) -> float:
    """Per-region overlap up to 30 % false positives, divided by 0.3; `[N, H, W]` maps and masks."""
    return aupro(rank(anomaly_maps, anomaly_masks), region_weights(anomaly_masks))


def class_metrics(
    image_scores: ArrayLike,
    image_labels: ArrayLike,
    anomaly_maps: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
    anomaly_masks: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
    counted: Sequence[Any] | None = None,
) -> dict[str, float]:
    """All figures of one class, keyed as in `METRICS`.

    Args:
        image_scores: `[N]` float, higher is more anomalous.
        image_labels: `[N]`, 0 normal, 1 anomalous; from the folder or table, never from the resized
            mask.
        anomaly_maps: `[N, H, W]` float or N of any sizes, or None if only images are judged.
        anomaly_masks: `[N, H, W]` bool likewise, true on the defect; all false for a normal image.
        counted: as of `pixel_metrics`.

    Raises:
        ValueError: as `pixel_metrics`, or if only one of maps and masks is given.
    """
    if (anomaly_maps is None) != (anomaly_masks is None):
        raise ValueError("anomaly maps and anomaly masks come together or not at all")
    figures = dict.fromkeys(METRICS, float("nan"))
    figures["image_auroc"] = image_auroc(image_scores, image_labels)
    if anomaly_maps is not None and anomaly_masks is not None:
        figures.update(pixel_metrics(anomaly_maps, anomaly_masks, counted))
    return figures


def mean_over_classes(
    per_class: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Unweighted mean of every figure over the classes that define it.

    Returns:
        The means, and for each figure the names of the classes left out because theirs is NaN;
        figures that nobody was left out of are absent there, so an empty dict means nothing is
        hidden.
    """
    means, left_out = {}, {}
    for metric in dict.fromkeys(name for figures in per_class.values() for name in figures):
        values = {name: figures.get(metric, float("nan")) for name, figures in per_class.items()}
        missing = [name for name, value in values.items() if np.isnan(value)]
        means[metric] = _mean([value for value in values.values() if not np.isnan(value)])
        if missing:
            left_out[metric] = missing
    return means, left_out


def forgetting(matrix: ArrayLike) -> float:
    """Chaudhry's forgetting `fm`: best earlier score minus the final one, the last class aside.

    The best is taken over steps at which the class was already learned (b in j..N-1), so scores on
    classes still to come do not count. May be negative; nothing is clipped.

    Args:
        matrix: `[N, N]`, row b after step b, column j for class j; NaN (or None) where not
            evaluated.

    Returns:
        Mean over the classes whose figures are all defined; NaN for a single class.
    """
    scores = _square(matrix)
    last = len(scores) - 1
    drops = [scores[j:last, j].max() - scores[last, j] for j in range(last)]  # max keeps NaN
    return _mean([drop for drop in drops if not np.isnan(drop)])


def mean_final(matrix: ArrayLike) -> float:
    """Mean score over all classes after the last step of a `[N, N]` matrix, NaN left out."""
    final = _square(matrix)[-1]
    return _mean(final[~np.isnan(final)])


def mean_past(matrix: ArrayLike) -> float:
    """Mean score after the last step over all classes but the last; NaN for a single class."""
    past = _square(matrix)[-1, :-1]
    return _mean(past[~np.isnan(past)])


def joint_gap(joint_row: ArrayLike, matrix: ArrayLike) -> float:
    """What joint training on all real images is ahead: mean over classes of joint minus final.

    Args:
        joint_row: `[N]`, scores of the jointly trained detector.
        matrix: `[N, N]` as in `forgetting`.
    """
    final = _square(matrix)[-1]
    joint = np.asarray(joint_row, dtype=np.float64)
    if joint.shape != final.shape:
        raise ValueError(f"the joint row is {joint.shape}, the matrix has {len(final)} classes")
    gaps = joint - final
    return _mean(gaps[~np.isnan(gaps)])


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(matrix, dtype=np.float64)  # None becomes NaN
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"the matrix is {scores.shape}, expected [N, N] with N > 0")
    return scores


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
