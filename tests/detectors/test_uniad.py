"""UniAD: what a token may not see, noise, maps and score."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.detectors.uniad.network import UniAD
from replaycad.detectors.uniad.preset import UniADPreset
from replaycad.errors import ConfigError


def small(**changes):
    torch.manual_seed(0)
    settings = {"width": 8, "num_heads": 2, "hidden_width": 16, "num_layers": 2, "reach": 1,
                "dropout": 0.0}  # fmt: skip
    return UniAD((3, 5), (8, 16), 64, UniADPreset(**settings | {"grid_level": 0} | changes))


def features(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 5, 4, 4, generator=g)]


def test_levels_are_resized_with_aligned_corners_and_concatenated():
    fused = small().fused(features())

    coarse = F.interpolate(features()[1], 8, mode="bilinear", align_corners=True)
    assert torch.equal(fused, torch.cat([features()[0], coarse], dim=1))


def test_one_layer_of_the_encoder_does_not_see_the_neighbourhood_of_a_token():
    layer = small().eval().encoder[0]
    forbidden = small()._forbidden
    x, place = torch.randn(1, 64, 8), torch.randn(64, 8)
    changed = x.clone()
    changed[0, 8 * 3 + 4] += 1.0

    moved = (layer(x, place, forbidden) != layer(changed, place, forbidden)).any(dim=2)

    unmoved = ~moved.reshape(8, 8)
    unmoved[3, 4] = True  # its own residual moves, of course
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:5, 3:6] = True
    assert torch.equal(unmoved, expected)


def test_training_repairs_jittered_tokens_and_testing_adds_no_noise():
    detector = small(jitter=50.0).eval()
    fused = detector.fused(features())

    clean = F.mse_loss(detector(features())[0], fused)

    assert not torch.allclose(detector.loss(features()), clean)
    torch.testing.assert_close(small(jitter=0.0).eval().loss(features()), clean)
    assert torch.equal(detector.anomaly_maps(features()), detector.anomaly_maps(features()))


def test_maps_are_the_norm_of_the_residual_and_the_score_its_pooled_maximum():
    detector = small().eval()

    maps = detector.anomaly_maps(features())

    norm = (detector(features())[0] - detector.fused(features())).norm(dim=1, keepdim=True)
    expected = F.interpolate(norm, 64, mode="bilinear", align_corners=True)[:, 0].detach()
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)
    spot = torch.zeros(1, 64, 64)
    spot[0, 10:12, 30:32] = 4.0  # four pixels of a window of 4 x 4: 16 px at 256 are 4 at 64
    assert detector.image_scores(spot).tolist() == [1.0]


def test_a_window_that_covers_the_grid_is_refused():
    with pytest.raises(ConfigError, match="covers its grid, 4 a side"):
        small(grid_level=1, reach=2)
