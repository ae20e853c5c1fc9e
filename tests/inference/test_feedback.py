# ruff: noqa: F811 - fixtures of another file
"""feedback: false alarms join the bank of their class, missed defects move its limit; an undo."""

import json
import shutil

import numpy as np
import pytest
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.store import Store
from replaycad.artifacts.traces import traces_of
from replaycad.continual.feedback import (
    false_alarms,
    lowered,
    records,
    without_latest,
)
from replaycad.continual.forgetting import rows_of
from replaycad.data.views import View
from replaycad.detectors.limits import score_at
from replaycad.detectors.patchcore.growth import new_patches, spacing
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.inference.feedback import GROWTH
from tests.conftest import invoke, states
from tests.inference.test_calibrate import (  # noqa: F401
    call,
    fitted,
    save,
    striped,
    verdicts,
    written,
)
from tests.toy import draw_object

LIMITS = {
    "false_alarm_rate": 0.01, "image": 4.0, "typical_image": 1.0, "pixel": 3.0,
    "typical_pixel": 0.5, "product": 9.0,
}  # fmt: skip


def test_the_spacing_of_a_bank_is_the_median_distance_to_the_nearest_other():
    bank = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])  # 1, 1, 2, 4, 8

    assert spacing(bank) == pytest.approx(2)
    assert spacing(bank[:1]) == 0
    assert spacing(torch.zeros(3, 2)) == 0
    many = torch.arange(1100.0)[:, None] * 3  # of more rows than are looked at together
    assert spacing(many) == pytest.approx(3)


def test_new_patches_come_farthest_first_and_only_from_beyond_the_reach():
    bank, patches = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.5], [9.0], [9.5], [5.0], [-2.0]])

    rows, num_left = new_patches(bank, patches, 10, reach=2.0)
    few, num_more = new_patches(bank, patches, 1, reach=2.0)

    assert (rows.tolist(), num_left) == ([3, 4, 1], 0)
    assert (few.tolist(), num_more) == ([3], 2)  # 2.5 and 5.0; 9.0 is near to what was picked
    assert new_patches(bank, patches, 0, reach=2.0)[1] == 4
    assert new_patches(bank, patches[:1], 9, reach=2.0)[0].tolist() == []
    assert new_patches(bank, patches[:0], 9, reach=2.0)[0].tolist() == []


def test_expected_false_alarms_follow_the_spread_of_training():
    assert false_alarms(LIMITS, 4.0) == pytest.approx(0.01)
    assert false_alarms(LIMITS, 1.0) == pytest.approx(0.5)
    assert false_alarms(LIMITS, 2.0) == pytest.approx(0.1224, abs=1e-3)  # half of 2.326 deviations
    below = {**LIMITS, "image": -1.0, "typical_image": -3.0}
    assert false_alarms(below, -2.0) == pytest.approx(0.1224, abs=1e-3)
    for limits in (LIMITS, below):
        assert false_alarms(limits, score_at(limits, 0.05)) == pytest.approx(0.05)


def test_a_limit_falls_below_the_missed_defects_as_far_as_good_photos_allow():
    floor = score_at(LIMITS, 0.05)  # 2.66

    assert lowered(LIMITS, [3.5, 3.0, 8.0], 0.05)["image"] == pytest.approx(3.0, rel=1e-2)
    assert lowered(LIMITS, [3.5, 3.0], 0.05)["image"] < 3.0
    assert lowered(LIMITS, [3.5, 2.0], 0.05)["image"] == pytest.approx(3.5, rel=1e-2)
    assert lowered(LIMITS, [2.0, 8.0], 0.05) == LIMITS
    assert lowered(LIMITS, [2.0], 0.2)["image"] == pytest.approx(2.0, rel=1e-2)
    assert lowered(LIMITS, [3.0, 3.5], 0.05, good=[3.2])["image"] == pytest.approx(3.5, rel=1e-2)
    assert lowered(LIMITS, [0.5], 0.999) == LIMITS  # half of the good photos score higher
    assert 2.6 < floor < 2.7


def test_a_lowered_limit_says_what_it_costs_and_remembers_that_of_training():
    found = lowered({**LIMITS, "photos": 9, "promised": 0.1}, [3.0], 0.05)

    assert found["false_alarm_rate"] == pytest.approx(0.0326, abs=2e-3)
    assert "promised" not in found
    assert found["trained"] == LIMITS
    assert score_at(found, 0.01) == pytest.approx(4.0)  # the spread stays as it was
    again = lowered(found, [2.8], 0.05)
    assert again["trained"] == LIMITS
    assert false_alarms(LIMITS, 2.8) == pytest.approx(again["false_alarm_rate"], abs=2e-3)


@pytest.fixture
def odd(tmp_path):
    """Good photos with something on them that none of training has."""
    return written(tmp_path / "odd", [marked(100 + seed) for seed in range(3)])


