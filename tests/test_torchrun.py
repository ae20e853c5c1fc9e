"""Two processes that torchrun starts train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.registry import build_detector
from replaycad.distributed import Ranks, ranks
from replaycad.errors import ConfigError
from tests.conftest import invoke

ROOT = Path(__file__).resolve().parent.parent


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def together(*arguments):
    """Run a command in two processes; its standard output."""
    typed = ["-m", "replaycad", *map(str, arguments), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *typed], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_alone_a_process_is_the_first_of_one(monkeypatch):
    assert ranks() == Ranks(0, 1, 0)
    for rank, count in (("2", "2"), ("0", "0"), ("x", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(ConfigError, match="do not fit together"):
            ranks()


# In 64 bits: Adam makes whole steps of gradients that are nothing but rounding, such as those of a
# bias before a batch norm, and so no two orders of summation give the same weights in 32 bits.
STEPS = """
import sys
import torch
from safetensors.torch import save_file
from replaycad.detectors.registry import build_detector
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import preset_for
from replaycad.detectors.shared_norm import share
from replaycad.distributed import average_gradients, join, leave, ranks

own, training = ranks(), preset_for("invad", "mini").training
join(torch.device("cpu"))
torch.Tensor.float = torch.Tensor.double
detector = build_detector("invad", "mini", (8, 12, 16), (4, 8, 16), 32, seed=1).double()
detector.to(memory_format=torch.channels_last)  # CDAD's lie so, and steps assume it of gradients
if own.count > 1:
    share(detector)
optimizers = make_optimizers(detector, training, 0.01)
detector.train()
for step in range(6):
    stream = torch.Generator().manual_seed(step)
    levels = [torch.randn(8, width, side, side, generator=stream, dtype=torch.float64)
              for width, side in ((8, 8), (12, 4), (16, 2))]
    mine = [level[own.rank :: own.count] for level in levels]
    average = average_gradients if own.count > 1 else None
    optimize_step(detector, optimizers, mine, training, step / 6, average=average)
if not own.rank:
    state = {name: values.contiguous() for name, values in detector.state_dict().items()}
    save_file(state, sys.argv[1])
leave()
"""


@pytest.mark.long
def test_steps_of_two_processes_give_the_weights_of_one(tmp_path):
    # InvAD has batch norms, whose statistics are those of the whole batch.
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    for name, start in (("one", ()), ("two", TORCHRUN)):
        subprocess.run(
            [sys.executable, *start, script, tmp_path / name], check=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=240,
        )  # fmt: skip

    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")

    start = build_detector("invad", "mini", (8, 12, 16), (4, 8, 16), 32, seed=1).state_dict()
    assert one.keys() == two.keys() == start.keys()
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, atol=1e-8, rtol=0)
        assert not values.is_floating_point() or not torch.equal(values, start[name].double())


@pytest.mark.long
def test_a_training_is_shared_and_told_by_one_process(data, models, tmp_path):
    typed = ["train", "--class", "disc,plate", "--name", "both", "--data", data, "--json",
             *models.settings("train"), "--store", tmp_path]  # fmt: skip

    told = json.loads(together(*typed))

    trained = DetectorArtifact.load(tmp_path / "detectors" / "both.safetensors")
    assert trained.class_order == ["disc", "plate"]
    (outcome,) = told["outcomes"]
    assert outcome["was_made"]
    assert not (tmp_path / ".partial").exists()
    odd = invoke([*typed, "--set", "train.batch_size=3", "--force"])
    assert odd.exit_code == 0, "three images are no trouble for one process"


def test_a_batch_has_to_divide(monkeypatch, data, models, tmp_path):
    monkeypatch.setattr("replaycad.stages.train.ranks", lambda: Ranks(0, 3))
    typed = ["train", "--class", "disc", "--data", data, "--device", "cpu", "--store", tmp_path]

    result = invoke([*typed, *models.settings("train")])

    assert result.exit_code == 1
    assert "a batch of 4 does not divide among 3 processes" in result.stderr


@pytest.mark.parametrize("stage", ["compress", "eval", "run"])
def test_other_stages_are_refused(monkeypatch, data, models, stage):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    result = invoke([stage, "--class", "disc", "--data", data, *models.settings(stage)])

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: torchrun only speeds up train (use `make -j` or ")
