"""SimpleNet: its embedding against the published chain, its loss, its two optimisers."""

import pytest
import torch

from replaycad.detectors.optimization import make_optimizers
from replaycad.detectors.registry import build_detector, preset_for
from replaycad.detectors.simplenet.network import SimpleNet, embed
from replaycad.detectors.simplenet.preset import SimpleNetPreset
from tests.detectors.test_patchcore import embedding_by_the_published_chain


@pytest.mark.parametrize(("channels", "width"), [((8, 16), 24), ((6, 10), 14)])
def test_embedding_equals_unfolding_and_adaptive_pooling(channels, width):
    middle = torch.randn(2, channels[0], 8, 8)
    coarse = torch.randn(2, channels[1], 4, 4)
    if width == 14:  # no published chain for widths that do not divide
        assert embed(middle, coarse, width).shape == (2, width, 8, 8)
        return

    expected = embedding_by_the_published_chain(middle, coarse, width)

    torch.testing.assert_close(embed(middle, coarse, width), expected, atol=1e-5, rtol=1e-5)


def small(**changes):
    torch.manual_seed(0)
    return SimpleNet((8, 16), (8, 16), 64, SimpleNetPreset(width=24, hidden_width=8, **changes))


def features(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, 8, 8, generator=g), torch.randn(2, 16, 4, 4, generator=g)]


def test_without_noise_both_halves_meet_the_margin_together():
    detector = small(noise_std=0.0).eval()
    (logits,) = detector(features())

    expected = (0.5 - logits).relu().mean() + (0.5 + logits).relu().mean()

    torch.testing.assert_close(detector.loss(features()), expected)


def test_noise_and_features_share_one_batch_norm():
    detector = small(noise_std=5.0).train()

    detector.loss(features())

    assert detector.discriminator[1].num_batches_tracked == 1


def test_adaptor_and_discriminator_have_their_own_optimisers():
    detector = build_detector("simplenet", "full", (512, 1024), (8, 16), 256)
    training = preset_for("simplenet", "full").training

    adaptor, discriminator = make_optimizers(detector, training, 1e-4)

    assert isinstance(adaptor, torch.optim.AdamW)
    assert not isinstance(discriminator, torch.optim.AdamW)
    settings = [one.param_groups[0] for one in (adaptor, discriminator)]
    assert [one["lr"] for one in settings] == [1e-4, 2e-4]
    assert [one["weight_decay"] for one in settings] == [1e-2, 1e-5]
    assert sum(p.numel() for p in settings[0]["params"]) == 1536 * 1537
