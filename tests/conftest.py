"""Fixtures: a toy data set, tiny frozen models, and the command line on both."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from replaycad.cli.commands import app
from tests.toy import SIZE, write_toy

# What a test does not name is bundled and small.
os.environ.setdefault("REPLAYCAD_RECIPE", "mini")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

ENCODER = "test_resnet.r160_in1k"


@dataclass(frozen=True)
class Models:
    """Places of the tiny frozen models, as options name them."""

    backbone: str
    encoder: str

    def settings(self, stage: str) -> list[str]:
        """Options that make one stage quick; `run` takes those of all stages."""
        fields = {
            "mask": [f"image_size={SIZE}"],
            "compress": [f"image_size={SIZE}", "init=random", "in_features=64", "out_features=8",
                         "num_steps=3", "num_masks=4", "batch_size=4"],
            "replay": ["num_images=6", "num_inference_steps=2", "batch_size=4", "guidance_scale=2"],
            "train": [f"image_size={SIZE}", "num_steps=3", "batch_size=4"],
            "eval": ["batch_size=4"],
        }  # fmt: skip
        options = {
            "mask": ["--segmenter", "none"],
            "compress": ["--backbone", self.backbone],
            "replay": ["--backbone", self.backbone],
            "train": ["--encoder", self.encoder],
            "eval": ["--set", f"eval.encoder={self.encoder}"],
            "run": [
                "--set", "mask.segmenter=none", "--set", f"compress.backbone={self.backbone}",
                "--set", f"train.encoder={self.encoder}",
            ],
        }  # fmt: skip
        before = {"compress": ["mask"], "train": ["replay"], "run": list(fields)}.get(stage, [])
        typed = [*options[stage], *(() if stage == "eval" else ("--recipe", "mini"))]
        for one in dict.fromkeys([*before, stage] if stage in fields else before):
            typed += [part for field in fields[one] for part in ("--set", f"{one}.{field}")]
        if stage == "compress":
            typed += ["--set", "mask.segmenter=none"]
        if stage == "train":
            typed += ["--set", f"replay.backbone={self.backbone}"]
        return typed


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set; read only."""
    return write_toy(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny frozen models with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    from tests.tiny import make_tiny_backbone

    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = timm.create_model("test_resnet", pretrained=False)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    backbone = make_tiny_backbone(folder / "tiny")
    return Models(str(backbone), f"{ENCODER}:{folder / 'encoder.safetensors'}")


def invoke(arguments: Sequence[str | Path], stdin: str | None = None) -> Result:
    """One command in this process; what is not a foreseen failure is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def states(run: Run, stage: str, *arguments: str | Path, **others: Path) -> list[tuple[str, str]]:
    """State and reason of each artifact that a dry run looks at."""
    result = run(stage, *arguments, "--dry-run", "--json", **others)
    assert result.exit_code == 0, result.output
    return [(one["state"], one["reason"]) for one in json.loads(result.stdout)["outcomes"]]


@pytest.fixture
def run(data: Path, models: Models, tmp_path: Path) -> Run:
    """Run a stage on the toy data, such as `run("mask", "--class", "disc")`, in `store`."""

    def call(stage: str, *arguments: str | Path, data: Path = data) -> Result:
        typed = [stage, *models.settings(stage), "--store", tmp_path / "store", "--device", "cpu"]
        if stage != "replay":
            typed += ["--data", data]
        return invoke([*typed, *arguments])

    return call


@pytest.fixture(scope="session")
def chain(data: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which all five stages ran with seed 0; read only."""
    return run_chain(tmp_path_factory.mktemp("chain"), data, models, seed=0)


def run_chain(store: Path, data: Path, models: Models, seed: int) -> Path:
    """Learn `disc`, then `plate` with replays of `disc`, and measure."""
    for stage, *arguments in (
        ("mask", "--class", "disc"),
        ("compress", "--class", "disc"),
        ("replay", "--class", "disc"),
        ("train", "--class", "plate", "--past", "disc"),
        ("eval", "--class", "disc,plate"),
    ):
        typed = [stage, *arguments, "--store", store, "--seed", seed, "--device", "cpu"]
        if stage != "replay":
            typed += ["--data", data]
        result = invoke([*typed, *models.settings(stage)])
        assert result.exit_code == 0, result.output
    return store


ARTIFACTS = (
    "masks/disc", "conditions/disc", "replays/disc", "detectors/plate", "scores/plate",
)  # fmt: skip
