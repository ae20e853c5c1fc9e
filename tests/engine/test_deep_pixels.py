"""A class of more than eight bits through all commands, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header
from replaycad.data.views import View, view_of
from tests.conftest import invoke
from tests.engine.test_seen_classes import PATCHCORE, write_plates


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Plates whose photos are grey files of twelve bits, and the same of eight."""
    flat = write_plates(tmp_path_factory.mktemp("flat"))
    deep = write_plates(tmp_path_factory.mktemp("deep"))
    for path in [*flat.rglob("*.png"), *deep.rglob("*.png")]:
        if "ground_truth" in path.parts:
            continue
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
        is_deep = path.is_relative_to(deep)
        Image.fromarray(grey.astype(np.uint16) * 16 if is_deep else grey).save(path)
    return flat, deep


def test_twelve_bits_give_the_figures_of_eight(deep, run, tmp_path):
    figures = []
    for number, data in enumerate(deep):
        store = tmp_path / f"store{number}"
        for command in (("train", "--class", "sheet", *PATCHCORE), ("eval", "--class", "sheet")):
            result = run(*command, "--store", store, data=data)
            assert result.exit_code == 0, result.output
        figures.append(read_header(store / "scores/sheet.safetensors")["metrics"]["mean"])

    trained = DetectorArtifact.load(tmp_path / "store1/detectors/sheet.safetensors")
    assert view_of(trained.header, "sheet") == View(fit="pad", white=4095.0)
    assert view_of(trained.header, "sheet").colours == "grey"
    assert figures[1] == pytest.approx(figures[0], abs=0.02)


def test_the_range_travels_through_conditions_and_replays(deep, run, tmp_path):
    for command in (("mask",), ("compress", "--keep", "exemplars"), ("replay",)):
        result = run(*command, "--class", "sheet", data=deep[1])
        assert result.exit_code == 0, result.output

    for kind in ("masks", "conditions", "replays"):
        header = read_header(tmp_path / "store" / kind / "sheet.safetensors")
        assert View.from_dict(header["view"]).white == 4095.0, kind


def test_predict_reads_the_range_and_refuses_another(deep, run, models, tmp_path):
    flat, own = deep
    assert run("train", "--class", "sheet", *PATCHCORE, data=own).exit_code == 0
    photos = [own / "sheet/test/good/0.png", flat / "sheet/test/good/0.png"]

    result = invoke(["predict", *photos, "--name", "sheet", "--json", "--encoder", models.encoder,
                     "--store", tmp_path / "store"])  # fmt: skip

    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    errors = {one["image"]: one.get("error", "") for one in told}
    assert errors[str(photos[0])] == ""
    assert "has 8 bits, but its class was learned from pictures of more" in errors[str(photos[1])]


def test_a_run_draws_its_pictures(deep, run, tmp_path):
    result = run("run", "--strategy", "joint", "--name", "deep", "--detector", "patchcore",
                 "--set", "train.image_size=48", data=deep[1])  # fmt: skip

    assert result.exit_code == 0, result.output
    page = (tmp_path / "store/results/deep.html").read_text()
    assert "Photos are not shown" not in page
    with Image.open(tmp_path / "store/results/deep.png") as sheet:
        assert np.asarray(sheet)[20:140, 10:130].mean() > 100, "a plate of grey 150, not black"
