"""Sets the limits of one class of a trained detector from good photos of today."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.store import Store
from replaycad.continual.feedback import with_limits
from replaycad.data.pixels import read_picture
from replaycad.data.views import View, view_of
from replaycad.detectors.limits import (
    PIXEL_STEP,
    NormalScores,
    calibrated,
    needed_photos,
    of_training,
    rank,
    together,
)
from replaycad.engine.staleness import input_header
from replaycad.errors import ConfigError, DatasetError
from replaycad.inference.photos import Found
from replaycad.inference.predict import (
    Predictor,
    detector_name,
    open_detector,
    predictor_of,
)
from replaycad.progress import Report, silent

CONFIDENCE = 0.95
MOST_FALSE_ALARMS = 0.5  # that may be wanted; 0.5 typed for 0.5 % is told
BATCH_SIZE = 8
RAW = {
    "typical_image": 0.0, "image": 1.0, "typical_pixel": 0.0, "pixel": 1.0, "product": 1.0,
}  # fmt: skip
"""Limits by which scores, maps and distances are as they come."""


@dataclass(frozen=True)
class Calibration:
    """What photos of a class came to.

    Attributes:
        file: of the detector.
        class_name: of the class.
        before, after: its limits.
        scores: `[N]` float32, of the photos, as the detector gives them.
        num_repeated: photos that were there already, byte for byte.
        needs_class: whether verdicts go by these limits only where the class is named.
    """

    file: Path
    class_name: str
    before: dict[str, Any]
    after: dict[str, Any]
    scores: np.ndarray
    num_repeated: int
    needs_class: bool

    def facts(self) -> dict[str, Any]:
        """For JSON; `limit` is on the old scale, where 1 was the limit, and rates are in 0..1."""
        old, new, count = self.before, self.after, len(self.scores)
        spread = max(old["image"] - old["typical_image"], 1e-12)
        rate = new["false_alarm_rate"]
        place = min(rank(count, rate), count)
        return {
            "file": str(self.file), "class_name": self.class_name, "num_photos": count,
            "num_repeated": self.num_repeated, "target_false_alarms": rate,
            "promised_false_alarms": new["promised"],
            # Whatever their distribution, the share above the k-th of n is Beta(n + 1 - k, k).
            "at_most": float(stats.beta.ppf(CONFIDENCE, count + 1 - place, place)),
            "num_needed": needed_photos(rate),
            "limit": (new["image"] - old["typical_image"]) / spread,
            "num_alarms_before": int((self.scores > old["image"]).sum()),
            "num_alarms": int((self.scores > new["image"]).sum()),
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """What a user is told."""
        facts, count = self.facts(), len(self.scores)
        photos = f"{count} photo{'s' * (count != 1)}"
        way = "rises" if facts["limit"] > 1 else "falls"
        alarms, now = facts["num_alarms_before"], facts["num_alarms"]
        lines = [
            f"limit of {self.class_name}: {way} to {facts['limit']:.3g} on the old scale, where "
            f"it was 1; of {photos}, {alarms} {_was(alarms)} above the old limit, {now} "
            f"{'is' if now == 1 else 'are'} above the new one",
            f"{photos} promise{'s' * (count == 1)} at most {percent(self.after['promised'])} "
            f"false alarms, in the mean over such sets of photos; with this set at most "
            f"{percent(facts['at_most'])}, with {100 * CONFIDENCE:g} % confidence",
        ]
        if count < facts["num_needed"]:
            rate = percent(facts["target_false_alarms"])
            lines.append(f"{facts['num_needed']} photos or more can promise {rate}")
        if self.num_repeated:
            were = _was(self.num_repeated)
            lines.append(f"{self.num_repeated} more {were} repeated and counted once")
        if self.needs_class:
            lines.append(
                "this detector does not tell its classes apart: verdicts go by the new limit "
                f"with --class {self.class_name}"
            )
        return lines


def calibrate(
    store: Store,
    name: str,
    class_name: str,
    images: Iterable[Found],
    rate: float,
    device: torch.device,
    encoder: str = "",
    is_dry: bool = False,
    report: Report = silent,
) -> Calibration:
    """Set the limits of a class from good photos, and keep them in the detector.

    Weights, the limits of other classes and those over several classes stay as they are, and so
    does what the detector was made from: it counts as up to date. To train it again drops what was
    calibrated.

    Args:
        store: that holds the detector.
        name: of the detector; empty where the store holds one alone.
        class_name: of the photos.
        images: the photos.
        rate: of false alarms that is wanted, in 0..1.
        device: where the detector runs.
        encoder: as `eval` takes it; empty for the one that it was trained with.
        is_dry: whether to leave the detector as it is.
        report: hears of photos that look like another product.

    Raises:
        ConfigError: no such class, or no name and not exactly one detector.
        DatasetError: no photos, one that cannot be read, or most look like another class.
        ArtifactError: no such detector, or another encoder than its own; or it cannot be written.
        WeightsError: if the encoder's files are missing.
    """
    name = detector_name(store, name)
    path = store.path("detectors", name)
    input_header(path, "detectors")  # or say which there are, before a lock is left
    with held_alone(store, name, is_dry, report):
        trained, encoder = open_detector(store, name, encoder)
        judging, photos = raw_predictor(trained, encoder, device, class_name), Photos(images)
        before = trained.thresholds["by_class"][class_name]
        parts = scores_of(judging, class_name, photos, before, report)
        after = calibrated(together(parts), before, rate)
        if not is_dry:
            replace(trained, thresholds=with_limits(trained, class_name, after)).save(path)
    scores = np.concatenate([part.image_scores for part in parts])
    needs_class = not (judging.graph.classes or trained.class_order == [class_name])
    return Calibration(path, class_name, before, after, scores, photos.num_repeated, needs_class)


def parsed_rate(text: str, option: str = "--target-false-alarms") -> float:
    """`0.5%` and `0.005` as 0.005; an error names the option.

    Raises:
        ConfigError: if it is no rate between 0 and `MOST_FALSE_ALARMS`.
    """
    number = text.strip()
    try:
        rate = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        rate = 0.0
    if not 0 < rate < MOST_FALSE_ALARMS:
        raise ConfigError(
            f"{option} takes a rate between 0 and 50 %, not '{text}'",
            "write it as 0.5% or 0.005",
        )
    return rate


class Photos:
    """Named RGB pictures as the class is seen; a file of the same bytes as another comes once."""

    def __init__(self, images: Iterable[Found]) -> None:
        self._images = images
        self.num_repeated = 0
        self.files: list[Found] = []  # of the pictures, as they came

    def seen(self, view: View) -> Iterator[tuple[str, Image.Image]]:
        """Read them one by one.

        Raises:
            DatasetError: if one cannot be read, or not be seen so.
        """
        known: set[bytes] = set()
        for found in self._images:
            picture = read_picture(found.path, view.white)  # or say why not
            view.check(*picture.size, str(found.path))
            digest = hashlib.sha256(found.path.read_bytes()).digest()
            self.num_repeated += digest in known
            if digest not in known:
                known.add(digest)
                self.files.append(found)
                yield str(found.path), picture


def raw_predictor(
    trained: DetectorArtifact, encoder: str, device: torch.device, class_name: str
) -> Predictor:
    """Sees pictures as those of the class, and judges by no limits and by the nearest class."""
    by_class = trained.thresholds.get("by_class", {})
    raw = {**RAW, "by_class": {name: {**RAW, "trained": of_training(own)}
                               for name, own in by_class.items()}}  # fmt: skip
    judging = predictor_of(replace(trained, thresholds=raw), encoder, device)
    judging.graph.of_class(class_name)  # or say that it has none
    return replace(judging, view=view_of(trained.header, class_name))


def scores_of(
    predictor: Predictor, class_name: str, photos: Photos, before: dict[str, Any], report: Report
) -> list[NormalScores]:
    """Scores of the photos, one by one, with distances of those that are nearest to their class.

    Args:
        predictor: as of `raw_predictor`.
        class_name: of the photos.
        photos: at least one.
        before: limits of the class.
        report: hears of photos that look like another product.

    Raises:
        DatasetError: no photo, one that cannot be read, or most look like another class.
    """
    parts: list[NormalScores] = []
    others: list[str] = []
    for one in predictor.judge(photos.seen(predictor.one_view()), BATCH_SIZE):
        values = one.anomaly_map[::PIXEL_STEP, ::PIXEL_STEP].ravel()
        values = values[np.isfinite(values)]  # what is ignored does not count
        distances = [] if one.distance is None else [one.distance]
        if distances and one.class_name != class_name:
            others.append(one.class_name)
            distances = []
        own = NormalScores(np.array([one.score], np.float32), values).sketched()
        parts.append(replace(own, distances=np.array(distances, np.float32)))
        report.step("calibrate", len(parts), len(parts) + 1)
    if not parts:
        raise DatasetError("no photo was named", "name files, folders, or - with paths on stdin")
    if 2 * len(others) > len(parts):
        named = ", ".join(sorted(set(others)))
        raise DatasetError(
            f"{len(others)} of {len(parts)} photos look more like {named} than {class_name}; "
            "nothing was changed",
            "give photos of that class",
        )
    if others:
        report.note(f"{len(others)} of {len(parts)} photos look more like another class")
    far = sum(float((part.distances > before.get("product", np.inf)).sum()) for part in parts)
    if far:
        report.note(
            f"{far:.0f} of {len(parts)} photos were of an unknown product until now: check that "
            f"they show {class_name}"
        )
    return parts


def held_alone(
    store: Store, name: str, is_dry: bool, report: Report
) -> AbstractContextManager[Any]:
    """Keep other commands from a detector, unless nothing is to be written."""
    return nullcontext() if is_dry else store.alone_with(
        "detectors", name,
        lambda: report.note(f"waiting: another command is making detectors/{name}"),
    )  # fmt: skip


def percent(share: float) -> str:
    """`1.5 %` of 0.015."""
    return f"{100 * share:.3g} %"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
