"""Coded banks: what rounding loses, that they fill their bytes, and that they serve as they say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replaycad.artifacts.coded_features import CodedFeatures, coded
from replaycad.artifacts.conditions import CONDITIONS, ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read, write
from replaycad.artifacts.replays import ReplaysWriter
from replaycad.artifacts.store import Store
from replaycad.continual.banks import KeptBank
from replaycad.continual.features import bank_in_bytes, coding_loss, principal
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.errors import ArtifactError
from replaycad.experiments.contact_sheet import pictures_of
from tests.conftest import states
from tests.toy import write_toy

FEATURES = ("--keep", "features", "--set", "train.detector=patchcore")


def patches(count=200, width=12, rank=3, seed=0):
    """Patches `[count, width]` float32 that differ along few directions, and a little in all."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(0, 1, (count, rank)) * np.array([9, 4, 2])[:rank]
    mixed = wide @ np.linalg.qr(rng.normal(0, 1, (width, width)))[0][:rank]
    return (5 + mixed + rng.normal(0, 0.01, (count, width))).astype(np.float32)


def test_a_patch_comes_back_within_half_a_step_along_each_direction():
    directions = np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0]], np.float32)
    mean = np.array([1, 2, 3], np.float32)
    patch = mean + 7.3 * directions[0] - 2.6 * directions[1]

    found = coded(patch[None], mean, directions, step=1.0)

    assert found.codes.tolist() == [[7, -3]]
    # 0.6 of 0.8 is 95.25 of 127 and rounds to 95: the direction is off by 0.3 %.
    assert found.basis.tolist() == [[95, 127, 0], [-127, 95, 0]]
    expected = mean + 7 * directions[0] - 3 * directions[1]
    assert np.abs(found.decoded()[0] - expected).max() < 0.02


def test_the_widest_direction_comes_first_with_its_spread():
    points = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], np.float32) + 10

    mean, directions, spread = principal(points)

    assert mean.tolist() == [10, 10]
    assert np.allclose(directions, [[1, 0], [0, 1]])
    assert np.allclose(spread, [np.sqrt(18 / 4), np.sqrt(2 / 4)])


def test_a_bank_fills_its_room_from_the_first_patch_and_not_a_byte_more():
    bank = patches(2000)

    def num_bytes(features):
        return 100 + sum(one.nbytes for one in features.integers().values())

    for room in (700, 1000, 1500):
        found = bank_in_bytes(bank, room, num_bytes)
        assert num_bytes(found) <= room
        assert num_bytes(found) > 0.95 * room
        assert 0 < len(found.codes) < 2000
        # Each patch is where it was but for a step along each of three directions.
        apart = np.linalg.norm(found.decoded() - bank[: len(found.codes)], axis=1)
        spread = np.sqrt(principal(bank)[2] ** 2 @ np.ones(12) / 12)
        assert apart.max() < 0.5 * np.sqrt(3) * spread * 1.1 + 0.1
    assert bank_in_bytes(bank, 110, num_bytes) is None
    whole = bank_in_bytes(bank, 10**6, num_bytes)
    assert len(whole.codes) == 2000


def test_the_loss_of_coding_is_held_against_what_lies_between_patches():
    bank = np.array([[0, 0], [3, 0], [0, 4]], np.float32)  # nearest others at 3, 3 and 4
    kept = np.array([[1, 0], [3, 0]], np.float32)
    features = SimpleNamespace(codes=kept, decoded=lambda: kept)

    assert coding_loss(bank, features) == pytest.approx((1 + 0) / 2 / ((9 + 9 + 16) / 3))
    assert coding_loss(np.zeros((3, 2), np.float32), features) == np.inf, "no two differ"
    only = SimpleNamespace(codes=kept[:1], decoded=lambda: kept[:1])
    assert coding_loss(bank[:1], only) == np.inf


def artifact(features, **header):
    return ConditionsArtifact(
        class_name="bolt", semantic_embedding=np.zeros((0, 0), np.float32), spatial_weight=None,
        spatial_bias=None, object_masks=np.zeros((0, 8, 8), np.bool_), policy={},
        header=header, features=features,
    )  # fmt: skip


def test_features_are_read_as_they_were_written(tmp_path):
    kept = bank_in_bytes(patches(), 10**6, lambda _: 0)
    path = tmp_path / "bolt.safetensors"

    artifact(kept).save(path)
    found = ConditionsArtifact.load(path)

    assert found.features is not None
    assert np.array_equal(found.features.codes, kept.codes)
    assert np.array_equal(found.features.decoded(), kept.decoded())
    assert path.stat().st_size == artifact(kept).file_bytes()
    assert not found.is_drawn


