"""A run looks for its networks before it works."""

import pytest

from replaycad.errors import ConfigError, WeightsError
from replaycad.making import Wishes
from replaycad.pipeline import Pipeline
from replaycad.progress import silent
from replaycad.sequence import comparison, steps
from replaycad.walk import _check_networks, _fitting

PLANNED = steps(comparison(["a", "b"], ("finetune", "replay")), "run")


def _with(overrides, tmp_path):
    return Pipeline(Wishes(data=tmp_path, root=tmp_path / "store", overrides=overrides), silent)


def test_banks_are_asked_of_a_detector_that_has_some(tmp_path):
    cells = comparison(["a", "b"], ("features",))
    with _with({}, tmp_path) as pipeline, pytest.raises(ConfigError, match="keeps memory banks"):
        _fitting(pipeline, cells)
    with _with({"train": {"detector": "patchcore"}}, tmp_path) as pipeline:
        assert _fitting(pipeline, cells) == cells


def test_of_several_detectors_each_strategy_takes_those_that_fit(tmp_path):
    names = ("finetune", "ewc", "features")
    cells = comparison(["a", "b"], names, detectors=("invad", "patchcore"))
    with _with({}, tmp_path) as pipeline:
        found = [(cell.strategy, cell.detector) for cell in _fitting(pipeline, cells)]

    assert found == [
        ("finetune", "invad"), ("finetune", "patchcore"), ("ewc", "invad"),
        ("features", "patchcore"),
    ]  # fmt: skip


def test_the_bundled_networks_serve_where_none_is_named(tmp_path):
    with Pipeline(Wishes(data=tmp_path, root=tmp_path / "store", overrides={}), silent) as pipeline:
        _check_networks(pipeline, PLANNED)


def test_a_missing_encoder_is_named_at_once(tmp_path):
    wishes = Wishes(
        data=tmp_path, root=tmp_path / "store",
        overrides={"train": {"encoder": f"resnet18:{tmp_path / 'none.safetensors'}"}},
    )  # fmt: skip
    with Pipeline(wishes, silent) as pipeline, pytest.raises(WeightsError, match=r"none\.safe"):
        _check_networks(pipeline, PLANNED)
