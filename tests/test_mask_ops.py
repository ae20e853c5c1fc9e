"""Masks survive packing, and turn with their images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaycad.errors import ConfigError
from replaycad.mask_ops import (
    Operation,
    apply_to_images,
    apply_to_masks,
    augmentations,
    border_colour,
    bounding_boxes,
    label_components,
    pack_bits,
    perturbed,
    replay_mask,
    shift,
    unpack_bits,
)


def bar(size: int = 64) -> np.ndarray:
    """An upright bar, off centre."""
    mask = np.zeros((size, size), dtype=bool)
    mask[size // 4 : size * 3 // 4, size // 4 : size // 3] = True
    return mask


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(count: int, height: int, width: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((count, height, width)) < 0.5

    packed = pack_bits(masks)

    assert packed.dtype == np.uint8
    assert packed.shape == (count, height, (width + 7) // 8)
    assert np.array_equal(unpack_bits(packed, width), masks)


def test_first_pixel_is_the_highest_bit() -> None:
    mask = np.array([[[True] + [False] * 8]])

    assert pack_bits(mask).tolist() == [[[128, 0]]]


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold 17 pixels"):
        unpack_bits(np.zeros((1, 4, 2), dtype=np.uint8), 17)


@pytest.mark.parametrize(
    ("name", "count"), [("none", 1), ("rotate_180", 2), ("six_way", 6), ("free_rotation", 24)]
)
def test_every_augmentation_is_a_short_list_of_distinct_operations(name: str, count: int) -> None:
    operations = augmentations(name)

    assert len(operations) == len(set(operations)) == count
    assert Operation() in operations


def test_angles_of_the_free_rotation_are_evenly_spaced() -> None:
    angles = [operation.rotate_degrees for operation in augmentations("free_rotation", 8)]

    assert angles == [0, 45, 90, 135, 180, 225, 270, 315]


def test_unknown_augmentation_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="six_way"):
        augmentations("sideways")


@pytest.mark.parametrize("name", ["none", "rotate_180", "six_way", "free_rotation"])
def test_images_and_masks_turn_alike(name: str) -> None:
    masks = bar()[None]
    images = np.repeat(np.where(masks, 255, 0).astype(np.uint8)[:, None], 3, axis=1)

    for operation in augmentations(name):
        turned_images = apply_to_images(operation, images)
        turned_masks = apply_to_masks(operation, masks)

        assert turned_images.dtype == np.uint8
        assert np.array_equal(turned_images[:, 1] == 255, turned_masks)


def test_quarter_turns_and_flips_are_exact() -> None:
    mask = np.random.default_rng(0).random((1, 9, 9)) < 0.5

    assert np.array_equal(apply_to_masks(Operation(rotate_degrees=90), mask)[0], np.rot90(mask[0]))
    assert np.array_equal(apply_to_masks(Operation(flip="left_right"), mask), mask[..., ::-1])
    assert np.array_equal(apply_to_masks(Operation(flip="up_down"), mask), mask[:, ::-1])


def test_uncovered_corners_get_the_border_colour() -> None:
    images = np.empty((2, 3, 100, 100), dtype=np.uint8)
    images[0], images[1] = 200, 40
    images[:, :, 30:70, 30:70] = 0

    turned = apply_to_images(Operation(rotate_degrees=45), images)

    assert (turned[0, :, 0, 0] == 200).all()
    assert (turned[1, :, -1, 0] == 40).all()


def test_border_colour_is_the_mean_of_the_four_strips() -> None:
    images = np.zeros((1, 3, 100, 100), dtype=np.uint8)
    images[:, 0, :2] = 100  # the top strip, which the left and right strips meet in 2 of 100 rows

    assert border_colour(images).tolist() == [[26, 0, 0]]


def test_free_rotation_keeps_the_area_of_a_central_object() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:44, 26:38] = True

    for seed in range(20):
        turned = replay_mask(mask, "free_rotation", np.random.default_rng(seed))
        assert abs(int(turned.sum()) - int(mask.sum())) < 0.05 * mask.sum()


def test_identity_is_a_copy() -> None:
    mask = bar()

    same = replay_mask(mask, "identity", np.random.default_rng(0))
    same[:] = True

    assert not mask.all()


def test_six_way_reaches_all_six_poses() -> None:
    mask = bar(32)
    mask[8, 8:20] = True  # without symmetry
    mask[30, 30] = True

    poses = {
        replay_mask(mask, "six_way", np.random.default_rng(seed)).tobytes() for seed in range(100)
    }

    assert len(poses) == 6


def test_small_moves_stay_within_their_limits() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[40:60, 40:60] = True
    offsets = set()

    for seed in range(200):
        moved = replay_mask(mask, "small", np.random.default_rng(seed), shift_fraction=0.059)
        offsets.add(tuple(int(a.min()) - 40 for a in np.nonzero(moved)))

    assert all(0 in offset for offset in offsets)  # one axis at a time
    assert {max(map(abs, offset)) for offset in offsets} == {0, 1, 2, 3, 4, 5}
    assert len(offsets) == 21


def test_small_turns_every_second_mask_upside_down() -> None:
    mask = bar()
    moves = [
        replay_mask(mask, "small", np.random.default_rng(seed), rotate_180=True)
        for seed in range(60)
    ]

    upside_down = sum(np.array_equal(move, mask[::-1, ::-1]) for move in moves)

    assert all(np.array_equal(move, mask) for move in moves) is False
    assert 18 < upside_down < 42
    assert upside_down + sum(np.array_equal(move, mask) for move in moves) == 60


def test_small_angles_are_small_and_go_both_ways() -> None:
    mask = np.zeros((101, 101), dtype=bool)
    mask[48:53, 10:91] = True
    tilts = []

    for seed in range(40):
        moved = replay_mask(mask, "small", np.random.default_rng(seed), rotate_degrees=10)
        rows, columns = np.nonzero(moved)
        tilts.append(np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0])))

    assert max(map(abs, tilts)) < 11
    assert min(tilts) < -4
    assert max(tilts) > 4


def test_one_object_moves_and_the_others_stay() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:20, 10:20] = mask[10:20, 70:80] = mask[70:80, 40:50] = True

    for seed in range(20):
        moved = replay_mask(mask, "one_object", np.random.default_rng(seed), shift_fraction=0.04)

        assert moved.sum() == mask.sum()
        labels, count = label_components(mask)
        untouched = sum(bool(moved[labels == number].all()) for number in range(1, count + 1))
        assert untouched >= 2


def test_one_object_may_turn_about_the_image_centre() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[45:55, 80:90] = True

    rows = [
        np.nonzero(replay_mask(mask, "one_object", np.random.default_rng(s), rotate_degrees=10))[0]
        for s in range(20)
    ]

    assert max(abs(r.mean() - 49.5) for r in rows) > 3


def test_one_object_of_an_empty_mask_is_empty() -> None:
    empty = np.zeros((8, 8), dtype=bool)

    assert not replay_mask(empty, "one_object", np.random.default_rng(0), shift_fraction=0.5).any()


def test_same_generator_seed_same_mask() -> None:
    for name in ("six_way", "free_rotation", "small", "one_object"):
        first, second = (
            replay_mask(bar(), name, np.random.default_rng(5), rotate_degrees=9, shift_fraction=0.2)
            for _ in range(2)
        )
        assert np.array_equal(first, second)


def test_unknown_mask_transform_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one_object"):
        replay_mask(bar(), "wobble", np.random.default_rng(0))


def test_shift_fills_with_background_and_may_leave_the_frame() -> None:
    mask = np.ones((4, 6), dtype=bool)

    assert shift(mask, 2, -1).tolist() == [[False] * 2 + [True] * 4] * 3 + [[False] * 6]
    assert not shift(mask, 0, 9).any()
    assert not shift(mask, -9, 0).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 14), st.integers(1, 14), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_components_are_8_connected_and_numbered_in_reading_order(
    height: int, width: int, share: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share

    labels, count = label_components(mask)

    expected = np.zeros((height, width), np.int32)
    number = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if expected[start]:
            continue
        number += 1
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            if 0 <= row < height and 0 <= column < width and mask[row, column] and not (
                expected[row, column]
            ):
                expected[row, column] = number
                waiting += [(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    assert count == number
    assert labels.dtype == np.int32
    assert np.array_equal(labels, expected)


def test_a_bounding_box_fills_the_upright_rectangle_around_every_object():
    masks = np.zeros((3, 6, 8), np.bool_)
    masks[0, 1, 2] = masks[0, 4, 6] = True
    masks[1, 5, 7] = True

    boxes = bounding_boxes(masks)

    assert boxes[0, 1:5, 2:7].all()
    assert boxes[0].sum() == 4 * 5
    assert np.array_equal(boxes[1], masks[1])
    assert not boxes[2].any()


def test_three_of_ten_masks_grow_or_shrink_by_a_twentieth_of_the_width():
    masks = np.zeros((40, 60, 60), np.bool_)
    masks[:, 20:40, 15:45] = True

    spoilt = perturbed(masks, np.random.default_rng(0))

    areas = spoilt.sum((1, 2))
    assert set(areas.tolist()) == {20 * 30, 26 * 36, 14 * 24}
    assert np.count_nonzero(areas != 600) == 12
    assert np.array_equal(spoilt, perturbed(masks, np.random.default_rng(0)))
    assert masks.sum() == 40 * 600, "the given masks stay as they are"
