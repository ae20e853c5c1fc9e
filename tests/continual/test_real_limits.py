"""Limits of classes that are replayed: what real images of them come to, measured at compress."""

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.continual import real_limits
from replaycad.continual.real_limits import RealLimits, measure, of_real_images, record
from replaycad.continual.router import Router
from replaycad.data.samples import Sample
from replaycad.detectors.limits import NormalScores
from replaycad.detectors.patchcore import looks
from replaycad.detectors.patchcore.looks import Look
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from tests.conftest import states

REAL = {"image": 40.0, "typical_image": 20.0, "pixel": 9.0, "typical_pixel": 3.0, "product": 50.0}
REPLAYS = {"image": 10.0, "typical_image": 5.0, "pixel": 1.0, "typical_pixel": 0.5, "product": 8.0}
OWN = {"false_alarm_rate": 0.01, "image": 2.0, "typical_image": 1.0, "pixel": 1.0,
       "typical_pixel": 0.5, "product": 4.0}  # fmt: skip
MEASURED = RealLimits(REAL, REPLAYS)
PRESET = PatchCorePreset(bank_fraction=1.0, bank_limit=4000, is_routed=True)


class Brightness:
    """An encoder whose features are the brightness of places, 4 and 8 px wide."""

    channels, strides, device = (1, 1), (4, 8), torch.device("cpu")

    def encode_images(self, images):
        grey = images.float().mean(dim=1, keepdim=True)
        return [torch.nn.functional.avg_pool2d(grey, side) for side in self.strides]


def flat(*values):
    """Images `[N, 3, 128, 128]` uint8, each of one brightness."""
    return np.stack([np.full((3, 128, 128), value, np.uint8) for value in values])


@pytest.fixture
def samples(tmp_path):
    def write(*values):
        found = []
        for number, image in enumerate(flat(*values)):
            path = tmp_path / f"{number}.png"
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
            name = str(number)
            found.append(Sample(path=path, image_id=name, class_name="nut", kind="good"))
        return found

    return write


def test_real_images_are_held_against_replays_and_replays_against_each_other(samples):
    # Inside, where no border is near, a place of brightness b embeds as (b, b): 0.1 * 8 + 0.2 and a
    # mean are 1, so two brightnesses lie 2 * (difference squared) apart.
    found = measure(
        samples(*[110] * 40), [], flat(100, 103), np.array([-1, -1]), Brightness(), PRESET, 0
    )

    real, replays = found.real, found.replays
    assert real["typical_pixel"] == pytest.approx(2 * 7**2, rel=0.02), "103 is the nearest"
    assert replays["typical_pixel"] == pytest.approx(2 * 3**2, rel=0.02)
    assert real["image"] == pytest.approx(2 * 7**2, rel=0.02)
    assert real["product"] == pytest.approx(1.5 * 2 * 7**2, rel=0.05)


def test_a_kept_image_is_not_held_against_its_own_replays(samples):
    # Two images, both kept; each replay is its image. Told apart, they lie 10 from each other.
    found = measure(
        samples(100, 110), [0, 1], flat(100, 110), np.array([0, 1]), Brightness(), PRESET, 0
    )

    assert found.real["image"] == pytest.approx(2 * 10**2, rel=0.02), "its own lie at no distance"


def test_kept_images_are_left_out_where_there_are_enough_others(samples, monkeypatch):
    monkeypatch.setattr(real_limits, "LEAST_OTHERS", 3)
    # the kept ones are the odd ones of the class, which covering picks first
    found = measure(
        samples(0, 101, 101, 101), [0], flat(100, 100), np.array([0, 0]), Brightness(), PRESET, 0
    )

    assert found.real["image"] == pytest.approx(2, rel=0.05), "that of 0 would be 20000"


def test_a_bank_that_measures_alike_takes_the_limits_of_real_images_as_they_are():
    kept = RealLimits.of(record(MEASURED, "this"), "this")

    assert of_real_images("nut", OWN, kept, True) == {**REAL, "false_alarm_rate": 0.01}