@pytest.mark.parametrize("count", [199, 201, 0, "many", None])
def test_features_of_another_count_than_the_header_says_are_damaged(count, tmp_path):
    path = tmp_path / "bolt.safetensors"
    artifact(bank_in_bytes(patches(), 10**6, lambda _: 0)).save(path)
    tensors, header = read(path, CONDITIONS)
    own = {name: header[name] for name in ("class_name", "policy", "mask_width")}

    write(path, CONDITIONS, tensors, own if count is None else {**own, "num_patches": count})

    with pytest.raises(ArtifactError, match="expected `feature_codes` of"):
        ConditionsArtifact.load(path)


def test_kept_patches_are_a_bank_whose_distances_are_those_to_the_decoded_patches():
    preset = replace(PRESETS["mini"], bank_limit=150)
    detector = PatchCore((5, 7), (8, 16), 32, preset)
    levels = [torch.rand(2, 5, 4, 4), torch.rand(2, 7, 2, 2)]
    detector.fit([levels], 0, torch.Generator().manual_seed(0))
    kept = bank_in_bytes(patches(), 10**6, lambda _: 0).decoded()

    KeptBank(kept, {}).give(detector, 1)
    KeptBank(kept, {}).give(detector, 1)

    assert detector.bank_class_index.tolist().count(1) == 150, "the first of 200, once"
    assert set(detector.bank_class_index.tolist()) == {0, 1}
    KeptBank(kept[:20], {}).give(detector, 0)
    KeptBank(kept[20:40], {}).give(detector, 1)
    queries = detector.patches(levels).flatten(0, 1).numpy()
    nearest = np.square(queries[:, None] - kept[None, :40]).sum(2).min(1).reshape(2, 4, 4)
    expected = detector._to_image.numpy() @ nearest @ detector._to_image.numpy().T
    assert np.allclose(detector.anomaly_maps(levels).numpy(), expected, rtol=1e-3)


@pytest.fixture
def options(models):
    """Of `compress`, for the detector of `TRAIN`."""
    return (*FEATURES, "--set", f"train.encoder={models.encoder}")


@pytest.fixture
def compressed(run, tmp_path, options):
    """Keep the features of `disc` in so many bytes."""

    def call(budget=200_000):
        result = run("compress", "--class", "disc", *options, "--budget", str(budget))
        assert result.exit_code == 0, result.output
        return ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")

    return call


def test_auto_tries_nothing_beside_a_bank_that_lacks_no_patch(
    run, options, tmp_path, monkeypatch
):
    monkeypatch.setattr("replaycad.continual.features.BASIS_SHARE", 1.0)
    monkeypatch.setattr("replaycad.continual.features.STEPS", (0.05,))
    auto = ("compress", "--class", "disc", *options, "--keep", "auto", "--budget")

    result = run(*auto, "200000")

    assert result.exit_code == 0, result.output
    assert "nothing else tried: this is a bank of all images" in result.stderr
    kept = ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")
    assert (kept.header["form"], kept.header["separations"]) == ("features", {})

    # As many patches, but moved as far as they lie apart; then finely, but some of them.
    with monkeypatch.context() as patch:
        patch.setattr("replaycad.stages.features.SLIGHT", 0)
        assert "this is a bank" not in run(*auto, "200000", "--force").stderr
    fewer = run(*auto, str(kept.file_bytes() - 60), "--force").stderr
    assert "of 24 patches kept" in fewer
    assert "this is a bank" not in fewer


TRAIN = ("train", "--class", "plate", "--past", "disc", "--detector", "patchcore")


def test_features_stay_within_their_bytes_header_and_all(
    run, compressed, options, tmp_path, monkeypatch
):
    monkeypatch.setattr("replaycad.continual.features.STEPS", (1.0,))
    monkeypatch.setattr("replaycad.continual.features.BASIS_SHARE", 1.0)
    budget = compressed().file_bytes() - 40

    found = compressed(budget)

    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    assert budget - 200 <= path.stat().st_size <= budget
    assert path.stat().st_size == found.file_bytes()
    assert not found.exemplars
    assert list(found.header["weights"]) == ["encoder"]
    result = run("compress", "--class", "disc", *options, "--budget", "900")
    assert result.exit_code == 1
    assert "a budget of 900 bytes holds no patch of disc" in result.stderr


def test_a_detector_takes_the_features_of_a_past_class_as_its_bank_and_their_limits(
    run, compressed, tmp_path
):
    kept = compressed()

    result = run(*TRAIN)

    assert result.exit_code == 0, result.output
    assert "the features of disc" in result.stderr
    assert not (tmp_path / "store" / "replays").exists()
    found = DetectorArtifact.load(tmp_path / "store" / "detectors" / "plate.safetensors")
    assert found.class_order == ["disc", "plate"]
    own = found.state["bank_class_index"] == 0
    assert np.array_equal(found.state["bank"][own], kept.features.decoded())
    limits = found.thresholds["by_class"]
    assert limits["disc"] == kept.header["features"]["limits"]
    highest = max(one["image"] for one in limits.values())
    assert found.thresholds["image"] == highest
    typical = [one["typical_pixel"] for one in limits.values()]
    assert found.thresholds["typical_pixel"] == pytest.approx(np.mean(typical))
    assert run("eval", "--class", "disc,plate", "--name", "plate").exit_code == 0
    assert states(run, *TRAIN) == [("hit", "")]
    compressed(kept.file_bytes() - 300)
    assert states(run, *TRAIN) == [("stale", "conditions/disc changed")]


