"""Dinomaly: linear attention, groups, hard mining, kernel and score against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.detectors.dinomaly.network import Dinomaly, LinearAttention, thinned
from replaycad.detectors.dinomaly.preset import DinomalyPreset
from replaycad.errors import ConfigError


def tokens(seed=0, count=4, width=64, grid=3, batch=2):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, grid, grid, generator=g) for _ in range(count)]


def small(**changes):
    torch.manual_seed(0)
    return Dinomaly((64,) * 4, (14,) * 4, 42, DinomalyPreset(**changes))


def test_linear_attention_equals_its_quadratic_form():
    torch.manual_seed(0)
    attention = LinearAttention(16, 2)
    x = torch.randn(3, 5, 16)

    q, k, v = attention.qkv(x).reshape(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(3, 5, 16))

    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_levels_are_compared_in_groups_and_the_deepest_block_answers_the_first():
    detector, levels = small().eval(), tokens()
    outputs = []
    for block in detector.blocks:
        block.register_forward_hook(lambda _block, _given, made: outputs.append(made))

    groups = detector(levels)
    targets = detector.targets(levels)

    maps = [out.transpose(1, 2).unflatten(2, (3, 3)) for out in outputs]
    torch.testing.assert_close(targets[0], (levels[0] + levels[1]) / 2)
    torch.testing.assert_close(targets[1], (levels[2] + levels[3]) / 2)
    torch.testing.assert_close(groups[0], (maps[3] + maps[2]) / 2)
    torch.testing.assert_close(groups[1], (maps[1] + maps[0]) / 2)


def test_loss_is_the_cosine_distance_of_whole_maps():
    detector, levels = small().eval(), tokens()

    pairs = zip(detector.targets(levels), detector(levels), strict=True)
    distances = [1 - F.cosine_similarity(a.flatten(1), b.flatten(1)).mean() for a, b in pairs]

    for progress in (0.0, 0.05, 1.0):
        torch.testing.assert_close(detector.loss(levels, progress), sum(distances) / 2)


@pytest.mark.parametrize(("progress", "num_easy"), [(0.0, 0), (0.05, 9), (0.1, 17), (1.0, 17)])
def test_easy_locations_send_back_a_tenth_of_their_gradient(progress, num_easy):
    detector = small(num_groups=1).eval()
    levels = tokens()
    fake = torch.randn(2, 64, 3, 3, requires_grad=True)
    detector.forward = lambda _features: [fake]
    (plain,) = torch.autograd.grad(detector.loss(levels, 0.0), fake)

    (mined,) = torch.autograd.grad(detector.loss(levels, progress), fake)

    ratio = (mined.norm(dim=1) / plain.norm(dim=1)).flatten()
    distance = (1 - F.cosine_similarity(detector.targets(levels)[0], fake, dim=1)).flatten()
    easy = ratio < 0.5
    assert easy.sum() == num_easy
    torch.testing.assert_close(ratio[easy], torch.full((num_easy,), 0.1))
    torch.testing.assert_close(ratio[~easy], torch.ones(18 - num_easy))
    assert not num_easy or distance[easy].max() < distance[~easy].min()


def test_maps_are_resized_and_then_smoothed_by_five_pixels_with_zeros_outside():
    detector, levels = small().eval(), tokens()

    maps = detector.anomaly_maps(levels)

    pairs = zip(detector.targets(levels), detector(levels), strict=True)
    coarse = sum(1 - F.cosine_similarity(a, b, dim=1) for a, b in pairs) / 2
    fine = F.interpolate(coarse[:, None], 42, mode="bilinear", align_corners=True)
    places = torch.arange(-2, 3)
    kernel = torch.exp(-(places**2 + places[:, None] ** 2) / (2 * 4.0**2))
    expected = F.conv2d(fine, (kernel / kernel.sum())[None, None], padding=2)[:, 0]
    torch.testing.assert_close(maps, expected.detach(), atol=1e-6, rtol=1e-5)


def test_image_score_is_the_mean_of_the_top_hundredth():
    maps = torch.zeros(2, 20, 20)
    maps[0, 3, 4:8] = torch.tensor([4.0, 2.0, 3.0, 1.0])

    assert small().image_scores(maps).tolist() == [2.5, 0.0]


def test_the_bottleneck_is_the_only_noise():
    levels = tokens()
    noisy, plain = small().train(), small(dropout=0.0).train()

    assert not torch.equal(noisy(levels)[0], noisy(levels)[0])
    assert torch.equal(plain(levels)[0], plain(levels)[0])


def test_thinning_keeps_the_same_places_of_all_levels_and_in_time_every_place():
    first = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.manual_seed(0)

    drawn = [thinned([first, -first], 2) for _ in range(40)]

    assert all(torch.equal(a, -b) for a, b in drawn)
    assert {tuple(a.flatten().tolist()) for a, _ in drawn} == {
        (0, 2, 8, 10), (1, 3, 9, 11), (4, 6, 12, 14), (5, 7, 13, 15),
    }  # fmt: skip


def test_thinning_is_for_the_loss_alone_and_equals_training_on_the_thinned_maps():
    torch.manual_seed(0)
    thin = Dinomaly((64,) * 4, (14,) * 4, 84, DinomalyPreset(thinning=2)).eval()
    whole = Dinomaly((64,) * 4, (14,) * 4, 84, DinomalyPreset()).eval()
    plain = small().eval()
    for other in (whole, plain):
        other.load_state_dict(thin.state_dict())
    levels = tokens(grid=6)

    torch.manual_seed(1)
    found = thin.loss(levels)
    torch.manual_seed(1)
    expected = plain.loss(thinned(levels, 2))

    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, whole.loss(levels))
    assert torch.equal(thin.anomaly_maps(levels), whole.anomaly_maps(levels))


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match="one vision transformer, in 3 groups"):
        small(num_groups=3)
    with pytest.raises(ConfigError, match="no multiple of 14"):
        Dinomaly((64,) * 4, (14,) * 4, 256, DinomalyPreset())
