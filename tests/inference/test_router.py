"""A trained detector tells its classes apart by a bank beside it, and judges each by its limits."""

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.config.stages import TrainConfig
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.errors import ArtifactError
from replaycad.inference.graph import DetectorGraph
from replaycad.inference.predict import Predictor
from replaycad.stages.train import train_detector
from tests.inference.test_products import PERIODS, SIZE, Stripes, striped

HEADER = {"config": {"encoder": "efficientnet-lite0"}, "weights": {}}


def learn(periods, class_order, encoder, init=None, replayed=()):
    sources = [
        Source(class_index=class_order.index(name), replays=Stripes(PERIODS[name]))
        for name in periods
    ]
    mixture = Mixture(sources, SIZE)
    mixture.replayed = frozenset(replayed)
    config = TrainConfig(detector="invad", preset="standard", image_size=SIZE, num_steps=2)
    return train_detector(
        mixture, class_order, encoder, resolve_defaults(config), 0, HEADER, init=init
    )


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("efficientnet-lite0", levels=preset_for("invad", "standard").levels)


@pytest.fixture(scope="module")
def trained(encoder):
    return learn(PERIODS, list(PERIODS), encoder)


def judged(trained, encoder, *pictures):
    predictor = Predictor(DetectorGraph(trained, encoder), SIZE, torch.device("cpu"))
    named = [(str(place), Image.fromarray(one)) for place, one in enumerate(pictures)]
    return list(predictor.judge(named, 4))


def test_each_image_is_told_its_class_and_judged_by_the_limits_of_that_class(trained, encoder):
    coarse, fine = (striped(period, 99) for period in PERIODS.values())

    found = judged(trained, encoder, coarse, fine)

    assert [one.class_name for one in found] == ["coarse", "fine"]
    assert all(one.distance < 1 for one in found)
    graph = DetectorGraph(trained, encoder)
    image = torch.from_numpy(fine.transpose(2, 0, 1))[None]
    maps, _ = graph.raw_maps(image)
    own = trained.thresholds["by_class"]["fine"]
    raw = float(graph.detector.image_scores(maps))
    expected = (raw - own["typical_image"]) / (own["image"] - own["typical_image"])
    assert found[1].score == pytest.approx(expected, rel=1e-4)
    bank = trained.router["bank"][trained.router["bank_class_index"] == 1]
    patches = graph.patches(image)[0]
    nearest = torch.cdist(patches, torch.from_numpy(bank)).amin(dim=1).square().sort().values
    quarter = float(nearest[len(patches) // 4])
    assert found[1].distance == pytest.approx(quarter / own["product"], rel=1e-3)


def test_what_is_of_neither_class_is_an_unknown_product(trained, encoder):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)

    found = judged(trained, encoder, noise, np.zeros_like(noise))

    assert [one.verdict for one in found] == ["unknown product"] * 2


def test_the_bank_beside_survives_the_file_and_each_class_has_at_most_500_rows(
    trained, encoder, tmp_path
):
    path = tmp_path / "line.safetensors"
    trained.save(path)

    loaded = DetectorArtifact.load(path)

    index = loaded.router["bank_class_index"]
    assert np.bincount(index).tolist() == [500, 500]
    coarse = striped(PERIODS["coarse"], 5)
    one, other = (judged(found, encoder, coarse)[0] for found in (loaded, trained))
    assert (one.score, one.distance) == (other.score, other.distance)
    assert read_header(path)["detector"] == "invad"


def test_a_training_that_goes_on_keeps_the_bank_of_classes_that_it_does_not_see(encoder):
    first = learn(["coarse"], ["coarse"], encoder)

    second = learn(["fine"], ["coarse", "fine"], encoder, init=first)

    kept = second.router["bank"][second.router["bank_class_index"] == 0]
    np.testing.assert_array_equal(kept, first.router["bank"])
    # of the class that was not seen no limits are known, so none is told
    assert judged(second, encoder, striped(PERIODS["fine"], 5))[0].class_name == ""


def test_a_replayed_class_without_a_record_is_told_and_never_unknown(encoder):
    found = learn(PERIODS, list(PERIODS), encoder, replayed=[0, 1])

    assert all("product" not in own for own in found.thresholds["by_class"].values())
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    (one,) = judged(found, encoder, noise)
    assert one.class_name in PERIODS
    assert one.distance == 0


def test_a_bank_that_does_not_fit_the_encoder_is_told(trained, encoder):
    router = {**trained.router, "bank": trained.router["bank"][:, :7]}
    broken = DetectorArtifact(**{**vars(trained), "router": router})

    with pytest.raises(ArtifactError, match="tell the detector's classes apart do not fit"):
        DetectorGraph(broken, encoder)
