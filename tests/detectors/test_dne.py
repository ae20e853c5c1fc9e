"""DNE against a Gaussian by hand, and what it remembers of classes long gone."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from replaycad.detectors.dne.network import _draw, cut_and_paste
from replaycad.detectors.registry import build_detector
from replaycad.errors import ConfigError

CHANNELS, STRIDES, SIZE = (6, 4), (8, 16), 64


def made(preset="mini", seed=0):
    return build_detector("dne", preset, CHANNELS, STRIDES, SIZE, seed)


def features(shift, count=40, seed=0):
    """Pyramids of a class whose features all lie about `shift`, of length `CHANNELS`."""
    stream = torch.Generator().manual_seed(seed)
    sizes = [SIZE // stride for stride in STRIDES]
    centres = torch.tensor(shift, dtype=torch.float32).split(CHANNELS)
    return [
        centre[None, :, None, None]
        + 0.3 * torch.randn(count, 1, 1, 1, generator=stream)
        + 0.3 * torch.randn(count, width, size, size, generator=stream)
        for centre, width, size in zip(centres, CHANNELS, sizes, strict=True)
    ]


ONE, OTHER = [3.0, 0] * 5, [0, 3.0] * 5


def learned(detector, *classes):
    for index, shift in enumerate(classes):
        detector.fit([features(shift)], index, torch.Generator().manual_seed(1))
    return detector


def scores(detector, shift, seed=9):
    return detector.image_scores(detector.anomaly_maps(features(shift, seed=seed)))


def test_one_class_scores_are_the_mahalanobis_distance_of_its_ledoit_wolf_gaussian():
    detector = learned(made(), ONE)
    with torch.no_grad():
        own = detector._embedded(features(ONE)).double().numpy()
        asked = detector._embedded(features(OTHER, seed=9)).double().numpy()
    off = asked - own.mean(axis=0)
    by_hand = np.sqrt(np.einsum("nd,de,ne->n", off, np.linalg.inv(ledoit_wolf(own)[0]), off))

    np.testing.assert_allclose(scores(detector, OTHER), by_hand, rtol=1e-3)


def test_a_past_class_is_still_normal_and_a_third_is_not():
    detector = learned(made(), ONE, OTHER)

    third = [3.0, 3, -3, -3, 0] * 2
    past, new, strange = (scores(detector, shift) for shift in (ONE, OTHER, third))

    assert past.median() < 1.5 * new.median()
    assert strange.min() > past.max()


def test_the_variant_without_memory_takes_a_past_class_for_an_anomaly():
    detector = learned(made("cutpaste"), ONE, OTHER)

    assert len(detector.memory_mean) == 1
    assert scores(detector, ONE).min() > 3 * scores(detector, OTHER).max()


def test_a_class_learned_again_replaces_its_gaussian():
    detector = learned(made(), ONE, OTHER)
    detector.fit([features(ONE, count=7)], 0, torch.Generator())

    assert sorted(detector.memory_class.tolist()) == [0, 1]
    assert detector.memory_count[detector.memory_class == 0].item() == 7


def test_what_is_drawn_has_the_mean_and_the_covariance_that_were_kept():
    covariance = torch.tensor([[2.0, 0.9], [0.9, 0.5]])
    drawn = _draw(torch.tensor([1.0, -1]), covariance, 100_000, torch.Generator().manual_seed(0))

    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([1.0, -1]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.03, rtol=0)


def test_what_is_pasted_is_a_rectangle_of_the_same_image():
    joined = torch.arange(8 * 16 * 16.0).reshape(8, 1, 16, 16)
    torch.manual_seed(0)

    changed = cut_and_paste(joined) != joined

    for row, mask in enumerate(changed[:, 0]):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all(), row
        assert 0.01 < mask.float().mean() < 0.18


def test_the_head_stays_as_the_first_class_left_it():
    detector = made()
    detector.loss(features(ONE)).backward()
    assert detector.head.weight.grad.any()

    detector = learned(made(), ONE)
    detector.loss(features(OTHER)).backward()

    assert detector.head.weight.grad is None
    assert detector.adapter[0].weight.grad.any()


def test_compactness_draws_a_class_to_the_centre_of_its_first_batch():
    detector = made("panda")
    first = detector.loss(features(ONE))
    centre = detector.centre.clone()
    detector.loss(features(OTHER))

    torch.testing.assert_close(detector.centre, centre)
    with torch.no_grad():
        embedded = detector(features(ONE))[0].mean(dim=(2, 3))
    torch.testing.assert_close(first.detach(), (embedded - embedded.mean(dim=0)).square().mean())

    learned(detector, ONE)
    detector.loss(features(OTHER))
    assert not torch.equal(detector.centre, centre)  # each class has its own


def test_its_memory_is_loaded_whatever_its_size():
    detector, other = learned(made(), ONE, OTHER), made(seed=1)
    other.load_state_dict(detector.state_dict())

    assert torch.equal(scores(other, ONE), scores(detector, ONE))


def test_nothing_to_learn_from_and_nothing_learned_are_told():
    with pytest.raises(ValueError, match="no images"):
        made().fit([], 0, torch.Generator())
    with pytest.raises(ValueError, match="call fit first"):
        scores(made(), ONE)
    with pytest.raises(ConfigError, match="one or two encoder levels"):
        build_detector("dne", "mini", (4, 4, 4), (4, 8, 16), 64)
