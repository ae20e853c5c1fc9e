"""What a detector is shown, how often, in which order, and where its thresholds lie."""

import shutil
from collections import Counter
from itertools import chain as joined

import numpy as np
import pytest
import torch

from replaycad.config.stages import TrainConfig
from replaycad.continual.penalties import IMPORTANCES
from replaycad.data.images import viewed
from replaycad.data.mixture import Mixture, Source
from replaycad.data.views import BLANK, View, packed
from replaycad.stages.train import train_detector
from tests.stages.stubs import (
    SIDE,
    Flats,
    Mirror,
    Plain,
    corners,
    dots,
    mirror_artifact,
    write_sample,
)

HEADER = {"config": {"encoder": "plain"}, "weights": {}}


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch):
    """Replays stand for photos here, and get no room for what photos would score more."""
    monkeypatch.setattr("replaycad.continual.real_limits.UNSEEN_FACTOR", 1.0)


@pytest.fixture(autouse=True)
def mirror(monkeypatch):
    """The detector that is trained, whatever the config names."""
    built = Mirror()

    def build(_detector, _preset, _channels, _strides, _image_size, seed):
        built.weights_seed = seed
        return built

    monkeypatch.setattr("replaycad.stages.train.build_detector", build)
    return built


def trained(values, class_order, init=None, seed=0, **settings):
    """Train on images of these values, a pair (class_index, values) for each source."""
    sources = [Source(class_index=one, replays=Flats(own)) for one, own in values]
    config = TrainConfig(**{"image_size": SIDE, "num_steps": 1, "batch_size": 8, **settings})
    mixture = Mixture(sources, SIDE)
    return train_detector(mixture, class_order, Plain(), config, seed, HEADER, init=init)


def together(batches):
    return list(joined.from_iterable(batches))


def test_one_image_in_a_hundred_is_above_the_threshold_and_half_are_above_the_typical():
    # 101 scores of 0 to 100: the quantile 0.99 is the hundredth of them exactly.
    limits = trained([(0, range(101))], ["bolt"]).thresholds

    assert limits["false_alarm_rate"] == 0.01
    assert (limits["image"], limits["typical_image"]) == (99, 50)
    assert (limits["pixel"], limits["typical_pixel"]) == (99, 50)


def test_thresholds_of_pixels_are_quantiles_of_pixels_not_of_images(tmp_path):
    # Of the 16 pixels every second of every second row is looked at; one of these four is bright.
    picture = dots((2, 2, 80))
    samples = [write_sample(tmp_path / "bolt", f"{index:03}", picture) for index in range(25)]
    config = TrainConfig(image_size=SIDE, num_steps=1, batch_size=8)

    limits = train_detector(
        Mixture([Source(class_index=0, samples=samples)], SIDE), ["bolt"], Plain(), config, 0,
        HEADER,
    ).thresholds  # fmt: skip

    assert (limits["image"], limits["typical_image"]) == (80, 80)
    assert (limits["pixel"], limits["typical_pixel"]) == (80, 0)


def test_each_class_has_the_thresholds_of_its_own_images():
    # Class 1 is the first source, and class 0 comes in two parts.
    parts = [(1, range(100, 201)), (0, range(51)), (0, range(51, 101))]

    limits = trained(parts, ["late", "early"]).thresholds

    assert set(limits["by_class"]) == {"late", "early"}
    late, early = limits["by_class"]["late"], limits["by_class"]["early"]
    assert (late["image"], late["typical_image"], late["pixel"]) == (99, 50, 99)
    assert (early["image"], early["typical_image"], early["pixel"]) == (199, 150, 199)
    # Of all 202 sorted values the quantile is 0.99 * 201 = 198.99: between 197 and 198.
    assert limits["image"] == pytest.approx(197.99)
    assert limits["typical_image"] == 100


def test_a_class_without_images_has_no_threshold_of_its_own():
    limits = trained([(1, [7])], ["gone", "here"]).thresholds

    assert set(limits["by_class"]) == {"here"}
    assert limits["by_class"]["here"]["image"] == 7


