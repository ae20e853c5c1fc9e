"""Networks compiled for a GPU: asked for, refused where it cannot be, and the same results."""

import numpy as np
import pytest
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.errors import ConfigError
from replaycad.runtime import check_compiler


@pytest.mark.parametrize("stage", ["replay", "train"])
def test_without_a_gpu_it_is_refused_before_anything_is_made(run, tmp_path, stage):
    assert run("compress", "--class", "disc").exit_code == 0

    result = run(stage, "--class", "disc", "--set", "compile=true")

    assert result.exit_code == 1
    assert "compile=true is for a GPU, and this runs on cpu" in result.output
    assert not list(tmp_path.glob(f"store/{stage}*/*.safetensors"))


def test_without_a_compiler_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="needs a C compiler"):
        check_compiler(torch.device("cuda"))


@pytest.fixture
def compiled(monkeypatch):
    """Calls of what was compiled; compiling itself is left out, for it takes a minute here."""
    calls = []

    def compile_(function):
        def call(*arguments, **named):
            calls.append(function)
            return function(*arguments, **named)

        return call

    def compile_module(module):
        module.forward = compile_(module.forward)

    for module in ("runtime", "diffusion.backbones"):
        monkeypatch.setattr(f"replaycad.{module}.check_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    return calls


def test_steps_go_through_the_compiled_detector_and_nothing_else_does(run, tmp_path, compiled):
    states = []
    for more in ((), ("--set", "compile=true")):
        assert run("train", "--class", "disc", "--set", "num_steps=3", *more).exit_code == 0
        path = tmp_path / "store" / "detectors" / "disc.safetensors"
        states.append(DetectorArtifact.load(path).state)

    assert len(compiled) == 3, "thresholds come in batches of another size"
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_replays_are_drawn_by_the_compiled_unet(run, tmp_path, compiled):
    assert run("compress", "--class", "disc").exit_code == 0
    drawn = []
    for more in ((), ("--set", "compile=true")):
        assert run("replay", "--class", "disc", *more).exit_code == 0
        assert bool(compiled) == bool(more)
        replays = ReplaysReader(tmp_path / "store" / "replays" / "disc.safetensors")
        drawn.append(replays.images(range(len(replays))))

    assert np.array_equal(*drawn)
