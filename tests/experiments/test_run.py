"""A run looks for its networks before it works, and counts what it kept."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from replaycad.artifacts.scores import ScoresArtifact
from replaycad.engine.builder import Builder
from replaycad.engine.settings import RunSettings
from replaycad.errors import ArtifactError, ConfigError, WeightsError
from replaycad.experiments.plan import comparison, steps
from replaycad.experiments.run import _bytes_kept, _check_networks, _fitting, _remembered, _scores
from replaycad.progress import silent
from tests.stages.stubs import mirror_artifact

PLANNED = steps(comparison(["a", "b"], ("finetune", "replay")), "run")


@pytest.fixture
def images(tmp_path):
    """A small picture in the training folder of each class."""
    for name in ("a", "b"):
        folder = tmp_path / name / "train" / "good"
        folder.mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / "0.png")


def _with(overrides, tmp_path):
    settings = RunSettings(data=tmp_path, root=tmp_path / "store", overrides=overrides)
    return Builder(settings, silent)


def test_banks_are_asked_of_a_detector_that_has_some(tmp_path):
    cells = comparison(["a", "b"], ("features",))
    with _with({}, tmp_path) as builder, pytest.raises(ConfigError, match="keeps memory banks"):
        _fitting(builder, cells)
    with _with({"train": {"detector": "patchcore"}}, tmp_path) as builder:
        assert _fitting(builder, cells) == cells


def test_of_several_detectors_each_strategy_takes_those_that_fit(tmp_path):
    names = ("finetune", "ewc", "features")
    cells = comparison(["a", "b"], names, detectors=("invad", "patchcore"))
    with _with({}, tmp_path) as builder:
        found = [(cell.strategy, cell.detector) for cell in _fitting(builder, cells)]

    assert found == [
        ("finetune", "invad"), ("finetune", "patchcore"), ("ewc", "invad"),
        ("features", "patchcore"),
    ]  # fmt: skip


@pytest.mark.usefixtures("images")
def test_the_bundled_networks_serve_where_none_is_named(tmp_path):
    with _with({}, tmp_path) as builder:
        _check_networks(builder, PLANNED)


@pytest.mark.usefixtures("images")
def test_a_missing_encoder_is_named_at_once(tmp_path):
    settings = RunSettings(
        data=tmp_path, root=tmp_path / "store",
        overrides={"train": {"encoder": f"resnet18:{tmp_path / 'none.safetensors'}"}},
    )  # fmt: skip
    with Builder(settings, silent) as builder, pytest.raises(WeightsError, match=r"none\.safe"):
        _check_networks(builder, PLANNED)


def test_joint_keeps_the_files_of_a_classes_training_images_and_of_no_other(tmp_path):
    for place, size in (
        ("a/train/good/0.png", 100), ("a/train/good/1.png", 30), ("a/test/good/0.png", 7000),
        ("a/test/cut/0.png", 7000), ("a/ground_truth/cut/0.png", 7000), ("b/train/good/0.png", 5),
    ):  # fmt: skip
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (cell,) = comparison(["a", "b"], ("joint",))

    with _with({}, tmp_path) as builder:
        found = [_bytes_kept(builder, {}, cell, name) for name in ("a", "b")]

    assert found == [130, 5]


def _made(cells, tmp_path):
    """A file for every compress and train step, of 10, 20, ... bytes in their order."""
    by_step = {}
    for step in steps(cells, "run"):
        path = tmp_path / f"{step.stage} {step.name}"
        path.write_bytes(bytes(10 * (len(by_step) + 1)))
        by_step[step] = SimpleNamespace(plan=SimpleNamespace(path=path))
    return by_step


def test_a_class_weighs_what_its_own_strategy_keeps_of_it(tmp_path):
    cells = comparison(["a", "b"], ("replay", "exemplars", "final", "none", "finetune"))
    by_step = _made(cells, tmp_path)
    sizes = {step.name: outcome.plan.path.stat().st_size for step, outcome in by_step.items()
             if step.stage == "compress"}  # fmt: skip

    with _with({}, tmp_path) as builder:
        found = {
            cell.strategy: [_bytes_kept(builder, by_step, cell, one) for one in ("a", "b")]
            for cell in cells
        }

    assert found == {
        "replay": [sizes["a"], sizes["b"]],
        "exemplars": [sizes["a-exemplars"], sizes["b-exemplars"]],
        "final": [sizes["a"], 0],
        "none": [sizes["a-none"], sizes["b-none"]],
        "finetune": [0, 0],
    }
    assert len(set(sizes.values())) == 6


@pytest.mark.parametrize(("strategy", "what"), [("ewc", "penalty"), ("iuf", "guard")])
def test_what_a_penalty_or_a_guard_needs_is_counted_in_the_last_detector(strategy, what, tmp_path):
    (cell,) = comparison(["a", "b"], (strategy,))
    by_step = _made([cell], tmp_path)
    sizes = {f"run-{strategy}-1": 500, f"run-{strategy}-2": 6}
    for step, outcome in by_step.items():
        if step.stage == "train":
            kept = {"gain": np.zeros(sizes[step.name], np.float32)}
            mirror_artifact(**{what: kept}).save(outcome.plan.path)

    # Six numbers of four bytes, shared by two classes.
    assert _remembered(by_step, cell) == 12


def test_scores_that_another_command_put_there_are_not_taken_for_those_of_a_run(tmp_path):
    figures = {"a": {"image_auroc": 0.75}}
    ScoresArtifact(
        classes=["a"], image_scores=np.zeros(1, np.float32), image_labels=np.zeros(1, np.uint8),
        class_index=np.zeros(1, np.int64), image_ids=["0"], metrics={"classes": figures},
        header={"key": "mine"},
    ).save(tmp_path / "one.safetensors")  # fmt: skip

    def outcome(key):
        plan = SimpleNamespace(path=tmp_path / "one.safetensors", key=key, label="scores/one")
        return SimpleNamespace(plan=plan)

    assert _scores(outcome("mine")) == figures
    with pytest.raises(ArtifactError, match="scores/one was replaced by another command"):
        _scores(outcome("other"))
