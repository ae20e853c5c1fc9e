"""Which rule makes the masks of a class: each proves itself on a few images before it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replaycad.segmentation.ground import learn_ground
from replaycad.segmentation.proof import Proof, moved_ious, prove
from replaycad.segmentation.selection import (
    MaskPolicy,
    SettledRule,
    infer_area_range,
    is_plausible_object,
)

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

# Corner points cost least and keep the sharpest outlines; the ground is learned in a second or two;
# "segment everything" takes longest and rests on one image at a time.
ORDER = ("corners", "ground", "area")
PATCH_SIDES = (5, 11)  # pixels at 128 px: thin parts ask for small patches, dark holes for large
LOOK_FIRST = 4  # images; where all masks of them are implausible, others are not looked at
NEARLY_AS_COMMON = 0.9  # of the most recurrent mask; of those the largest is the whole object


class Prompted(Protocol):
    """What can be asked for masks of an image `[H, W, 3]` uint8 RGB."""

    def corner_mask(self, image: ByteArray) -> BoolArray:
        """All that does not belong to the corners."""

    def everything(self, image: ByteArray) -> tuple[list[BoolArray], list[float]]:
        """All masks `[H, W]` bool, and their predicted IoU."""

    def object_mask(self, image: ByteArray, policy: MaskPolicy) -> BoolArray:
        """The mask by a settled rule."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A rule, ready for use, and what it gave for the images it was tried on."""

    rule: SettledRule | None
    proof: Proof = field(default_factory=lambda: prove([]))


def settle(
    segmenter: Prompted, images: Sequence[ByteArray], policy: MaskPolicy, as_typed: bool = False
) -> SettledRule:
    """Find the first rule whose masks prove to be masks of one thing.

    The rule of `policy` is tried first and the others in the order of `ORDER` after it. Where none
    proves itself there is no object that stands before a ground, as in textures, and the whole
    frame is the object.

    Deviation: the paper fixes a rule per class; here it has to prove itself on the masks it gives,
    and the next one is tried where it does not.

    Args:
        segmenter: is asked.
        images: some images of the class, `[H, W, 3]` uint8 RGB each; 8 to 16 are enough.
        policy: what is known about the class.
        as_typed: keep the rule of `policy` even where it does not prove itself.

    Raises:
        ValueError: if the policy names no known rule.
    """
    wanted = policy.mask_rule
    if wanted == "frame":
        return SettledRule(mask_rule="frame", reason="known class")
    if wanted not in (*ORDER, "auto"):
        raise ValueError(f"unknown mask rule '{wanted}'")
    names = [wanted] if as_typed and wanted != "auto" else [wanted, *ORDER]
    failures: dict[str, str] = {}
    for name in dict.fromkeys(name for name in names if name != "auto"):
        trial = _try(name, segmenter, images, policy)
        if trial.rule is not None and (trial.proof.holds or not images):
            reason = f"{trial.proof}" if images else "known class"
            return replace(trial.rule, reason=reason, failure=failures.get(wanted, ""))
        failures[name] = f"{trial.proof}" if trial.rule is not None else "it found nothing"
        if len(names) == 1 and trial.rule is not None:
            return replace(trial.rule, reason="as typed", failure=failures[name])
    told = "; ".join(f"'{name}': {failure}" for name, failure in failures.items())
    return SettledRule(
        mask_rule="frame",
        reason=f"no rule found one thing in all images ({told})",
        failure=failures.get(wanted, ""),
    )


def _try(name: str, segmenter: Prompted, images: Sequence[ByteArray], policy: MaskPolicy) -> Trial:
    if name == "ground":
        return _try_ground(images)
    if name == "area":
        return _try_area(segmenter, images, policy)
    masks = [segmenter.corner_mask(image) for image in images]
    return Trial(rule=SettledRule(mask_rule="corners"), proof=prove(masks))


def _try_ground(images: Sequence[ByteArray]) -> Trial:
    """The smallest patches whose masks prove themselves, else those whose masks agree best."""
    trials = [Trial(rule=None)]
    for side in PATCH_SIDES if images else ():
        ground = learn_ground(images, side)
        if ground is None:
            continue
        proof = prove([ground.object_mask(image) for image in images])
        trials.append(Trial(rule=SettledRule(mask_rule="ground", ground=ground), proof=proof))
        if proof.holds:
            return trials[-1]
    return max(trials, key=lambda trial: trial.proof.agreement)


def _try_area(segmenter: Prompted, images: Sequence[ByteArray], policy: MaskPolicy) -> Trial:
    """Known areas as they are; else what comes back in the images says what to look for."""
    rule = SettledRule(
        mask_rule="area", area_range=policy.area_range, several_objects=policy.several_objects
    )
    if policy.area_range is None:
        reference = recurrent(_everywhere(segmenter, images))
        if reference is None:
            return Trial(rule=None)
        areas = infer_area_range([float(reference.mean())])
        rule = replace(rule, area_range=areas, reference=reference)
    return Trial(rule=rule, proof=prove([segmenter.object_mask(image, rule) for image in images]))


def _everywhere(segmenter: Prompted, images: Sequence[ByteArray]) -> list[list[BoolArray]]:
    """The plausible masks of every image; of few images only where those have none."""
    found: list[list[BoolArray]] = []
    for image in images:
        if len(found) == LOOK_FIRST and not any(found):
            break
        found.append([mask for mask in segmenter.everything(image)[0] if is_plausible_object(mask)])
    return found


def recurrent(found: Sequence[Sequence[BoolArray]]) -> BoolArray | None:
    """The mask that comes back in the images of a class, wherever it lies in them.

    A mask recurs as well as the most similar masks of all other images resemble it, in the mean;
    of those that recur nearly best the largest is taken: the whole object, not a part of it.

    Args:
        found: for every image its plausible masks, `[H, W]` bool.

    Returns:
        One of them; None if there are none.
    """
    masks = [mask for some in found for mask in some]
    if not masks:
        return None
    owner = np.repeat(np.arange(len(found)), [len(some) for some in found])
    _, similar = moved_ious(masks, masks)
    best = np.zeros((len(masks), len(found)))  # nothing, in images without a plausible mask
    for image in np.unique(owner):
        best[:, image] = similar[:, owner == image].max(1)
    common = best.mean(1)
    nearly = np.flatnonzero(common >= NEARLY_AS_COMMON * common.max())
    return masks[max(nearly, key=lambda index: (masks[index].sum(), -index))]


def most_alike(masks: Sequence[BoolArray], reference: BoolArray) -> int | None:
    """Index of the mask `[H, W]` most like the reference once moved to it; None without masks."""
    if not masks:
        return None
    _, similar = moved_ious(masks, [reference])
    return int(similar[:, 0].argmax())
