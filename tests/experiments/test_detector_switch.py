"""The detector is a switch: the same commands train and measure another one."""

import json

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.registry import DETECTORS
from tests.conftest import ENCODER, states


def _banks(path):
    return DetectorArtifact.load(path).state["bank_class_index"]


def test_patchcore_learns_a_new_class_beside_the_replays_of_an_old_one(run, tmp_path):
    for stage, *arguments in (
        ("compress", "--class", "disc"),
        ("replay", "--class", "disc"),
        ("train", "--class", "plate", "--past", "disc", "--detector", "patchcore"),
        ("eval", "--class", "disc,plate"),
    ):
        result = run(stage, *arguments)
        assert result.exit_code == 0, result.output

    assert set(_banks(tmp_path / "store" / "detectors" / "plate.safetensors")) == {0, 1}


def test_fine_tuning_a_memory_bank_replaces_it(run, tmp_path):
    chosen = ("--detector", "patchcore")
    assert run("train", "--class", "disc", *chosen).exit_code == 0

    result = run("train", "--class", "plate", *chosen, "--set", "init=disc", "--name", "tuned")

    assert result.exit_code == 0, result.output
    banks = _banks(tmp_path / "store" / "detectors" / "tuned.safetensors")
    assert np.unique(banks).tolist() == [1]


def test_a_detector_s_name_may_bring_its_preset(run, tmp_path):
    assert run("train", "--class", "disc", "--detector", "patchcore-ucad").exit_code == 0

    trained = DetectorArtifact.load(tmp_path / "store" / "detectors" / "disc.safetensors")
    assert (trained.detector, trained.preset) == ("patchcore", "ucad")
    spelt_out = ("--detector", "patchcore", "--set", "train.preset=ucad")
    assert states(run, "train", "--class", "disc", *spelt_out) == [("hit", "")]
    unknown = run("train", "--class", "disc", "--detector", "patchcore-huge")
    assert unknown.exit_code == 1
    assert "detector 'patchcore' has no preset 'huge'" in unknown.stderr


def test_presets_of_one_detector_are_compared_in_one_run(run, tmp_path):
    result = run("run", "--class", "disc,plate", "--strategy", "finetune",
                 "--detector", "patchcore,patchcore-ucad", "--json")  # fmt: skip

    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["strategies"]
    assert sorted(rows) == ["finetune patchcore", "finetune patchcore-ucad"]
    sizes = [
        (tmp_path / "store" / "detectors" / f"run-finetune-2-{name}.safetensors").stat().st_size
        for name in ("patchcore", "patchcore-ucad")
    ]
    assert sizes[0] != sizes[1]


SMALL = ("--set", "image_size=64")  # sixteen times the coarsest stride of most detectors


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_trained_continued_and_measured_by_the_same_commands(name, run, tmp_path):
    chosen = ("--detector", name, *SMALL)
    assert run("train", "--class", "disc", *chosen).exit_code == 0

    tuned = run("train", "--class", "plate", *chosen, "--set", "init=disc")
    measured = run("eval", "--class", "disc,plate", "--json")

    assert tuned.exit_code == 0, tuned.output
    assert measured.exit_code == 0, measured.output
    trained = DetectorArtifact.load(tmp_path / "store" / "detectors" / "plate.safetensors")
    scores = json.loads((tmp_path / "store" / "scores" / "plate.json").read_text())
    assert (trained.detector, trained.class_order) == (name, ["disc", "plate"])
    assert trained.encoder == ENCODER
    assert 0 <= scores["metrics"]["mean"]["image_auroc"] <= 1


def test_dne_brings_its_detector_remembers_gaussians_and_points_at_nothing(run):
    size = ("--set", "train.image_size=64")
    names = ("--class", "disc,plate", "--strategy", "finetune,dne,dne-cutpaste")

    result = run("run", *names, "--detector", "patchcore", *size, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["strategies"]
    assert [entry["detector"] for entry in found.values()] == ["patchcore", "dne", "dne"]
    assert list(found) == ["finetune", "dne", "dne-cutpaste"]
    assert all(0 <= entry["image_auroc"]["mean"] <= 1 for entry in found.values())
    assert [entry["pixel_ap"]["mean"] is None for entry in found.values()] == [False, True, True]
    kept = [entry["bytes_per_class"]["disc"] for entry in found.values()]
    assert kept[0] == kept[2] == 0
    assert kept[1] > 0


def test_dinomaly_reads_the_tokens_of_a_transformer(run, tmp_path):
    weights = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), weights)
    encoder = ("--encoder", f"test_vit:{weights}")

    trained = run("train", "--class", "disc", "--detector", "dinomaly", *SMALL, *encoder)
    measured = run("eval", "--class", "disc", "--set", f"encoder=test_vit:{weights}")

    assert trained.exit_code == 0, trained.output
    assert measured.exit_code == 0, measured.output


def test_a_detector_of_another_name_is_no_start(run):
    assert run("train", "--class", "disc", "--detector", "patchcore").exit_code == 0

    result = run("train", "--class", "plate", "--detector", "simplenet", "--set", "init=disc")

    assert result.exit_code == 1
    assert "trained with another detector: patchcore, not simplenet" in result.stderr
    assert result.stderr.count("error:") == 1


def test_a_detector_refuses_another_encoder_in_one_line(run, tmp_path):
    assert run("train", "--class", "disc", "--detector", "simplenet").exit_code == 0

    result = run("eval", "--class", "disc", "--encoder", "mini", "--set", "encoder=mini")

    assert result.exit_code == 1
    assert "trained with another encoder than 'mini'" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "store" / "scores").exists()
