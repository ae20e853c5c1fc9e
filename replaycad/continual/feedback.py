"""What people said of photos: patches that a detector keeps, a limit that moves, and an undo.

Every piece of feedback is a record in the header of the detector. It says what was changed, so the
latest can be taken back, and the detector is then what it was before, to the bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.detector import Arrays, DetectorArtifact
from replaycad.continual.forgetting import BANK, INDEX, RECORDS
from replaycad.detectors.limits import SLACK, score_at

GOOD, DEFECTIVE = "good", "defective"

Limits = Mapping[str, Any]
Record = dict[str, Any]


def records(header: Mapping[str, Any], class_name: str = "") -> list[Record]:
    """What was said, the latest last; of one class, or of all."""
    found: list[Record] = header.get(RECORDS, [])
    return [one for one in found if not class_name or one["class_name"] == class_name]


def with_feedback(
    artifact: DetectorArtifact,
    record: Mapping[str, Any],
    limits: Limits,
    patches: NDArray[np.float32] | None = None,
) -> DetectorArtifact:
    """A detector that has learned from one piece of feedback.

    Args:
        artifact: knows the class.
        record: `class_name`, `kind` and `photos`; what an undo needs is added.
        limits: of the class from now on.
        patches: `[N, D]`, which its bank gets behind all it has: by the first of a bank images are
            routed to their class. A detector without a bank keeps them as `confirmed`.
    """
    class_name = record["class_name"]
    thresholds = with_limits(artifact, class_name, limits)
    before = {name: artifact.thresholds[name] for name in _changed(artifact.thresholds, thresholds)}
    num_rows = 0 if patches is None else len(patches)
    if patches is not None and num_rows:
        held = _held(artifact)
        index = np.full(num_rows, artifact.class_order.index(class_name), np.int64)
        bank = patches.astype(np.float32)
        if held:
            bank = np.concatenate([held[BANK], bank.astype(held[BANK].dtype)])
            index = np.concatenate([held[INDEX], index.astype(held[INDEX].dtype)])
        artifact = _holding(artifact, {**held, BANK: bank, INDEX: index})
    kept = {
        **record, "num_rows": num_rows, "overall_before": before,
        "before": dict(artifact.thresholds["by_class"][class_name]), "after": dict(limits),
    }  # fmt: skip
    header = {**artifact.header, RECORDS: [*records(artifact.header), kept]}
    return replace(artifact, thresholds=thresholds, header=header)


def without_latest(artifact: DetectorArtifact) -> tuple[DetectorArtifact, Record, bool]:
    """The detector before its latest feedback, what that was, and whether its limits are back.

    They are not where somebody has set others since.

    Raises:
        ValueError: there is none.
    """
    if not records(artifact.header):
        raise ValueError("no feedback to take back")
    *earlier, latest = records(artifact.header)
    class_name = latest["class_name"]
    if latest["num_rows"]:
        held = _held(artifact)
        own = held[INDEX] == artifact.class_order.index(class_name)
        kept = np.ones(len(own), np.bool_)
        kept[np.flatnonzero(own)[-latest["num_rows"] :]] = False
        left = {**held, BANK: held[BANK][kept], INDEX: held[INDEX][kept]}
        artifact = _holding(artifact, left)
    header = {name: value for name, value in artifact.header.items() if name != RECORDS}
    header |= {RECORDS: earlier} if earlier else {}
    thresholds = artifact.thresholds
    is_back = thresholds["by_class"][class_name] == latest["after"]
    if is_back:
        by_class = {**thresholds["by_class"], class_name: latest["before"]}
        thresholds = {**thresholds, **latest["overall_before"], "by_class": by_class}
    found = replace(artifact, thresholds=thresholds, header=header)
    return found, latest, is_back


def _held(artifact: DetectorArtifact) -> Arrays:
    """Where a detector keeps patches of photos: in its bank, or beside its weights."""
    return artifact.state if BANK in artifact.state else artifact.confirmed


def _holding(artifact: DetectorArtifact, held: Arrays) -> DetectorArtifact:
    """The same with other patches of photos."""
    if BANK in artifact.state:
        return replace(artifact, state=held)
    return replace(artifact, confirmed=held if len(held[INDEX]) else {})


def with_limits(artifact: DetectorArtifact, class_name: str, limits: Limits) -> dict[str, Any]:
    """All limits of a detector once those of a class are these.

    Those over all classes stay, save where there is one class and nobody has to name it.
    """
    before = artifact.thresholds
    found = {**before, "by_class": {**before["by_class"], class_name: dict(limits)}}
    if artifact.class_order == [class_name]:
        found |= {kind: value for kind, value in limits.items() if kind in before}
    return found


def _changed(before: Limits, after: Limits) -> list[str]:
    return [name for name, value in before.items()
            if name != "by_class" and value != after[name]]  # fmt: skip


def false_alarms(limits: Limits, score: float) -> float:
    """Share of good photos that scores above `score` is expected of, in 0..1.

    The inverse of `score_at`: from the median of good scores and their limit, taken for log-normal;
    where one of them is not above 0, for normal.
    """
    usual, limit = float(limits["typical_image"]), float(limits["image"])
    place = NormalDist().inv_cdf(1 - limits["false_alarm_rate"])
    if min(usual, limit, score) > 0:
        usual, limit, score = (float(np.log(one)) for one in (usual, limit, score))
    spread = max(limit - usual, 1e-12) / place
    return 1 - NormalDist().cdf((score - usual) / spread)


def lowered(
    limits: Limits, missed: Sequence[float], most: float, good: Sequence[float] = ()
) -> dict[str, Any]:
    """Limits of a class by which missed defects are alarms, as far as good photos allow.

    Args:
        limits: of the class by now.
        missed: image scores of the defects.
        most: share of good photos that may become alarms, in 0..1.
        good: image scores of photos that people called good.

    Returns:
        limits below the lowest of the scores that can be had; the same if there is none, or all
        are alarms already.
    """
    floor = max(score_at(limits, most), *good) if good else score_at(limits, most)
    typical = float(limits["typical_image"])
    wanted = [one - SLACK * abs(one - typical) for one in missed if one <= limits["image"]]
    reached = [one for one in wanted if one > max(floor, typical)]
    if not reached:
        return dict(limits)
    image = min(reached)
    kept = {name: value for name, value in limits.items() if name not in ("photos", "promised")}
    trained = limits.get("trained", kept)
    return {**kept, "image": image, "false_alarm_rate": false_alarms(limits, image),
            "trained": dict(trained)}  # fmt: skip