def marked(seed, place=20):
    pixels = striped(8, seed)
    pixels[place : place + 12, 20:32] = (200, 40, 40)
    return pixels


def state_of(path):
    trained = DetectorArtifact.load(path)
    return trained.header["content_id"], trained.thresholds


def test_false_alarms_are_normal_afterwards_and_other_classes_are_judged_as_before(
    save, odd, tmp_path
):
    path = save()
    other = written(tmp_path / "other", [striped(32, 100 + seed, noise=9) for seed in range(4)])
    rest = written(tmp_path / "rest", [marked(200 + seed) for seed in range(4)])
    before, told = DetectorArtifact.load(path), verdicts(path, other)
    assert set(verdicts(path, odd)[0]) == {"anomalous"}
    assert set(verdicts(path, rest)[0]) == {"anomalous"}

    result = call("feedback", path, odd, "--class", "fine", "--good")

    assert result.exit_code == 0, result.output
    after, facts = DetectorArtifact.load(path), json.loads(result.stdout)
    assert (facts["num_photos"], facts["num_alarms_before"], facts["num_alarms"]) == (3, 3, 0)
    assert set(verdicts(path, odd)[0]) == {"normal"}
    assert set(verdicts(path, rest)[0]) == {"normal"}  # the same mark on other photos
    for one, two in zip(verdicts(path, other), told, strict=True):
        assert (np.array(one) == np.array(two)).all()
    assert after.thresholds == before.thresholds
    assert after.header["key"] == before.header["key"]
    for name in ("coarse", "fine"):
        old, new = rows_of(before, name), rows_of(after, name)
        assert (new[: len(old)] == old).all()  # behind what images are routed by
        assert len(new) - len(old) == (facts["num_patches"] if name == "fine" else 0)
    assert 0 < facts["num_patches"] < 3 * 64 / 2
    assert (facts["limit"], facts["needed_false_alarms"]) == (pytest.approx(1), None)
    spoiled = striped(8, 300)
    spoiled[40:56, 4:16] = 255
    defect = written(tmp_path / "defect", [spoiled])
    assert verdicts(path, defect)[0] == ["anomalous"]


def test_undo_gives_the_detector_back_to_the_byte(save, odd, tmp_path):
    path = save()
    contents = [path.read_bytes()]
    more = written(tmp_path / "more", [marked(400, 4)])
    for folder, name in ((odd, "fine"), (more, "fine")):
        assert call("feedback", path, folder, "--class", name, "--good").exit_code == 0
        contents.append(path.read_bytes())
    assert len(set(contents)) == 3

    facts = []
    for content in reversed(contents[:-1]):
        facts.append(json.loads(call("feedback", path, "--undo").stdout))
        assert path.read_bytes() == content

    assert [one["num_records"] for one in facts] == [1, 0]
    assert [one["num_photos"] for one in facts] == [1, 3]
    assert all(one["limits_back"] for one in facts)
    assert "holds no feedback" in call("feedback", path, "--undo").stderr


def missed(path, tmp_path, seed=500):
    """A photo with a faint defect that scores just below the limit of `fine`."""
    for strength in range(1, 60):
        pixels = striped(8, seed).astype(int)
        pixels[20:32, 20:32] += 2 * strength
        folder = written(tmp_path / f"faint-{strength}", [pixels.clip(0, 255).astype(np.uint8)])
        score = verdicts(path, folder)[1][0]
        if 0.8 < score < 1:
            return folder
    raise AssertionError("no such photo")


def test_a_missed_defect_is_an_alarm_afterwards_and_kept_for_the_report(save, tmp_path):
    path = save()
    photo, before, content = missed(path, tmp_path), state_of(path), path.read_bytes()

    result = call("feedback", path, photo, "--class", "fine", "--defective")

    assert result.exit_code == 0, result.output
    facts, (content_id, thresholds) = json.loads(result.stdout), state_of(path)
    assert verdicts(path, photo)[0] == ["anomalous"]
    assert content_id == before[0]
    others = [{**one, "by_class": {**one["by_class"], "fine": None}}
              for one in (before[1], thresholds)]  # fmt: skip
    assert others[0] == others[1]
    assert 0.8 < facts["limit"] < 1
    assert 0.01 < facts["expected_false_alarms"] < 0.05
    assert (facts["num_alarms_before"], facts["num_alarms"]) == (0, 1)
    (kept,) = records(read_header(path), "fine")
    assert [one["name"] for one in kept["photos"]] == ["0.png"]
    assert kept["photos"][0]["score"] > thresholds["by_class"]["fine"]["image"]
    assert records(read_header(path), "coarse") == []

    call("feedback", path, "--undo")

    assert path.read_bytes() == content


