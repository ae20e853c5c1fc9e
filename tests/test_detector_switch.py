"""The detector is a switch: the same commands train and measure another one."""

import numpy as np

from replaycad.artifacts.detector import DetectorArtifact


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

    result = run("train", "--class", "plate", *chosen, "--init", "disc", "--name", "tuned")

    assert result.exit_code == 0, result.output
    banks = _banks(tmp_path / "store" / "detectors" / "tuned.safetensors")
    assert np.unique(banks).tolist() == [1]
