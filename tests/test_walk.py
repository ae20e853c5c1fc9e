"""A run looks for its networks before it works."""

import pytest

from replaycad.errors import ConfigError, WeightsError
from replaycad.making import Wishes
from replaycad.pipeline import Pipeline
from replaycad.progress import silent
from replaycad.sequence import steps
from replaycad.walk import _check_networks

PLANNED = steps(["a", "b"], ("finetune", "replay"), [0], "run")


def _with(overrides, tmp_path):
    return Pipeline(Wishes(data=tmp_path, root=tmp_path / "store", overrides=overrides), silent)


def test_banks_are_asked_of_a_detector_that_has_some(tmp_path):
    planned = steps(["a", "b"], ("features",), [0], "run")
    with _with({}, tmp_path) as pipeline, pytest.raises(ConfigError, match="keeps memory banks"):
        _check_networks(pipeline, planned)
    with _with({"train": {"detector": "patchcore"}}, tmp_path) as pipeline:
        _check_networks(pipeline, planned)




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
