"""How real images of a class score where its replays alone are learned; measured at compress.

Real images lie farther from replays than replays from each other: of good parts of six classes all
were alarms where the limits came from replays. At compress the real images are still there. They
are held against a memory bank of replays, and what comes of it is carried with the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.data.images import evenly_spaced
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.limits import (
    FALSE_ALARM_RATE,
    LIMITS,
    NormalScores,
    measured,
    together,
)
from replaycad.detectors.patchcore.looks import PLACEHOLDER, Look, fit_look, some
from replaycad.detectors.patchcore.network import NO_PLACE, PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.progress import Report, silent
from replaycad.runtime import generator

NUM_REPLAYS = 40
"""Replays that the bank is filled with, at most. What 1 % of real images exceed hardly depends on
it: conditions of three classes gave 1634, 1583 and 1355 by 120 replays, 1647, 1651 and 1438 by 40,
1705, 1773 and 1450 by 24."""
MOST_JUDGED = 128  # real images, evenly spaced
LEAST_OTHERS = 32  # of them that are not kept themselves, or kept ones are judged as well
MEASURED = LIMITS[1:]  # all but the rate
LOOK, IMAGES = "look", "images"  # fields of a record
BATCH_SIZE = 8
Limits = Mapping[str, float]


@dataclass(frozen=True)
class RealLimits:
    """Limits of real images and of replays, by a memory bank of replays.

    Attributes:
        real: limits of real images.
        replays: limits of the replays, each held against all others.
        is_same_bank: whether a memory bank of the detector at hand measures alike: by the same
            levels of the same encoder, at the same image size.
        look: of real images; None where they were too few.
        num_images: real images that the replays are, each moved; 0 where any is drawn.
    """

    real: Limits
    replays: Limits
    is_same_bank: bool = False
    look: Look | None = None
    num_images: int = 0

    @classmethod
    def of(cls, record: object, bank: str) -> "RealLimits | None":
        """Read what `record` wrote; None where it is none.

        Args:
            record: from the header of conditions or replays.
            bank: digest of how the bank of the detector at hand measures.
        """
        if not isinstance(record, dict):
            return None
        parts: list[Limits] = []
        for name in ("real", "replays"):
            values = record.get(name)
            if not isinstance(values, list) or len(values) != len(MEASURED):
                return None
            if not all(isinstance(value, float | int) for value in values):
                return None
            parts.append(dict(zip(MEASURED, values, strict=True)))
        look = Look.of(record.get(LOOK))
        count = record.get(IMAGES)
        count = count if isinstance(count, int) else 0
        return cls(parts[0], parts[1], record.get("bank") == bank, look, count)


UNSEEN_FACTOR, UNSEEN_FACTOR_OF_IMAGES = 2.0, 1.35
"""How much higher a trained detector scores real images than the replays that it learned; the
second where these are of enough real images (`ENOUGH_IMAGES`). Nobody can tell beforehand: of five
real classes 1 % of good images exceeded 1.25 to 2.09 times InvAD's limit of replays from
conditions, 1.04 to 1.34 times that of images in 50 kB (one seed, by which the two were chosen).
Neither the memory bank's ratio, nor its spread, nor a short training on the replays of one class,
nor replays with as much noise as puts them as far from the others by that bank said more than
within 13 to 20 %, and scores of good images lie so close together that 15 % make none or two thirds
of them alarms. So all get what nearly the farthest class needs (3.0 % and 1.0 % false alarms, 10 %
and 5 % of a class; on two further seeds none): rather a defect missed than every
good part stopped; `replaycad calibrate` finds the right limit."""
ENOUGH_IMAGES = 4


def _raised(own: Limits, real: RealLimits | None, is_bank: bool) -> dict[str, float]:
    """Limits of replays, higher by what real images are expected to score more."""
    found = {kind: value for kind, value in own.items() if kind != "product"}
    for kind in ("image", "typical_image", "pixel", "typical_pixel"):
        are_enough = real is not None and real.num_images >= ENOUGH_IMAGES
        factor = UNSEEN_FACTOR_OF_IMAGES if are_enough else UNSEEN_FACTOR
        if is_bank and real is not None:
            factor = max(1.0, real.real[kind] / max(real.replays[kind], 1e-12))
        found[kind] = own[kind] * factor
    return found


def of_real_images(
    class_name: str,
    own: Limits,
    real: RealLimits | None,
    is_bank: bool,
    report: Report = silent,
) -> dict[str, float]:
    """Limits of a class for real images, where a detector has replays of it.

    Args:
        class_name: the class.
        own: limits of the replays.
        real: what was measured at compress; None where nothing was.
        is_bank: whether the detector is a memory bank.
        report: hears how sure the limits are.

    Returns:
        limits: those of real images, for a memory bank that measures as was measured then; else
        estimates. Without `product` where nobody knows how far real images lie from replays: all
        of them would be of no product.
    """
    if is_bank and real is not None and real.is_same_bank:
        return {"false_alarm_rate": FALSE_ALARM_RATE, **real.real}
    if is_bank and real is None:
        report.note(
            f"{class_name}: its limits are those of replays, which real parts may exceed: compress "
            f"it again, or run `replaycad calibrate --class {class_name}` with good photos"
        )
        return {kind: value for kind, value in own.items() if kind != "product"}
    report.note(
        f"{class_name}: its limits are estimates, for this detector has seen replays alone; "
        f"`replaycad calibrate --class {class_name}` finds them with good photos"
    )
    found = _raised(own, real, is_bank)
    if real is not None and real.is_same_bank:
        found["product"] = real.real["product"]
    return found


def give_look(bank: PatchCore, class_index: int, real: RealLimits | None) -> None:
    """Tell a bank what real images of a class look like; nothing where nobody knows.

    Args:
        bank: has patches of the class.
        class_index: which class this is.
        real: of a replayed class; None of one whose real images are in the bank.
    """
    if real is None or not real.is_same_bank:
        bank.looks.set(class_index, None, 0.0)
    else:
        bank.looks.set(class_index, real.look, real.real["product"])


def record(found: RealLimits, bank: str) -> dict[str, Any]:
    """For a header, in few bytes: in the order of `MEASURED`, for which four digits are enough."""
    parts = {"real": found.real, "replays": found.replays}
    rounded: dict[str, Any] = {
        name: [float(f"{part[kind]:.4g}") for kind in MEASURED] for name, part in parts.items()
    }
    look = {} if found.look is None else {LOOK: found.look.record()}
    images = {IMAGES: found.num_images} if found.num_images else {}
    return {**rounded, **look, **images, "bank": bank}


def placeholder(bank: str) -> dict[str, Any]:
    """A record that takes as many bytes as any, for a header whose bytes are counted before."""
    longest = dict.fromkeys(MEASURED, -1.234e-100)
    return {**record(RealLimits(longest, longest), bank), LOOK: PLACEHOLDER, IMAGES: 9999}


def measure(
    samples: Sequence[Sample],
    kept_rows: Sequence[int],
    drawn: NDArray[np.uint8],
    owners: NDArray[np.int64],
    encoder: Encoder,
    preset: PatchCorePreset,
    seed: int,
    known: Look | None = None,
) -> RealLimits:
    """Hold real images, and replays, against a memory bank of replays.

    An image that is kept is held against the replays of all others; where enough images are not
    kept, against all.

    Args:
        samples: training images, or tiles of them.
        kept_rows: those that are kept as images.
        drawn: `[N, 3, S, S]` uint8, replays.
        owners: `[N]`, which of the kept images each is drawn from, -1 where it is none.
        encoder: frozen.
        preset: of the bank.
        seed: of the bank's coreset.
        known: look of earlier images of the class, which takes these in; None if there is none.

    Raises:
        ConfigError: if bank and encoder do not fit together.
        DatasetError: if an image cannot be read.
    """
    size = drawn.shape[-1]
    bank = PatchCore(encoder.channels, encoder.strides, size, preset).to(encoder.device).eval()
    starts = range(0, len(drawn), BATCH_SIZE)
    chunks = [torch.from_numpy(drawn[start : start + BATCH_SIZE]) for start in starts]
    encoded = [encoder.encode_images(chunk) for chunk in chunks]  # of few replays, seen twice
    bank.fit(encoded, 0, generator(seed, "real limits"))
    view = samples[0].view
    whole = view.counted_whole(size)
    replays = []
    for start, chunk, features in zip(starts, chunks, encoded, strict=True):
        counted = None if whole is None else np.stack([whole] * len(chunk))
        places = list(range(start, start + len(chunk)))
        replays.append(_scores(bank, features, counted, places))
    patches, origin = bank.bank_of(0)  # of each patch, the replay that it is from
    bank.set_bank(0, patches, torch.from_numpy(owners).to(origin.device)[origin])
    rows, held = _judged(len(samples), kept_rows)
    mixture = Mixture([Source(class_index=0, samples=[samples[row] for row in rows])], size)
    real, looks, variances = [], [], []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = list(range(start, min(start + BATCH_SIZE, len(rows))))
        features = encoder.encode_images(torch.from_numpy(mixture.images(batch)))
        places = [held[row] for row in batch]
        real.append(_scores(bank, features, mixture.counted(batch), places))
        few = some(bank.patches(features))
        looks.append(bank.looks.of(few).cpu().numpy())
        variances.append(few.var(dim=1, unbiased=False).mean(dim=1).cpu().numpy())
    mixture.close()
    found = [
        replace(together(parts), num_tiles=view.num_tiles or 1).limits()
        for parts in (real, replays)
    ]
    seen = np.concatenate(looks)
    look = fit_look(seen, np.concatenate(variances)) if known is None else known.widened(seen)
    return RealLimits(found[0], found[1], look=look)


def _judged(num_images: int, kept_rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows of the images that are judged, and which of the kept ones each is, or `NO_PLACE`."""
    numbers = {row: number for number, row in enumerate(kept_rows)}
    others = [row for row in range(num_images) if row not in numbers]
    rows = others if len(others) >= LEAST_OTHERS else list(range(num_images))
    rows = [rows[place] for place in evenly_spaced(len(rows), MOST_JUDGED)]
    return rows, [numbers.get(row, NO_PLACE) for row in rows]


@torch.no_grad()
def _scores(
    bank: PatchCore,
    features: Sequence[torch.Tensor],
    counted: NDArray[np.bool_] | None,
    places: Sequence[int],
) -> NormalScores:
    """Scores and distances of images, each held against patches of all places but its own."""
    maps, distances = bank.fitted(features, [0] * len(places), places)
    return replace(measured(bank, maps, counted), distances=distances.cpu().numpy())
