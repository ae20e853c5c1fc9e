"""feedback --good on a detector without a bank: patches beside its weights lower its maps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.store import Store
from replaycad.config.stages import EvalConfig, TrainConfig
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.data.views import View
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.limits import NormalScores
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.engine.inputs import InputDigests
from replaycad.inference.calibrate import raw_predictor
from replaycad.inference.export import FORMATS, export_detector
from replaycad.inference.feedback import _fallen
from replaycad.inference.graph import DetectorGraph
from replaycad.stages.eval import evaluate
from replaycad.stages.train import train_detector
from tests.inference.test_calibrate import ENCODER, call, striped, verdicts, written
from tests.inference.test_feedback import marked
from tests.inference.test_products import PERIODS, SIZE, Stripes


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(ENCODER, levels=preset_for("invad", "standard").levels)


@pytest.fixture(scope="module")
def trained(encoder):
    sources = [Source(class_index=i, replays=Stripes(p)) for i, p in enumerate(PERIODS.values())]
    mixture = Mixture(sources, SIZE)
    mixture.replayed = frozenset()  # as if they were photos
    config = TrainConfig(detector="invad", preset="standard", image_size=SIZE, num_steps=20)
    header = {"config": {"encoder": ENCODER}, "weights": {}}
    return train_detector(mixture, list(PERIODS), encoder, resolve_defaults(config), 0, header)


@pytest.fixture
def save(trained, tmp_path):
    """Writes that detector into a store, with views of its classes or other parts."""

    def write(views=(), **parts):
        store = Store(tmp_path / "store")
        path = store.path("detectors", "line")
        seen = {name: view.as_dict() for name, view in dict(views).items()}
        header = {"weights": InputDigests(store).encoder(ENCODER), "key": "k", "views": seen}
        replace(trained, header=header, **parts).save(path)
        return path

    return write


@pytest.fixture
def odd(tmp_path):
    """Good photos with something on them that none of training has."""
    return written(tmp_path / "odd", [marked(100 + seed) for seed in range(8)])


def teach(path, folder, *arguments):
    result = call("feedback", path, folder, "--class", "fine", "--good", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def raw(path, encoder, pixels, class_name=""):
    """Map of an image as the detector of a file gives it."""
    graph = DetectorGraph(DetectorArtifact.load(path), encoder)
    graph = graph.of_class(class_name) if class_name else graph
    with torch.inference_mode():
        return graph.raw_maps(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))[0]


def test_false_alarms_are_normal_afterwards_and_nothing_else_is_forgotten(
    save, odd, encoder, tmp_path
):
    path = save()
    before = DetectorArtifact.load(path)
    spoiled, coarse = striped(8, 300), striped(32, 100, noise=9)
    spoiled[40:56, 4:16] = 255
    both = np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, marked(300), spoiled)
    other, defect = written(tmp_path / "other", [coarse]), written(tmp_path / "defect", [both])
    told, map_before = verdicts(path, other), raw(path, encoder, coarse)
    assert set(verdicts(path, odd)[0]) == {"anomalous"}
    rest_before = [float(raw(path, encoder, marked(200 + seed)).max()) for seed in range(4)]

    facts = teach(path, odd)

    after = DetectorArtifact.load(path)
    assert (facts["num_photos"], facts["num_alarms_before"], facts["num_alarms"]) == (8, 8, 0)
    assert set(verdicts(path, odd)[0]) == {"normal"}
    assert set(verdicts(path, odd, "--class", "fine")[0]) == {"normal"}
    for seed, highest in enumerate(rest_before):  # the same mark on other photos
        assert raw(path, encoder, marked(200 + seed)).max() < 0.5 * highest
    assert verdicts(path, defect)[0] == ["anomalous"]  # and a defect beside such a mark
    assert verdicts(path, other)[0] == told[0]
    assert (verdicts(path, other)[1] == told[1]).all()
    assert torch.equal(raw(path, encoder, coarse), map_before)
    for part in ("state", "router"):
        for name, values in getattr(before, part).items():
            np.testing.assert_array_equal(getattr(after, part)[name], values)
    others = [{**one.thresholds, "by_class": {**one.thresholds["by_class"], "fine": None}}
              for one in (before, after)]  # fmt: skip
    assert others[0] == others[1]
    assert after.header["key"] == before.header["key"]
    assert after.confirmed["bank_class_index"].tolist() == [1] * facts["num_patches"]
    assert 0 < facts["num_patches"] < 8 * 64 / 4  # those of the mark


@pytest.mark.parametrize(("first", "image"), [(8.0, 8.001), (9.5, 9.0)])
def test_limits_fall_as_far_as_photos_allow_that_were_not_learned(
    first, image, trained, monkeypatch
):
    """Each score is what a photo has once the patches of the others are learned."""
    limits = {"false_alarm_rate": 0.01, "image": 9.0, "typical_image": 8.0, "pixel": 9.0,
              "typical_pixel": 1.0}  # fmt: skip
    by_class = {**trained.thresholds["by_class"], "fine": limits}
    known = replace(trained, thresholds={**trained.thresholds, "by_class": by_class})
    rows, places = np.arange(4.0, dtype=np.float32)[:, None], np.array([0, 1, 1, 2])
    seen = []

    class Judging:
        def of_class(self, name):
            return name

    def watch(grown, *_):
        seen.append(grown.confirmed["bank"][:, 0].tolist())
        return Judging()

    def scored(judging, name, *_):
        assert judging == name == "fine"
        score = [first, 7.0, 7.0][len(seen) - 1]
        return [NormalScores(np.array([score], np.float32), np.arange(9, dtype=np.float32))]

    monkeypatch.setattr("replaycad.inference.feedback.raw_predictor", watch)
    monkeypatch.setattr("replaycad.inference.feedback.scores_of", scored)

    record = {"class_name": "fine", "kind": "good", "photos": []}
    found = _fallen(known, record, rows, places, "", torch.device("cpu"), [None] * 3)

    assert seen == [[1, 2, 3], [0, 3], [0, 1, 2]]
    assert found["image"] == pytest.approx(image)
    assert (found == limits) == (first > 9)


def test_undo_gives_the_detector_back_to_the_byte(save, odd, tmp_path):
    path = save()
    contents = [path.read_bytes()]
    more = written(tmp_path / "more", [marked(400, 4)])
    for folder in (odd, more):
        teach(path, folder)
        contents.append(path.read_bytes())
    assert len(set(contents)) == 3

    for content in reversed(contents[:-1]):
        facts = json.loads(call("feedback", path, "--undo").stdout)
        assert facts["num_patches"] > 0
        assert path.read_bytes() == content


def test_what_is_known_already_adds_nothing(save, odd):
    path = save()
    teach(path, odd)

    assert teach(path, odd)["num_patches"] == 0


def test_maps_do_not_move_with_the_limits(save, odd, encoder, tmp_path):
    path = save()
    teach(path, odd)
    before, learned = raw(path, encoder, marked(200)), DetectorArtifact.load(path)
    good = written(tmp_path / "good", [striped(8, 800, noise=40), marked(801)])

    assert call("calibrate", path, good, "--class", "fine").exit_code == 0

    typical = [one.thresholds["by_class"]["fine"]["typical_pixel"]
               for one in (learned, DetectorArtifact.load(path))]  # fmt: skip
    assert typical[0] != typical[1]
    assert torch.equal(raw(path, encoder, marked(200)), before)


def test_calibrate_measures_what_is_left_of_the_maps(save, odd):
    limits = []
    for is_taught in (False, True):
        path = save()
        if is_taught:
            teach(path, odd)
        call("calibrate", path, odd, "--class", "fine")
        limits.append(DetectorArtifact.load(path).thresholds["by_class"]["fine"]["image"])
        assert set(verdicts(path, odd)[0]) == {"normal"}

    assert limits[1] < 0.7 * limits[0]


def test_what_is_measured_is_what_is_judged(save, odd, encoder):
    path = save()
    teach(path, odd)
    photo = marked(200)

    judging = raw_predictor(
        DetectorArtifact.load(path), ENCODER, torch.device("cpu"), "fine"
    )  # by no limits, but by the typical values of training

    with torch.inference_mode():
        shown = torch.from_numpy(photo.transpose(2, 0, 1)[None].copy())
        assert torch.equal(judging.graph.raw_maps(shown)[0], raw(path, encoder, photo))


def test_eval_scores_as_predict_judges(save, odd, encoder):
    path = save()
    samples = {"fine": [
        Sample(path=file, image_id=file.name, class_name="fine", kind="good",
               is_anomalous=number == 0)
        for number, file in enumerate(sorted(odd.iterdir()))
    ]}  # fmt: skip

    def scores():
        trained = DetectorArtifact.load(path)
        return evaluate(samples, trained, encoder, EvalConfig(batch_size=2), {}).image_scores

    before = scores()
    teach(path, odd)

    own = DetectorArtifact.load(path).thresholds["by_class"]["fine"]
    judged = (scores() - own["typical_image"]) / (own["image"] - own["typical_image"])
    np.testing.assert_allclose(judged, verdicts(path, odd)[1], atol=2e-3)
    assert (scores() < before).all()


@pytest.mark.parametrize("form", [
    "torch", "onnx", pytest.param("openvino", marks=pytest.mark.long),
])  # fmt: skip
def test_an_exported_detector_has_learned_too(form, save, odd, encoder, tmp_path):
    path = save()
    teach(path, odd)
    target = tmp_path / f"line{FORMATS[form][0]}"

    export_detector(Store(path.parent.parent), "line", "", target, form)

    for pixels in (marked(200), striped(32, 100)):
        image = pixels.transpose(2, 0, 1)[None].copy()
        graph = DetectorGraph(DetectorArtifact.load(path), encoder)
        with torch.inference_mode():
            wanted = graph(torch.from_numpy(image))
        found = FORMATS[form][3](target, image)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=2e-3, rtol=2e-3)


def test_every_tile_of_a_picture_is_learned(save, tmp_path):
    path = save({"fine": View(tile=64), "coarse": View(tile=64)})
    wide = np.concatenate([striped(8, 100), marked(101)], axis=1)
    photos = written(tmp_path / "wide", [wide])
    assert verdicts(path, photos, "--class", "fine")[0] == ["anomalous"]

    facts = teach(path, photos)

    assert facts["limit"] == pytest.approx(1), "the mark is learned, no limit is raised for it"
    assert verdicts(path, photos, "--class", "fine")[0] == ["normal"]


def test_where_there_is_no_more_room_the_limit_rises(save, odd, monkeypatch):
    path = save()
    monkeypatch.setattr("replaycad.inference.feedback.CONFIRMED_LIMIT", 1)

    facts = teach(path, odd)

    assert (facts["num_patches"], facts["num_alarms"]) == (1, 0)
    assert facts["num_patches_left"] > 0
    assert facts["limit"] > 1
    assert set(verdicts(path, odd)[0]) == {"normal"}


def test_a_detector_that_does_not_tell_its_classes_learns_too(save, odd, trained):
    by_class = {"fine": trained.thresholds["by_class"]["fine"]}  # none of the other class
    path = save(thresholds={**trained.thresholds, "by_class": by_class})
    assert set(verdicts(path, odd, "--class", "fine")[0]) == {"anomalous"}

    teach(path, odd)

    assert set(verdicts(path, odd, "--class", "fine")[0]) == {"normal"}


def test_a_class_that_is_named_is_not_looked_for(save, odd, encoder):
    path = save()
    teach(path, odd)
    photo = marked(200)

    assert not torch.equal(raw(path, encoder, photo, "coarse"), raw(path, encoder, photo, "fine"))
    assert torch.equal(raw(path, encoder, photo), raw(path, encoder, photo, "fine"))
    assert torch.equal(raw(path, encoder, photo, "coarse"), raw(save(), encoder, photo))


def test_without_a_bank_beside_it_nothing_can_be_learned(save, odd):
    path = save(router={})
    before = path.read_bytes()

    result = call("feedback", path, odd, "--class", "fine", "--good")

    assert result.exit_code == 1
    assert "line cannot learn from good photos: its encoder gives one level" in result.stderr
    assert path.read_bytes() == before
