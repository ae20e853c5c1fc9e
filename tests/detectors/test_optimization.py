"""Optimisers and schedules of the presets, and what one step does and does not do."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from replaycad.config.stages import TrainConfig
from replaycad.detectors.optimization import make_optimizers, optimize_step, rate_factor
from replaycad.detectors.registry import DETECTORS, preset_for, resolve_defaults
from replaycad.detectors.settings import OptimizerSettings, TrainingSettings
from replaycad.detectors.stable_adamw import StableAdamW

ADAM = OptimizerSettings(learning_rate=1.0, betas=(0.0, 0.99))
TRAINING = TrainingSettings(optimizers=(ADAM,))


class Line(nn.Module):
    """Smallest thing with a loss: a single weight times the features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def loss(self, features, _progress=0.0):
        return (self.weight * features[0]).sum()


def sgd(line):
    return [torch.optim.SGD([{"params": line.parameters(), "base_rate": 0.1}])]


def factors(training, num_steps=10):
    return [rate_factor(step / num_steps, training) for step in range(num_steps)]


def test_learning_rate_drops_once_after_four_fifths():
    assert factors(TRAINING) == pytest.approx([1.0] * 8 + [0.1] * 2)


def test_learning_rate_rises_and_then_falls_along_a_cosine():
    training = TrainingSettings(schedule="cosine", warmup=0.2, final_factor=0.5)

    found = factors(training)

    assert found[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert found[6] == pytest.approx(0.75)
    assert rate_factor(1.0, training) == pytest.approx(0.5)


def test_constant_learning_rate_stays():
    assert factors(TrainingSettings(schedule="constant")) == [1.0] * 10


def test_published_settings_of_invad():
    training = preset_for("invad", "full").training
    line = Line()

    (optimizer,) = make_optimizers(line, training, 4e-3)

    group = optimizer.param_groups[0]
    assert (training.batch_size, training.epochs, training.grad_clip) == (32, 200, 5.0)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (4e-3, (0.0, 0.99), 0.0)
    assert group["fused"] is True


def test_each_parameter_belongs_to_the_optimiser_that_its_name_says():
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    settings = (
        OptimizerSettings(kind="adamw", learning_rate=1e-4, parameters="first."),
        OptimizerSettings(kind="stable_adamw", learning_rate=2e-4),
    )

    first, second = make_optimizers(model, TrainingSettings(optimizers=settings), 1e-3)

    owners = [{id(p) for p in optimizer.param_groups[0]["params"]} for optimizer in (first, second)]
    assert owners[0] == {id(p) for p in model["first"].parameters()}
    assert owners[1] == {id(p) for p in model["second"].parameters()}
    assert isinstance(first, torch.optim.AdamW)
    assert [o.param_groups[0]["base_rate"] for o in (first, second)] == [1e-3, 2e-3]


def test_what_is_not_typed_comes_from_the_preset():
    paper = resolve_defaults(TrainConfig(preset="full"))
    typed = resolve_defaults(
        TrainConfig(preset="full", num_steps=7, encoder="mini", learning_rate=1.0)
    )

    assert (paper.encoder, paper.image_size) == ("wide_resnet50_2.racm_in1k", 256)
    assert (paper.num_steps, paper.epochs, paper.batch_size) == (0, 200, 32)
    assert paper.learning_rate == 4e-3
    assert (typed.encoder, typed.num_steps, typed.epochs, typed.learning_rate) == ("mini", 7, 0, 1)
    assert resolve_defaults(typed) == typed


def test_every_detector_has_a_full_and_a_mini_preset_that_say_how_long_to_train():
    for name, presets in DETECTORS.items():
        assert {"full", "mini"} <= set(presets), name
        for preset in presets.values():
            training = preset.training
            assert not training.optimizers or training.num_steps or training.epochs, name
            assert training.batch_size > 0


def test_a_step_uses_the_rate_of_its_place_and_returns_the_loss():
    line = Line()
    optimizers = make_optimizers(line, TRAINING, 0.25)

    loss = optimize_step(line, optimizers, [torch.ones(1)], TRAINING, 0.9)

    assert loss.item() == 2.0
    assert line.weight.item() == pytest.approx(2.0 - 0.025)  # Adam's first step is the rate itself


@pytest.mark.parametrize(("grad_clip", "gradient"), [(5.0, 5.0), (0.0, 100.0)])
def test_gradients_are_clipped_over_all_parameters_unless_the_limit_is_zero(grad_clip, gradient):
    line = Line()
    training = replace(TRAINING, grad_clip=grad_clip)

    optimize_step(line, sgd(line), [torch.full((1,), 100.0)], training)

    assert line.weight.item() == pytest.approx(2.0 - 0.1 * gradient)


def test_a_penalty_moves_the_weights_but_not_the_reported_loss():
    line = Line()

    loss = optimize_step(
        line, sgd(line), [torch.ones(1)], TRAINING, penalty=3 * line.weight.sum()
    )

    assert loss.item() == 2.0
    assert line.weight.item() == pytest.approx(2.0 - 0.1 * 4.0)


class Root(Line):
    """Its loss is finite at zero, its gradient is not."""

    def loss(self, features, _progress=0.0):
        return (self.weight.sum() * features[0]).abs().sqrt().sum()


@pytest.mark.parametrize(
    ("line", "features", "penalty"),
    [
        (Line(), torch.full((1,), torch.nan), None),
        (Line(), torch.ones(1), torch.tensor(torch.inf)),
        (Root(), torch.zeros(1), None),
    ],
)
def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_says_so(line, features, penalty):
    optimizers = make_optimizers(line, TRAINING, 1.0)

    loss = optimize_step(line, optimizers, [features], TRAINING, penalty=penalty)

    assert torch.isnan(loss)
    assert line.weight.item() == 2.0


def test_stable_adamw_is_amsgrad_adamw_until_a_gradient_surprises_it():
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    stable = StableAdamW([ours], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    plain = torch.optim.AdamW(
        [theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1, amsgrad=True, eps=1e-10
    )
    for _ in range(5):
        for parameter, optimizer in ((ours, stable), (theirs, plain)):
            parameter.grad = torch.tensor([0.5, 0.25])
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    before = ours.detach().clone()

    ours.grad = torch.tensor([50.0, 25.0])
    stable.step()

    # mean square of gradient over second moment, by hand: both entries are 100 times the past
    correction = 1 - 0.99**6
    square = (0.99 * (1 - 0.99**5) + 0.01 * 100**2) / correction
    surprise = 100 / math.sqrt(square)
    mean = (0.9 * (1 - 0.9**5) + 0.1 * 100) / (1 - 0.9**6)
    move = 0.1 / surprise * (mean / math.sqrt(square) + 0.1 * before)
    assert surprise > 1
    torch.testing.assert_close(ours.detach(), before - move)