def test_a_defect_that_scores_like_good_photos_moves_nothing_and_is_kept(save, tmp_path):
    path = save()
    plain = written(tmp_path / "plain", [striped(8, 700)])
    before = state_of(path)

    result = invoke(["feedback", plain, "--class", "fine", "--defective", "--store",
                     path.parent.parent])  # fmt: skip

    assert "1 of the defects score like good photos" in result.stdout
    assert state_of(path) == before
    assert len(records(read_header(path))) == 1


def test_limits_that_were_set_since_stay(save, tmp_path):
    path = save()
    call("feedback", path, missed(path, tmp_path), "--class", "fine", "--defective")
    call("calibrate", path, written(tmp_path / "good", [striped(8, 800)]), "--class", "fine")
    before = state_of(path)

    facts = json.loads(call("feedback", path, "--undo").stdout)

    assert not facts["limits_back"]
    assert state_of(path) == before
    assert records(read_header(path)) == []


def test_a_full_bank_takes_no_more_than_a_quarter_and_the_limit_rises(save, odd):
    path = save()
    trained = DetectorArtifact.load(path)
    limit = PRESETS["standard"].bank_limit
    own = trained.state["bank_class_index"] == 1
    full = np.repeat(trained.state["bank"][own][:1], round(GROWTH * limit) - own.sum() - 2, axis=0)
    state = {
        "bank": np.concatenate([trained.state["bank"], full]),
        "bank_class_index": np.concatenate([trained.state["bank_class_index"],
                                            np.ones(len(full), np.int64)]),
    }  # fmt: skip
    DetectorArtifact(**{**vars(trained), "state": state}).save(path)

    result = call("feedback", path, odd, "--class", "fine", "--good")

    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["num_patches"] == 2
    assert facts["num_patches_left"] > 0
    assert len(rows_of(DetectorArtifact.load(path), "fine")) == 1.25 * limit
    assert set(verdicts(path, odd)[0]) == {"normal"}
    content = DetectorArtifact.load(path).content_id
    again = json.loads(call("feedback", path, odd, "--class", "fine", "--good").stdout)
    assert again["num_patches"] == 0
    assert DetectorArtifact.load(path).content_id == content


def test_photos_of_an_unknown_product_are_known_afterwards(save, odd):
    path = save()
    trained = DetectorArtifact.load(path)
    trained.thresholds["by_class"]["fine"]["product"] /= 1e3
    trained.save(path)
    assert set(verdicts(path, odd)[0]) == {"unknown product"}

    call("feedback", path, odd, "--class", "fine", "--good")

    assert set(verdicts(path, odd)[0]) == {"normal"}


def test_every_tile_of_a_picture_is_learned(save, tmp_path):
    path = save(fine=View(tile=64), coarse=View(tile=64))
    wide = np.concatenate([striped(8, 100), marked(101)], axis=1)
    photos = written(tmp_path / "wide", [wide])
    assert verdicts(path, photos, "--class", "fine")[0] == ["anomalous"]
    before = DetectorArtifact.load(path).thresholds["by_class"]["fine"]

    assert call("feedback", path, photos, "--class", "fine", "--good").exit_code == 0

    assert verdicts(path, photos, "--class", "fine")[0] == ["normal"]
    after = DetectorArtifact.load(path).thresholds["by_class"]["fine"]
    assert after["image"] == before["image"], "the mark is learned, no limit is raised for it"


def test_a_class_that_is_forgotten_takes_its_feedback_along(save, odd, tmp_path):
    path = save()
    other = written(tmp_path / "other", [striped(32, 900, amplitude=100)])
    call("feedback", path, other, "--class", "coarse", "--good")
    call("feedback", path, odd, "--class", "fine", "--good")
    store = path.parent.parent

    result = invoke(["forget", "coarse", "--store", store])

    assert result.exit_code == 0, result.output
    assert not any(traces_of(Store(store), "coarse").values())
    assert [one["class_name"] for one in records(read_header(path))] == ["fine"]
    rows = rows_of(DetectorArtifact.load(path), "fine")
    facts = json.loads(call("feedback", path, "--undo").stdout)
    left = rows_of(DetectorArtifact.load(path), "fine")
    assert len(rows) - len(left) == facts["num_patches"] > 0
    assert (rows[: len(left)] == left).all()


def test_a_dry_run_changes_nothing(save, odd):
    path = save()
    before = path.read_bytes()

    told = json.loads(call("feedback", path, odd, "--class", "fine", "--good", "--dry-run").stdout)

    assert path.read_bytes() == before
    assert told == json.loads(call("feedback", path, odd, "--class", "fine", "--good").stdout)
    after = path.read_bytes()
    assert call("feedback", path, "--undo", "--dry-run").exit_code == 0
    assert path.read_bytes() == after


