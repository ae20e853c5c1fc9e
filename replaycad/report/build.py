"""Puts the page together from a run's results and the artifacts behind them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from replaycad.anomaly import normalized_scores
from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.confusion import NO_PRODUCT, confusion
from replaycad.artifacts.detector import DETECTOR
from replaycad.artifacts.format import read_header
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.artifacts.store import Store
from replaycad.data.layouts import test_samples
from replaycad.engine.timings import Timings
from replaycad.errors import ArtifactError, DatasetError
from replaycad.experiments.contact_sheet import pictures_of
from replaycad.experiments.results import FIGURES
from replaycad.experiments.tables import METRICS, TITLES, format_bytes, fraction, strategy_row
from replaycad.inference.predict import load_predictor
from replaycad.report import plots
from replaycad.report.limits import limit_row
from replaycad.report.pictures import extremes, nearest, pixels_as_data
from replaycad.report.rates import rates, told_of_missed

WORDS = {"mean": "mean", "mean_past": "past", "fm": "forgetting", "joint_gap": "gap to joint"}
_LOW, _HIGH = (178, 24, 43), (33, 102, 172)  # red and blue, which few eyes confuse
_FAINTEST = 0.2  # share of a colour in a cell that has one
_TOO_OLD = (
    "Which product each test image was told to be is not known: these scores are of an earlier "
    "version. Run `replaycad run` again to see it."
)
Document = Mapping[str, Any]


def build_report(
    store: Store, data: Path, run_name: str, encoder: str = "",
    device: torch.device = torch.device("cpu"),  # noqa: B008 - it is a constant
) -> str:
    """The page of a run: one HTML document that asks nothing of any network.

    Args:
        store: with the run's results and artifacts.
        data: folder of the images; without it the page has no pictures of test images.
        run_name: of the results.
        encoder: of the detector, as `eval` takes it.
        device: where the detector runs that draws the heat maps.

    Raises:
        ArtifactError: no such results, or an artifact behind them is damaged.
    """
    path = store.path("results", run_name, ".json")
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        message = f"{path} holds no results"
        raise ArtifactError(message, "run `replaycad run --class ...` first") from None
    shown, entry = _shown(document["strategies"])
    names = entry["artifacts"]
    scores = ScoresArtifact.load(store.path("scores", names["detector"]))
    header = read_header(store.path("detectors", names["detector"]), DETECTOR)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("replaycad.report", "."), autoescape=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=f"Run {run_name}", classes=document["classes"], seeds=document["seeds"],
        columns=[*(f"{TITLES[m]} {WORDS[f]}" for m in METRICS for f in FIGURES), "bytes a class",
                 "seconds"],
        table=[strategy_row(name, one) for name, one in document["strategies"].items()],
        left_out=[f"{name}: {why}" for name, why in document.get("left_out", {}).items()],
        plots=_plots(document), matrices=_matrices(document), shown=shown,
        detector=names["detector"], products=_products(scores, header["thresholds"]),
        limits=_limits(store, header, document["classes"], names["stored"]),
        cards=_cards(store, data, document, entry, scores, encoder, device),
        provenance=_provenance(store, names),
    )  # fmt: skip


def write_report(
    store: Store, data: Path, run_name: str, encoder: str, device: torch.device, target: Path
) -> None:
    """Write the page of a run as a file; arguments and errors as for `build_report`."""
    write_text(target, build_report(store, data, run_name, encoder, device))


def _shown(strategies: Mapping[str, Document]) -> tuple[str, Document]:
    """The strategy whose pictures are shown: the first that draws replays, else the first."""
    drawing = [name for name, one in strategies.items() if one["artifacts"]["stored"]]
    name = (drawing or list(strategies))[0]
    return name, strategies[name]


def _plots(document: Document) -> list[dict[str, str]]:
    strategies = document["strategies"]
    found = []
    for metric in METRICS:
        lines = {}
        for name, entry in strategies.items():
            points = []
            for step, row in enumerate(entry[metric]["matrix"], start=1):
                known = [value for value in row if value is not None]
                if known:
                    points.append((step, 100 * sum(known) / len(known)))
            if len(points) > 1:
                lines[name] = points
        if lines:
            title = f"{TITLES[metric]}, mean of the classes seen so far"
            found.append({"title": title, "svg": plots.curves(lines, "step", TITLES[metric])})
        bought = _by_bytes(strategies, metric)
        if bought:
            title = f"{TITLES[metric]} of past classes against bytes kept of each"
            svg = plots.curves(bought, "bytes of a class", TITLES[metric], log_x=True)
            found.append({"title": title, "svg": svg})
    return found


def _by_bytes(strategies: Mapping[str, Document], metric: str) -> dict[str, list]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, entry in strategies.items():
        value = entry[metric]["mean_past"]
        if "budget" in entry and value is not None:
            form = " ".join(name.split()[:-1]) or name
            lines.setdefault(form, []).append((entry["budget"], 100 * value))
    return {name: sorted(points) for name, points in lines.items() if len(points) > 1}


def _matrices(document: Document) -> list[dict[str, Any]]:
    classes = document["classes"]
    return [
        {
            "title": f"{name}: {TITLES[metric]}",
            "rows": [
                {"name": f"{step} + {classes[step - 1]}", "cells": [_cell(value) for value in row]}
                for step, row in enumerate(entry[metric]["matrix"], start=1)
                if any(value is not None for value in row)
            ],
            "forgotten": _forgotten(entry[metric]["matrix"]),
        }
        for name, entry in document["strategies"].items() for metric in METRICS
    ]  # fmt: skip


def _cell(value: float | None) -> dict[str, str]:
    """Text, ground and ink of a cell."""
    if value is None:
        return {"text": "", "colour": "", "ink": ""}
    return {"text": fraction(value), **_shade(value)}


def _shade(value: float) -> dict[str, str]:
    """Ground and ink, from red at 0 to blue at 1; light grounds have dark ink and the reverse."""
    end, share = (_HIGH, 2 * value - 1) if value >= 0.5 else (_LOW, 1 - 2 * value)
    ground = [round(255 + (one - 255) * share) for one in end]
    linear = [(one / 255) ** 2.2 for one in ground]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # The ink of higher contrast (WCAG 2): at least 4.5 on any ground.
    ink = "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"
    return {"colour": f"rgb{tuple(ground)}", "ink": ink}


def _forgotten(matrix: Sequence[Sequence[float | None]]) -> list[str]:
    """Best earlier score minus the last, class by class."""
    found = []
    for column in range(len(matrix)):
        values = [value for row in matrix if (value := row[column]) is not None]
        found.append(fraction(max(values[:-1]) - values[-1]) if len(values) > 1 else "")
    return found


def _products(scores: ScoresArtifact, thresholds: Document) -> dict[str, Any]:
    """The table of what the test images were told to be, or in `why` why there is none."""
    told = confusion(scores, thresholds)
    if told is None:
        is_old = "told_classes" not in scores.header
        return {"why": _TOO_OLD if is_old else "This detector does not tell products apart."}
    columns = [*told.told, NO_PRODUCT]
    rows = []
    for name, counts in zip(told.classes, told.counts.tolist(), strict=True):
        cells = []
        for column, count in zip(columns, counts, strict=True):
            # Even one image of many that is told wrong shall catch the eye.
            share = max(count / sum(counts), _FAINTEST)
            value = (1 + share if told.is_right(name, column) else 1 - share) / 2
            ground = _shade(value) if count else {"colour": "", "ink": ""}
            cells.append({"text": str(count), **ground})
        rows.append({"name": name, "cells": cells})
    return {"why": "", "columns": columns, "rows": rows, "sentence": told.sentence()}


def _limits(
    store: Store, header: Document, classes: Sequence[str], stored: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows of the table of limits."""
    rows = []
    for name in classes:
        paths = {f"{kind}/{stored[name]}": store.path(kind, stored[name])
                 for kind in ("conditions", "replays") if name in stored}  # fmt: skip
        kept = {label: read_header(path) for label, path in paths.items() if path.exists()}
        rows.append({"name": name, **limit_row(header, name, kept)})
    return rows


