"""What of a class goes into its conditions: which images, masks, poses and real images."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.coverage import WHOLE
from replaycad.continual.exemplars import decode
from replaycad.diffusion.alignment import Alignment
from replaycad.diffusion.conditioning import Conditions
from replaycad.mask_ops import WORN_SHARE
from replaycad.stages import compress as stage
from replaycad.stages import exemplars
from tests.conftest import states
from tests.stages.stubs import write_sample

SIDE, COUNT = 8, 7
DIFFUSION = SimpleNamespace(
    image_size=SIDE, device=torch.device("cpu"), latent_shape=(4, 1, 1), cross_attention_dim=8
)  # fmt: skip
SETTINGS = CompressConfig(alignment="none", num_variations=0, num_masks=3)


def masks_of(count=COUNT):
    """Masks `[N, 8, 8]` bool: mask i has i + 1 pixels of the upper row and one below its first."""
    found = np.zeros((count, SIDE, SIDE), bool)
    for index, mask in enumerate(found):
        mask[0, : index + 1] = mask[1, 0] = True
    return found


@pytest.fixture
def bolts(tmp_path):
    """Seven pictures, each white where its mask is: samples, and their masks as an artifact."""
    shown = masks_of()
    samples = [
        write_sample(tmp_path / "bolt", str(index), mask.astype(np.uint8) * 255)
        for index, mask in enumerate(shown)
    ]
    policy = {"mask_rule": "corners", "train_augmentation": "six_way", "init_word": "bolt"}
    masks = MasksArtifact(
        class_name="bolt", image_ids=[one.image_id for one in samples], object_masks=shown,
        area_fraction=shown.mean((1, 2), dtype=np.float32), rule="corners",
        header={"policy": policy},
    )  # fmt: skip
    return samples, masks


@pytest.fixture
def encoded(monkeypatch):
    """What the search is given: pictures of images, then of masks, `[A, N, S, S]` uint8 each."""
    found = []

    def keep(_diffusion, pictures, _dtype):
        found.append(torch.stack([batch[:, 0] for batch in pictures]).numpy())
        return SimpleNamespace(mean=None)

    def start(_diffusion, _encoded, _config, _seed, init_word, _variation):
        found.append(init_word)
        return Conditions(torch.ones(1, 8), None, "context")

    monkeypatch.setattr(stage, "encode_posterior", keep)
    monkeypatch.setattr(stage, "start_conditions", start)
    monkeypatch.setattr(stage, "search", lambda _diffusion, start, *_: start)
    return found


def compressed(bolts, config=SETTINGS):
    samples, masks = bolts
    return stage.compress_class(samples, masks, DIFFUSION, config, 0, {"key": "k"})


def test_each_image_is_learned_from_with_its_own_mask_turned_alike(bolts, encoded):
    compressed(bolts)

    images, masks, init_word = encoded
    shown = masks_of()
    assert images.shape == (6, COUNT, SIDE, SIDE)
    assert np.array_equal(images > 127, masks > 127)
    assert np.array_equal(images[0] > 127, shown)
    assert len({turned.tobytes() for turned in images}) == 6
    assert init_word == "bolt"


@pytest.mark.parametrize("settings", [{"augmentation": "none"}, {"alignment": "auto"}])
def test_images_are_not_turned_where_that_is_not_wanted_or_their_poses_are_known(
    settings, bolts, encoded, monkeypatch
):
    lie = Alignment(torch.zeros(COUNT, 3), False, 1.0)
    monkeypatch.setattr(stage.Aligner, "__call__", lambda *_: lie)

    compressed(bolts, replace(SETTINGS, **settings))

    assert encoded[0].shape[0] == 1
    assert np.array_equal(encoded[0][0] > 127, masks_of())
    assert np.array_equal(encoded[1][0] > 127, masks_of())


def test_of_very_many_images_as_many_are_read_as_the_steps_can_see(bolts, encoded, monkeypatch):
    monkeypatch.setattr(stage, "LEAST_IMAGES", 2)
    config = replace(SETTINGS, augmentation="none", num_steps=2, batch_size=2, num_masks=9)

    found = compressed(bolts, config)

    # Four of seven, evenly_spaced: 0, 2, 4, 6.
    assert np.array_equal(encoded[0][0] > 127, masks_of()[::2])
    assert np.array_equal(encoded[1][0] > 127, masks_of()[::2])
    assert np.array_equal(found.object_masks, masks_of()[::2])


@pytest.mark.usefixtures("encoded")
def test_the_masks_that_are_kept_are_spread_over_the_class(bolts):
    found = compressed(bolts)

    assert np.array_equal(found.object_masks, masks_of()[[0, 3, 6]])
    assert found.policy == bolts[1].header["policy"]
    assert found.header == {"key": "k", "placement": "context"}
    assert found.poses is None


@pytest.mark.usefixtures("encoded")
def test_the_poses_that_are_kept_are_spread_over_the_class(bolts, monkeypatch):
    monkeypatch.setattr(stage, "MAX_POSES", 4)
    lie = Alignment(torch.arange(COUNT).float()[:, None] * torch.tensor([[1, 0, 0]]), False, 1.0)
    monkeypatch.setattr(stage.Aligner, "__call__", lambda *_: lie)

    found = compressed(bolts, replace(SETTINGS, alignment="auto"))

    assert found.poses[:, 0].tolist() == [0, 2, 4, 6]


def test_masks_of_conditions_are_spoilt_as_asked(bolts, encoded):
    compressed(bolts, replace(SETTINGS, spoil_masks="box", augmentation="none"))

    # The box of a bar with a pixel below its left end has two rows.
    boxes = masks_of()
    boxes[:, 1] = boxes[:, 0]
    assert np.array_equal(encoded[1][0] > 127, boxes)
    assert np.array_equal(encoded[0][0] > 127, masks_of()), "images are as they were"


def test_noisy_masks_are_some_of_them_grown_or_shrunk(bolts, encoded):
    compressed(bolts, replace(SETTINGS, spoil_masks="noisy", augmentation="none"))

    changed = ((encoded[1][0] > 127) != masks_of()).any((1, 2))
    assert changed.sum() == round(WORN_SHARE * COUNT)


@pytest.mark.usefixtures("encoded")
@pytest.mark.parametrize("half", [True, False])
def test_conditions_are_stored_in_half_the_bits_where_asked(bolts, half):
    assert compressed(bolts, replace(SETTINGS, half=half)).half == half


@pytest.mark.usefixtures("encoded")
def test_the_coefficients_that_are_kept_are_spread_over_all_augmentations(bolts, monkeypatch):
    monkeypatch.setattr(stage, "MAX_POSES", 4)
    numbered = torch.arange(2 * COUNT).float().reshape(2, COUNT, 1)
    found = SimpleNamespace(coefficients=numbered)
    monkeypatch.setattr(stage, "principal_variation", lambda *_: found)

    kept = compressed(bolts, replace(SETTINGS, num_variations=1))

    # Four of 14, evenly_spaced from 0 to 13: 0, 13/3, 26/3 and 13, rounded.
    assert kept.coefficients[:, 0].tolist() == [0, 4, 9, 13]


@pytest.mark.parametrize(("keep", "budget", "room"), [
    ("conditions", 100_000, 100_000), ("hybrid", 100_000, 50_000), ("hybrid", 0, 100_000),
])  # fmt: skip
def test_conditions_may_fill_a_budget_and_half_of_it_beside_real_images(
    keep, budget, room, bolts, monkeypatch
):
    asked = []

    def fitted(found, most):
        asked.append(most)
        return found

    monkeypatch.setattr(stage, "fitted", fitted)
    config = replace(SETTINGS, keep=keep, budget=budget)

    assert stage.within_budget("conditions", config, bolts[1]) == "conditions"
    assert asked == [room]
    assert stage.within_budget("conditions", SETTINGS, bolts[1]) == "conditions"
    assert asked == [room], "without a budget nothing is made to fit"


@pytest.fixture
def ordered(monkeypatch):
    """Images cover their class in the order 4, 2, 0, 6, 1, 3, 5; image i lies at i degrees."""
    order = [4, 2, 0, 6, 1, 3, 5]
    lie = Alignment(torch.arange(COUNT).float()[:, None] * torch.tensor([[1, 0, 0]]), False, 1.0)
    monkeypatch.setattr(exemplars.Aligner, "__call__", lambda *_: lie)
    monkeypatch.setattr(exemplars, "describe", lambda *_: None)
    monkeypatch.setattr(exemplars, "coverage_order", lambda *_: list(order))
    return order


def kept(bolts, **settings):
    samples, masks = bolts
    config = replace(
        SETTINGS, alignment="auto", exemplar_quality=100, exemplar_size=SIDE, image_size=SIDE,
        **settings,
    )  # fmt: skip
    return exemplars.keep_exemplars(samples, masks, None, WHOLE, config, 0, {})


def nearest(image):
    """Which of the seven pictures this is."""
    apart = [np.abs(image[0].astype(int) - 255 * mask).mean() for mask in masks_of()]
    return int(np.argmin(apart))


def test_every_real_image_is_kept_with_its_own_pose(bolts, ordered):
    found, rows = kept(bolts)

    shown = [nearest(decode(one, SIDE)) for one in found.exemplars]
    assert rows == shown == ordered
    assert found.exemplar_poses[:, 0].tolist() == ordered


def test_of_a_few_real_images_the_first_of_the_order_are_kept_with_their_poses(bolts, ordered):
    whole, _ = kept(bolts)
    found, rows = kept(bolts, budget=whole.file_bytes() - len(whole.exemplars[-1]) - 30)

    count = len(rows)
    assert 0 < count < COUNT
    assert rows == [nearest(decode(one, SIDE)) for one in found.exemplars] == ordered[:count]
    assert found.exemplar_poses[:, 0].tolist() == ordered[:count]


@pytest.mark.usefixtures("ordered")
def test_real_images_are_moved_to_the_poses_of_the_whole_class(bolts, monkeypatch):
    monkeypatch.setattr(exemplars, "MAX_EXEMPLAR_POSES", 4)

    found, _ = kept(bolts)

    assert found.poses[:, 0].tolist() == [0, 2, 4, 6]
    turns = [[0, ""], [90, ""], [180, ""], [270, ""], [0, "left_right"], [0, "up_down"]]
    assert sorted(map(str, found.header["symmetries"])) == sorted(map(str, turns))


def test_conditions_are_of_the_training_images_of_their_class(run, monkeypatch):
    taken = []

    def keep(samples, masks, *_others):
        taken.extend([samples, masks])
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "compress_class", keep)

    run("compress", "--class", "plate")

    samples, masks = taken
    assert [one.image_id for one in samples] == [f"train/good/{i:03}.png" for i in range(6)]
    assert {one.class_name for one in samples} == {masks.class_name} == {"plate"}


@pytest.mark.parametrize(("change", "reason"), [
    ("policy", "policy changed"), ("masks", "masks/disc changed"),
])  # fmt: skip
def test_conditions_are_stale_when_masks_or_policy_are_others(change, reason, run, tmp_path):
    assert run("compress", "--class", "disc").exit_code == 0
    path = tmp_path / "store" / "masks" / "disc.safetensors"
    masks = MasksArtifact.load(path)
    policy = {**masks.header["policy"], "train_augmentation": "rotate_180"}
    changed = {
        "policy": {"header": {**masks.header, "policy": policy}},
        "masks": {"object_masks": ~masks.object_masks},
    }
    assert states(run, "compress", "--class", "disc") == [("hit", "")]

    replace(masks, **changed[change]).save(path)

    assert states(run, "compress", "--class", "disc") == [("stale", reason)]


@pytest.mark.parametrize("change", ["policy", "placement"])
def test_replays_are_stale_when_policy_or_placement_are_others(change, run, chain, tmp_path):
    for kind in ("conditions", "replays"):
        shutil.copytree(chain / kind, tmp_path / "store" / kind)
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    conditions = ConditionsArtifact.load(path)
    policy = {**conditions.policy, "replay_augmentation": "free_rotation"}
    changed = {
        "policy": {"policy": policy, "header": {**conditions.header, "policy": policy}},
        "placement": {"header": {**conditions.header, "placement": "prompt"}},
    }
    assert states(run, "replay", "--class", "disc") == [("hit", "")]

    replace(conditions, **changed[change]).save(path)

    assert states(run, "replay", "--class", "disc") == [("stale", "policy changed")]