def test_what_happened_is_told_in_words(save, odd):
    path = save()
    shutil.copy(odd / "0.png", odd / "again.png")
    store = ("--store", path.parent.parent, "--quiet")

    first = invoke(["feedback", odd, "--class", "fine", "--good", *store]).stdout
    last = invoke(["feedback", "--undo", *store]).stdout

    assert "3 photos of fine: 3 above its limit before, 0 now" in first
    assert "patches joined the bank of fine" in first
    assert "1 more was repeated and counted once" in first
    assert f"written: {path}" in first
    assert "taken back: 3 good photos of fine from 20" in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "gross", "--good"], "no threshold for class 'gross'"),
        (["--class", "fine", "--name", "other", "--good"], "does not exist"),
        (["--class", "coarse", "--good"], "3 of 3 photos look more like fine than coarse"),
        (["--class", "fine"], "say one of --good, --defective and --undo"),
        (["--class", "fine", "--good", "--defective"], "say one of --good, --defective and --undo"),
        (["--good"], "--good takes photos and --class"),
        (["--undo"], "--undo takes neither photos nor --class"),
        (["--class", "fine", "--defective", "--max-false-alarms", "0"], "--max-false-alarms takes"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(arguments, said, save, odd):
    path = save()
    before = path.read_bytes()

    result = call("feedback", path, odd, *arguments)

    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_photo_that_cannot_be_read_changes_nothing(save, odd):
    path = save()
    before = path.read_bytes()
    (odd / "2.png").write_bytes(b"no image")

    assert "2.png" in call("feedback", path, odd, "--class", "fine", "--good").stderr
    assert path.read_bytes() == before


def test_banks_that_are_not_apart_learn_too(save, odd):
    path = save()
    trained = DetectorArtifact.load(path)
    by_class = trained.thresholds["by_class"]
    overall = {name: value for name, value in by_class["fine"].items() if name != "product"}
    DetectorArtifact(
        **{**vars(trained), "preset": "full", "thresholds": {**overall, "by_class": by_class}}
    ).save(path)  # one bank for all classes
    before = path.read_bytes()
    assert set(verdicts(path, odd)[0]) == {"anomalous"}

    result = call("feedback", path, odd, "--class", "fine", "--good")

    assert result.exit_code == 0, result.output
    assert set(verdicts(path, odd)[0]) == {"normal"}
    assert set(verdicts(path, odd, "--class", "fine")[0]) == {"normal"}
    assert call("feedback", path, "--undo").exit_code == 0
    assert path.read_bytes() == before


def test_a_detector_without_a_bank_learns_too_and_is_up_to_date(chain, run, models, tmp_path):
    store = shutil.copytree(chain, tmp_path / "store")
    path = store / "detectors" / "plate.safetensors"
    draw_object("plate", 0).resize((40, 40)).save(tmp_path / "photo.png")
    before = path.read_bytes()
    typed = ["feedback", tmp_path / "photo.png", "--class", "plate", "--store", store,
             "--encoder", models.encoder]  # fmt: skip

    good, missed = invoke([*typed, "--good"]), invoke([*typed, "--defective"])

    assert (good.exit_code, missed.exit_code) == (0, 0), good.output + missed.output
    assert "are kept as good beside the weights of plate" in good.stdout
    assert len(records(read_header(path), "plate")) == 2
    train = ["--class", "plate", "--past", "disc"]
    assert states(run, "train", *train)[-1] == ("hit", "")
    for _ in range(2):
        assert invoke(["feedback", "--undo", "--store", store]).exit_code == 0
    assert path.read_bytes() == before


def test_where_there_is_one_class_its_lower_limit_counts_without_its_name(save, tmp_path):
    path = save()
    trained = DetectorArtifact.load(path)
    own = trained.thresholds["by_class"]["fine"]
    rows = trained.state["bank_class_index"] == 1
    state = {"bank": trained.state["bank"][rows],
             "bank_class_index": np.zeros(rows.sum(), np.int64)}  # fmt: skip
    overall = {name: value for name, value in own.items() if name != "product"}
    DetectorArtifact(
        **{**vars(trained), "class_order": ["fine"], "state": state, "preset": "full",
           "thresholds": {**overall, "by_class": {"fine": own}}}
    ).save(path)  # fmt: skip
    before, photo = path.read_bytes(), missed(path, tmp_path)

    assert call("feedback", path, photo, "--class", "fine", "--defective").exit_code == 0

    assert verdicts(path, photo)[0] == ["anomalous"]
    limits = DetectorArtifact.load(path).thresholds
    assert limits["image"] == limits["by_class"]["fine"]["image"] < overall["image"]
    call("feedback", path, "--undo")
    assert path.read_bytes() == before


def test_nothing_is_taken_back_from_a_detector_that_learned_nothing(save):
    with pytest.raises(ValueError, match="no feedback"):
        without_latest(DetectorArtifact.load(save()))
