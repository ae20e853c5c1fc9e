"""Whole commands on a device whose tensors must not be mixed with those of the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import Result

from replaycad.detectors.registry import DETECTORS
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.train import TrainStage
from replaycad.progress import SilentReport
from tests.conftest import Models, invoke
from tests.engine.test_pipeline import settings
from tests.pretended import pretended

MIXED: dict[str, Callable[[torch.Tensor], object]] = {
    "two operands": lambda x: x + torch.ones(3),
    "a layer": lambda x: nn.Linear(3, 2)(x),
    "joined": lambda x: torch.cat([x, torch.ones(2)]),
    "stored": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1)),
    "picked by": lambda x: torch.ones(3)[x.long()],
    "numpy": lambda x: x.numpy(),
    "noise": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "float64": lambda x: x.double(),
}


@pytest.mark.parametrize("what", MIXED)
def test_the_pretended_device_refuses_what_a_real_one_does(what):
    with pretended(), pytest.raises((RuntimeError, TypeError)):
        MIXED[what](torch.ones(3, device="mps"))


def test_the_pretended_device_lets_a_network_learn():
    with pretended():
        layer, x = nn.Linear(3, 2).to("mps"), torch.ones(4, 3).to("mps")
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(x * torch.tensor(2.0)).sum().backward()
        optimizer.step()

        places = [x.device, x[torch.tensor([0])].device, layer.weight.grad.device]
        assert {one.type for one in places} == {"mps"}
        assert x.cpu().device.type == x.to("cpu").device.type == "cpu"
        assert x.cpu().numpy().shape == (4, 3)


@pytest.fixture
def command(data: Path, models: Models, tmp_path: Path) -> Callable[..., Result]:
    """Run a stage with the tiny models on the pretended device."""

    def call(stage: str, *arguments: str | Path, settings: Models | None = models) -> Result:
        typed = settings.settings(stage) if settings else []
        places = ["--store", tmp_path / "store", "--device", "mps"]
        places += [] if stage == "replay" else ["--data", data]
        with pretended():
            return invoke([stage, *typed, *places, *arguments])

    return call


@pytest.mark.long
@pytest.mark.parametrize(
    ("strategies", "detector"),
    [("finetune,ewc,mas,joint", "invad"), ("features,ucad", "patchcore"),
     ("replay,exemplars,hybrid,auto", "patchcore"), ("dne,dne-panda,dne-cutpaste", "dne")],
)  # fmt: skip
def test_strategies_keep_to_their_device(command, strategies, detector):
    result = command("run", "--class", "disc,plate", "--strategy", strategies,
                     "--detector", detector)  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "left out" not in result.output


@pytest.mark.long
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_keeps_to_its_device(command, data, tmp_path, detector):
    learns = DETECTORS[detector]["mini"].training.optimizers
    steps = ("--set", "train.num_steps=2") if learns else ()

    trained = command("train", "--class", "disc", "--detector", detector, *steps, settings=None)
    scored = command("eval", "--class", "disc", settings=None)
    with pretended():
        judged = invoke(["predict", data / "disc" / "test", "--store", tmp_path / "store",
                         "--device", "mps", "--out", tmp_path / "maps"])  # fmt: skip

    assert trained.exit_code == scored.exit_code == judged.exit_code == 0, trained.output


@pytest.mark.long
def test_bundled_conditions_and_images_in_few_bytes_keep_to_their_device(command):
    named = ("--class", "disc")
    kept = command("compress", *named, "--keep", "hybrid", "--budget", "15kB",
                   "--set", "compress.num_steps=2", settings=None)  # fmt: skip
    drawn = command("replay", *named, "--set", "num_images=2", "--set", "num_inference_steps=2",
                    settings=None)  # fmt: skip

    assert kept.exit_code == drawn.exit_code == 0, kept.output


class _Pressed(SilentReport):
    """Presses ctrl-C in the second step of a search or a training."""

    def step(self, what: str, done: int, _total: int, **_values: float) -> None:
        if what in ("search", "train") and done == 2:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.parametrize("stage", ["compress", "train"])
def test_what_was_interrupted_goes_on_on_its_device(command, data, models, tmp_path, stage):
    quick = settings(models, stage, data, tmp_path / "store", save_every_seconds=0.0)
    wanted = replace(quick, device="mps")
    with pretended(), Builder(wanted, _Pressed()) as builder:
        asked = TrainStage(builder, ["disc"], [], "disc") if stage == "train" else (
            CompressStage(builder, "disc"))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            builder.build(asked)

    result = command(stage, "--class", "disc")

    assert result.exit_code == 0, result.output
    assert "going on from" in result.stderr


@pytest.mark.long
def test_a_report_is_drawn_on_its_device(command, data, models, tmp_path):
    assert command("run", "--class", "disc,plate", "--strategy", "finetune").exit_code == 0
    with pretended():
        result = invoke(["report", "--data", data, "--store", tmp_path / "store", "--device", "mps",
                         "--encoder", models.encoder])  # fmt: skip

    assert result.exit_code == 0, result.output
