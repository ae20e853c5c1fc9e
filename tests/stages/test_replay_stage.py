"""Which image, mask, pose and seed each row of a replay set has, also where a run was killed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.config.stages import ReplayConfig
from replaycad.continual.exemplars import encode
from replaycad.stages.replay import (
    image_seeds,
    kept_images,
    pick_rows,
    pose_mask,
    rebuild_conditions,
    replay_class,
    replay_kept,
)

SIZE, NUM_IMAGES = 16, 10
DIFFUSION = SimpleNamespace(
    image_size=SIZE, device=torch.device("cpu"), cross_attention_dim=8
)  # fmt: skip
POLICY = {
    "mask_rule": "corners", "replay_augmentation": "identity", "replay_rotate_degrees": 0,
    "replay_shift_fraction": 0.0,
}  # fmt: skip
FOUR_AT_ONCE = ReplayConfig(num_images=NUM_IMAGES, batch_size=4, guidance_scale=2.0)


def conditions(**changes):
    """Conditions with three masks: a bar at the left, one in the middle, one at the right."""
    masks = np.zeros((3, SIZE, SIZE), bool)
    for index, left in enumerate((1, 7, 12)):
        masks[index, 4:12, left : left + 2] = True
    values = {
        "class_name": "bolt", "semantic_embedding": np.ones((1, 8), np.float32),
        "spatial_weight": None, "spatial_bias": None, "object_masks": masks, "policy": POLICY,
        "header": {"placement": "context"},
    }  # fmt: skip
    return ConditionsArtifact(**{**values, **changes})


@pytest.fixture(autouse=True)
def drawing(monkeypatch):
    """A model that draws the mask in red, the seed in green, coefficient or start in blue."""

    def sample(_diffusion, _built, posed, seeds, _config, _report, placed, starts):
        for start in range(0, len(seeds), 4):
            batch = seeds[start : start + 4]
            images = torch.zeros(len(batch), 3, SIZE, SIZE, dtype=torch.uint8)
            for image, row in zip(images, range(start, start + len(batch)), strict=True):
                image[0] = torch.from_numpy(next(posed)) * 255
                image[1] = green(seeds[row])
                if placed is not None:
                    image[2] = int(placed[row, 0])
                if starts is not None:
                    image[2] = int(next(starts).mean())
            yield images

    monkeypatch.setattr("replaycad.stages.replay.sample", sample)


def green(seed):
    return int(seed) % 251


def drawn(
    path, kept, config=FOUR_AT_ONCE, seed=0, begun=(), work=replay_class, shard_images=3
):
    """Images, masks and seeds of a set; `begun` are those that a killed run had drawn."""
    set_of = (path, {"class_name": "bolt", "key": "k"}, config.num_images, SIZE, shard_images)
    if begun:
        ReplaysWriter(*set_of).append(*begun)
    writer = ReplaysWriter(*set_of)
    done = len(begun[0]) if begun else 0
    assert writer.rows_done == (done if done == NUM_IMAGES else done // shard_images * shard_images)
    if work is replay_class:
        replay_class(kept, DIFFUSION, config, seed, writer)
    else:
        replay_kept(kept, config, seed, writer)
    writer.close()
    replays = ReplaysReader(path)
    rows = range(len(replays))
    return replays.images(rows), replays.object_masks(rows), replays.seeds


def test_every_row_has_the_image_and_the_mask_of_its_own_seed(tmp_path):
    images, masks, seeds = drawn(tmp_path / "one", conditions())

    assert seeds.tolist() == image_seeds("bolt", 0, NUM_IMAGES).tolist()
    assert images[:, 1, 0, 0].tolist() == [green(seed) for seed in seeds]
    assert np.array_equal(images[:, 0] == 255, masks)
    assert {tuple(np.flatnonzero(mask[4])) for mask in masks} >= {(1, 2), (7, 8)}


def test_replays_of_a_class_of_grey_photos_are_grey(tmp_path):
    seen = {"placement": "context", "view": {"colours": "grey"}}
    colours, _, seeds = drawn(tmp_path / "colours", conditions())

    grey, _, _ = drawn(tmp_path / "grey", conditions(header=seen))

    assert (colours[:, 0] != colours[:, 1]).any()
    assert np.array_equal(grey[:, 0], grey[:, 1])
    assert np.array_equal(grey[:, 0], grey[:, 2])
    # where no mask is, only green is left, of which every colour gets a third
    assert grey[:, 0, 0, 0].tolist() == [round(green(seed) / 3) for seed in seeds]


def test_seeds_differ_between_images_classes_and_runs_and_not_with_their_number():
    ten = image_seeds("bolt", 0, 10).tolist()

    assert len(set(ten)) == 10
    assert image_seeds("bolt", 0, 4).tolist() == ten[:4]
    assert not set(ten) & set(image_seeds("nut", 0, 10).tolist())
    assert not set(ten) & set(image_seeds("bolt", 1, 10).tolist())


@pytest.mark.parametrize("shard_images", [1, 3, 4, 64])
@pytest.mark.parametrize("done", [1, 3, 4, 6, 9, 10])
@pytest.mark.parametrize("form", ["conditions", "hybrid", "exemplars"])
def test_a_killed_run_goes_on_without_a_row_twice_or_none(tmp_path, done, form, shard_images):
    kept = conditions() if form == "conditions" else conditions(**leaning())
    work = replay_kept if form == "exemplars" else replay_class
    whole = drawn(tmp_path / "whole", kept, work=work)

    begun = tuple(part[:done] for part in whole)
    resumed = drawn(
        tmp_path / "killed", kept, begun=begun, work=work, shard_images=shard_images
    )

    for part, other in zip(whole, resumed, strict=True):
        assert np.array_equal(part, other)


def test_an_image_in_the_frame_is_moved_with_its_mask_to_the_pose_of_its_seed(tmp_path):
    # Upright or upside down: the bar of the left is then at the right.
    poses = np.array([[0, 0, 0], [180, 0, 0]], np.float32)
    left = conditions().object_masks[:1]

    images, masks, seeds = drawn(tmp_path / "one", conditions(poses=poses, object_masks=left))

    is_turned = pick_rows(poses, seeds)[:, 0] == 180
    assert 0 < is_turned.sum() < NUM_IMAGES
    columns = [tuple(np.flatnonzero(mask[6])) for mask in masks]
    assert columns == [(13, 14) if turned else (1, 2) for turned in is_turned]
    assert np.array_equal(images[:, 0] > 127, masks)


def test_a_replay_lies_along_the_variations_as_one_training_image_does(tmp_path):
    coefficients = np.array([[10], [20], [30]], np.float32)

    images, _, seeds = drawn(tmp_path / "one", conditions(coefficients=coefficients))

    picked = [np.unique(image).tolist() for image in images[:, 2]]
    assert picked == [[int(one)] for one in pick_rows(coefficients, seeds)[:, 0]]
    assert {10, 20, 30} == {one for (one,) in picked}


def test_images_pass_through_jpeg_only_where_it_is_asked_for(tmp_path):
    plain, _, _ = drawn(tmp_path / "plain", conditions())
    config = ReplayConfig(num_images=NUM_IMAGES, batch_size=4, guidance_scale=2.0, jpeg_quality=20)
    pressed, _, _ = drawn(tmp_path / "pressed", conditions(), config)

    # Halved colour smears the red bar over its neighbours, and the picture stays what it was.
    assert (plain[:, 0] != pressed[:, 0]).any()
    assert np.abs(plain[:, 1].astype(int) - pressed[:, 1]).mean() < 40


def leaning():
    """Exemplars of three pictures with a bright upper edge, kept as they lie: turned clockwise.

    The value beside the edge, 60, 120 or 180, says which picture it is.
    """
    upright = np.zeros((3, 3, SIZE, SIZE), np.uint8)
    upright[:, :, :4] = 255
    upright[:, :, 4:] = np.array([60, 120, 180], np.uint8)[:, None, None, None]
    quarters = (0, 1, 2)
    lying = [np.rot90(one, -turns, (1, 2)) for one, turns in zip(upright, quarters, strict=True)]
    return {
        "exemplars": tuple(encode(one, 100) for one in lying),
        "exemplar_poses": np.array([[90 * turns, 0, 0] for turns in quarters], np.float32),
        "poses": np.zeros((1, 3), np.float32),
        "object_masks": np.zeros((0, SIZE, SIZE), bool),
    }


def which(image):
    """Which of the three pictures this is, and where its bright edge is."""
    edges = {"top": image[0, 1, 8], "right": image[0, 8, -2], "bottom": image[0, -2, 8]}
    edge = max(edges, key=lambda name: int(edges[name]))
    assert edges[edge] > 240
    return round(float(image[0, 8, 8]) / 60) - 1, edge


def test_each_real_image_is_moved_from_its_own_pose():
    kept = kept_images(conditions(**leaning()))

    moved = [which(kept.varied(seed)) for seed in range(30)]

    assert set(moved) == {(0, "top"), (1, "top"), (2, "top")}


def test_a_real_image_to_start_from_is_upright_as_the_frame_is():
    kept = kept_images(conditions(**{**leaning(), "poses": np.array([[90, 0, 0]], np.float32)}))

    assert {which(kept.in_frame(seed)) for seed in range(30)} == {
        (0, "top"), (1, "top"), (2, "top"),
    }  # fmt: skip
    assert {which(kept.varied(seed))[1] for seed in range(30)} == {"right"}


def test_the_images_of_a_surface_stay_as_they_lie():
    kept = kept_images(conditions(**leaning(), policy={**POLICY, "mask_rule": "frame"}))

    assert {which(kept.varied(seed)) for seed in range(30)} == {
        (0, "top"), (1, "right"), (2, "bottom"),
    }  # fmt: skip


def test_a_real_image_gets_one_of_the_turns_that_its_class_allows():
    header = {"placement": "context", "symmetries": [[0, ""], [180, ""]]}
    kept = kept_images(conditions(**leaning(), header=header))

    assert {which(kept.varied(seed))[1] for seed in range(30)} == {"top", "bottom"}


def test_of_a_hybrid_odd_rows_are_real_and_even_ones_start_from_the_image_of_their_seed(tmp_path):
    kept = conditions(**leaning())

    images, masks, seeds = drawn(tmp_path / "one", kept)

    real = kept_images(kept)
    for row in range(1, NUM_IMAGES, 2):
        assert np.array_equal(images[row], real.varied(seeds[row]))
        assert masks[row].all()
    for row in range(0, NUM_IMAGES, 2):
        assert np.unique(images[row, 1]).tolist() == [green(seeds[row])]
        assert np.unique(images[row, 2]).tolist() == [int(real.in_frame(seeds[row]).mean())]


def test_a_set_of_real_images_passes_through_jpeg_too(tmp_path):
    config = ReplayConfig(num_images=NUM_IMAGES, jpeg_quality=20)

    plain, _, _ = drawn(tmp_path / "plain", conditions(**leaning()), work=replay_kept)
    pressed, _, _ = drawn(
        tmp_path / "pressed", conditions(**leaning()), config, work=replay_kept
    )

    assert (plain != pressed).any()
    assert np.abs(plain.astype(int) - pressed).mean() < 20


def test_images_of_a_part_without_poses_are_turned_by_any_angle_where_its_policy_turns_it():
    policy = {**POLICY, "replay_augmentation": "free_rotation"}
    turning = kept_images(conditions(**{**leaning(), "poses": None}, policy=policy))
    still = kept_images(conditions(**{**leaning(), "poses": None}))

    assert len({still.varied(seed).tobytes() for seed in range(30)}) == 3
    assert len({turning.varied(seed).tobytes() for seed in range(30)}) == 30


def test_a_killed_hybrid_keeps_its_real_rows_where_passes_are_odd(tmp_path, monkeypatch):
    monkeypatch.setattr("replaycad.stages.replay.pass_size", lambda *_: 3)
    kept = conditions(**leaning())
    config = ReplayConfig(num_images=NUM_IMAGES, batch_size=3)
    whole = drawn(tmp_path / "whole", kept, config)

    resumed = drawn(tmp_path / "killed", kept, config, begun=tuple(part[:4] for part in whole))

    assert np.array_equal(whole[0], resumed[0])


def farthest(moves, **policy):
    """How far the middle of a centred mask of 40 px is moved at most along an axis, in pixels."""
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 18:22, 18:22] = True
    kept = conditions(object_masks=masks, policy={**POLICY, **policy})
    posed = [pose_mask(kept, seed, moves) for seed in range(40)]
    return max(np.abs(np.argwhere(one).mean(0) - 19.5).max() for one in posed)


def test_a_recipe_may_move_masks_a_little_whatever_their_policy_says():
    wide = {"replay_augmentation": "small", "replay_shift_fraction": 0.25}

    assert farthest("policy") == 0
    assert 1 <= farthest("small") <= 2
    assert 1 <= farthest("at_least_small") <= 2
    assert 8 <= farthest("policy", **wide) <= 10
    assert 1 <= farthest("small", **wide) <= 2
    assert 8 <= farthest("at_least_small", **wide) <= 10


def test_a_mask_is_turned_by_up_to_the_angle_of_its_policy():
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 18:22, 34:38] = True  # 16 px right of the middle

    def farthest_turn(degrees):
        policy = {**POLICY, "replay_augmentation": "small", "replay_rotate_degrees": degrees}
        kept = conditions(object_masks=masks, policy=policy)
        rows = [np.argwhere(pose_mask(kept, seed))[:, 0].mean() - 19.5 for seed in range(60)]
        return min(rows), max(rows)

    assert farthest_turn(0) == (0, 0)
    assert farthest_turn(30) == pytest.approx((-8, 8), abs=0.7)  # 16 px * sin(30 degrees)


def test_masks_are_drawn_from_as_they_are_moved(tmp_path):
    policy = {**POLICY, "replay_augmentation": "small", "replay_shift_fraction": 0.25}
    config = ReplayConfig(num_images=NUM_IMAGES, batch_size=4, mask_moves="small")

    for name, told in (("policy", FOUR_AT_ONCE), ("small", config)):
        images, masks, _ = drawn(tmp_path / name, conditions(policy=policy), told)
        assert np.array_equal(images[:, 0] == 255, masks)


def test_the_mask_of_a_whole_frame_stays_whole():
    policy = {**POLICY, "replay_augmentation": "small", "replay_shift_fraction": 0.25}
    kept = conditions(object_masks=np.ones((1, SIZE, SIZE), bool), policy=policy)

    assert all(pose_mask(kept, seed).all() for seed in range(20))


def test_conditions_are_rebuilt_as_they_were_stored():
    rng = np.random.default_rng(0)
    stored = conditions(
        semantic_embedding=rng.random((2, 8), np.float32),
        semantic_variations=rng.random((3, 2, 8), np.float32),
        spatial_weight=rng.random((4, 6), np.float32), spatial_bias=rng.random(4, np.float32),
    )  # fmt: skip

    built = rebuild_conditions(stored, DIFFUSION)

    assert built.placement == "context"
    assert np.array_equal(built.semantic_embedding, stored.semantic_embedding)
    assert np.array_equal(built.semantic_variations, stored.semantic_variations)
    assert np.array_equal(built.spatial_encoder.weight, stored.spatial_weight)
    assert np.array_equal(built.spatial_encoder.bias, stored.spatial_bias)
    beside = conditions(header={"placement": "prompt"})
    assert rebuild_conditions(beside, DIFFUSION).placement == "prompt"


def test_exemplars_alone_fill_a_set_with_the_image_of_each_seed(tmp_path):
    kept = conditions(**leaning(), semantic_embedding=np.zeros((0, 0), np.float32))
    images, masks, seeds = drawn(tmp_path / "one", kept, work=replay_kept)

    assert seeds.tolist() == image_seeds("bolt", 0, NUM_IMAGES).tolist()
    real = kept_images(kept)
    assert all(np.array_equal(images[row], real.varied(seeds[row])) for row in range(NUM_IMAGES))
    assert masks.all()
