"""Regions: boxes and areas worked by hand."""

import numpy as np
import pytest

from replaycad.inference.regions import MOST, find_regions, outlines


def flat(height=10, width=10):
    return np.zeros((height, width), np.float32)


def test_places_above_the_level_have_boxes_and_areas_of_the_picture():
    drawn = flat()
    drawn[1:3, 4:9] = 3.0  # 10 pixels
    drawn[1, 4] = 5.0
    drawn[7, 0] = 2.5
    drawn[9, 9] = 1.9  # below the level

    first, second = find_regions(drawn, 2.0, width=200, height=100)

    # A pixel of the map is 20 x 10 of the picture.
    assert first == ((80, 10, 180, 30), 2000, 10.0, 5.0, None)
    assert second == ((0, 70, 20, 80), 200, 1.0, 2.5, None)
    assert set(first.facts()) == {"box", "area", "percent", "peak"}


def test_pixels_that_share_a_corner_are_one_place():
    drawn = flat()
    drawn[2, 2] = drawn[3, 3] = 3.0

    (found,) = find_regions(drawn, 2.0, 10, 10)

    assert (found.box, found.area) == ((2, 2, 4, 4), 2)


def test_where_no_pixel_is_above_the_level_the_highest_place_is_told():
    drawn = flat()
    drawn[4:6, 4] = 1.2, 0.7
    drawn[0, 0] = 0.5  # less than half of the highest

    for level in (2.0, 0.0, -3.0):
        (found,) = find_regions(drawn, level, 10, 10)

        assert (found.box, found.peak) == ((4, 4, 5, 6), pytest.approx(1.2))


def test_ignored_pixels_are_in_no_region():
    drawn = np.full((10, 10), -np.inf, np.float32)
    assert find_regions(drawn, 2.0, 10, 10) == []
    drawn[5, 5] = 3.0

    (found,) = find_regions(drawn, 2.0, 10, 10)

    assert (found.box, found.percent) == ((5, 5, 6, 6), 1.0)


def test_boxes_end_with_the_picture_and_the_highest_places_come_first():
    drawn = flat(64, 64)
    drawn[::2, ::2] = np.arange(3, 3 + 1024).reshape(32, 32)

    found = find_regions(drawn, 2.0, 101, 67)

    assert len(found) == MOST
    peaks = [region.peak for region in found]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == 1026.0
    assert found[0].box[2] <= 101
    assert found[0].box[3] <= 67


def area_of(line):
    """By the shoelace formula: above 0 where the inside is to the right, as y goes down."""
    pairs = zip(line, line[1:] + line[:1], strict=True)
    return sum(x * after_y - after_x * y for (x, y), (after_x, after_y) in pairs) / 2


def test_a_line_runs_along_the_border_with_the_place_to_its_right():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    mask[3, 1] = True  # an L

    (line,) = outlines(mask)

    assert set(line) == {(1, 1), (4, 1), (4, 3), (2, 3), (2, 4), (1, 4)}
    assert area_of(line) == mask.sum()


def test_a_hole_is_run_around_the_other_way():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False

    lines = outlines(mask)

    assert sorted(area_of(line) for line in lines) == [-1, 25]


def test_lines_enclose_any_mask():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((12, 9)) < 0.5
        assert sum(area_of(line) for line in outlines(mask)) == mask.sum()


def test_outlines_are_in_pixels_of_the_picture():
    drawn = flat()
    drawn[1:3, 4:9] = 3.0

    (found,) = find_regions(drawn, 2.0, width=200, height=100, outlined=True)

    assert [set(line) for line in found.outlines] == [{(80, 10), (180, 10), (180, 30), (80, 30)}]
    assert found.facts()["outlines"] == found.outlines
