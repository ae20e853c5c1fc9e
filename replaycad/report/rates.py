"""What verdicts are worth: how many alarms were false, and how many defects were found."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from replaycad.continual.feedback import DEFECTIVE, records

CONFIDENCE = 0.95


def interval(count: int, total: int) -> tuple[float, float]:
    """Shares that `count` of `total` is compatible with, in 0..1 (Clopper and Pearson, 1934)."""
    outside = (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(outside, count, total - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - outside, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def rates(scores: NDArray[np.float32], labels: NDArray[np.bool_], promised: float) -> str:
    """A sentence on the verdicts of test images.

    Args:
        scores: `[N]`, above 1 is an alarm.
        labels: `[N]`, true for defective images.
        promised: false alarms that the limit allows, in 0..1.
    """
    alarms = scores > 1
    told = []
    normal, defective = int((~labels).sum()), int(labels.sum())
    if normal:
        false = int(alarms[~labels].sum())
        low, high = (f"{100 * share:.1f}" for share in interval(false, normal))
        told.append(
            f"{false} of {normal} normal test images {_is(false)} called anomalous: "
            f"{low} to {high} % of all with {100 * CONFIDENCE:g} % confidence, "
            f"where the limit allows {100 * promised:.3g} %"
        )
    if defective:
        found = int(alarms[labels].sum())
        told.append(f"{found} of {defective} defective ones {_is(found)} found")
    return "; ".join(told) + "." if told else ""


def told_of_missed(header: Mapping[str, Any], class_name: str, limit: float) -> str:
    """A sentence on the defects of a class that people say the detector missed; empty if none.

    Args:
        header: of the detector.
        class_name: of the class.
        limit: of its image scores by now.
    """
    scores = [
        photo["score"] for record in records(header, class_name)
        if record["kind"] == DEFECTIVE for photo in record["photos"]
    ]  # fmt: skip
    if not scores:
        return ""
    count, found = len(scores), sum(score > limit for score in scores)
    return (
        f"Missed defects told by people: {count}; {found} of them {_is(found)} above the limit "
        "now."
    )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
