"""A ground learned over a class whose pattern and part are known exactly."""

import numpy as np
import pytest

from replaycad.mini.world.demo import CLASSES
from replaycad.mini.world.pictures import draw, draw_class
from replaycad.segmentation.ground import learn_ground
from replaycad.segmentation.proof import prove
from tests.segmentation.test_proof import iou


def toy_class(count=10, size=128, still=False, radius=24):
    """A disc of one colour on a chequered ground, and where it is in each image."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    chequers = (rows // 8 + columns // 8) % 2
    ground = np.where(chequers[..., None] == 1, (200, 190, 180), (70, 80, 90))
    images, discs = [], []
    for _ in range(count):
        row, column = (64, 64) if still else rng.integers(45, 83, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        image = np.where(disc[..., None], (160, 60, 40), ground) + rng.normal(
            0, 4, (*rows.shape, 3)
        )
        images.append(image.clip(0, 255).astype(np.uint8))
        discs.append(disc)
    return images, discs


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("side", [5, 11])
def test_a_part_on_a_patterned_ground_is_found_whether_it_moves_or_not(still, side):
    images, discs = toy_class(still=still)

    ground = learn_ground(images, side)

    assert min(iou(ground.object_mask(i), d) for i, d in zip(images, discs, strict=True)) > 0.9


def test_what_was_learned_finds_the_part_in_images_it_never_saw_and_of_other_sizes():
    images, discs = toy_class()
    ground = learn_ground(images[:6], 5)
    larger = [np.kron(image, np.ones((2, 2, 1), dtype=np.uint8)) for image in images[6:]]

    for image, disc in zip(larger, discs[6:], strict=True):
        mask = ground.object_mask(image)
        assert mask.shape == (256, 256)
        assert iou(mask, np.kron(disc, np.ones((2, 2), dtype=bool))) > 0.9
    assert ground.object_mask(images[0][:, :96]).shape == (128, 96)


def test_the_same_images_teach_the_same_ground():
    images, _ = toy_class(count=4)

    first, second = (learn_ground(images, 5).object_mask(images[0]) for _ in range(2))

    assert np.array_equal(first, second)


def test_a_ground_without_a_part_teaches_nothing_that_proves_itself():
    bare, _ = toy_class(radius=0)
    blank = [np.full((128, 128, 3), 90, dtype=np.uint8)] * 3

    for side in (5, 11):
        ground = learn_ground(bare, side)
        assert ground is None or not prove([ground.object_mask(image) for image in bare]).holds
        assert learn_ground(blank, side) is None


def test_the_screw_of_the_demo_is_told_from_its_perforated_ground():
    spec = draw_class(CLASSES["screw"])
    pictures = [draw(spec, number) for number in range(12)]

    ground = learn_ground([picture.image for picture in pictures], 5)

    found = [iou(ground.object_mask(picture.image), picture.object_mask) for picture in pictures]
    assert np.mean(found) > 0.8
