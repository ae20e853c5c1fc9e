"""Finds the object in every training image of a class (paper A.3)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import MaskConfig
from replaycad.data.classes import ClassPolicy, auto_policy, infer_policy, policy_for
from replaycad.data.images import Reader, evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.progress import Report, silent

if TYPE_CHECKING:  # the network is not needed to say that the whole frame is the object
    from replaycad.segmentation.sam import Segmenter
    from replaycad.segmentation.selection import SettledRule

# Deviation: A.3 names no size. Images are squeezed to the square at which masks are kept (512 px in
# the recipes of the large models), where Sam itself would keep their shape.
SETTLE_IMAGES = 12  # how many images decide what a class's policy leaves open
BORDER_SIZE = 64  # pixels


def make_masks(
    class_name: str,
    samples: Sequence[Sample],
    segmenter: "Segmenter | None",
    config: MaskConfig,
    header: dict[str, Any],
    report: Report = silent,
) -> MasksArtifact:
    """Find the objects of one class.

    Args:
        class_name: of the class; its row in the table of policies is used, if it has one.
        samples: training images, or their tiles, for which no segmenter is asked.
        segmenter: or None, for which the whole frame is the object.
        config: of the stage.
        header: common part of the artifact's header.
        report: told about every image.

    Returns:
        one mask `[H, W]` per image, with the class's policy in the header.

    Raises:
        DatasetError: if an image cannot be read.
    """
    is_tiled = bool(samples[0].view.tile)
    known = None if is_tiled else policy_for(class_name)
    size, reader = config.image_size, Reader()
    object_masks = np.ones((len(samples), size, size), dtype=np.bool_)
    rule, reason = "frame", "tiles are all surface" if is_tiled else "no segmenter"
    if segmenter is not None and config.rule != "frame":
        wanted = known or auto_policy(class_name)
        if config.rule != "policy":
            wanted = replace(wanted, mask_rule=config.rule)
        few = evenly_spaced(len(samples), SETTLE_IMAGES)
        settled = segmenter.settle(
            [reader.pixels(samples[i], size) for i in few], wanted, config.rule != "policy"
        )
        rule, reason = settled.mask_rule, settled.reason
        for index, sample in enumerate(samples):
            image = reader.pixels(sample, size)
            object_masks[index] = segmenter.object_mask(image, settled)
            report.step(f"mask {class_name}", index + 1, len(samples))
        if settled.failure:
            report.note(_failed(class_name, wanted.mask_rule, rule, settled))
            if config.rule == "policy" and rule != wanted.mask_rule:
                known = None  # moves of the table are those of a product that looks otherwise
    policy = known or _guess(class_name, samples, object_masks, rule)
    if known is None:
        poses = f"'{policy.replay_augmentation}' ({policy.reason})"
        if is_tiled or policy_for(class_name) is None:
            why = "tiled" if is_tiled else "not in the table of classes"
            report.note(
                f"{class_name} is {why}: masks by '{rule}' ({reason}), replay poses by {poses}"
            )
        else:
            report.note(f"{class_name}: replay poses follow these masks, not the table: {poses}")
    return MasksArtifact(
        class_name=class_name,
        image_ids=[sample.image_id for sample in samples],
        object_masks=object_masks,
        area_fraction=object_masks.mean(axis=(1, 2)).astype(np.float32),
        rule=rule,
        header={**header, "policy": policy.as_dict()},
    )


def _failed(class_name: str, wanted: str, rule: str, settled: "SettledRule") -> str:
    """One sentence: the rule that was asked for did not prove itself, and what was done."""
    told = f"{class_name}: masks by '{wanted}' are not of one thing ({settled.failure})"
    if rule == wanted:
        return f"{told}, but are kept as you asked; mask.rule=auto would look for a better rule"
    return f"{told}, so they are made by '{rule}' ({settled.reason})"


def _guess(
    class_name: str, samples: Sequence[Sample], object_masks: np.ndarray, rule: str
) -> ClassPolicy:
    """How a class moves, from its masks and from a few small images that show their borders."""
    few = evenly_spaced(len(samples), SETTLE_IMAGES)
    images = load_images([samples[index] for index in few], BORDER_SIZE)
    return infer_policy(class_name, object_masks, images, rule)
