"""Exported detectors answer as they do here."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.detectors.registry import DETECTORS, detector_class
from replaycad.inference import export as deployment
from tests.conftest import invoke
from tests.toy import SIZE, draw_object


@pytest.fixture
def store(chain, tmp_path):
    return shutil.copytree(chain, tmp_path / "store")


def export(store, models, out, form, *more):
    return invoke(
        ["export", "--name", "plate", "--encoder", models.encoder, "--store", store,
         "--format", form, "--out", out, *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(chain, models, tmp_path_factory):
    """A detector as ONNX, which takes some seconds to write; and what the command said of it."""
    out = tmp_path_factory.mktemp("onnx") / "out" / "plate.onnx"
    result = export(chain, models, out, "onnx")
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_onnx_answers_as_the_detector_does(exported):
    out, told = exported

    (difference,) = re.findall(r"differ from ours by at most (\S+)", told)
    assert float(difference) < 1e-3
    assert sorted(path.name for path in out.parent.iterdir()) == ["plate.onnx", "plate.onnx.json"]
    beside = json.loads(out.with_name("plate.onnx.json").read_text())
    padded = {"tile": 0, "fit": "pad", "white": 255, "ignore": ""}
    assert beside["views"] == {"disc": padded, "plate": padded}
    assert (beside["image_size"], beside["channels"]) == (SIZE, "RGB")
    assert _facts_of(out) == beside, "the file says it of itself"


def _facts_of(path):
    """What an exported file says of itself."""
    if path.suffix == ".onnx":
        import onnx

        (own,) = [one for one in onnx.load(path).metadata_props if one.key == "replaycad"]
        return json.loads(own.value)
    if path.suffix == ".pt2":
        extra = {"replaycad.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["replaycad.json"])
    import openvino

    return json.loads(openvino.Core().read_model(path).get_rt_info("replaycad").value)


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("torch", "pt2"), pytest.param("openvino", "xml", marks=pytest.mark.long)],
)
def test_a_file_answers_as_the_detector_does(store, models, tmp_path, form, suffix):
    out = tmp_path / "out" / f"plate.{suffix}"

    result = export(store, models, out, form, "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["max_difference"] < 1e-3
    assert told["num_bytes"] == out.stat().st_size > 0
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    assert _facts_of(out) == json.loads(out.with_name(f"{out.name}.json").read_text())


def test_onnx_gives_the_score_that_predict_prints(store, exported, models, tmp_path):
    import onnxruntime

    image = tmp_path / "a.png"
    draw_object("plate", 0, defective=True).save(image)
    told = invoke(["predict", image, "--name", "plate", "--encoder", models.encoder,
                   "--store", store, "--json"])  # fmt: skip

    with Image.open(image) as picture:
        pixels = np.asarray(picture.resize((SIZE, SIZE))).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(exported[0])
    scores, maps, index, distances = session.run(None, {"images": pixels})

    found = json.loads(told.stdout)
    assert scores[0] == pytest.approx(found["score"], abs=2e-3)
    assert maps.shape == (1, SIZE, SIZE)
    assert ["disc", "plate"][index[0]] == found["class"]
    assert distances[0] == pytest.approx(found["class_distance"], rel=1e-3)


def test_a_file_that_answers_otherwise_is_not_kept(store, models, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "TOLERANCE", -1.0)
    out = tmp_path / "plate.onnx"
    out.write_bytes(b"before")

    result = export(store, models, out, "onnx")

    assert result.exit_code == 1
    assert "the onnx file differs from the detector" in result.stderr
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [("tflite", "a.tflite", "choose from: onnx, torch, openvino"),
     ("onnx", "a.pt", "--out must end in .onnx")],
)  # fmt: skip
def test_formats_and_names_that_do_not_fit_are_refused(
    store, models, tmp_path, form, name, message
):
    result = export(store, models, tmp_path / name, form)

    assert result.exit_code == 1
    assert message in result.stderr


def test_a_detector_that_draws_or_chooses_cannot_be_exported(store, models, tmp_path, monkeypatch):
    drawing = {name for name in DETECTORS if not detector_class(name).is_graph}
    assert drawing == {"cdad", "ucad"}
    monkeypatch.setattr("replaycad.detectors.interface.Detector.is_graph", False)

    told = export(store, models, tmp_path / "plate.onnx", "onnx")

    assert told.exit_code == 1
    assert "cannot be exported" in told.stderr
    assert not (tmp_path / "plate.onnx").exists()


def test_a_missing_package_is_named_with_its_extra(store, models, tmp_path, monkeypatch):
    formats = {**deployment.FORMATS, "onnx": (".onnx", ("no_such_package",), None, None)}
    monkeypatch.setattr(deployment, "FORMATS", formats)

    result = export(store, models, tmp_path / "a.onnx", "onnx")

    assert "pip install replaycad[onnx]" in result.stderr
