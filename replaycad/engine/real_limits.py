"""Finds, while real images are at hand, what limits they have where replays of them are learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import ReplayConfig
from replaycad.continual.kept import Kept
from replaycad.data.samples import Sample
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.engine.banks import LIMITS_OF_REAL
from replaycad.engine.builder import Builder
from replaycad.engine.replay import draw_apart

if TYPE_CHECKING:
    from replaycad.detectors.encoders import Encoder
    from replaycad.detectors.patchcore.looks import Look


LEAST_LEFT_OUT = 4  # images without fragments that limits are found by
LEAST_WITH_LOOK = 10_000  # bytes of a class; below, the kB of its look is worth more elsewhere


@dataclass(frozen=True)
class Measuring:
    """The memory bank that real images are held against.

    Attributes:
        encoder: frozen.
        preset: of the bank.
        bank: digest of how it measures.
        image_size: side of the images in pixels.
        drawing: how its replays are drawn.
    """

    encoder: "Encoder"
    preset: PatchCorePreset
    bank: str
    image_size: int
    drawing: ReplayConfig


def with_real_limits(
    builder: Builder,
    measuring: Measuring,
    kept: Kept,
    samples: Sequence[Sample],
    seed: int,
    known: "Look | None" = None,
) -> ConditionsArtifact:
    """What is kept, with a record of these limits in its header.

    Args:
        builder: of the command.
        measuring: how.
        kept: conditions, real images or both, and which of the samples are among them.
        samples: real images as the class is seen.
        seed: of the replays and the bank.
        known: look of earlier images of the class.

    Raises:
        ConfigError: if bank and encoder do not fit together.
        DatasetError: if an image cannot be read.
    """
    import numpy as np

    from replaycad.continual.exemplars import resized
    from replaycad.continual.kept_images import picked_place
    from replaycad.continual.real_limits import LOOK, NUM_REPLAYS, measure, record
    from replaycad.stages.replay import image_seeds

    artifact = kept.artifact
    name = artifact.class_name
    if len(measuring.encoder.channels) < 2:  # a bank needs two levels
        header = {key: one for key, one in artifact.header.items() if key != LIMITS_OF_REAL}
        builder.report.note(f"{name}: what limits real images have in replays is not measured")
        return replace(artifact, header=header)
    count = min(measuring.drawing.num_images, NUM_REPLAYS)
    drawing = replace(measuring.drawing, num_images=count)
    drawn = draw_apart(builder, drawing, seed, artifact, {**artifact.header, "key": name})
    drawn = np.stack([resized(image, measuring.image_size) for image in drawn])
    owners = np.full(count, -1)
    rows: Sequence[int] = kept.rows
    if artifact.fragments is not None:
        samples, rows = _left_out(samples, kept.rows), ()
    elif rows:
        seeds = image_seeds(name, seed, count)
        owners = np.array([picked_place(one, len(rows)) for one in seeds])
    found = measure(
        samples, rows, drawn, owners, measuring.encoder, measuring.preset, seed, known
    )
    ratio = found.real["typical_image"] / max(found.replays["typical_image"], 1e-12)
    builder.report.note(
        f"{name}: real images lie {ratio:.1f} times as far from replays as these from each other; "
        "limits allow for that"
    )
    if artifact.header.get("form") == "exemplars":
        found = replace(found, num_images=len(artifact.exemplars))
    if LOOK not in artifact.header.get(LIMITS_OF_REAL, {}):  # no room was left for it
        found = replace(found, look=None)
    limits = record(found, measuring.bank)
    return replace(artifact, header={**artifact.header, LIMITS_OF_REAL: limits})


def _left_out(samples: Sequence[Sample], given: Sequence[int]) -> Sequence[Sample]:
    """Images that no fragment is of: replays lie nearer to the others than to any of tomorrow.

    All of them where too few are left.
    """
    others = set(range(len(samples))) - set(given)
    return [samples[row] for row in sorted(others)] if len(others) >= LEAST_LEFT_OUT else samples


def grown_limits(
    builder: Builder,
    measuring: Measuring,
    before: ConditionsArtifact,
    grown: ConditionsArtifact,
    photos: Sequence[Sample],
    num_before: int,
    seed: int,
) -> ConditionsArtifact:
    """What is kept of a class that grew, with limits of its new photos and of the images of before.

    New photos that are now kept are held against their own replays too, so what they find may be
    low; it counts only where it is higher than before.

    Args:
        builder: of the command.
        measuring: how.
        before: as it was kept, with limits.
        grown: as it is kept now.
        photos: that were added.
        num_before: images that it stood for.
        seed: of the replays and the bank.
    """
    from replaycad.continual.real_limits import RealLimits, record
    from replaycad.detectors.limits import combined

    old = RealLimits.of(before.header.get(LIMITS_OF_REAL), measuring.bank)
    known = old.look if old is not None and old.is_same_bank else None
    found = with_real_limits(builder, measuring, Kept(grown), photos, seed, known)
    new = RealLimits.of(found.header.get(LIMITS_OF_REAL), measuring.bank)
    if new is None:
        return found
    if old is None or not old.is_same_bank:
        new = replace(new, look=None)  # of the new photos alone
    else:
        real = combined(old.real, new.real, num_before, len(photos))
        new = replace(new, real=real, look=new.look if old.look else None)
    limits = record(new, measuring.bank)
    return replace(found, header={**found.header, LIMITS_OF_REAL: limits})


def reserved_limits(budget: int) -> dict[str, Any]:
    """A field of a header with as many bytes as limits take.

    Args:
        budget: bytes that a class may take in all; 0 for any number.
    """
    from replaycad.continual.real_limits import LOOK, placeholder

    found = placeholder("0" * 16)
    if 0 < budget < LEAST_WITH_LOOK:
        del found[LOOK]
    return {LIMITS_OF_REAL: found}