def test_a_bank_of_other_features_raises_its_own_limits_and_knows_no_product():
    kept = RealLimits.of(record(MEASURED, "this"), "that")

    bank = of_real_images("nut", OWN, kept, True)

    # four times as far, of pixels nine and six times
    assert (bank["image"], bank["typical_image"]) == (8.0, 4.0)
    assert (bank["pixel"], bank["typical_pixel"]) == (9.0, 3.0)
    assert "product" not in bank


def test_a_trained_detector_gets_room_for_what_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(real_limits, "UNSEEN_FACTOR", 1.5)
    alike, other, none = (
        of_real_images("nut", OWN, RealLimits.of(found, "this"), False)
        for found in (record(MEASURED, "this"), record(MEASURED, "that"), None)
    )

    for limits in (alike, other, none):
        assert (limits["image"], limits["typical_image"]) == (3.0, 1.5)
        assert (limits["pixel"], limits["typical_pixel"]) == (1.5, 0.75)
    # which class an image is of is told by a bank beside it
    assert alike["product"] == 50.0
    assert "product" not in other
    assert "product" not in none


def test_limits_leave_less_room_where_replays_are_real_images(monkeypatch):
    monkeypatch.setattr(real_limits, "UNSEEN_FACTOR", 3.0)
    monkeypatch.setattr(real_limits, "UNSEEN_FACTOR_OF_IMAGES", 1.5)
    for count, image in ((0, 6.0), (real_limits.ENOUGH_IMAGES - 1, 6.0),
                         (real_limits.ENOUGH_IMAGES, 3.0)):  # fmt: skip
        found = record(RealLimits(REAL, REPLAYS, num_images=count), "this")
        assert of_real_images("nut", OWN, RealLimits.of(found, "this"), False)["image"] == image


def test_replays_that_lie_farther_than_real_images_lower_no_limit():
    kept = RealLimits.of(record(RealLimits(REPLAYS, REAL), "this"), "that")

    assert of_real_images("nut", OWN, kept, True)["image"] == OWN["image"]


@pytest.mark.parametrize(
    "found",
    [
        None, "x", {}, {"real": [1], "replays": [1] * 5, "bank": "b"},
        {"real": [1] * 5, "replays": ["x"] * 5, "bank": "b"},
    ],
)  # fmt: skip
def test_what_is_no_record_is_none_and_limits_stay_those_of_replays(found):
    assert RealLimits.of(found, "b") is None

    limits = of_real_images("nut", OWN, None, True)

    assert limits == {kind: value for kind, value in OWN.items() if kind != "product"}


def test_scores_are_stretched_to_the_limits_that_are_wanted():
    scores = np.linspace(0, 100, 101).astype(np.float32)
    found = NormalScores(scores, scores / 10)
    wanted = {"typical_image": 500.0, "image": 990.0, "typical_pixel": 0.5, "pixel": 0.6}

    limits = found.moved(wanted).limits()

    assert {kind: limits[kind] for kind in wanted} == pytest.approx(wanted, rel=1e-5)
    assert found.moved(wanted).image_scores[0] == pytest.approx(0), "50 below are 500 below"


@pytest.mark.parametrize("detector", ["patchcore", "ucad", "invad", "cdad"])
def test_what_a_class_looks_like_travels_to_what_tells_its_images_apart(
    run, models, tmp_path, monkeypatch, detector
):
    monkeypatch.setattr(looks, "LEAST_IMAGES", 4)
    name = "patchcore" if detector == "ucad" else detector
    named = (f"detector={name}", f"encoder={models.encoder}", "image_size=64", "num_steps=2")
    bank = [part for text in named for part in ("--set", f"train.{text}")]
    bank += ["--set", "train.preset=ucad"] if detector == "ucad" else []
    bank += ["--set", "replay.num_images=6"]
    assert run("compress", "--class", "disc", "--keep", "exemplars", *bank).exit_code == 0
    kept = read_header(tmp_path / "store" / "conditions" / "disc.safetensors")
    look = Look.of(kept["limits_of_real"]["look"])
    assert look is not None
    assert run("train", "--class", "plate", "--past", "disc", *bank).exit_code == 0

    trained = DetectorArtifact.load(tmp_path / "store" / "detectors" / "plate.safetensors")

    state = trained.router or trained.state
    assert state["looks.class_index"].tolist() == [trained.class_order.index("disc")]
    mean, matrix = state["looks.rows"][0, 0], state["looks.rows"][0, 1:]
    assert np.array_equal(mean, look.rows[0])
    limit = trained.thresholds["by_class"]["disc"]["product"]
    assert matrix == pytest.approx(look.whitening() * limit**0.5 / look.limit, rel=1e-5)


