"""Teaches a detector what a person says of photos: false alarms, and defects that it missed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.store import Store
from replaycad.continual.feedback import (
    DEFECTIVE,
    GOOD,
    RECORDS,
    false_alarms,
    lowered,
    records,
    with_feedback,
    without_latest,
)
from replaycad.continual.forgetting import BANK, rows_of
from replaycad.detectors.limits import SLACK, NormalScores, calibrated, together
from replaycad.detectors.patchcore.growth import new_patches, spacing
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.registry import preset_for
from replaycad.engine.staleness import input_header
from replaycad.errors import ConfigError
from replaycad.inference.calibrate import (
    Photos,
    held_alone,
    percent,
    raw_predictor,
    scores_of,
)
from replaycad.inference.photos import Found
from replaycad.inference.predict import Predictor, detector_name, open_detector
from replaycad.progress import Report, silent

GROWTH = 1.25  # of the limit of a bank, up to which feedback fills it: so verdicts stay as quick
CONFIRMED_LIMIT = 500  # patches of a class beside a detector without a bank
MOST_FALSE_ALARMS = 0.05  # of good photos, that missed defects may lower a limit to


@dataclass(frozen=True)
class Feedback:
    """What photos of a class taught.

    Attributes:
        file: of the detector.
        record: as it is kept, without what an undo needs.
        before, after: limits of the class.
        scores: `[N]` float32, of the photos before, as the detector gives them.
        scores_after: likewise afterwards.
        num_rows: patches that were added.
        num_left: patches of the photos that the bank has no room for.
        num_repeated: photos that were there already, byte for byte.
        needs_class: whether verdicts go by the limits of the class only where it is named.
        is_bank: whether the detector is a memory bank.
    """

    file: Path
    record: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    scores: np.ndarray
    scores_after: np.ndarray
    num_rows: int
    num_left: int
    num_repeated: int
    needs_class: bool
    is_bank: bool

    def facts(self) -> dict[str, Any]:
        """For JSON; `limit` is on the old scale, where 1 was the limit, and rates are in 0..1.

        `needed_false_alarms` would come of a limit below all the defects; None if it is there.
        """
        old, new = self.before, self.after
        spread = max(old["image"] - old["typical_image"], 1e-12)
        is_good = self.record["kind"] == GOOD
        expected = false_alarms(old, new["image"])
        if is_good and new["image"] < old["image"]:  # for the scores have fallen too
            expected = new["promised"]
        missed = self.scores_after[(self.scores_after <= new["image"]) & (not is_good)]
        return {
            "file": str(self.file), "class_name": self.record["class_name"],
            "kind": self.record["kind"], "num_photos": len(self.scores),
            "num_repeated": self.num_repeated, "num_patches": self.num_rows,
            "num_patches_left": self.num_left,
            "limit": (new["image"] - old["typical_image"]) / spread,
            "num_alarms_before": int((self.scores > old["image"]).sum()),
            "num_alarms": int((self.scores_after > new["image"]).sum()),
            "expected_false_alarms": expected,
            "needed_false_alarms": false_alarms(old, float(missed.min())) if len(missed) else None,
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """What a user is told."""
        facts, name = self.facts(), self.record["class_name"]
        count, now = facts["num_photos"], facts["num_alarms"]
        photos = f"{count} photo{'s' * (count != 1)}"
        is_good = facts["kind"] == GOOD
        lines = [
            f"{photos} of {name}: {facts['num_alarms_before']} above its limit before, {now} now"
        ]
        if is_good:
            way = "joined the bank" if self.is_bank else "are kept as good beside the weights"
            lines.append(f"{self.num_rows} patches {way} of {name}")
        if self.num_left:
            lines.append(
                f"{self.num_left} more are new to it and were dropped: there is no more room, "
                "train on these photos instead"
            )
        if facts["limit"] != 1:
            way = "rises" if facts["limit"] > 1 else "falls"
            lines.append(
                f"limit of {name}: {way} to {facts['limit']:.3g} on the old scale, where it was 1; "
                f"{percent(facts['expected_false_alarms'])} of good photos are expected above it"
            )
            if self.needs_class:
                lines.append(
                    "this detector does not tell its classes apart: verdicts go by the new limit "
                    f"with --class {name}"
                )
        if not is_good and now < count:
            lines.append(
                f"{count - now} of the defects score like good photos: a limit below them all "
                f"would raise alarms on {percent(facts['needed_false_alarms'])} of good ones"
            )
        if self.num_repeated:
            were = "was" if self.num_repeated == 1 else "were"
            lines.append(f"{self.num_repeated} more {were} repeated and counted once")
        return lines


def learn(
    store: Store,
    name: str,
    class_name: str,
    images: Iterable[Found],
    is_good: bool,
    most: float,
    device: torch.device,
    encoder: str = "",
    is_dry: bool = False,
    report: Report = silent,
) -> Feedback:
    """Teach a detector what a person says of photos of one class, and keep it there.

    Good photos give their new patches to the bank of the class; a detector without a bank keeps
    what it found anomalous of them, its weights stay, and as its scores fall, so do the limits of
    the class. Defective ones lower the limit. What is
    known of other classes and their limits stay as they are. To train the detector again drops it
    all.

    Args:
        store: that holds the detector.
        name: of the detector; empty where the store holds one alone.
        class_name: of the photos.
        images: the photos.
        is_good: whether they are good, or else defective.
        most: share of good photos that defective ones may make alarms, in 0..1.
        device: where the detector runs.
        encoder: as `eval` takes it; empty for the one that it was trained with.
        is_dry: whether to leave the detector as it is.
        report: hears of photos that look like another product.

    Raises:
        ConfigError: no such class, no name and not exactly one detector, or good photos for one
            that has no memory bank, nor one beside it.
        DatasetError: no photos, one that cannot be read, or most look like another class.
        ArtifactError: no such detector, or another encoder than its own; or it cannot be written.
        WeightsError: if the encoder's files are missing.
    """
    name, found = detector_name(store, name), list(images)
    input_header(path := store.path("detectors", name), "detectors")  # or say which there are
    with held_alone(store, name, is_dry, report):
        trained, encoder = open_detector(store, name, encoder)
        judging, photos = raw_predictor(trained, encoder, device, class_name), Photos(found)
        before = trained.thresholds["by_class"][class_name]
        if is_good and not judging.graph.has_banks:
            raise ConfigError(
                f"{name} cannot learn from good photos: its encoder gives one level of features",
                "set its limit from them with `replaycad calibrate`, or train on them",
            )
        parts = scores_of(judging, class_name, photos, before, report)
        scores = _image_scores(parts)
        record: dict[str, Any] = {
            "class_name": class_name, "kind": GOOD if is_good else DEFECTIVE,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        rows, num_left = None, 0
        if is_good:
            rows, places, num_left = _new_rows(judging, trained, class_name, found)
            grown = with_feedback(trained, record, before, rows)
            judging = raw_predictor(grown, encoder, device, class_name)
            parts = scores_of(judging, class_name, Photos(found), before, silent)
            after = _normal(before, parts)
            if BANK not in trained.state and after == before:
                after = _fallen(trained, record, rows, places, encoder, device, photos.files)
        else:
            good = [photo["score"] for one in records(trained.header, class_name)
                    if one["kind"] == GOOD for photo in one["photos"]]  # fmt: skip
            after = lowered(before, scores.tolist(), most, good)
        scores_after = _image_scores(parts)
        pairs = zip(photos.files, scores_after.tolist(), strict=True)
        record["photos"] = [{"name": one.path.name, "score": score} for one, score in pairs]
        if not is_dry:
            with_feedback(trained, record, after, rows).save(path)
    return Feedback(
        path, record, before, after, scores, scores_after, 0 if rows is None else len(rows),
        num_left, photos.num_repeated,
        not (judging.graph.classes or trained.class_order == [class_name]), BANK in trained.state,
    )  # fmt: skip


def undo(store: Store, name: str, is_dry: bool = False, report: Report = silent) -> dict[str, Any]:
    """Take the latest feedback back.

    Args:
        store: that holds the detector.
        name: of the detector; empty where the store holds one alone.
        is_dry: whether to leave the detector as it is.
        report: hears of another command that is waited for.

    Returns:
        JSON: `file`, `class_name`, `kind`, `date`, `num_photos`, `num_patches`, `num_records` that
        are left, and `limits_back`, false where the limits of the class were set anew since.

    Raises:
        ConfigError: no name and not exactly one detector, or it learned from nobody.
        ArtifactError: no such detector, or it cannot be written.
    """
    name = detector_name(store, name)
    path = store.path("detectors", name)
    input_header(path, "detectors")
    with held_alone(store, name, is_dry, report):
        trained = DetectorArtifact.load(path)
        if not records(trained.header):
            raise ConfigError(f"{path} holds no feedback", "it is as it was trained")
        before, latest, is_back = without_latest(trained)
        if not is_dry:
            before.save(path)
    return {
        "file": str(path), **{part: latest[part] for part in ("class_name", "kind", "date")},
        "num_photos": len(latest["photos"]), "num_patches": latest["num_rows"],
        "num_records": len(before.header.get(RECORDS, [])), "limits_back": is_back,
    }  # fmt: skip


def told_of_undo(facts: dict[str, Any]) -> list[str]:
    """What a user is told of it."""
    count, name = facts["num_photos"], facts["class_name"]
    photos = f"{count} {facts['kind']} photo{'s' * (count != 1)}"
    lines = [
        f"taken back: {photos} of {name} from {facts['date']}, {facts['num_patches']} patches; "
        f"{facts['num_records']} earlier left"
    ]
    if not facts["limits_back"]:
        lines.append(f"limits of {name} stay: they were set anew since")
    return lines


def _image_scores(parts: list[NormalScores]) -> np.ndarray:
    return np.concatenate([part.image_scores for part in parts])


def _normal(limits: dict[str, Any], parts: list[NormalScores]) -> dict[str, Any]:
    """Limits of a class that these photos do not exceed, no lower than before."""
    found, highest = dict(limits), float(_image_scores(parts).max())
    if highest > limits["image"]:
        found["image"] = highest + SLACK * abs(highest - limits["typical_image"])
    farthest = float(np.concatenate([part.distances for part in parts]).max(initial=0))
    if farthest > limits.get("product", np.inf):
        found["product"] = (1 + SLACK) * farthest
    return found


@torch.inference_mode()
def _new_rows(
    judging: Predictor, trained: DetectorArtifact, class_name: str, images: list[Found]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Patches `[N, D]` of photos that are new to a detector, and how many more there are.

    Between them which of the photos each is from, `[N]`.

    What is ignored is blank in every photo, and so is new to no bank.
    """
    preset = preset_for(trained.detector, trained.preset)
    if isinstance(preset, PatchCorePreset):
        held, limit, above = trained.state, round(GROWTH * preset.bank_limit), None
        reach = spacing(torch.from_numpy(rows_of(trained, class_name)))
    else:
        held, limit = trained.confirmed, CONFIRMED_LIMIT
        above = trained.thresholds["by_class"][class_name]
        reach = spacing(torch.from_numpy(rows_of(trained, class_name, trained.router)))
    own = rows_of(trained, class_name, held) if held else np.zeros((0, 0), np.float32)
    is_apart = bool(judging.graph.classes) or held is not trained.state
    known = torch.from_numpy(own if is_apart else held[BANK]).to(judging.device)
    patches, places = _patches(judging, images, above)
    rows, num_left = new_patches(known, patches, max(limit - len(own), 0), reach)
    return patches[rows].cpu().numpy(), places[rows.cpu().numpy()], num_left


