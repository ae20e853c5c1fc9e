"""RLR: what a token may learn from where, the loss per level and the map."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.anomaly import smooth
from replaycad.detectors.rlr.network import RLR, Layer, place_code
from replaycad.detectors.rlr.preset import RLRPreset
from replaycad.detectors.tokens import neighbours
from replaycad.errors import ConfigError


def small(**changes):
    torch.manual_seed(0)
    settings = {"widths": (8, 16), "reaches": (1, 1), "num_heads": 2, "num_layers": 2} | changes
    return RLR((3, 5), (8, 16), 64, RLRPreset(**settings))


def features(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 5, 4, 4, generator=g)]


def test_values_come_from_the_reference_within_the_window_and_from_the_image_outside():
    torch.manual_seed(0)
    layer, near = Layer(8, 2), neighbours(6, 1)
    x, reference = torch.randn(2, 1, 36, 8)
    local, distant = layer.local, layer.distant

    def attend(attention, values, allowed):
        heads = []
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(t[0], w, b)
            for t, w, b in zip((x, reference, values), weights, biases, strict=True)
        )
        for part in (slice(0, 4), slice(4, 8)):
            logits = q[:, part] @ k[:, part].T / 2.0
            shares = logits.masked_fill(~allowed, -torch.inf).softmax(dim=1)
            heads.append(shares @ v[:, part])
        return attention.out_proj(torch.cat(heads, dim=1))

    attended = 2.0 * attend(local, reference, near) + attend(distant, x, ~near)
    middle = layer.norm1(attended)
    expected = layer.norm2(middle + layer.feed_forward(middle))

    torch.testing.assert_close(layer(x, reference, near)[0], expected, atol=1e-5, rtol=1e-4)


def test_place_code_is_sines_and_cosines_of_row_and_column():
    code = place_code(4, 8)

    row, column, wave = 2, 3, 10_000.0 ** -(2 / 4)
    angles = torch.tensor([[row, row * wave], [column, column * wave]])
    expected = torch.cat([angles.sin(), angles.cos()], dim=1).flatten()
    torch.testing.assert_close(code[row * 4 + column], expected)
    assert len(code.unique(dim=0)) == 16


def test_loss_is_squared_error_and_cosine_distance_of_each_level():
    detector = small(jitter=0.0)

    expected = 0
    for fake, real in zip(detector(features()), detector.pooled(features()), strict=True):
        cosine = F.cosine_similarity(fake, real, dim=1).mean()
        expected = expected + (fake - real).square().mean() + 1 - cosine

    torch.testing.assert_close(detector.loss(features()), expected)
    assert not torch.allclose(small(jitter=4.0).loss(features()), expected)


def test_a_level_moves_its_own_model_alone():
    detector = small()
    fine, coarse = features()

    detector(features())[0].sum().backward()

    moved = [any(p.grad is not None for p in model.parameters()) for model in detector.models]
    assert moved == [True, False]
    torch.testing.assert_close(
        detector([fine, coarse])[1], detector([torch.zeros_like(fine), coarse])[1]
    )


def test_maps_are_the_smoothed_mean_of_both_errors():
    detector = small()

    maps = detector.anomaly_maps(features())

    fine = []
    for fake, real in zip(detector(features()), detector.pooled(features()), strict=True):
        error = (fake - real).square().mean(dim=1) + 1 - F.cosine_similarity(fake, real, dim=1)
        fine.append(F.interpolate(error[:, None], 64, mode="bilinear", align_corners=True)[:, 0])
    torch.testing.assert_close(maps, smooth(sum(fine) / 2, 1.0).detach(), atol=1e-5, rtol=1e-4)


def test_a_window_that_covers_a_grid_is_refused():
    with pytest.raises(ConfigError, match="covers its grid, 4 a side"):
        small(reaches=(1, 2))
