"""Which product an image is of, or none that is known; and whose threshold it is judged by."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.continual.banks import fit_banks
from replaycad.data.mixture import Mixture, Source
from replaycad.data.views import View
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.registry import build_detector
from replaycad.inference.graph import DetectorGraph
from replaycad.inference.photos import Found
from replaycad.inference.predict import Predictor, Tally, predict

SIZE = 64
PERIODS = {"coarse": 32, "fine": 8}  # px of stripes


def striped(period, seed, side=SIZE, amplitude=60):
    """Grey stripes `[side, side, 3]` uint8 with noise, a little moved."""
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * (np.arange(side) + random.integers(0, 3)) / period)
    noise = random.normal(0, 6, (side, side))
    grey = (128 + amplitude * wave[:, None] + noise).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


class Stripes:
    """Replays of a class."""

    image_size = SIZE

    def __init__(self, period):
        self.pixels = np.stack([striped(period, seed) for seed in range(12)]).transpose(0, 3, 1, 2)

    def __len__(self):
        return len(self.pixels)

    def images(self, indices):
        return self.pixels[list(indices)]


@pytest.fixture(scope="module")
def trained():
    encoder = load_encoder("efficientnet-lite0", levels=(2, 3))
    detector = build_detector("patchcore", "standard", encoder.channels, encoder.strides, SIZE)
    sources = [Source(class_index=i, replays=Stripes(p)) for i, p in enumerate(PERIODS.values())]
    mixture = Mixture(sources, SIZE)
    mixture.replayed = frozenset()  # as if they were photos
    limits = fit_banks(detector, mixture, list(PERIODS), encoder, 4, seed=0)
    limits["by_class"]["fine"]["image"] *= 3  # so that it tells which of them is used
    artifact = DetectorArtifact(
        detector="patchcore", preset="standard", encoder="efficientnet-lite0", image_size=SIZE,
        class_order=list(PERIODS), thresholds=limits, header={},
        state={name: value.numpy() for name, value in detector.state_dict().items()},
    )  # fmt: skip
    return artifact, encoder


@pytest.fixture
def predictor(trained):
    return Predictor(DetectorGraph(*trained), SIZE, torch.device("cpu"))


def judged(predictor, *pictures):
    named = [(str(place), Image.fromarray(one)) for place, one in enumerate(pictures)]
    return list(predictor.judge(named, 4))


def test_every_image_is_told_its_class_and_judged_by_its_threshold(trained, predictor):
    artifact, _ = trained
    for name, period in PERIODS.items():
        picture = striped(period, 100)

        (told,) = judged(predictor, picture)

        raw, _ = predictor.graph.raw_maps(torch.from_numpy(picture.transpose(2, 0, 1))[None])
        own = artifact.thresholds["by_class"][name]
        expected = (float(raw.max()) - own["typical_image"]) / (own["image"] - own["typical_image"])
        assert told.class_name == name
        assert told.distance < 1
        assert told.score == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_what_no_class_is_like_is_an_unknown_product(predictor):
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    white = np.full_like(noise, 255)

    for told in judged(predictor, noise, white):
        assert told.distance > 1
        assert told.verdict == "unknown product"


def test_a_defect_leaves_a_part_the_product_that_it_is_and_has_a_place(predictor, tmp_path):
    picture = striped(PERIODS["coarse"], 100)
    picture[:10, :10] = 255

    (told,) = judged(predictor, picture)

    assert told.class_name == "coarse"
    assert told.verdict == "anomalous"
    # On the scale of the map, the limit of image scores is where the highest pixel makes score 1.
    scale = (told.anomaly_map.max() - told.alarm) * (told.score - 1)
    assert scale > 0
    Image.fromarray(picture).save(tmp_path / "part.png")
    found = Found(tmp_path / "part.png", Path("part"))
    (line,) = predict(predictor, iter([found]), None, 4, Tally())
    region = line["regions"][0]
    left, top, right, bottom = region["box"]
    assert left < 10
    assert top < 10
    assert region["area"] <= (right - left) * (bottom - top)
    assert region["percent"] < 50


def test_another_product_than_the_one_named_is_unknown(predictor):
    named = predictor.of_class("fine")

    own, other = judged(named, striped(PERIODS["fine"], 100), striped(PERIODS["coarse"], 100))

    assert (own.class_name, own.verdict) == ("fine", "normal")
    assert (other.class_name, other.verdict) == ("fine", "unknown product")


def test_where_a_class_is_named_its_bank_judges_whatever_an_image_looks_like(trained, predictor):
    coarse = torch.from_numpy(striped(PERIODS["coarse"], 100).transpose(2, 0, 1))[None]
    graph = predictor.graph
    alone = copy.deepcopy(graph.detector)  # with the patches of fine stripes for both classes
    other = list(PERIODS).index("coarse")
    own = alone.bank_class_index != other
    alone.set_bank(other, alone.bank[own], torch.full((int(own.sum()),), -1))
    expected = alone.anomaly_maps(trained[1].encode_images(coarse))

    maps, _ = graph.of_class("fine").raw_maps(coarse)

    assert torch.allclose(maps, expected, rtol=1e-4, atol=1e-3)
    assert maps.max() > 2 * graph.raw_maps(coarse)[0].max()


def test_a_picture_of_tiles_is_what_most_of_them_are(trained):
    graph = DetectorGraph(*trained)
    predictor = Predictor(graph, SIZE, torch.device("cpu"), View(tile=SIZE))
    mostly = np.concatenate([striped(8, 100, 192), striped(32, 101, 192)[:, :SIZE]], axis=1)

    told = judged(predictor, mostly, striped(32, 102, 128))

    assert [one.class_name for one in told] == ["fine", "coarse"]
    assert all(one.distance < 1 for one in told)


def test_a_detector_without_limits_for_products_knows_no_unknown_ones(trained):
    artifact, encoder = trained
    old = {
        name: {kind: value for kind, value in own.items() if kind != "product"}
        for name, own in artifact.thresholds["by_class"].items()
    }
    thresholds = {**artifact.thresholds, "by_class": old}
    graph = DetectorGraph(DetectorArtifact(**{**vars(artifact), "thresholds": thresholds}), encoder)

    (told,) = judged(Predictor(graph, SIZE, torch.device("cpu")), np.full((9, 9, 3), 255, np.uint8))

    assert told.distance == 0
    assert told.verdict == "anomalous"


def test_predict_tells_class_and_distance_and_counts_unknown_products(predictor, tmp_path):
    pictures = {"own": striped(8, 100), "other": np.full((SIZE, SIZE, 3), 255, np.uint8)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    found = [Found(tmp_path / f"{name}.png", tmp_path / name) for name in pictures]
    tally = Tally()

    own, other = predict(predictor, iter(found), None, 4, tally)

    assert (own["class"], own["verdict"]) == ("fine", "normal")
    assert own["class_distance"] < 1 < other["class_distance"]
    assert other["verdict"] == "unknown product"
    assert (tally.alarms, tally.unknown) == (0, 1)
    assert "2 images, 0 alarms, 1 of an unknown product" in tally.summary()
    assert [Tally(alarms=2).worst, Tally().worst, tally.worst] == [3, 0, 4]
