"""The table is complete, and guesses for other classes follow the masks."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from replaycad.data.classes import POLICIES, ClassPolicy, auto_policy, infer_policy, policy_for
from replaycad.errors import ArtifactError
from replaycad.mask_ops import REPLAY_AUGMENTATIONS, TRAIN_AUGMENTATIONS, augmentations, replay_mask

MVTEC = [
    "bottle",
    "cable",
    "capsule",
    "carpet",
    "grid",
    "hazelnut",
    "leather",
    "metal_nut",
    "pill",
    "screw",
    "tile",
    "toothbrush",
    "transistor",
    "wood",
    "zipper",
]
VISA = [
    "candle",
    "capsules",
    "cashew",
    "chewinggum",
    "fryum",
    "macaroni1",
    "macaroni2",
    "pcb1",
    "pcb2",
    "pcb3",
    "pcb4",
    "pipe_fryum",
]


def bars(angles, offsets=None, size=96):
    """One upright bar per angle in degrees, moved by whole pixels (right, down)."""
    masks = []
    for angle, offset in zip(angles, offsets or [(0, 0)] * len(angles), strict=True):
        picture = Image.new("L", (size, size))
        picture.paste(255, (size // 2 - 5, size // 2 - 25, size // 2 + 5, size // 2 + 25))
        masks.append(np.asarray(picture.rotate(angle, translate=offset)) > 0)
    return np.array(masks)


def test_every_class_of_both_datasets_has_a_row():
    assert sorted(POLICIES) == sorted(MVTEC + VISA)


@pytest.mark.parametrize("name", MVTEC + VISA)
def test_every_row_is_usable(name):
    policy = policy_for(name)

    assert policy.class_name == name
    assert not policy.inferred
    assert policy.mask_rule in ("corners", "area", "frame")
    assert policy.train_augmentation in TRAIN_AUGMENTATIONS
    assert policy.replay_augmentation in REPLAY_AUGMENTATIONS
    assert policy.init_word.isalpha()
    moves = policy.replay_augmentation in ("small", "one_object")
    assert moves == bool(policy.replay_rotate_degrees or policy.replay_shift_fraction)
    assert augmentations(policy.train_augmentation)
    mask = bars([20])[0]
    drawn = replay_mask(
        mask,
        policy.replay_augmentation,
        np.random.default_rng(0),
        rotate_degrees=policy.replay_rotate_degrees,
        shift_fraction=policy.replay_shift_fraction,
        rotate_180=policy.replay_rotate_180,
    )
    assert drawn.shape == mask.shape


def test_rows_say_what_the_tables_say():
    assert {n for n in POLICIES if POLICIES[n].mask_rule == "frame"} == {
        "carpet", "grid", "leather", "tile", "wood",
    }  # fmt: skip
    assert {n for n in POLICIES if POLICIES[n].mask_rule == "area"} == {"transistor", "fryum"}
    assert {n for n in POLICIES if POLICIES[n].several_objects} == {
        "candle", "capsules", "macaroni1", "macaroni2",
    }  # fmt: skip
    assert {n for n in POLICIES if POLICIES[n].train_augmentation == "free_rotation"} == {
        "hazelnut", "metal_nut", "screw",
    }  # fmt: skip
    assert {n for n in POLICIES if POLICIES[n].train_augmentation == "rotate_180"} == {
        "pcb1", "pcb2", "pcb3", "capsules", "chewinggum", "fryum",
    }  # fmt: skip
    assert {n for n in POLICIES if POLICIES[n].replay_rotate_180} == {
        "pcb1", "pcb2", "pcb3", "chewinggum",
    }  # fmt: skip
    assert POLICIES["grid"].replay_augmentation == "six_way"
    assert (POLICIES["cashew"].replay_rotate_degrees, POLICIES["cashew"].replay_shift_fraction) == (
        10, 0.05,
    )  # fmt: skip


def test_other_classes_have_no_row_but_an_automatic_policy():
    assert policy_for("magnetic_tile") is None

    policy = auto_policy("magnetic_tile")

    assert policy.mask_rule == "auto"
    assert policy.inferred
    assert policy.init_word == "tile"
    assert "magnetic_tile" in policy.reason


@pytest.mark.parametrize(
    ("name", "word"),
    [("pcb1", "pcb"), ("M8_Screws", "screws"), ("42", "object"), ("部品", "object")],
)
def test_the_word_of_a_class_is_its_last_run_of_letters(name, word):
    assert auto_policy(name).init_word == word


def test_policies_survive_json():
    for policy in [*POLICIES.values(), ClassPolicy(class_name="x", area_range=(0.1, 0.2))]:
        assert ClassPolicy.from_dict(json.loads(json.dumps(policy.as_dict()))) == policy


@pytest.mark.parametrize("values", [{}, {"class_name": "a", "colour": "red"}])
def test_foreign_policies_are_refused(values):
    with pytest.raises(ArtifactError, match="class policy"):
        ClassPolicy.from_dict(values)


def test_whole_frames_do_not_move():
    policy = infer_policy("cloth", np.ones((5, 32, 32), dtype=bool))

    assert (policy.mask_rule, policy.train_augmentation) == ("frame", "none")
    assert policy.replay_augmentation == "identity"
    assert policy.inferred
    assert "whole frame" in policy.reason


def test_bars_in_every_direction_turn_freely():
    policy = infer_policy("bolt", bars(range(0, 180, 15)), mask_rule="corners")

    assert policy.mask_rule == "corners"
    assert policy.replay_augmentation == policy.train_augmentation == "free_rotation"


def test_uneven_borders_keep_the_images_from_turning():
    masks = bars(range(0, 180, 15))
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)

    assert infer_policy("bolt", masks, noise).train_augmentation == "none"
    assert infer_policy("bolt", masks, noise // 8).train_augmentation == "free_rotation"
    assert infer_policy("bolt", masks, noise).replay_augmentation == "free_rotation"


def test_bars_at_right_angles_turn_by_quarters():
    policy = infer_policy("bolt", bars([0, 90, 2, 88, 0, 91]))

    assert policy.replay_augmentation == policy.train_augmentation == "six_way"


def test_bars_that_tilt_a_little_turn_a_little():
    policy = infer_policy("bolt", bars([-8, -6, -4, -2, 0, 2, 4, 6, 8]))

    assert policy.replay_augmentation == "small"
    assert 5 <= policy.replay_rotate_degrees <= 9
    assert policy.replay_shift_fraction < 0.01
    assert policy.train_augmentation == "none"


def test_lying_bars_are_not_torn_apart_by_the_end_of_the_angle_range():
    policy = infer_policy("bolt", bars([88, 89, 90, 91, 92, 87, 93]))

    assert policy.replay_augmentation == "small"
    assert policy.replay_rotate_degrees <= 4


def test_objects_that_wander_are_shifted():
    offsets = [(x, y) for x in (-8, 0, 8) for y in (-8, 0, 8)]

    policy = infer_policy("bolt", bars([0] * 9, offsets))

    assert policy.replay_augmentation == "small"
    assert policy.replay_shift_fraction == pytest.approx(8 / 96, abs=0.01)
    assert policy.replay_rotate_degrees == 0


def test_round_objects_have_no_angle():
    rows, columns = np.mgrid[:64, :64]
    masks = np.array([(rows - 30 - i) ** 2 + (columns - 32) ** 2 < 200 for i in range(5)])

    policy = infer_policy("disc", masks)

    assert policy.replay_rotate_degrees == 0
    assert policy.replay_shift_fraction > 0
    assert "round" in policy.reason


def test_objects_over_the_border_stay_where_they_are():
    masks = np.zeros((5, 32, 32), dtype=bool)
    masks[:, :, 10:20] = True

    policy = infer_policy("zip", masks)

    assert policy.replay_augmentation == "identity"
    assert "border" in policy.reason


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_masks_say_nothing(count):
    policy = infer_policy("bolt", bars([0, 90])[:count])

    assert policy.replay_augmentation == "identity"
    assert f"{count} masks" in policy.reason


def test_empty_masks_are_left_out():
    masks = np.concatenate([bars([0, 1, 2]), np.zeros((2, 96, 96), dtype=bool)])

    assert infer_policy("bolt", masks).replay_augmentation == "small"


def test_the_table_does_not_import_torch():
    code = "import sys, replaycad.data.classes; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
