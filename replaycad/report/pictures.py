"""Pictures inside the page: small, as data, none of them a link."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from replaycad.data.pixels import read_picture
from replaycad.data.samples import Sample
from replaycad.inference.overlay import overlay
from replaycad.inference.predict import Predictor

SIDE = 112  # px of a picture on the page
QUALITY = 70
NEAREST = 3  # images on either side of a limit


def as_data(picture: Image.Image) -> str:
    """A picture as a `data:` address, no larger than `SIDE`."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    with io.BytesIO() as file:
        small.save(file, "WEBP", quality=QUALITY, method=4)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def pixels_as_data(image: np.ndarray) -> str:
    """Pixels `[H, W, 3]` uint8 likewise."""
    return as_data(Image.fromarray(image))


def extremes(
    samples: Sequence[Sample], scores: Mapping[str, float], predictor: Predictor
) -> list[dict[str, Any]]:
    """The images that a detector is most and least right about, with their heat maps.

    Args:
        samples: test images of the class.
        scores: image id -> score by the detector.
        predictor: the same detector.

    Returns:
        Up to four entries `what`, `name`, `score`, `image` and `overlay`.
    """
    known = [sample for sample in samples if sample.image_id in scores]
    picks: list[tuple[str, Sample]] = []
    for is_anomalous, order in ((True, (max, min)), (False, (min, max))):
        own = [sample for sample in known if sample.is_anomalous == is_anomalous]
        words = ("defect, clearest", "defect, faintest") if is_anomalous else (
            "normal, plainest", "normal, most suspicious")  # fmt: skip
        picks += [
            (word, pick(own, key=lambda sample: scores[sample.image_id]))
            for word, pick in zip(words, order, strict=True) if own
        ]  # fmt: skip
    return [_shown(word, sample, predictor) for word, sample in picks]


def nearest(
    samples: Sequence[Sample], scores: Mapping[str, float], predictor: Predictor
) -> dict[str, list[dict[str, Any]]]:
    """The images nearest to a limit on both sides of it, the nearest first.

    Args:
        samples: test images of the class.
        scores: image id -> score by the detector, in parts of the limit of the class.
        predictor: the same detector.

    Returns:
        what a strip shows -> up to `NEAREST` entries as of `extremes`, with `is_wrong`. Here their
        `score` is the one given, by which their side was told.
    """
    known = sorted(
        (sample for sample in samples if sample.image_id in scores),
        key=lambda sample: abs(scores[sample.image_id] - 1),
    )
    strips = {}
    for title, is_alarm, words in (
        ("Nearest above the limit: stopped", True, ("normal, false alarm", "defect, found")),
        ("Nearest below the limit: let through", False, ("normal, passed", "defect, missed")),
    ):
        own = [sample for sample in known if (scores[sample.image_id] > 1) == is_alarm]
        strips[title] = [
            {
                **_shown(words[sample.is_anomalous], sample, predictor),
                "score": scores[sample.image_id], "is_wrong": sample.is_anomalous != is_alarm,
            }
            for sample in own[:NEAREST]
        ]  # fmt: skip
    return strips


def _shown(what: str, sample: Sample, predictor: Predictor) -> dict[str, Any]:
    picture = read_picture(sample.path, predictor.one_view().white)
    (judged,) = predictor.judge([(str(sample.path), picture)], 1)
    return {
        "what": what, "name": sample.image_id, "score": judged.score,
        "image": as_data(picture.copy()), "overlay": as_data(overlay(picture, judged.anomaly_map)),
    }  # fmt: skip
