"""Rows of `make bench`: a plain reference and ours by turns, so that both feel one machine."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def taken(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(
    row: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    bar: float,
    repeats: int = 3,
) -> dict[str, Any]:
    """Run both by turns and compare.

    Args:
        row: what is measured.
        reference: written plainly, from the published recipe.
        ours: does the same work.
        bar: ratio that is asked for.
        repeats: pairs; the ratio is the median over pairs, `spread` the least and the largest.
    """
    pairs = [(taken(reference), taken(ours)) for _ in range(repeats)]
    ratios = sorted(theirs / own for theirs, own in pairs)
    return told(row, median(p[0] for p in pairs), median(p[1] for p in pairs), bar, ratios)


def told(
    row: str, reference: float, ours: float, bar: float, ratios: list[float] | None = None
) -> dict[str, Any]:
    """A row from times in seconds; `ratios` are those of pairs, none for a single one."""
    ratios = ratios or [reference / ours]
    ratio = median(ratios)
    return {
        "row": row, "reference_s": float(f"{reference:.3g}"), "ours_s": float(f"{ours:.3g}"),
        "ratio": round(ratio, 2), "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "bar": f"at least {bar} times as fast", "met": ratio >= bar,
    }  # fmt: skip
