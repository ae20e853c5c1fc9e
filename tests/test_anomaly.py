"""Maps and scores against scipy and against the plain formula."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from replaycad import anomaly


def pyramids(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 4, 8, 8), (batch, 6, 4, 4), (batch, 8, 2, 2)]
    real = [torch.randn(shape, generator=generator) for shape in shapes]
    return real, [torch.randn(shape, generator=generator) for shape in shapes]


def test_smoothing_equals_scipy_including_the_border():
    maps = np.random.default_rng(0).random((3, 24, 24)).astype(np.float32)

    smoothed = anomaly.smooth(torch.from_numpy(maps), 4.0).numpy()

    expected = np.stack([ndimage.gaussian_filter(one, 4.0) for one in maps])
    np.testing.assert_allclose(smoothed, expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
def test_resize_and_smoothing_in_one_product_equal_the_two_steps(align_corners):
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))

    matrix = anomaly.map_matrix(32, 8, 2.0, align_corners=align_corners)
    at_once = anomaly.apply_both_axes(maps, matrix)

    resized = F.interpolate(maps[:, None], 32, mode="bilinear", align_corners=align_corners)[:, 0]
    np.testing.assert_allclose(
        at_once, [ndimage.gaussian_filter(one, 2.0) for one in resized.numpy()], atol=1e-6
    )


def test_smoothing_with_sigma_zero_changes_nothing():
    maps = torch.rand(1, 5, 5)

    assert torch.equal(anomaly.smooth(maps, 0.0), maps)


def test_cosine_map_equals_the_cosine_of_the_concatenated_levels():
    features, reconstructed = pyramids(2)

    result = anomaly.cosine_distance_map(features, reconstructed)

    def joined(levels):
        return torch.cat(
            [
                F.interpolate(F.normalize(x, dim=1), 8, mode="bilinear", align_corners=True)
                for x in levels
            ],
            dim=1,
        )

    expected = 1 - F.cosine_similarity(joined(features), joined(reconstructed), dim=1)
    assert result.shape == (2, 8, 8)
    torch.testing.assert_close(result, expected)


def test_cosine_map_is_zero_for_equal_pyramids_and_two_for_opposite_ones():
    features, _ = pyramids(3)

    same = anomaly.cosine_distance_map(features, [3.0 * level for level in features])
    opposite = anomaly.cosine_distance_map(features, [-level for level in features])

    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-6, rtol=0)
    torch.testing.assert_close(opposite, torch.full_like(same, 2.0))


def test_cosine_map_is_float32_even_from_half_precision_features():
    features, reconstructed = pyramids(4)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = anomaly.cosine_distance_map(
            [level.bfloat16() for level in features], [level.bfloat16() for level in reconstructed]
        )

    assert result.dtype == torch.float32


def test_cosine_map_refuses_pyramids_of_different_height():
    features, reconstructed = pyramids(5)

    with pytest.raises(ValueError, match="zip"):
        anomaly.cosine_distance_map(features, reconstructed[:2])


def test_image_score_is_the_maximum_of_the_map():
    maps = torch.zeros(2, 4, 4)
    maps[1, 2, 3] = 5.0

    assert anomaly.image_scores(maps).tolist() == [0.0, 5.0]


def test_normalised_scores_keep_the_order_and_put_the_threshold_at_one():
    thresholds = {"image": 3.0, "typical_image": 1.0, "pixel": 2.0, "typical_pixel": 2.0}
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0])

    assert anomaly.normalized_scores(scores, thresholds).tolist() == [-0.5, 0.0, 0.5, 1.0, 2.0]
    wide = {"image": 9.0, "typical_image": 8.0, "pixel": 5.0, "typical_pixel": 1.0}
    pixels = anomaly.normalized_scores(scores, wide, "pixel")
    assert pixels.tolist() == [-0.25, 0.0, 0.25, 0.5, 1.0], "pixels have limits of their own"
    constant = anomaly.normalized_scores(scores, thresholds, "pixel")
    assert torch.isfinite(constant).all(), "a detector that says the same of all pixels"
