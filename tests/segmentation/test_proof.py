"""What a dozen masks say about the rule that made them, against masks laid by hand."""

import numpy as np
import pytest

from replaycad.mask_ops import Operation, apply_to_masks, shift
from replaycad.segmentation.proof import agreement, moved_ious, prove


def box(top, left, bottom, right, size=64):
    """A mask that is true in one box."""
    mask = np.zeros((size, size), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def iou(mask, other):
    """Intersection over union of two masks as they lie."""
    return (mask & other).sum() / (mask | other).sum()


def test_a_mask_that_only_moved_agrees_with_itself():
    lying = box(20, 10, 30, 40)

    assert agreement([lying, shift(lying, 9, 5), shift(lying, -4, 20)]) == 1


def test_agreement_is_the_median_of_neighbours_moved_onto_each_other():
    # Centred on each other: 20 x 20 in 20 x 40 covers a half; 20 x 40 with itself all of it.
    square, long = box(4, 4, 24, 24), box(30, 10, 50, 50)

    assert agreement([square, long]) == pytest.approx(0.5)
    assert agreement([square, long, long]) == pytest.approx(0.75)
    assert agreement([square, long, long, long]) == pytest.approx(1.0)


def test_a_class_that_turns_is_turned_and_one_that_does_not_is_not():
    upright = box(12, 28, 52, 36)
    turned = [
        apply_to_masks(Operation(rotate_degrees=degrees), upright[None])[0]
        for degrees in (0, 35, 90, 150)
    ]
    still, best = moved_ious([turned[0]], [turned[2]])

    assert still[0, 0] == pytest.approx(8 * 8 / (2 * 8 * 40 - 64))
    assert best[0, 0] == pytest.approx(1, abs=0.02)
    assert agreement(turned) > 0.8


def test_objects_that_move_each_by_itself_agree_as_single_ones():
    close = box(10, 10, 20, 20) | box(10, 30, 20, 40)
    apart = box(8, 4, 18, 14) | box(40, 50, 50, 60)
    one_missing = box(10, 10, 20, 20)

    assert agreement([close, apart]) == 1
    assert agreement([close, one_missing]) < 0.6


def test_few_or_empty_masks_have_an_agreement_too():
    empty = np.zeros((64, 64), dtype=bool)

    assert agreement([]) == 0
    assert agreement([empty]) == 0
    assert agreement([box(10, 10, 20, 30)]) == 1
    assert agreement([empty, empty]) == 0


def test_masks_of_one_thing_hold_and_one_failure_in_eight_is_forgiven():
    masks = [box(20, 20, 40 + i % 3, 40) for i in range(8)]

    assert prove(masks).holds
    masks[3] = np.zeros((64, 64), dtype=bool)
    proof = prove(masks)
    assert proof.holds
    assert proof.plausible == pytest.approx(7 / 8)
    assert "88% of the masks plausible" in str(proof)


def test_specks_sizes_all_over_the_place_and_changing_shapes_do_not_hold():
    specks = [box(10, 10, 14, 14)] * 6
    sizes = [box(10, 10, 10 + side, 10 + side) for side in (12, 16, 20, 30, 40, 50)]
    shapes = [box(10, 30, 54, 36), box(24, 24, 40, 40)] * 4

    assert prove(specks).plausible == 0
    assert not prove(specks).holds
    assert prove(sizes).spread > 0.5
    assert not prove(sizes).holds
    assert prove(shapes).spread < 0.5
    assert prove(shapes).agreement < 0.6
    assert not prove(shapes).holds
    assert not prove([]).holds