def _cards(
    store: Store, data: Path, document: Document, entry: Document, scores: ScoresArtifact,
    encoder: str, device: torch.device,
) -> list[dict[str, Any]]:  # fmt: skip
    names = entry["artifacts"]
    predictor = load_predictor(store, names["detector"], encoder, device)
    cards = []
    for name in document["classes"]:
        card: dict[str, Any] = {
            "name": name, "pictures": {}, "extremes": [], "nearest": {}, "missing": "",
            "histogram": "",
        }  # fmt: skip
        own = predictor.of_class(name)
        rows = np.flatnonzero(scores.class_index == scores.classes.index(name))
        raw = torch.from_numpy(scores.image_scores[rows])
        values = normalized_scores(raw, own.graph.thresholds).numpy()
        by_id = {scores.image_ids[row]: float(one) for row, one in zip(rows, values, strict=True)}
        try:
            drawn = names["stored"].get(name, name)
            found = pictures_of(data, store, name, drawn)
            card["pictures"] = {
                kind: [pixels_as_data(one) for one in images] for kind, images in found.items()
            }
            samples = test_samples(data, name)
            card["extremes"] = extremes(samples, by_id, own)
            card["nearest"] = nearest(samples, by_id, own)
        except DatasetError as error:  # the page is also written where the images no longer are
            card["missing"] = error.message
        labels = scores.image_labels[rows].astype(bool)
        limits = own.graph.thresholds
        promised = limits.get("promised", limits["false_alarm_rate"])  # of few photos it is more
        card["rates"] = rates(values, labels, promised)
        card["missed"] = told_of_missed(own.header, name, limits["image"])
        card["histogram"] = plots.histogram(values[~labels].tolist(), values[labels].tolist())
        card["kept"] = format_bytes(entry["bytes_per_class"][name])
        cards.append(card)
    return cards


def _provenance(store: Store, names: Document) -> list[dict[str, str]]:
    kept = names["stored"].values()
    wanted = [(kind, name) for name in kept for kind in ("conditions", "replays")]
    wanted += [("detectors", names["detector"]), ("scores", names["detector"])]
    rows, ledger = [], Timings(store)
    for kind, name in wanted:
        path = store.path(kind, name)
        if not path.exists():
            continue
        header = read_header(path)
        rows.append({
            "file": f"{kind}/{path.name}", "stage": str(header.get("stage", "")),
            "seed": str(header.get("seed", "")), "num_bytes": format_bytes(path.stat().st_size),
            "seconds": f"{ledger.seconds(kind, name, header.get('key', '')):.1f}",
            "content_id": str(header.get("content_id", ""))[:16],
        })  # fmt: skip
    return rows
