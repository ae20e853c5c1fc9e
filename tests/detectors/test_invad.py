"""InvAD: published sizes, what reaches the optimiser, and that it finds a scratch."""

import pytest
import torch

from replaycad.anomaly import image_scores
from replaycad.detectors.invad.network import InvAD
from replaycad.detectors.invad.preset import InvADPreset
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import build_detector, preset_for
from replaycad.errors import ConfigError
from tests.detectors.grouped import per_sample

SMALL = InvADPreset(image_size=32, fuser_width=16, style_width=8, num_blocks=1)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def random_pyramid(seed, channels=(4, 6, 8), size=32, batch=2):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, size // stride, size // stride, generator=g)
        for c, stride in zip(channels, (4, 8, 16), strict=True)
    ]


def small_invad(seed=0, preset=SMALL):
    torch.manual_seed(seed)
    return InvAD((4, 6, 8), (4, 8, 16), 32, preset)


@pytest.mark.parametrize(
    ("preset", "channels", "fuser", "generator"),
    [
        ("full", (256, 512, 1024), 3_492_032, 67_276_528),
        ("lite", (64, 128, 256), 452_864, 8_523_376),
    ],
)
def test_published_presets_have_the_published_number_of_parameters(
    preset, channels, fuser, generator
):
    with torch.device("meta"):
        detector = InvAD(channels, (4, 8, 16), 256, preset_for("invad", preset))

    assert num_parameters(detector.fuser) == fuser
    assert num_parameters(detector.generator) == generator


@pytest.mark.parametrize("widths", [None, (4, 4, 8)])
def test_reconstruction_has_the_shapes_of_the_pyramid(widths):
    preset = InvADPreset(
        image_size=32, fuser_width=8, num_blocks=2, generator_widths=widths
    )
    features = random_pyramid(0)

    reconstructed = small_invad(preset=preset)(features)

    assert [level.shape for level in reconstructed] == [level.shape for level in features]


def test_loss_is_the_weighted_sum_of_the_level_errors():
    features = random_pyramid(1)
    weighted = InvADPreset(
        image_size=32,
        fuser_width=16,
        style_width=8,
        num_blocks=1,
        level_weight=5.0,
    )
    detector = small_invad(preset=weighted).eval()

    errors = [
        (fake - level).square().mean()
        for fake, level in zip(detector(features), features, strict=True)
    ]

    torch.testing.assert_close(detector.loss(features), 5.0 * sum(errors))


def test_every_parameter_but_the_shifted_away_biases_gets_a_gradient():
    detector = small_invad()

    detector.loss(random_pyramid(2)).backward()

    idle = [
        name
        for name, parameter in detector.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 1e-7
    ]
    assert all(name.startswith("fuser.align") and name.endswith(".bias") for name in idle)


def test_maps_have_image_size_and_leave_the_mode_and_the_statistics_alone():
    detector = small_invad()
    before = {name: value.clone() for name, value in detector.state_dict().items()}

    maps = detector.anomaly_maps(random_pyramid(3))

    assert maps.shape == (2, 32, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert detector.training
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


def test_half_precision_features_are_computed_in_float32():
    detector = small_invad()

    assert detector.anomaly_maps([level.half() for level in random_pyramid(4)]).dtype == (
        torch.float32
    )
    assert detector.loss([level.half() for level in random_pyramid(4)]).dtype == torch.float32


def test_a_map_does_not_depend_on_the_batch_it_came_in():
    detector = small_invad()
    features = random_pyramid(5)

    together = detector.anomaly_maps(features)
    alone = detector.anomaly_maps([level[1:] for level in features])

    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-5)


def test_state_round_trip_gives_the_same_maps():
    features = random_pyramid(6)
    trained, fresh = small_invad(0), small_invad(1)

    fresh.load_state_dict(trained.state_dict())

    assert torch.equal(fresh.anomaly_maps(features), trained.anomaly_maps(features))


def test_one_seed_draws_one_detector_and_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    untouched = torch.rand(1)
    torch.manual_seed(3)

    first, again, other = (
        build_detector("invad", "mini", (4, 6, 8), (4, 8, 16), 32, seed).state_dict()
        for seed in (1, 1, 2)
    )

    assert torch.rand(1) == untouched
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["generator.constant"], other["generator.constant"])


def test_misfits_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="no multiple of 16") as caught:
        InvAD((4, 6, 8), (4, 8, 16), 100, SMALL)
    assert caught.value.hint == "use 96"
    with pytest.raises(ConfigError, match="halve in size"):
        InvAD((4, 6), (4, 16), 32, SMALL)
    with pytest.raises(ConfigError, match="generator widths"):
        InvAD((4, 6), (8, 16), 32, preset_for("invad", "mini"))


def test_an_over_fitted_detector_scores_a_scratch_higher_and_points_at_it(tiny_encoder, stripes):
    normal, scratched, scratch = stripes
    preset = InvADPreset(
        image_size=64,
        fuser_width=16,
        style_width=8,
        num_blocks=1,
        generator_widths=(16, 24),
    )
    torch.manual_seed(1)
    detector = InvAD(tiny_encoder.channels[:2], tiny_encoder.strides[:2], 64, preset)
    training = preset_for("invad", "mini").training
    optimizers = make_optimizers(detector, training, 0.01)
    features = tiny_encoder.encode_images(normal)[:2]

    for _ in range(120):
        optimize_step(detector, optimizers, features, training)
    pair = torch.cat([normal[:1], scratched])
    maps = detector.anomaly_maps(tiny_encoder.encode_images(pair)[:2])

    scores = image_scores(maps)
    assert scores[1] > 1.5 * scores[0]
    # Where the very highest pixel lies depends on how sums are rounded.
    assert maps[1][scratch].mean() > 1.4 * maps[1][~scratch].mean()


def test_outputs_and_gradients_are_those_of_per_sample_grouped_convolutions():
    preset = InvADPreset(fuser_width=16, style_width=8, num_blocks=2)
    plain, grouped = small_invad(preset=preset), per_sample(small_invad(preset=preset))
    features = random_pyramid(7, batch=3)

    for ours, theirs in zip(plain(features), grouped(features), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for detector in (plain, grouped):
        detector.zero_grad()
        detector.loss(features).backward()
    for ours, theirs in zip(plain.parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
