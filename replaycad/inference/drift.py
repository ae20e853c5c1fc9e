"""Tells when the photos of a class are no longer what they were: its scores have moved."""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

WINDOW = 30  # photos of a class that are looked at together, the latest
RISEN = 0.5
"""Of the median of their scores, where 0 is typical of normal images and 1 the limit. Good test
images of six real classes came to -0.29 to 0.12, so to raise it takes another camera, light or
pose, or defects in more than half of the photos."""


class DriftWatch:
    """Looks at verdicts as they come, class by class."""

    def __init__(self) -> None:
        self._scores: dict[str, deque[float]] = {}
        self._told: set[str] = set()

    def notice(self, told: Mapping[str, Any]) -> str:
        """What is to be said after a verdict, as `predict` yields it; mostly nothing.

        A class is told once, and again after its scores have come back. Photos of an unknown
        product do not count, nor do those that could not be read.
        """
        if "score" not in told or told["verdict"] == "unknown product":
            return ""
        name = str(told.get("class", ""))
        scores = self._scores.setdefault(name, deque(maxlen=WINDOW))
        scores.append(float(told["score"]))
        if len(scores) < WINDOW:
            return ""
        middle = median(scores)
        if middle <= RISEN:
            self._told.discard(name)
            return ""
        if name in self._told:
            return ""
        self._told.add(name)
        of = f" of {name}" if name else ""
        return (
            f"the scores{of} have risen: half of the last {WINDOW} photos lie above {middle:.2f}, "
            "where 0 is typical of normal photos and 1 the limit; light, camera or pose may have "
            "changed: look at them, then calibrate with good photos or train on them"
        )
