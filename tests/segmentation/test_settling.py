"""A rule is kept if it proves itself, against segmenters whose answers are known."""

from dataclasses import dataclass

import numpy as np
import pytest

from replaycad.segmentation.sam import Segmenter
from replaycad.segmentation.settling import most_alike, recurrent, settle
from tests.segmentation.test_ground import toy_class
from tests.segmentation.test_proof import box, iou
from tests.segmentation.tiny_sam import tiny_sam


@dataclass
class Policy:
    """What is known about a class."""

    mask_rule: str
    area_range: tuple[float, float] | None = None
    several_objects: bool = False


class Knowing(Segmenter):
    """Answers by looking its images up."""

    def __init__(self, images, corner_masks, everything=None):
        super().__init__(tiny_sam(), "knowing")
        self._keys = [image.tobytes() for image in images]
        self._corners = corner_masks
        self._found = everything or [[] for _ in images]
        self.asked = 0

    def corner_mask(self, image):
        """The mask of that image."""
        self.asked += 1
        return self._corners[self._keys.index(image.tobytes())]

    def everything(self, image):
        """The masks of that image, all equally good."""
        masks = self._found[self._keys.index(image.tobytes())]
        return masks, [0.9] * len(masks)


def noise(count=6, size=64):
    """Images in which there is nothing to be found."""
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def specks(count, size):
    """Masks of next to nothing, elsewhere each time."""
    masks = np.zeros((count, size, size), dtype=bool)
    for index, mask in enumerate(masks):
        mask[10 + 5 * index :, :][:3, 20:23] = True
    return list(masks)


@pytest.mark.parametrize("rule", ["corners", "auto"])
def test_corners_that_prove_themselves_are_kept_and_nothing_else_is_tried(rule):
    images, discs = toy_class()
    segmenter = Knowing(images, discs)

    settled = settle(segmenter, images, Policy(rule))

    assert (settled.mask_rule, settled.failure) == ("corners", "")
    assert "agreement" in settled.reason
    assert segmenter.asked == len(images)


@pytest.mark.parametrize("rule", ["corners", "auto"])
def test_corners_that_give_specks_fall_to_the_ground(rule):
    images, discs = toy_class()
    segmenter = Knowing(images, specks(len(images), 128))

    settled = settle(segmenter, images, Policy(rule))

    assert settled.mask_rule == "ground"
    assert ("0% of the masks plausible" in settled.failure) == (rule == "corners")
    found = segmenter.object_mask(images[0], settled)
    assert iou(found, discs[0]) > 0.9


def test_what_recurs_is_taken_where_no_ground_can_be_learned():
    images = noise()
    parts = [box(10 + i, 12, 30 + i, 40) for i in range(6)]
    strays = [box(25, 25, 36 + 4 * i, 60 - 4 * i) for i in range(6)]
    segmenter = Knowing(images, specks(6, 64), [[s, p] for s, p in zip(strays, parts, strict=True)])

    settled = settle(segmenter, images, Policy("corners"))

    assert settled.mask_rule == "area"
    for image, part in zip(images, parts, strict=True):
        assert np.array_equal(segmenter.object_mask(image, settled), part)


def test_where_nothing_proves_itself_the_frame_is_the_object_and_the_reason_names_all():
    images = noise()
    segmenter = Knowing(images, specks(6, 64))

    settled = settle(segmenter, images, Policy("corners"))

    assert settled.mask_rule == "frame"
    assert all(f"'{rule}'" in settled.reason for rule in ("corners", "ground", "area"))
    assert segmenter.object_mask(images[0], settled).all()


def test_a_typed_rule_stays_and_its_failure_is_told():
    images, _ = toy_class()
    masks = specks(len(images), 128)
    segmenter = Knowing(images, masks)

    settled = settle(segmenter, images, Policy("corners"), as_typed=True)

    assert settled.mask_rule == "corners"
    assert "0% of the masks plausible" in settled.failure
    assert np.array_equal(segmenter.object_mask(images[0], settled), masks[0])
    assert settle(segmenter, images, Policy("ground"), as_typed=True).failure == ""


def test_a_typed_rule_that_finds_nothing_leaves_the_frame():
    images = noise()

    settled = settle(Knowing(images, specks(6, 64)), images, Policy("area"), as_typed=True)

    assert settled.mask_rule == "frame"
    assert "found nothing" in settled.failure


def test_the_mask_that_comes_back_is_the_largest_of_those_that_do():
    whole = [box(10 + i, 20 - i, 30 + i, 50 - i) for i in (0, 1, 2)]
    part = [box(12 + i, 24, 20 + i, 30) for i in (0, 1, 2)]
    stray = [box(2, 2, 50, 12), box(30, 30, 60, 44), box(40, 5, 50, 60)]

    found = recurrent([list(masks) for masks in zip(stray, part, whole, strict=True)])

    assert any(np.array_equal(found, mask) for mask in whole)
    assert recurrent([[], []]) is None
    assert most_alike([stray[0], part[0], whole[1]], whole[0]) == 2
    assert most_alike([], whole[0]) is None
