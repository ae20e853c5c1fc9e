"""Curves and histograms as inline SVG, drawn by matplotlib in the colours of the page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_INK = "#010203"  # replaced by the page's own, so that light and dark both can be read
# Okabe and Ito's colours, which most eyes can tell apart, with a mark and a dash for the others.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "svg.hashsalt": "replaycad", "svg.fonttype": "none", "font.size": 10, "text.color": _INK,
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip

Points = Sequence[tuple[float, float]]


def curves(
    lines: Mapping[str, Points], x_label: str, y_label: str, log_x: bool = False
) -> str:
    """Lines over one axis, as SVG.

    Args:
        lines: name -> points in rising order of x.
        x_label: of the axis.
        y_label: likewise.
        log_x: whether x counts in factors.
    """

    def draw(axes: Any) -> None:
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(
                *zip(*points, strict=True), label=name, color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKS[number % len(_MARKS)], markersize=4,
            )  # fmt: skip
        if log_x:
            axes.set_xscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if not log_x:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)

    return _svg(draw, (5.2, 3.0))


def histogram(normal: Sequence[float], anomalous: Sequence[float]) -> str:
    """Image scores of normal and anomalous images with the threshold at 1, as SVG."""

    def draw(axes: Any) -> None:
        values = [*normal, *anomalous, 1.0]
        low, high = min(values), max(values)
        bins = [low + (high - low or 1.0) * step / 20 for step in range(21)]
        for scores, label, colour, hatch in (
            (normal, "normal", _COLOURS[0], ""), (anomalous, "anomalous", _COLOURS[1], "//"),
        ):  # fmt: skip
            axes.hist(scores, bins, label=label, color=colour, alpha=0.6, hatch=hatch)
        axes.axvline(1.0, color=_INK, linestyle="--", linewidth=1, label="threshold")
        axes.set_xlabel("image score")
        axes.set_ylabel("images")
        axes.legend(fontsize=8)

    return _svg(draw, (4.0, 2.2))


def _svg(draw: Any, inches: tuple[float, float]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        with io.StringIO() as file:
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
            text = file.getvalue()
    # Without the XML head it can stand inside a page.
    return text[text.index("<svg") :].replace(_INK, "currentColor")
