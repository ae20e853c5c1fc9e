"""The published schedule and what one step does and does not do."""

import pytest
import torch
from torch import nn

from replaycad.detectors.optimization import learning_rate_at, make_optimizer, optimize_step
from replaycad.detectors.presets import OptimizerSettings


class Line(nn.Module):
    """Smallest thing with a loss: a single weight times the features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def loss(self, features):
        return (self.weight * features[0]).sum()


def test_learning_rate_drops_once_after_four_fifths():
    rates = [learning_rate_at(step, 10, 4e-3) for step in range(10)]

    assert rates == pytest.approx([4e-3] * 8 + [4e-4] * 2)


def test_published_rate_at_the_published_batch():
    assert OptimizerSettings().learning_rate_per_image * 32 == pytest.approx(4e-3)


def test_optimizer_is_fused_adam_in_the_published_settings():
    optimizer = make_optimizer(Line().parameters(), 1e-3)

    group = optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.0, 0.99), 0, True)


def test_a_step_uses_its_own_learning_rate_and_returns_the_loss():
    line = Line()
    optimizer = make_optimizer(line.parameters(), 1.0)

    loss = optimize_step(line, optimizer, [torch.ones(1)], 0.25)

    assert loss.item() == 2.0
    assert line.weight.item() == pytest.approx(1.75)  # the first step of Adam is the rate itself


@pytest.mark.parametrize(("grad_clip", "gradient"), [(5.0, 5.0), (0.0, 100.0)])
def test_gradients_are_clipped_over_all_parameters_unless_the_limit_is_zero(grad_clip, gradient):
    line = Line()
    settings = OptimizerSettings(grad_clip=grad_clip)

    optimize_step(
        line, torch.optim.SGD(line.parameters()), [torch.full((1,), 100.0)], 0.1, settings=settings
    )

    assert line.weight.item() == pytest.approx(2.0 - 0.1 * gradient)


def test_a_penalty_moves_the_weights_but_not_the_reported_loss():
    line = Line()
    optimizer = torch.optim.SGD(line.parameters())

    loss = optimize_step(line, optimizer, [torch.ones(1)], 0.1, penalty=3 * line.weight.sum())

    assert loss.item() == 2.0
    assert line.weight.item() == pytest.approx(2.0 - 0.1 * 4.0)


class Root(Line):
    """Its loss is finite at zero, its gradient is not."""

    def loss(self, features):
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
    optimizer = make_optimizer(line.parameters(), 1.0)

    loss = optimize_step(line, optimizer, [features], 1.0, penalty=penalty)

    assert torch.isnan(loss)
    assert line.weight.item() == 2.0