def test_limits_are_those_of_images_whose_own_patches_are_left_out(run, compressed, tmp_path):
    kept = compressed()
    assert run("train", "--class", "disc", "--detector", "patchcore").exit_code == 0

    found = DetectorArtifact.load(tmp_path / "store" / "detectors" / "disc.safetensors")

    # All patches fit, so the bank is that of a training but for the rounding of its codes.
    assert len(kept.features.codes) == len(found.state["bank"])
    limits = kept.header["features"]["limits"]
    for name in ("image", "pixel", "typical_image", "typical_pixel"):
        assert limits[name] == pytest.approx(found.thresholds[name], rel=0.3), name
    assert limits["image"] > 0


@pytest.mark.parametrize(("other", "what"), [
    (("--detector", "invad"), "another detector: patchcore, not invad"),
    (("--encoder", "mini"), "another encoder: test_resnet.r160_in1k, not mini"),
    (("--set", "image_size=64"), "another image_size: 32, not 64"),
])  # fmt: skip
def test_what_features_do_not_serve_is_said_in_one_line(other, what, run, compressed):
    compressed()

    result = run(*TRAIN, *other)

    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"holds features for {what}" in errors[0]


def test_features_of_other_levels_are_refused(run, compressed, tmp_path):
    kept = compressed()
    served = {**kept.header["features"], "levels": [1, 2]}
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    replace(kept, header={**kept.header, "features": served}).save(path)

    result = run(*TRAIN)

    assert result.exit_code == 1
    assert "holds features for another levels: [1, 2], not [2, 3]" in result.stderr


def test_there_is_nothing_to_draw_of_features(run, compressed):
    compressed()

    result = run("replay", "--class", "disc")

    assert result.exit_code == 1
    assert "features are kept of disc: there is nothing to draw" in result.stderr
    assert "--past disc" in result.stderr


def test_features_are_refused_to_detectors_without_banks(run):
    result = run("compress", "--class", "disc", "--keep", "features")

    assert result.exit_code == 1
    assert "features serve memory banks alone, and invad has none" in result.stderr


def test_a_sequence_goes_on_without_replays_of_what_is_kept_as_features(run, tmp_path):
    options = ("--class", "disc,plate", "--set", "compress.keep=features",
               "--detector", "patchcore", "--json")  # fmt: skip
    result = run("run", *options)

    assert result.exit_code == 0, result.output
    kept = json.loads(result.stdout)["strategies"]["replay"]["bytes_per_class"]
    for name in ("disc", "plate"):
        path = tmp_path / "store" / "conditions" / f"{name}.safetensors"
        assert kept[name] == path.stat().st_size
    assert not (tmp_path / "store" / "replays").exists()
    again = run("run", *options)
    assert json.loads(again.stdout)["strategies"] == json.loads(result.stdout)["strategies"]


def test_codes_far_from_the_mean_are_brought_back_to_where_16_bits_end():
    found = coded(np.array([[1e9]], np.float32), np.zeros(1, np.float32),
                  np.ones((1, 1), np.float32), step=1.0)  # fmt: skip

    assert found.codes.tolist() == [[32_767]]
    tensors = {**found.floats(), **found.integers()}
    assert CodedFeatures.of(tensors, 1).codes.tolist() == [[32_767]]


def test_a_contact_sheet_shows_no_replays_of_an_earlier_form(tmp_path):
    store = Store(tmp_path / "store")
    data = write_toy(tmp_path / "data")
    writer = ReplaysWriter(store.path("replays", "disc"), {"key": "k"}, 1, 8)
    writer.append(np.zeros((1, 3, 8, 8), np.uint8), np.ones((1, 8, 8), bool), np.zeros(1, np.int64))
    writer.close()
    found = {}
    for form in ("exemplars", "features"):
        ConditionsArtifact(
            class_name="disc", semantic_embedding=np.zeros((0, 0), np.float32), spatial_weight=None,
            spatial_bias=None, object_masks=np.zeros((0, 8, 8), bool), policy={},
            header={"form": form},
        ).save(store.path("conditions", "disc"))  # fmt: skip
        found[form] = len(pictures_of(data, store, "disc", "disc")["replay"])

    assert found == {"exemplars": 1, "features": 0}


def test_what_comes_after_features_is_a_training_and_no_replay_also_where_they_were_chosen(run):
    auto = ("compress", "--class", "disc", "--keep", "auto", "--set", "train.detector=patchcore")

    made, found = run(*auto), run(*auto)

    assert "kept as features" in made.stderr
    for result in (made, found):  # the second answers that nothing has changed
        assert "next: replaycad train --class NEW --past disc" in result.stdout
