"""Keeps real images of a class: which, how many, and at which size and quality they are stored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.coverage import Memory, allowed_turns, separations
from replaycad.continual.exemplars import (
    coverage_order,
    decode,
    describe,
    encode,
    fill,
    resized,
    stored_size,
)
from replaycad.continual.growth import joined_rows
from replaycad.continual.kept_images import KeptImages
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.diffusion.aligner import Aligner, FrameAligner
from replaycad.diffusion.alignment import all_to_frame, beyond_border
from replaycad.errors import BudgetError
from replaycad.mask_ops import Operation
from replaycad.progress import Report, silent
from replaycad.runtime import generator, stream_seed

MAX_EXEMPLAR_POSES = 64  # fewer where bytes are counted
MOST_IMAGES = 1000  # that are looked at, evenly spaced; of 256 px they take 200 MB
POSE_SIZE = 128  # px at which poses, symmetries and coverage are judged, if there are so many
SIZES = (1.0, 0.75, 0.5)  # in which images may be stored, in parts of the size they are kept for
QUALITIES = (50, 30, 70)  # of AVIF: sizes are compared at the first
TRIED_IMAGES, JUDGED_IMAGES, LEAST_JUDGED = 24, 16, 4
"""Varied images that stand for a size and a quality, and training images outside them that judge
it."""


@dataclass(frozen=True)
class _Found:
    """What is the same for every size and quality.

    Attributes:
        samples: training images that are looked at.
        images: `[N, 3, S, S]` uint8 of them.
        order: places of the images, those that cover the class first.
        poses: `[N, 3]` float32 of them.
        empty: the artifact without exemplars.
    """

    samples: Sequence[Sample]
    images: np.ndarray
    order: list[int]
    poses: np.ndarray
    empty: ConditionsArtifact

    def kept(self, stored: Sequence[bytes]) -> ConditionsArtifact:
        """The artifact with these exemplars, the first in the order."""
        places = self.order[: len(stored)]
        return replace(self.empty, exemplars=tuple(stored), exemplar_poses=self.poses[places])


def keep_exemplars(
    samples: Sequence[Sample],
    masks: MasksArtifact,
    encoder: Encoder,
    preset: PatchCorePreset,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    report: Report = silent,
    conditions: ConditionsArtifact | None = None,
    aligner: Aligner | None = None,
) -> tuple[ConditionsArtifact, list[int]]:
    """Keep real images of one class in place of conditions, or beside them, at equal bytes.

    Args:
        samples: training images, in the order of the masks.
        masks: of these images, with the class's policy in the header.
        encoder: frozen; says which images cover the class.
        preset: of the memory banks that judge size and quality.
        config: of the stage, with its `image_size`.
        seed: of every random draw.
        header: common part of the artifact's header.
        report: hears how many are kept.
        conditions: that they are kept beside; None for images alone.
        aligner: finds the poses, if it does not know them; None for a new one.

    Returns:
        the conditions, or such without tokens and masks, with as many images as the budget holds:
        the file has at most `config.budget` bytes; and the places of these images in `samples`.

    Raises:
        BudgetError: if not a single image fits.
        DatasetError: if an image cannot be read.
    """
    budget = config.budget or IMAGE_BUDGET
    read = evenly_spaced(len(samples), MOST_IMAGES)
    found, operations = _looked_at(
        [samples[row] for row in read], masks, encoder, config, seed, header, conditions,
        aligner or Aligner(),
    )  # fmt: skip
    size, quality = _chosen(found, encoder, preset, config, budget, seed)
    own = {**found.empty.header, "exemplar_quality": quality}
    found = replace(found, empty=replace(found.empty, header=own))
    room = budget - found.empty.file_bytes()
    stored = list(fill(found.images, found.order, quality, room, size))
    while stored:
        kept = found.kept(stored)
        if kept.file_bytes() <= budget:
            report.note(
                f"{masks.class_name}: {len(stored)} of {len(samples)} images kept at {size} px, "
                f"quality {quality}, with {len(operations) - 1} turns and flips"
            )
            return kept, read[found.order[: len(stored)]].tolist()
        stored.pop()
    smallest = round(SIZES[-1] * config.image_size) if not config.exemplar_size else size
    lowest = config.exemplar_quality or min(QUALITIES)
    first = encode(resized(found.images[found.order[0]], smallest), lowest)
    raise BudgetError(
        f"compress: a budget of {budget} bytes holds no image of {masks.class_name}",
        # and for a budget of more digits in the header
        f"give {found.kept([first]).file_bytes() + 8} bytes or more",
    )


def grow_exemplars(
    before: ConditionsArtifact,
    empty: ConditionsArtifact,
    samples: Sequence[Sample],
    encoder: Encoder,
    config: CompressConfig,
    seed: int,
    num_before: int,
    report: Report = silent,
) -> ConditionsArtifact:
    """Bring new photos among the images that were kept, within the same budget.

    All are ordered by how they cover the class. An image that was kept before stays as the bytes
    that it is, for every coding loses something. New photos are stored at the same size and
    quality, and compared as they are when they are read again: sharper than the others, they would
    else be taken for something new.

    Args:
        before: with exemplars.
        empty: to put exemplars into: with the new header, and conditions if these lie beside.
        samples: the new photos.
        encoder: frozen; says which images cover the class.
        config: that the images were kept with.
        seed: of the order's random draws.
        num_before: images behind what was kept.
        report: hears how many are kept of either.

    Returns:
        at most `config.budget` bytes.

    Raises:
        BudgetError: if not a single image fits.
        DatasetError: if a photo cannot be read.
    """
    assert before.exemplar_poses is not None
    budget, side = config.budget or IMAGE_BUDGET, before.exemplar_size
    read = evenly_spaced(len(samples), MOST_IMAGES)
    photos = load_images([samples[row] for row in read], side)
    size, quality = stored_size(before.exemplars[0]), _quality(before, config)
    stored = [*before.exemplars, *(encode(resized(one, size), quality) for one in photos)]
    images = np.stack([decode(one, side) for one in stored])
    small = images
    if side > POSE_SIZE:
        small = np.stack([resized(one, POSE_SIZE) for one in images])
    poses, framed = np.zeros((len(images), 3), np.float32), small
    if before.poses is not None:
        poses = FrameAligner(before.exemplar_poses)(small, seed).poses.numpy()
        beyond = beyond_border(before.policy["mask_rule"])
        framed = all_to_frame(torch.from_numpy(small), torch.from_numpy(poses), beyond).numpy()
        if not empty.is_drawn:  # else the search has found those of the class
            new = poses[len(before.exemplars) :]
            targets = joined_rows(before.poses, new, num_before, MAX_EXEMPLAR_POSES)
            empty = replace(empty, poses=targets)
    order = coverage_order(describe(framed, encoder), generator(seed, "grow", "exemplars"))
    kept = _first_in_budget(empty, stored, poses, order, budget)
    num_old = sum(row < len(before.exemplars) for row in order[: len(kept.exemplars)])
    report.note(
        f"{before.class_name}: {len(kept.exemplars)} images kept, {num_old} of the "
        f"{len(before.exemplars)} that were there and {len(kept.exemplars) - num_old} of "
        f"{len(samples)} new ones"
    )
    return kept


def _first_in_budget(
    empty: ConditionsArtifact,
    stored: Sequence[bytes],
    poses: np.ndarray,
    order: Sequence[int],
    budget: int,
) -> ConditionsArtifact:
    """As many stored images, the first in the order, as fit into the file of an artifact."""
    room, count = budget - empty.file_bytes(), 0
    while count < len(order) and room >= len(stored[order[count]]):
        room, count = room - len(stored[order[count]]), count + 1
    for number in range(count, 0, -1):
        places = list(order[:number])
        images = tuple(stored[row] for row in places)
        kept = replace(empty, exemplars=images, exemplar_poses=poses[places])
        if kept.file_bytes() <= budget:
            return kept
    raise BudgetError(
        f"compress: a budget of {budget} bytes holds no image of {empty.class_name}",
        "compress the class anew with a larger one",
    )


def _quality(before: ConditionsArtifact, config: CompressConfig) -> int:
    """The quality that images were stored at; older files do not say it."""
    return int(before.header.get("exemplar_quality") or config.exemplar_quality or QUALITIES[0])


def _looked_at(
    samples: Sequence[Sample],
    masks: MasksArtifact,
    encoder: Encoder,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    conditions: ConditionsArtifact | None,
    aligner: Aligner,
) -> tuple[_Found, list[Operation]]:
    """Poses, turns and flips of a class, and its images in the order in which they are kept."""
    policy = masks.header["policy"]
    images = load_images(samples, config.image_size)
    small = images
    if config.image_size > POSE_SIZE:
        small = load_images(samples, POSE_SIZE)
    poses, targets, framed = np.zeros((len(images), 3), np.float32), None, small
    if config.alignment == "auto":
        poses = aligner(small, seed).poses.numpy()
        fill_with = beyond_border(policy["mask_rule"])
        framed = all_to_frame(torch.from_numpy(small), torch.from_numpy(poses), fill_with).numpy()
        targets = poses[evenly_spaced(len(samples), MAX_EXEMPLAR_POSES)]
    operations = allowed_turns(policy, framed, encoder, seed)
    order = coverage_order(describe(framed, encoder), generator(seed, "exemplars"))
    empty = conditions or ConditionsArtifact(
        class_name=masks.class_name,
        semantic_embedding=np.zeros((0, 0), np.float32),
        spatial_weight=None,
        spatial_bias=None,
        object_masks=np.zeros((0, config.image_size, config.image_size), np.bool_),
        policy=policy,
        header={**header, "placement": config.semantic_placement},
        half=config.half,
        poses=targets,
    )
    named = [[one.rotate_degrees, one.flip] for one in operations]
    own = {
        "symmetries": named, "exemplar_size": config.image_size,
        # until it is chosen, so that this takes no more bytes
        "exemplar_quality": config.exemplar_quality or QUALITIES[0],
    }  # fmt: skip
    empty = replace(empty, header={**empty.header, **own})
    return _Found(samples, images, order, poses, empty), operations


def _chosen(
    found: _Found,
    encoder: Encoder,
    preset: PatchCorePreset,
    config: CompressConfig,
    budget: int,
    seed: int,
) -> tuple[int, int]:
    """Size and quality that a class is stored at: those whose bank tells other images apart best.

    The sizes are compared first, then at the best of them the qualities. Where nearly all images
    fit as they are, nothing is tried; nor where too few are left to judge by: then they are stored
    as finely as leaves room for half of them.
    """
    whole = config.image_size
    sizes = [config.exemplar_size or round(part * whole / 2) * 2 for part in SIZES]
    sizes = sorted({min(size, whole) for size in sizes}, reverse=True)
    qualities = [config.exemplar_quality] if config.exemplar_quality else list(QUALITIES)
    room = budget - found.kept([b"0"]).file_bytes()
    if len(sizes) == len(qualities) == 1:
        return sizes[0], qualities[0]
    best, least = (sizes[0], max(qualities)), (sizes[-1], min(qualities))
    if _count(found, *best, room) >= len(found.order):
        return best
    # Judged by images that no trial has: the last in the order, which are most like the others.
    largest = max(
        _count(found, sizes[-1], qualities[0], room), _count(found, sizes[0], min(qualities), room)
    )
    first = min(largest, max(len(found.order) - JUDGED_IMAGES, len(found.order) // 2))
    judged = found.order[first:][:JUDGED_IMAGES]
    if len(judged) < LEAST_JUDGED:
        pairs = [(size, quality) for size in sizes for quality in sorted(qualities, reverse=True)]
        half = len(found.order) / 2
        return next((one for one in pairs if _count(found, *one, room) >= half), least)
    real = found.images[sorted(judged)]
    tried: dict[tuple[int, int], float] = {}

    def score(size: int, quality: int) -> float:
        pair = (size, quality)
        if pair not in tried:
            count = min(_count(found, size, quality, room), first)
            tried[pair] = -1.0  # below any that holds an image
            if count:
                drawn = _varied(found, size, quality, count, seed)
                stream = generator(seed, "stored")
                memory = Memory.of(drawn, encoder, stream, preset)
                stream = generator(seed, "stored", "judged")
                tried[pair] = separations({"": memory}, real, encoder, stream)[""]
        return tried[pair]

    size = max(sizes, key=lambda one: score(one, qualities[0]))
    quality = max(qualities, key=lambda one: score(size, one))
    return (size, quality) if score(size, quality) >= 0 else least


def _count(found: _Found, size: int, quality: int, room: int) -> int:
    """About how many images fit, from what the first few take; 0 if none does."""
    first = [len(encode(resized(found.images[row], size), quality)) for row in found.order[:4]]
    if first[0] > room:
        return 0
    per_image = sum(first) / len(first) + 32  # a pose and an end
    return min(len(found.order), max(1, int(room / per_image)))


def _varied(found: _Found, size: int, quality: int, count: int, seed: int) -> np.ndarray:
    """Replays `[V, 3, S, S]` uint8 of the first `count` images, stored so."""
    picked = [found.order[row] for row in evenly_spaced(count, TRIED_IMAGES)]
    side = found.images.shape[-1]
    shown = [decode(encode(resized(found.images[row], size), quality), side) for row in picked]
    kept = KeptImages(
        np.stack(shown), found.poses[picked], found.empty.poses, found.empty.policy,
        found.empty.header["symmetries"],
    )  # fmt: skip
    seeds = [stream_seed(seed, "tried", number) for number in range(TRIED_IMAGES)]
    return np.stack([
        kept.varied(one, number % len(picked)) for number, one in enumerate(seeds)
    ])  # fmt: skip