def _patches(
    judging: Predictor, images: list[Found], above: dict[str, Any] | None
) -> tuple[torch.Tensor, np.ndarray]:
    """Patches `[N, D]` of photos: all, or those whose map is above the limits of a class.

    That is in the mean above the limit of pixels, or anywhere above that of images, which would
    still be an alarm. With them which photo each is of, `[N]`.
    """
    view, parts, places = judging.one_view(), [], []
    for place, (name, picture) in enumerate(Photos(images).seen(view)):
        blanked = view.blanked(picture, name)
        for window in view.windows(*blanked.size):
            pixels = window.pixels(blanked, judging.image_size).transpose(2, 0, 1)
            batch = torch.from_numpy(np.ascontiguousarray(pixels[None])).to(judging.device)
            patches = judging.graph.patches(batch)[0]
            if above is not None:
                side = round(len(patches) ** 0.5)
                maps = judging.graph.raw_maps(batch)[0][:, None]
                mean, most = F.adaptive_avg_pool2d(maps, side), F.adaptive_max_pool2d(maps, side)
                is_odd = (mean > above["pixel"]) | (most > above["image"])
                patches = patches[is_odd.flatten()]
            parts.append(patches)
            places += [place] * len(patches)
    return torch.cat(parts), np.array(places, np.int64)


def _fallen(
    trained: DetectorArtifact,
    record: dict[str, Any],
    rows: np.ndarray,
    places: np.ndarray,
    encoder: str,
    device: torch.device,
    photos: list[Found],
) -> dict[str, Any]:
    """Limits of a class whose scores have fallen, or as they were where those are lower.

    They come from the photos, each seen by a detector that has learned the patches of the others
    alone: of `rows` `[N, D]`, from the photos `places` `[N]`. These photos were alarms, so few
    other good ones score as high.
    """
    name, parts = record["class_name"], []
    limits = trained.thresholds["by_class"][name]
    for place, photo in enumerate(photos):
        grown = with_feedback(trained, record, limits, rows[places != place])
        judging = raw_predictor(grown, encoder, device, name).of_class(name)
        parts += scores_of(judging, name, Photos([photo]), limits, silent)
    found = calibrated(together(parts), limits, limits["false_alarm_rate"])
    return found if found["image"] < limits["image"] else limits
