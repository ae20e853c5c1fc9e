"""Figures as a table shows them, in a terminal and on a page."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

METRICS = ("image_auroc", "pixel_ap")
TITLES = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP"}


def format_bytes(count: int) -> str:
    """`count` bytes in the largest unit that keeps it above 1: 205600 -> '205.6 kB'."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the loop always returns")


def strategy_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """One strategy of a results document in words: figures, bytes of a class, seconds."""
    cells = [name]
    for metric in METRICS:
        figures = entry[metric]
        spread = figures.get("std", {})
        for figure in ("mean", "mean_past", "fm", "joint_gap"):
            text = fraction(figures[figure])
            if spread.get(figure) is not None:
                text += f" ±{100 * spread[figure]:.1f}"
            cells.append(text)
    return [*cells, format_bytes(kept_of_a_class(entry)), f"{entry['seconds']:.0f}"]


def fraction(value: float | None) -> str:
    """A fraction as a percentage with one decimal; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def kept_of_a_class(entry: Mapping[str, Any]) -> int:
    """Mean bytes of the classes of which a strategy keeps anything; 0 where it keeps nothing."""
    sizes = [size for size in entry["bytes_per_class"].values() if size]
    return round(fmean(sizes)) if sizes else 0