def test_thresholds_of_very_many_images_stand_for_all_of_them(mirror):
    # Of 511 every second is asked, which are 0 to 255: quantile 0.99 * 255 = 252.45.
    limits = trained([(0, np.arange(511) // 2)], ["bolt"]).thresholds

    assert [value for value, _, _ in mirror.asked] == list(range(256))
    assert limits["image"] == pytest.approx(252.45)


def test_a_memory_is_asked_for_each_image_by_its_class_and_its_place_there(mirror):
    trained([(1, [50, 51, 52]), (0, [10, 11]), (1, [53])], ["a", "b"], batch_size=4)

    assert mirror.asked == [
        (50, 1, 0), (51, 1, 1), (52, 1, 2), (10, 0, 0), (11, 0, 1), (53, 1, 3),
    ]  # fmt: skip


def test_a_detector_without_a_loss_is_given_each_class_once_and_whole(mirror):
    mirror.trained_by = "fit"

    trained([(1, [50, 51, 52]), (0, [10, 11]), (1, [53])], ["a", "b"], batch_size=2,
            detector="patchcore")  # fmt: skip

    assert mirror.fitted == {0: [10, 11], 1: [50, 51, 52, 53]}
    assert mirror.shown == []


def test_the_streams_of_a_fit_belong_to_a_class_by_name_and_to_a_seed(mirror):
    mirror.trained_by, found = "fit", []
    for order, seed in ((["a", "b"], 0), (["b", "a"], 0), (["a", "b"], 1)):
        trained([(0, [10]), (1, [50])], order, seed=seed, detector="patchcore")
        found.append(dict(zip(order, mirror.streams.values(), strict=True)))

    assert found[0] == found[1]
    assert len({*found[0].values(), *found[2].values()}) == 4


@pytest.mark.parametrize(("banks", "gain", "shrunk"), [("replace", 1, 0), ("extend", 2, 1)])
def test_banks_are_replaced_or_extended_and_then_shrunk(banks, gain, shrunk, mirror):
    mirror.trained_by = "fit"
    start = mirror_artifact(gain=2.0, detector="patchcore", header={"weights": {}})

    found = trained([(0, [10])], ["a"], init=start, detector="patchcore", banks=banks)

    assert (found.state["gain"], mirror.shrunk) == (gain, shrunk)


def test_weights_and_the_order_of_the_images_belong_to_the_seed(mirror):
    found = []
    for seed in (0, 1, 0):
        mirror.shown = []
        trained([(0, range(24))], ["bolt"], num_steps=3, seed=seed)
        found.append((mirror.weights_seed, mirror.shown))

    assert found[0] == found[2]
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize(("balance", "shown"), [(True, {3: 20, 9: 20}), (False, {3: 30, 9: 10})])
def test_balance_shows_classes_equally_often_and_without_it_images(balance, shown, mirror):
    # 40 images in batches of 8: five steps are one epoch.
    trained([(0, [3] * 30), (1, [9] * 10)], ["large", "small"], epochs=1, num_steps=0,
            balance=balance)  # fmt: skip

    assert Counter(together(mirror.shown)) == shown
    assert [len(batch) for batch in mirror.shown] == [8] * 5


def test_every_epoch_shows_every_image_once_in_another_order(mirror):
    trained([(0, range(24))], ["bolt"], epochs=2, num_steps=0, balance=False)

    first, second = together(mirror.shown[:3]), together(mirror.shown[3:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert mirror.progress == [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]


def test_a_training_that_was_killed_is_shown_the_rest_and_nothing_twice(mirror):
    class Killed:
        def load(self):
            return 4, {"model.gain": np.array([3], np.float32)}

    trained([(0, range(24))], ["bolt"], epochs=2, num_steps=0)
    whole, mirror.shown = mirror.shown, []
    noise, mirror.noise = mirror.noise, []
    config = TrainConfig(image_size=SIDE, epochs=2, batch_size=8)
    mixture = Mixture([Source(class_index=0, replays=Flats(range(24)))], SIDE)

    found = train_detector(mixture, ["bolt"], Plain(), config, 0, HEADER, checkpoint=Killed())

    assert mirror.shown == whole[4:]
    assert mirror.noise == noise[4:], "and draws the rest"
    assert len(set(noise)) == 6, "of each step anew"
    assert found.state["gain"] == 3


def test_training_goes_on_from_the_weights_of_another_detector():
    start = mirror_artifact(gain=2.0, header={"weights": {}})

    found = trained([(0, [10] * 8)], ["bolt"], init=start)

    assert found.state["gain"] == 2
    assert found.thresholds["image"] == 20


def test_the_artifact_says_what_it_was_trained_with():
    found = trained([(0, [10]), (1, [20])], ["nut", "bolt"])

    assert (found.detector, found.preset, found.encoder, found.image_size) == (
        "invad", "mini", "plain", SIDE,
    )  # fmt: skip
    assert found.class_order == ["nut", "bolt"]
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_every_step_is_taken_also_the_first_of_a_further_epoch(mirror):
    trained([(0, range(24))], ["bolt"], num_steps=4)

    assert [len(batch) for batch in mirror.shown] == [8] * 4


def test_importances_are_of_all_images_and_add_up_over_the_detectors(monkeypatch):
    seen = []

    def counted(detector, pyramids):
        seen.extend(value for levels in pyramids for value in corners(levels))
        return {"gain": 5 * torch.ones_like(detector.gain)}

    monkeypatch.setitem(IMPORTANCES, "mas", counted)
    start = mirror_artifact(
        header={"weights": {}, "config": {"penalty": "mas"}},
        penalty={"gain": np.array([2], np.float32)},
    )  # fmt: skip

    alone = trained([(0, np.arange(511) // 2)], ["bolt"], penalty="mas")
    beside = trained([(0, [7] * 8)], ["bolt"], penalty="mas", init=start)

    assert seen == [*range(256), *[7] * 8]
    assert alone.penalty["gain"] == 1, "their mean"
    assert beside.penalty["gain"] == 1 + 2


@pytest.fixture
def sources(run, chain, tmp_path, monkeypatch):
    """What `train` mixes for `plate` with replays of `disc`: a function of more options."""
    for kind in ("conditions", "replays"):
        shutil.copytree(chain / kind, tmp_path / "store" / kind)
    found = []

    def keep(mixed, *_others):
        found.extend(mixed)
        raise KeyboardInterrupt

    monkeypatch.setattr("replaycad.engine.train.Mixture", keep)

    def call(*options):
        run("train", "--class", "plate", "--past", "disc", *options)
        return found

    return call


def test_replays_are_of_the_past_class_and_real_images_of_the_new_ones_training_set(sources):
    past, new = sources()

    assert (past.class_index, new.class_index) == (0, 1)
    assert past.replays.header["class_name"] == "disc"
    assert len(past) == 6
    assert not past.samples
    assert new.replays is None
    assert [one.image_id for one in new.samples] == [f"train/good/{i:03}.png" for i in range(6)]
    assert {one.class_name for one in new.samples} == {"plate"}
    assert not any(one.is_anomalous for one in new.samples)


def test_a_budget_of_replays_limits_the_past_and_not_the_new(sources):
    past, new = sources("--set", "replay_budget=2")

    assert (len(past), len(new)) == (2, 6)


def test_the_threshold_of_a_picture_is_that_of_its_highest_tile():
    """Four tiles of a picture: each below the limit in 0.99^(1/4) of the cases."""
    view = View(tile=SIDE, num_tiles=4)
    source = Source(class_index=0, replays=Flats(range(201)), view=view)
    config = TrainConfig(image_size=SIDE, num_steps=1, batch_size=8)

    limits = train_detector(
        Mixture([source], SIDE), ["bolt"], Plain(), config, 0, HEADER
    ).thresholds

    assert limits["image"] == pytest.approx(200 * 0.99**0.25)
    assert limits["typical_image"] == pytest.approx(200 * 0.5**0.25)
    assert limits["pixel"] == pytest.approx(200 * 0.99)
    assert limits["by_class"]["bolt"]["image"] == limits["image"]


def test_ignored_pixels_and_padding_are_in_no_threshold(tmp_path):
    """The brightest pixel of every image is ignored; so the next one is its score."""
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[2, 2] = True
    view = View(ignore=packed(ignored))
    shown = [dots((2, 2, 200), (0, 0, 30), (1, 1, 60)) for _ in range(25)]
    samples = [write_sample(tmp_path / "bolt", f"{n:03}", one) for n, one in enumerate(shown)]
    config = TrainConfig(image_size=SIDE, num_steps=1, batch_size=8)

    mixture = Mixture([Source(class_index=0, samples=viewed(samples, view))], SIDE)
    limits = train_detector(mixture, ["bolt"], Plain(), config, 0, HEADER).thresholds

    assert mixture.images([0])[0, :, 2, 2].tolist() == list(BLANK)
    assert limits["image"] == 60
    # of every second pixel of every second row three are left: 30, 0, 0
    assert (limits["pixel"], limits["typical_pixel"]) == (30, 0)


def test_replays_of_a_class_with_ignored_pixels_do_not_count_there_either():
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[:, :2] = True
    view = View(ignore=packed(ignored))

    mixture = Mixture([Source(class_index=0, replays=Flats([1, 2]), view=view)], SIDE)

    assert mixture.counted([1])[0].tolist() == (~ignored).tolist()
    assert Mixture([Source(class_index=0, replays=Flats([1]))], SIDE).counted([0]) is None
