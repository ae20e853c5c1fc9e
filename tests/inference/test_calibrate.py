"""calibrate: the limits of one class from good photos, and nothing else of a detector."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.artifacts import inspection
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.store import Store
from replaycad.continual.banks import fit_banks
from replaycad.data.mixture import Mixture, Source
from replaycad.data.views import View, packed
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.limits import (
    LIMITS,
    SLACK,
    NormalScores,
    calibrated,
    needed_photos,
    promised,
    rank,
)
from replaycad.detectors.registry import build_detector
from replaycad.engine.inputs import InputDigests
from replaycad.inference.calibrate import parsed_rate
from replaycad.inference.export import FORMATS, export_detector
from tests.conftest import invoke, states
from tests.inference.test_products import PERIODS, SIZE, Stripes
from tests.toy import draw_object

ENCODER = "efficientnet-lite0"
TRAINED = {
    "false_alarm_rate": 0.01, "image": 3.0, "typical_image": 1.0, "pixel": 2.0,
    "typical_pixel": 1.0, "product": 9.0,
}  # fmt: skip


def scores(*values, distances=()):
    """Photos with these scores, whose maps are 0 to 100."""
    return NormalScores(
        np.array(values, np.float32), np.tile(np.arange(101, dtype=np.float32), (len(values), 1)),
        distances=np.array(distances, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "rate", "place", "share"),
    [(9, 0.1, 9, 1 / 10), (8, 0.1, 9, 1 / 9), (19, 0.1, 18, 2 / 20), (20, 0.1, 19, 2 / 21),
     (10, 0.01, 11, 1 / 11), (98, 0.01, 99, 1 / 99), (99, 0.01, 99, 1 / 100),
     (199, 0.01, 198, 2 / 200), (199, 0.005, 199, 1 / 200), (1, 0.4, 2, 1 / 2)],
)  # fmt: skip
def test_the_place_among_the_scores_is_that_of_conformal_prediction(count, rate, place, share):
    assert rank(count, rate) == place
    assert promised(count, rate) == pytest.approx(share)


def test_how_many_photos_a_rate_needs():
    assert [needed_photos(rate) for rate in (0.1, 0.05, 0.01, 0.005, 0.001)] == [
        9, 19, 99, 199, 999,
    ]  # fmt: skip
    for rate in (0.1, 0.03, 0.01, 0.007):
        count = needed_photos(rate)
        assert promised(count, rate) <= rate + 1e-12
        assert promised(count - 1, rate) > rate


def test_with_enough_photos_the_limit_is_the_score_of_that_place():
    nine = calibrated(scores(*range(1, 10)), TRAINED, 0.1)
    nineteen = calibrated(scores(*range(1, 20)), TRAINED, 0.1)

    assert nine["image"] == pytest.approx(9 + SLACK * (9 - 5))
    assert nineteen["image"] == pytest.approx(18 + SLACK * (18 - 10))
    assert (nine["typical_image"], nineteen["typical_image"]) == (5, 10)
    assert (nine["photos"], nineteen["photos"]) == (9, 19)
    assert nineteen["promised"] == pytest.approx(0.1)
    assert nine["false_alarm_rate"] == 0.1


def test_with_few_photos_the_limit_is_that_of_training_at_their_median_or_the_highest():
    usual, odd = calibrated(scores(2, 2, 2.5), TRAINED), calibrated(scores(2, 2, 8), TRAINED)

    assert usual["image"] == pytest.approx(6, rel=1e-2)  # 3 times the median, as 3.0 is of 1.0
    assert odd["image"] == pytest.approx(8, rel=1e-2)
    assert usual["promised"] == pytest.approx(1 / 4)
    # Another rate lies as many standard deviations of the logarithm away as it does of a normal.
    rarer = calibrated(scores(2, 2, 2.5), TRAINED, 0.005)
    assert rarer["image"] == pytest.approx(2 * 3 ** (2.5758 / 2.3263), rel=1e-2)


def test_scores_below_zero_keep_the_distance_to_the_limit():
    below = {**TRAINED, "image": -1.0, "typical_image": -3.0}

    assert calibrated(scores(-7, -7, -6), below)["image"] == pytest.approx(-5, rel=1e-2)


def test_limits_of_pixels_and_products_come_from_the_photos_too():
    found = calibrated(scores(1, 1, 1, distances=(4, 4, 4)), TRAINED)

    assert found["pixel"] == pytest.approx(99)
    assert found["typical_pixel"] == 50
    assert found["product"] == pytest.approx(1.5 * 4)
    assert calibrated(scores(1, 1, 1), TRAINED, 0.05)["pixel"] == pytest.approx(95)
    assert set(found) == {*LIMITS, "photos", "promised", "trained"}


def test_a_later_calibration_starts_from_the_training():
    high = calibrated(scores(1, 1, 500, distances=(900,)), TRAINED)

    assert calibrated(scores(2, 2, 2.5), high) == calibrated(scores(2, 2, 2.5), TRAINED)
    assert high["trained"] == TRAINED


@pytest.mark.parametrize(
    ("text", "rate"), [("0.5%", 0.005), ("0.005", 0.005), ("1 %", 0.01), (" 2% ", 0.02)]
)
def test_a_rate_is_typed_as_a_share_or_in_percent(text, rate):
    assert parsed_rate(text) == pytest.approx(rate)


def striped(period, seed, amplitude=60, side=SIZE, noise=6):
    """Grey stripes `[side, side, 3]` uint8, a little moved."""
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * (np.arange(side) + random.integers(0, 3)) / period)
    grey = 128 + amplitude * wave[:, None] + random.normal(0, noise, (side, side))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def fitted():
    """Weights and limits of a memory bank that tells two classes apart."""
    encoder = load_encoder(ENCODER, levels=(2, 3))
    detector = build_detector("patchcore", "standard", encoder.channels, encoder.strides, SIZE)
    sources = [Source(class_index=i, replays=Stripes(p)) for i, p in enumerate(PERIODS.values())]
    mixture = Mixture(sources, SIZE)
    mixture.replayed = frozenset()  # as if they were photos
    limits = fit_banks(detector, mixture, list(PERIODS), encoder, 4, seed=0)
    return {name: value.numpy() for name, value in detector.state_dict().items()}, limits


@pytest.fixture
def save(fitted, tmp_path):
    """Writes that detector into a store, with views of its classes."""

    def write(**views):
        store, (state, limits) = Store(tmp_path / "store"), fitted
        path = store.path("detectors", "line")
        DetectorArtifact(
            detector="patchcore", preset="standard", encoder=ENCODER, image_size=SIZE,
            class_order=list(PERIODS), thresholds=limits, state=state,
            header={"weights": InputDigests(store).encoder(ENCODER), "key": "k",
                    "views": {name: view.as_dict() for name, view in views.items()}},
        ).save(path)  # fmt: skip
        return path

    return write


@pytest.fixture
def photos(tmp_path):
    """Good photos of today, noisier than those of training."""
    return written(tmp_path / "photos", [striped(8, 100 + seed, noise=16) for seed in range(6)])


def written(folder, pictures):
    folder.mkdir()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def call(command, path, *arguments):
    typed = [command, *arguments, "--store", path.parent.parent, "--device", "cpu", "--json"]
    return invoke(typed)


def verdicts(path, folder, *arguments):
    result = call("predict", path, folder, "--quiet", *arguments)
    told = [json.loads(line) for line in result.stdout.splitlines()]
    return [one["verdict"] for one in told], np.array([one["score"] for one in told])


def test_verdicts_of_the_class_change_and_weights_do_not(save, photos, tmp_path):
    path = save()
    other = written(tmp_path / "other", [striped(32, 100 + seed, noise=9) for seed in range(4)])
    rest = written(tmp_path / "rest", [striped(8, 200 + seed, noise=16) for seed in range(6)])
    before, old = DetectorArtifact.load(path), verdicts(path, other)[1]
    assert "normal" not in verdicts(path, photos)[0]

    result = call("calibrate", path, photos, "--class", "fine")

    assert result.exit_code == 0, result.output
    after = DetectorArtifact.load(path)
    assert after.header["content_id"] == before.header["content_id"]
    assert after.header["key"] == before.header["key"]
    assert after.class_order == before.class_order
    limits = {**before.thresholds, "by_class": {**before.thresholds["by_class"]}}
    own = limits["by_class"]["fine"] = after.thresholds["by_class"]["fine"]
    assert after.thresholds == limits
    told, found = verdicts(path, photos)
    assert set(told) == {"normal"}
    assert np.median(found) == pytest.approx(0, abs=1e-3)
    assert set(verdicts(path, rest)[0]) == {"normal"}
    assert set(verdicts(path, rest, "--class", "fine")[0]) == {"normal"}
    assert (verdicts(path, other)[1] == old).all()
    facts = json.loads(result.stdout)
    assert (facts["num_photos"], facts["num_alarms_before"], facts["num_alarms"]) == (6, 6, 0)
    assert facts["promised_false_alarms"] == pytest.approx(1 / 7)
    assert facts["at_most"] == pytest.approx(1 - 0.05 ** (1 / 6))
    was = before.thresholds["by_class"]["fine"]
    width = was["image"] - was["typical_image"]
    assert facts["limit"] == pytest.approx((own["image"] - was["typical_image"]) / width)
    assert inspection.describe(path)["thresholds"]["by_class"]["fine"]["photos"] == 6


def test_a_defect_is_told_all_the_same(save, photos, tmp_path):
    path = save()
    spoiled = striped(8, 300, noise=16)
    spoiled[20:32, 20:32] = 255
    defect = written(tmp_path / "defect", [spoiled])

    assert call("calibrate", path, photos, "--class", "fine").exit_code == 0

    assert verdicts(path, defect)[0] == ["anomalous"]


def test_an_exported_file_goes_by_the_new_limits(save, photos, tmp_path):
    path, target = save(), tmp_path / "line.pt2"
    call("calibrate", path, photos, "--class", "fine")

    export_detector(Store(path.parent.parent), "line", "", target, "torch")

    shown = np.array(Image.open(photos / "0.png")).transpose(2, 0, 1)[None]
    score, _, row, distance = FORMATS["torch"][3](target, shown)
    assert score.item() == pytest.approx(verdicts(path, photos / "0.png")[1][0], abs=2e-3)
    assert (row.item(), distance.item() < 1) == (1, True)


def test_the_same_photo_counts_once_and_few_are_told(save, photos):
    path = save()
    shutil.copy(photos / "0.png", photos / "again.png")

    result = invoke(["calibrate", photos, photos / "1.png", "--class", "fine", "--quiet",
                     "--store", path.parent.parent, "--target-false-alarms", "0.5%"])  # fmt: skip

    assert "6 photos promise at most 14.3 % false alarms" in result.stdout
    assert "199 photos or more can promise 0.5 %" in result.stdout
    assert "2 more were repeated" in result.stdout
    assert "rises to" in result.stdout
    assert read_header(path)["thresholds"]["by_class"]["fine"]["false_alarm_rate"] == 0.005


def test_paths_come_from_stdin_and_one_photo_will_do(save, photos):
    path = save()

    result = invoke(["calibrate", "-", "--class", "fine", "--store", path.parent.parent],
                    f"{photos / '0.png'}\n")  # fmt: skip

    assert "1 photo promises at most 50 % false alarms" in result.stdout
    assert verdicts(path, photos / "0.png")[0] == ["normal"]


def test_a_dry_run_changes_nothing(save, photos):
    path = save()
    before = path.read_bytes()

    told = json.loads(call("calibrate", path, photos, "--class", "fine", "--dry-run").stdout)

    assert path.read_bytes() == before
    assert told == json.loads(call("calibrate", path, photos, "--class", "fine").stdout)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "gross"], "no threshold for class 'gross' (it has thresholds for: coarse, "),
        (["--class", "fine", "--name", "other"], "does not exist"),
        (["--class", "coarse"], "6 of 6 photos look more like fine than coarse"),
        *((["--class", "fine", "--target-false-alarms", text], "takes a rate between 0 and 50 %")
          for text in ("0", "100%", "-1%", "0.5", "1", "few", "nan", "inf")),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(arguments, said, save, photos):
    path = save()
    before = path.read_bytes()

    result = call("calibrate", path, photos, *arguments)

    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_photo_that_cannot_be_read_changes_nothing(save, photos):
    path = save()
    before = path.read_bytes()
    (photos / "5.png").write_bytes(b"no image")

    broken = call("calibrate", path, photos, "--class", "fine")
    none = invoke(["calibrate", "-", "--class", "fine", "--store", path.parent.parent], "")

    assert (broken.exit_code, none.exit_code) == (1, 1)
    assert "5.png" in broken.stderr
    assert "no photo was named" in none.stderr
    assert path.read_bytes() == before


def test_a_picture_of_tiles_scores_as_its_highest(save, tmp_path):
    path = save(fine=View(tile=SIZE), coarse=View(tile=SIZE))
    calm, noisy = striped(8, 100), striped(8, 101, noise=20)
    one, other, neither = (
        np.concatenate(pair, axis=1) for pair in ((calm, noisy), (noisy, calm), (calm, calm))
    )

    call("calibrate", path, written(tmp_path / "photos", [one, other]), "--class", "fine")

    told, found = verdicts(path, tmp_path / "photos", "--class", "fine")
    assert told == ["normal", "normal"]
    half = verdicts(path, written(tmp_path / "half", [neither]), "--class", "fine")
    assert half[1][0] < found.min() - 0.1


def test_what_is_ignored_sets_no_limit(save, tmp_path):
    ignored = np.zeros((SIZE, SIZE), np.bool_)
    ignored[:40] = True
    path = save(fine=View(ignore=packed(ignored)), coarse=View(ignore=packed(ignored)))
    plain = [striped(8, 100), striped(8, 101)]
    marked = [picture.copy() for picture in plain]
    for picture in marked:
        picture[:30, :30] = 255
    limits = []

    for name, pictures in (("plain", plain), ("marked", marked)):
        call("calibrate", path, written(tmp_path / name, pictures), "--class", "fine")
        limits.append(read_header(path)["thresholds"]["by_class"]["fine"])

    assert limits[0]["photos"] == 2
    assert limits[0] == limits[1]
    assert 0 < limits[0]["typical_pixel"] < limits[0]["pixel"]


def test_a_class_without_a_limit_for_products_gets_one(save, photos):
    path = save()
    trained = DetectorArtifact.load(path)
    trained.thresholds["by_class"]["fine"].pop("product")
    trained.save(path)

    assert call("calibrate", path, photos, "--class", "fine").exit_code == 0

    assert 0 < read_header(path)["thresholds"]["by_class"]["fine"]["product"] < torch.inf
    assert set(verdicts(path, photos)[0]) == {"normal"}


def test_the_detector_and_its_scores_stay_up_to_date_until_it_is_trained_again(
    chain, run, models, tmp_path
):
    store = shutil.copytree(chain, tmp_path / "store")
    path = store / "detectors" / "plate.safetensors"
    for number in range(3):
        draw_object("plate", number).resize((40, 40)).save(tmp_path / f"{number}.png")
    named = [tmp_path / f"{number}.png" for number in range(3)]
    old = DetectorArtifact.load(path)

    result = invoke(["calibrate", *named, "--class", "plate", "--store", store, "--name", "plate",
                     "--encoder", models.encoder])  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "with --class" not in result.stdout, "classes are told apart"
    new = DetectorArtifact.load(path)
    assert new.thresholds["by_class"]["plate"]["photos"] == 3
    assert new.thresholds["image"] == old.thresholds["image"]
    assert all((new.state[name] == values).all() for name, values in old.state.items())
    train = ["--class", "plate", "--past", "disc"]
    assert states(run, "train", *train)[-1] == ("hit", "")
    assert states(run, "eval", "--class", "disc,plate") == [("hit", "")]
    assert run("train", *train, "--force").exit_code == 0
    assert DetectorArtifact.load(path).thresholds == old.thresholds


def test_where_there_is_one_class_nobody_has_to_name_it(chain, models, tmp_path):
    store = shutil.copytree(chain, tmp_path / "store")
    path = store / "detectors" / "plate.safetensors"
    trained = DetectorArtifact.load(path)
    own = trained.thresholds["by_class"]["plate"]
    alone = {**own, "by_class": {"plate": own}}
    DetectorArtifact(
        **{**vars(trained), "class_order": ["plate"], "thresholds": alone, "router": {}}
    ).save(path)
    draw_object("plate", 0).resize((40, 40)).save(tmp_path / "photo.png")

    result = invoke(["calibrate", tmp_path / "photo.png", "--class", "plate", "--store", store,
                     "--encoder", models.encoder])  # fmt: skip

    assert "--class plate" not in result.stdout
    limits = DetectorArtifact.load(path).thresholds
    assert limits["image"] == limits["by_class"]["plate"]["image"] != own["image"]
    assert "by_class" in limits
    assert "photos" not in limits


def test_photos_of_an_unknown_product_are_told(save, photos):
    path = save()
    trained = DetectorArtifact.load(path)
    trained.thresholds["by_class"]["fine"]["product"] /= 1e3
    trained.save(path)

    result = call("calibrate", path, photos, "--class", "fine")

    assert "6 of 6 photos were of an unknown product until now" in result.stderr
    assert set(verdicts(path, photos)[0]) == {"normal"}


def test_no_file_is_left_beside_the_detector(save, photos):
    path = save()

    call("calibrate", path, photos, "--class", "fine")

    assert [one.name for one in Path(path.parent).iterdir()] == ["line.safetensors"]
