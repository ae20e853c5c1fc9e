"""Where a replay lies: as a training image did, or where the class's policy moves its mask."""

from dataclasses import replace

import numpy as np

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.diffusion.aligner import Aligner
from replaycad.stages.compress import _into_frame
from replaycad.stages.replay import move, pick_rows, pose_mask


def _conditions(poses: np.ndarray | None) -> ConditionsArtifact:
    object_masks = np.zeros((1, 32, 32), bool)
    object_masks[0, 14:18, 4:14] = True  # left of the centre
    policy = {
        "mask_rule": "area", "replay_augmentation": "free_rotation", "replay_rotate_degrees": 0,
        "replay_shift_fraction": 0.0,
    }  # fmt: skip
    return ConditionsArtifact(
        class_name="bolt", semantic_embedding=np.zeros((1, 8), np.float32), spatial_weight=None,
        spatial_bias=None, object_masks=object_masks, policy=policy, poses=poses,
    )  # fmt: skip


def test_a_mask_of_the_common_frame_is_drawn_as_it_is_and_moved_with_its_image() -> None:
    conditions = _conditions(np.array([[180.0, 0, 0]], np.float32))
    object_mask = pose_mask(conditions, 7)
    np.testing.assert_array_equal(object_mask, conditions.object_masks[0])
    image = np.where(object_mask, 200, 10).astype(np.uint8)[None, None].repeat(3, 1)
    poses = pick_rows(conditions.poses, np.array([7]))
    images, masks = move(image, object_mask[None], poses, "border")
    np.testing.assert_array_equal(masks[0], object_mask[::-1, ::-1])
    assert images[0, :, 15, 24].tolist() == [200] * 3
    assert images[0, :, 15, 8].tolist() == [10] * 3


def test_the_pose_depends_on_the_images_seed_alone() -> None:
    poses = np.random.default_rng(0).uniform(0, 1, (9, 3)).astype(np.float32)
    seeds = np.arange(40)
    together = pick_rows(poses, seeds)
    for row in range(40):
        alone = pick_rows(poses, seeds[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])
    assert len(np.unique(together, axis=0)) == 9


def test_pose_and_coefficients_of_a_replay_are_those_of_one_training_image() -> None:
    numbers = np.arange(9, dtype=np.float32)[:, None]
    poses, coefficients = numbers.repeat(3, 1), numbers.repeat(2, 1)
    seeds = np.arange(40)
    picked = pick_rows(poses, seeds)[:, :1], pick_rows(coefficients, seeds)[:, :1]
    np.testing.assert_array_equal(*picked)


def test_without_poses_the_policy_moves_the_mask() -> None:
    conditions = _conditions(None)
    assert any(
        (pose_mask(conditions, seed) != conditions.object_masks[0]).any() for seed in range(5)
    )


def test_into_the_frame_go_images_and_masks_alike() -> None:
    images = np.full((8, 3, 32, 32), 20, np.uint8)
    masks = np.zeros((8, 32, 32), bool)
    for index in range(8):
        left = 8 + index % 4
        masks[index, 10:20, left : left + 12] = True
    images[masks[:, None].repeat(3, 1)] = 220
    found, framed, framed_masks = _into_frame(images, masks, "area", 0, Aligner())
    assert found.poses.shape == (8, 3)
    assert framed.std(0).mean() < 0.4 * images.std(0).mean()
    assert (framed_masks == (framed[:, 0] > 120)).mean() > 0.97


def _still(object_masks: np.ndarray) -> ConditionsArtifact:
    """Conditions of a class that the table leaves as it is."""
    conditions = _conditions(None)
    policy = {**conditions.policy, "replay_augmentation": "identity"}
    return replace(conditions, object_masks=object_masks, policy=policy)


def test_the_papers_recipe_moves_the_masks_of_a_class_that_the_table_leaves_still() -> None:
    square = np.zeros((1, 100, 100), bool)
    square[0, 40:60, 30:70] = True
    conditions = _still(square)
    centres = []
    for seed in range(60):
        rows, columns = np.nonzero(pose_mask(conditions, seed, "small"))
        centres.append((rows.mean() - 49.5, columns.mean() - 49.5))
        np.testing.assert_array_equal(pose_mask(conditions, seed, "policy"), square[0])
    farthest = np.abs(centres).max(0)
    # 5 % of 100 pixels in one of four directions; turning by 2 degrees hardly moves the centre.
    assert (farthest > 3).all()
    assert (farthest < 5.5).all()
    assert (np.abs(centres).min(1) < 0.5).all()


def test_small_moves_leave_a_class_alone_whose_object_is_the_frame() -> None:
    conditions = _still(np.ones((1, 32, 32), bool))
    assert all(pose_mask(conditions, seed, "small").all() for seed in range(20))


def test_at_least_small_moves_give_way_to_larger_ones_of_the_policy() -> None:
    turning = _conditions(None)
    still = _still(turning.object_masks)
    for seed in range(10):
        np.testing.assert_array_equal(
            pose_mask(turning, seed, "at_least_small"), pose_mask(turning, seed, "policy")
        )
        np.testing.assert_array_equal(
            pose_mask(still, seed, "at_least_small"), pose_mask(still, seed, "small")
        )