def test_a_look_has_no_room_in_a_small_budget(run, tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "LEAST_IMAGES", 4)
    for budget, has_look in (("4kB", False), ("20kB", True)):
        assert run("compress", "--class", "disc", "--keep", "exemplars", "--budget", budget,
                   "--set", "train.image_size=32").exit_code == 0  # fmt: skip
        path = tmp_path / "store" / "conditions" / "disc.safetensors"
        assert ("look" in read_header(path)["limits_of_real"]) == has_look
        assert path.stat().st_size <= int(budget[:-2]) * 1000


def test_a_bank_of_other_features_cannot_use_a_look():
    look = Look(np.ones((1 + looks.DIRECTIONS, looks.WIDTH), np.float32), 1.0, 2.0)
    found = record(RealLimits(REAL, REPLAYS, look=look), "this")
    bank = PatchCore((1, 1), (4, 8), 32, PRESET)
    for name, count in (("this", 1), ("that", 0)):
        real_limits.give_look(bank, 0, RealLimits.of(found, name))
        assert len(bank.looks.rows) == count


@pytest.mark.parametrize("form", ["exemplars", "conditions"])
def test_limits_travel_from_compress_to_a_detector_that_sees_replays_alone(
    run, models, tmp_path, form
):
    named = ("detector=patchcore", f"encoder={models.encoder}", "image_size=32")
    bank = [part for text in named for part in ("--set", f"train.{text}")]
    bank += ["--set", "replay.num_images=6"]
    assert run("compress", "--class", "disc", "--keep", form, *bank).exit_code == 0
    kept = ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")
    count = kept.header["limits_of_real"].get("images", 0)
    assert count == (len(kept.exemplars) if form == "exemplars" else 0)
    told = dict(zip(real_limits.MEASURED, kept.header["limits_of_real"]["real"], strict=True))
    trained = ("train", "--class", "plate", "--past", "disc", *bank)
    assert run(*trained).exit_code == 0

    path = tmp_path / "store" / "detectors" / "plate.safetensors"
    limits = DetectorArtifact.load(path).thresholds

    own = limits["by_class"]["disc"]
    assert {kind: own[kind] for kind in told} == told
    assert limits["image"] >= 0.9 * told["image"], "of all classes too"
    assert states(run, *trained) == [("hit", "")]
    # the same images with other limits make another detector
    header = {**kept.header, "limits_of_real": real_limits.record(MEASURED, "x")}
    kept.__class__(**{**vars(kept), "header": header}).save(
        tmp_path / "store" / "conditions" / "disc.safetensors"
    )
    assert states(run, *trained) != [("hit", "")]


def test_conditions_can_be_made_without_the_encoder_of_a_detector(run, tmp_path):
    asked = ("compress", "--class", "disc", "--keep", "conditions", "--set", "real_limits=false",
             "--set", "train.encoder=no_such_network")  # fmt: skip

    assert run(*asked).exit_code == 0

    header = read_header(tmp_path / "store" / "conditions" / "disc.safetensors")
    assert "limits_of_real" not in header
    assert "encoder" not in header["weights"]


def test_an_image_of_the_router_is_not_held_against_itself():
    bank = PatchCore((1, 1), (4, 8), 32, PRESET)
    levels = [torch.full((2, 1, side, side), 0.0) for side in (8, 4)]
    for level in levels:
        level[1] += 10.0
    bank.fit([levels], 0, torch.Generator().manual_seed(0))
    router = Router(bank)

    alone = router.distances(levels, [0, 0], [7, 9])
    router.places[0] = {7: 0, 9: 1}

    assert alone == pytest.approx([0, 0], abs=1e-3)
    assert router.distances(levels, [0, 0], [7, 9]).min() > 10
