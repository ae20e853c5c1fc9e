"""EWC and MAS: importances against a case worked by hand, and what a penalty does to a training."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.continual.penalties import (
    Penalty,
    added,
    fisher_information,
    normalized,
    output_sensitivity,
)
from replaycad.detectors.interface import Detector


class Line(Detector):
    """f(x) = a x + b, with the loss f^2 / 2; the last parameter is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.tensor(-1.0))
        self.unused = nn.Parameter(torch.tensor(7.0))

    def forward(self, features):
        return [self.slope * features[0] + self.offset]

    def loss(self, features, progress=0.0):
        assert progress == 1.0
        assert not self.training
        return self(features)[0].square().mean() / 2


def images(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def as_floats(tensors):
    return {name: values.item() for name, values in tensors.items()}


@pytest.mark.parametrize("batches", [[images(1.0, 3.0)], [images(1.0), images(3.0)]])
def test_fisher_information_of_two_images_worked_by_hand(batches):
    # f = 1 and 5, gradients (1, 1) and (15, 5); a batch's mean gradient would give (64, 9)
    found = fisher_information(Line(), ([batch] for batch in batches))

    assert as_floats(found) == {"slope": (1 + 225) / 2, "offset": (1 + 25) / 2, "unused": 0}


def test_output_sensitivity_of_two_images_worked_by_hand():
    # f = 1 and -5, d f^2 / d (a, b) = 2 f (x, 1) = (2, 2) and (20, -10): their sizes count
    found = output_sensitivity(Line(), [[images(1.0, -2.0)]])

    assert as_floats(found) == {"slope": 11, "offset": 6, "unused": 0}


def test_importances_have_a_mean_of_one_over_all_weights_whatever_their_size():
    found = normalized({"a": torch.tensor([1e-9, 3e-9]), "b": torch.tensor([[2e-9], [2e-9]])})

    assert torch.allclose(found["a"], torch.tensor([0.5, 1.5]))
    assert torch.allclose(found["b"], torch.ones(2, 1))


def test_importances_of_two_steps_count_alike():
    one, other = {"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}

    assert as_floats(added(one, other)) == {"a": 3.0}


def test_a_penalty_is_half_the_weighted_square_of_the_way_from_where_it_was_made():
    line = Line()
    importances = {"slope": torch.tensor(4.0), "offset": torch.tensor(0.0)}
    penalty = Penalty(line, importances, 10.0)
    assert penalty().item() == 0

    line.slope.data += 0.5
    line.offset.data += 100.0
    found = penalty()
    found.backward()

    assert found.item() == pytest.approx(10 / 2 * 4 * 0.25)
    assert line.slope.grad.item() == pytest.approx(10 * 4 * 0.5)
    assert line.offset.grad.item() == 0


def test_rows_that_a_head_has_grown_by_since_are_free():
    head = nn.Linear(2, 3)
    penalty = Penalty(head, {"weight": torch.tensor([[1.0, 2.0]])}, 2.0)  # of its first row alone

    head.weight.data += torch.tensor([[1.0, 3.0], [100.0, 100.0], [100.0, 100.0]])

    assert penalty().item() == pytest.approx(1 * 1 + 2 * 9)
    more = added({"weight": torch.ones(3, 2)}, {"weight": torch.tensor([[1.0, 2.0]])})
    assert more["weight"].tolist() == [[2.0, 3.0], [1.0, 1.0], [1.0, 1.0]]


def weights(path):
    return DetectorArtifact.load(path).state


def distance(one, other):
    return sum(float(np.square(one[name] - other[name]).sum()) for name in one)


@pytest.mark.parametrize("kind", ["ewc", "mas"])
def test_the_heavier_the_penalty_the_nearer_the_weights_stay(run, tmp_path, kind):
    detectors = tmp_path / "store" / "detectors"
    first = run("train", "--class", "disc", "--set", f"penalty={kind}")
    assert first.exit_code == 0, first.output
    remembered = DetectorArtifact.load(detectors / "disc.safetensors").penalty
    mean = np.concatenate([one.ravel() for one in remembered.values()]).mean()
    assert mean == pytest.approx(1, rel=1e-4)

    moved = []
    for weight in (0, 1e3, 1e6):
        name = f"after-{weight:.0f}"
        result = run(
            "train", "--class", "plate", "--set", "init=disc", "--name", name,
            "--set", f"penalty={kind}", "--set", f"penalty_weight={weight}",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        after = DetectorArtifact.load(detectors / f"{name}.safetensors")
        moved.append(distance(after.state, weights(detectors / "disc.safetensors")))
        assert all((after.penalty[key] >= remembered[key]).all() for key in remembered)

    assert moved[2] < moved[1] < moved[0]


def test_a_detector_without_importances_cannot_be_gone_on_from_with_a_penalty(run):
    assert run("train", "--class", "disc").exit_code == 0

    result = run("train", "--class", "plate", "--set", "init=disc", "--set", "penalty=ewc")

    assert result.exit_code == 1
    assert "was trained with the penalty 'none', not 'ewc'" in result.stderr


def test_a_memory_bank_has_no_weights_to_hold(run, tmp_path):
    settings = ("--detector", "patchcore", "--set", "preset=mini")
    alone = run("train", "--class", "disc", *settings, "--set", "penalty=mas")
    sequence = run("run", "--class", "disc,plate", "--strategy", "ewc", "--detector", "patchcore")

    assert (alone.exit_code, sequence.exit_code) == (1, 1)
    assert "patchcore has no weights for the penalty 'mas' to hold" in alone.stderr
    assert "strategy 'ewc' protects trained weights, but patchcore has none" in sequence.stderr
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_a_sequence_with_penalties_keeps_importances_and_counts_them(run, tmp_path):
    result = run("run", "--class", "disc,plate", "--strategy", "finetune,ewc,mas", "--json")

    assert result.exit_code == 0, result.output
    kept = json.loads(result.stdout)["strategies"]
    detectors = tmp_path / "store" / "detectors"
    for kind in ("ewc", "mas"):
        last = DetectorArtifact.load(detectors / f"run-{kind}-2.safetensors")
        num_bytes = sum(one.nbytes for one in last.penalty.values())
        assert kept[kind]["bytes_per_class"] == {"disc": num_bytes // 2, "plate": num_bytes // 2}
        first = DetectorArtifact.load(detectors / f"run-{kind}-1.safetensors")
        shared = DetectorArtifact.load(detectors / "run-step-1.safetensors")
        assert distance(first.state, shared.state) == 0, "nothing is held at the first step"
