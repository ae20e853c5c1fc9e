"""Rules on masks, against masks drawn by hand."""

import numpy as np
import pytest

from replaycad.segmentation.selection import (
    border_fraction,
    corner_points,
    infer_area_range,
    is_plausible_object,
    select_by_area,
    surroundings,
    tidy,
    union_by_area,
)


def box(top, left, bottom, right, size=100):
    """A mask that is true in one box."""
    mask = np.zeros((size, size), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_corner_points_lie_two_percent_inside_in_x_y_order():
    assert corner_points(100, 200).tolist() == [[2, 2], [197, 2], [2, 97], [197, 97]]


def test_corner_points_of_a_tiny_image_stay_inside():
    points = corner_points(8, 8)

    assert points.min() == 1
    assert points.max() == 6


def test_border_fraction_counts_every_border_pixel_once():
    assert border_fraction(np.ones((5, 7), dtype=bool)) == 1
    assert border_fraction(box(0, 0, 1, 10, size=10)) == pytest.approx(10 / 36)


@pytest.mark.parametrize(
    ("mask", "plausible"),
    [
        (box(30, 30, 60, 60), True),
        (box(0, 40, 100, 60), True),  # a zipper: from top to bottom
        (box(0, 0, 10, 10), False),  # a speck
        (box(2, 2, 99, 99), False),  # nearly everything
        (~box(10, 10, 90, 90), False),  # the frame around something
        (np.zeros((100, 100), dtype=bool), False),
    ],
)
def test_plausible_objects_have_some_area_and_leave_the_border_free(mask, plausible):
    assert is_plausible_object(mask) is plausible


def test_area_range_lies_around_the_median():
    low, high = infer_area_range([0.1, 0.3, 0.9])

    assert (low, high) == pytest.approx((0.2, 0.45))
    assert infer_area_range([0.9])[1] == 1.0
    assert infer_area_range([]) is None


def test_inside_the_area_range_quality_decides():
    masks = [box(0, 0, 50, 50), box(0, 0, 40, 50), box(0, 0, 90, 90)]

    assert select_by_area(masks, [0.5, 0.8, 0.99], (0.15, 0.3)) == 1


def test_outside_the_area_range_the_nearest_ratio_decides():
    masks = [box(0, 0, 10, 10), box(0, 0, 100, 90), np.zeros((100, 100), dtype=bool)]

    assert select_by_area(masks, [0.9, 0.1, 0.9], (0.4, 0.5)) == 1
    assert select_by_area([], [], (0.4, 0.5)) is None


def test_a_union_takes_every_object_once_and_no_part():
    left, right = box(10, 10, 40, 40), box(60, 60, 90, 90)
    part, group = box(12, 12, 40, 40), left | right
    qualities = [0.9, 0.8, 0.7, 0.99]

    united = union_by_area([left, right, part, group], qualities, (0.05, 0.12))

    assert np.array_equal(united, left | right)
    assert np.array_equal(union_by_area([group], [0.9], (0.01, 0.02)), group)
    assert union_by_area([], [], (0.1, 0.2)) is None


def test_surroundings_are_square_and_stay_inside_the_image():
    mask = np.zeros((100, 60), dtype=bool)
    mask[2:42, 30:40] = True

    assert surroundings(mask) == (slice(0, 48), slice(11, 59))


def test_surroundings_of_nothing_or_of_nearly_everything_are_none():
    assert surroundings(np.zeros((40, 40), dtype=bool)) is None
    assert surroundings(np.ones((40, 40), dtype=bool)) is None


def test_tidy_removes_specks_and_pinholes_and_nothing_else():
    clean = box(20, 20, 60, 60) | box(80, 80, 90, 90)
    clean[30:40, 30:40] = False  # the hole of a nut
    dirty = clean.copy()
    dirty[5, 5] = True
    dirty[50:52, 50:52] = False

    assert np.array_equal(tidy(dirty), clean)
    assert not tidy(np.zeros((8, 8), dtype=bool)).any()
    assert tidy(np.ones((8, 8), dtype=bool)).all()
