"""The loop that pre-trains the bundled models."""

import json

import pytest
import torch
from torch import nn

from replaycad.errors import TrainingError
from replaycad.mini.pretrain.loop import LoopConfig, train_loop
from replaycad.runtime import generator

pytestmark = pytest.mark.long


def _config(**values) -> LoopConfig:
    return LoopConfig(
        minutes=10.0, warmup=1, log_every=1, learning_rate=0.02, weight_decay=0.0, **values
    )


def _problem():
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)

    def loss_function(step):
        inputs = torch.randn(8, 3, generator=generator(0, "toy", step))
        target = inputs.sum(1, keepdim=True)
        return (layer(inputs) - target).pow(2).mean(), {}

    return layer, loss_function


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    layer, loss_function = _problem()

    train_loop(
        "toy", {"layer": layer}, loss_function, tmp_path, _config(num_steps=400, ema_decay=0.9)
    )

    rows = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert len(rows) == 400
    assert rows[-1]["loss"] < rows[0]["loss"] / 10


def test_a_finished_training_resumes_as_finished(tmp_path):
    layer, loss_function = _problem()
    train_loop("toy", {"layer": layer}, loss_function, tmp_path, _config(num_steps=20))
    fresh, loss_function = _problem()

    train_loop("toy", {"layer": fresh}, loss_function, tmp_path, _config(num_steps=20))

    assert torch.equal(fresh.weight, layer.weight)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path):
    layer, loss_function = _problem()
    train_loop("toy", {"layer": layer}, loss_function, tmp_path, _config(num_steps=5))
    before = (tmp_path / "toy.safetensors").read_bytes()
    fresh, _ = _problem()

    with pytest.raises(TrainingError, match="not finite"):
        train_loop(
            "toy", {"layer": fresh}, lambda _: (fresh.weight.sum() * float("nan"), {}), tmp_path,
            _config(num_steps=9),
        )  # fmt: skip

    assert (tmp_path / "toy.safetensors").read_bytes() == before


def test_a_loss_that_is_never_finite_says_that_nothing_was_kept(tmp_path):
    layer, _ = _problem()

    with pytest.raises(TrainingError) as raised:
        train_loop(
            "toy", {"layer": layer}, lambda _: (layer.weight.sum() * float("nan"), {}), tmp_path,
            _config(num_steps=9),
        )  # fmt: skip

    assert "lower learning_rate" in raised.value.hint
    assert "no checkpoint" in raised.value.hint
