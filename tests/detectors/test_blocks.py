"""InvAD's blocks against slow references written sample by sample from the formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

from replaycad.detectors.invad.blocks import (
    EqualizedConv,
    EqualizedUp,
    ModulatedConv,
    ResidualBlock,
    normalize_sample,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def normalized_by_hand(x):
    return (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)


def leaky(x, bias):
    x = x + bias[:, None, None]
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def modulated_by_hand(module, x, style):
    """One sample at a time, as the formulas are written."""
    width = module.conv.weight.shape[1]
    outputs = []
    for sample, its_style in zip(x, style, strict=True):
        weight = module.style.weight / math.sqrt(9 * module.style.weight.shape[1])
        both = F.conv2d(its_style[None], weight, module.style.bias, padding=1)[0]
        scale, shift = both[:width], both[width:]
        modulated = normalized_by_hand(sample) * scale + shift
        convolved = F.conv2d(modulated[None], module.conv.weight / math.sqrt(9 * width), padding=1)
        outputs.append(leaky(convolved[0], module.conv.bias))
    return torch.stack(outputs)


def up_by_hand(module, x, size):
    """Transposed convolution, zero padding, then the blur channel by channel."""
    weight = module.weight / math.sqrt(module.weight.shape[0] * size**2)
    x = F.pad(F.conv_transpose2d(x, weight, stride=2), [1 if size == 3 else 2] * 4)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = 4 * torch.outer(taps, taps) / 64
    return F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None])[:, 0].unflatten(0, (len(x), -1))


def randomize_biases(module):
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data.add_(torch.randn_like(parameter))


def test_modulated_convolution_equals_the_naive_per_sample_one():
    module = ModulatedConv(6, 5, 4)
    randomize_biases(module)
    x, style = torch.randn(3, 6, 7, 7) * 3 + 1, torch.randn(3, 4, 7, 7)

    torch.testing.assert_close(
        module(x, style), modulated_by_hand(module, x, style), atol=1e-5, rtol=1e-5
    )


def test_a_constant_input_may_be_broadcast_instead_of_repeated():
    block = ResidualBlock(4, 6, 3)
    constant, style = torch.randn(1, 4, 5, 5), torch.randn(3, 3, 5, 5)

    torch.testing.assert_close(block(constant, style), block(constant.expand(3, -1, -1, -1), style))


def test_modulation_starts_around_scale_one_and_shift_zero():
    module = ModulatedConv(4, 4, 2)

    assert module.style.bias.tolist() == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize("size", [1, 3])
def test_up_sampling_equals_transposed_convolution_padding_and_blur(size):
    module = EqualizedUp(3, 5, size, activate=False)
    x = torch.randn(2, 3, 4, 4)

    result = module(x)

    assert result.shape == (2, 5, 8, 8)
    torch.testing.assert_close(result, up_by_hand(module, x, size), atol=1e-5, rtol=1e-5)


def test_up_sampling_keeps_the_level_of_a_constant_away_from_the_border():
    module = EqualizedUp(1, 1, 1, activate=False)
    module.weight.data.fill_(1.0)

    result = module(torch.ones(1, 1, 8, 8))

    torch.testing.assert_close(result[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


def test_lr_multiplier_changes_how_a_weight_is_stored_but_not_its_effect():
    module = EqualizedUp(64, 64, 3, lr_multiplier=0.01)

    assert module.weight.std().item() == pytest.approx(100, rel=0.05)
    assert (module.weight * module.scale).std().item() == pytest.approx(
        math.sqrt(2 / (9 * 64)), rel=0.05
    )


def test_equalized_convolution_is_scaled_biased_and_activated():
    module = EqualizedConv(3, 4, 3)
    randomize_biases(module)
    x = torch.randn(2, 3, 6, 6)

    convolved = F.conv2d(x, module.weight / math.sqrt(27), padding=1)
    expected = torch.stack([leaky(sample, module.bias) for sample in convolved])

    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("up", [False, True])
def test_residual_block_adds_branch_and_skip_over_root_two(up):
    block = ResidualBlock(4, 6, 3, up=up)
    randomize_biases(block)
    x, style = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 10 if up else 5, 10 if up else 5)

    if up:
        normed = torch.stack([normalized_by_hand(sample) for sample in x])
        raised = up_by_hand(block.first, normed, 3)
        branch = torch.stack([leaky(sample, block.first.bias) for sample in raised])
        skip = up_by_hand(block.skip, x, 1)
    else:
        branch = modulated_by_hand(block.first, x, style)
        skip = F.conv2d(x, block.skip.weight / math.sqrt(4))
    branch = modulated_by_hand(block.second, branch, style)

    torch.testing.assert_close(
        block(x, style), (branch + skip) / math.sqrt(2), atol=1e-5, rtol=1e-5
    )


def test_normalisation_runs_over_channels_and_places_of_each_sample():
    x = torch.randn(3, 4, 5, 5) * 7 - 2

    expected = torch.stack([normalized_by_hand(sample) for sample in x])
    torch.testing.assert_close(normalize_sample(x), expected, atol=1e-5, rtol=1e-5)
