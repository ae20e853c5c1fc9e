"""PatchCore: the closed form against the published chain, banks, and that it finds a scratch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from replaycad.anomaly import image_scores
from replaycad.detectors.patchcore import coreset, network
from replaycad.detectors.patchcore.coreset import greedy_coreset, nearest_squared_distances
from replaycad.detectors.patchcore.embedding import embed
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.registry import build_detector
from replaycad.errors import ConfigError

SMALL = PatchCorePreset(image_size=32, bank_fraction=0.5, projection_width=8)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def embedding_by_the_published_chain(middle, coarse, width):
    """Unfold 3x3, pool each level to `width`, up-sample the coarse one, pool both to `width`."""
    batch, size = len(middle), middle.shape[-1]
    pooled = []
    for level in (middle, coarse):
        patches = F.unfold(level, 3, padding=1).transpose(1, 2)  # [B, HW, 9C], channel by channel
        values = F.adaptive_avg_pool1d(patches, width).transpose(1, 2)
        values = values.reshape(batch, width, level.shape[-2], level.shape[-1])
        pooled.append(F.interpolate(values, size, mode="bilinear", align_corners=False))
    stacked = torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)  # [B, HW, 2 width]
    return F.adaptive_avg_pool1d(stacked, width).transpose(1, 2).reshape(batch, width, size, size)


def test_closed_form_embedding_equals_unfolding_and_adaptive_pooling():
    middle = torch.randn(2, 6, 8, 8, generator=stream())
    coarse = torch.randn(2, 12, 4, 4, generator=stream(1))

    expected = embedding_by_the_published_chain(middle, coarse, 12)

    torch.testing.assert_close(embed(middle, coarse, 12), expected, atol=1e-6, rtol=1e-5)


def test_levels_narrower_than_published_keep_their_channels():
    middle = torch.randn(1, 4, 8, 8, generator=stream())
    coarse = torch.ones(1, 7, 4, 4) * torch.arange(7.0).view(7, 1, 1)

    found = embed(middle, coarse)

    assert found.shape == (1, 11, 8, 8)
    torch.testing.assert_close(found[0, 4:, 3, 3], torch.arange(7.0) * (4 / 7) ** 0.5)


def test_levels_of_any_width_are_pooled_to_half_of_the_embedding():
    assert embed(torch.randn(1, 9, 8, 8), torch.randn(1, 7, 4, 4), 10).shape == (1, 10, 8, 8)


def test_coreset_takes_one_of_each_far_cluster_before_a_second_of_any():
    centres = 100.0 * torch.eye(5)
    cluster = torch.arange(50) % 5
    vectors = centres[cluster] + torch.randn(50, 5, generator=stream())

    picks = greedy_coreset(vectors, 5, stream(1), projection_width=128)

    assert sorted(cluster[picks].tolist()) == [0, 1, 2, 3, 4]


def test_coreset_is_drawn_by_its_stream_and_never_twice_the_same_vector():
    vectors = torch.randn(60, 40, generator=stream())

    first, again = (greedy_coreset(vectors, 20, stream(1), projection_width=8) for _ in range(2))

    assert torch.equal(first, again)
    assert len(first.unique()) == 20


@pytest.mark.parametrize("num_candidates", [1, 7, 100, 4096])
@pytest.mark.parametrize("spread", [0.05, 5.0])
def test_picks_are_those_of_one_pass_over_all_vectors_per_pick(
    num_candidates, spread, monkeypatch
):
    monkeypatch.setattr(coreset, "NUM_CANDIDATES", num_candidates)
    centres = 10 * torch.randn(30, 6, generator=stream(1)).double()
    vectors = centres.repeat(20, 1) + spread * torch.randn(600, 6, generator=stream(2)).double()

    picks = greedy_coreset(vectors, 200, stream(3), projection_width=6)

    start = torch.randperm(600, generator=stream(3))[:10]
    nearest = torch.cdist(vectors, vectors[start]).mean(dim=1)
    expected = []
    for _ in range(200):
        expected.append(nearest.argmax().item())
        nearest = torch.minimum(nearest, (vectors - vectors[expected[-1]]).norm(dim=1))
    assert picks.tolist() == expected


def test_coreset_of_everything_is_everything():
    assert greedy_coreset(torch.zeros(3, 2), 9, stream(), 8).tolist() == [0, 1, 2]


@pytest.mark.parametrize("at_once", [1, 33, 2**21])
def test_nearest_distance_is_exact(at_once, monkeypatch):
    monkeypatch.setattr("replaycad.detectors.patchcore.coreset.DISTANCES", at_once)
    queries = torch.randn(37, 6, generator=stream())
    bank = torch.randn(11, 6, generator=stream(1))

    expected = torch.cdist(queries.double(), bank.double()).amin(dim=1).square().float()

    torch.testing.assert_close(
        nearest_squared_distances(queries, bank), expected, atol=1e-5, rtol=1e-5
    )


def small_patchcore():
    return PatchCore((4, 6, 8), (4, 8, 16), 32, SMALL)


def random_pyramid(seed, offset=0.0):
    return [
        torch.randn(2, c, 32 // stride, 32 // stride, generator=stream(seed)) + offset
        for c, stride in zip((4, 6, 8), (4, 8, 16), strict=True)
    ]


def test_learning_a_second_class_leaves_the_maps_of_the_first_alone():
    detector = small_patchcore()
    detector.fit([random_pyramid(0)], 0, stream())
    before = detector.anomaly_maps(random_pyramid(1))

    detector.fit([random_pyramid(2, offset=50.0)], 1, stream())

    assert torch.equal(detector.anomaly_maps(random_pyramid(1)), before)
    assert detector.bank_class_index.unique().tolist() == [0, 1]


def test_fitting_a_class_again_replaces_its_bank():
    detector = small_patchcore()
    for _ in range(2):
        detector.fit([random_pyramid(0), random_pyramid(1)], 0, stream())

    assert len(detector.bank) == 32  # half of 2 batches x 2 images x 16 patches


def test_bank_limit_holds():
    preset = PatchCorePreset(image_size=32, bank_fraction=1.0, bank_limit=5)
    detector = PatchCore((4, 6, 8), (4, 8, 16), 32, preset)

    detector.fit([random_pyramid(0)], 0, stream())

    assert len(detector.bank) == 5


def test_of_many_patches_few_are_held_at_once_and_the_rare_ones_stay(monkeypatch):
    preset = PatchCorePreset(image_size=32, bank_fraction=1.0, bank_limit=6)
    detector = PatchCore((4, 6, 8), (4, 8, 16), 32, preset)
    offsets = (0.0, 500.0, 0.0, 0.0, -500.0, 0.0, 0.0, 0.0)  # the rare ones come early and late
    at_once = []
    whole = network.greedy_coreset
    monkeypatch.setattr(
        network, "greedy_coreset", lambda vectors, *more: (
            at_once.append(len(vectors)) or whole(vectors, *more)
        )
    )  # fmt: skip
    batch = 2 * 16  # patches
    monkeypatch.setattr(network, "POOL_BYTES", 2 * batch * 14 * 4)

    detector.fit((random_pyramid(i, offset) for i, offset in enumerate(offsets)), 0, stream())

    assert len(at_once) > 2
    assert max(at_once) <= 3 * batch
    assert len(detector.bank) == 6
    middles = detector.bank.mean(1)
    assert middles.max() > 300
    assert middles.min() < -300
    assert set(detector._bank_place[middles > 300].tolist()) <= {2, 3}
    assert set(detector._bank_place[middles < -300].tolist()) <= {8, 9}


@pytest.mark.parametrize("preset", ["mini", "ucad"])
def test_a_fitted_image_is_held_against_all_others_but_itself(preset):
    images = [torch.rand(6, width, side, side) for width, side in ((8, 8), (16, 4))]
    detector, without = (
        build_detector("patchcore", preset, (8, 16), (8, 16), 64) for _ in range(2)
    )
    limit = replace(detector.preset, bank_fraction=1.0, bank_limit=10_000)
    for index, one in enumerate((detector, without)):
        one.preset = limit
        if preset == "mini" or one is detector:  # routed images see no class but their own
            one.fit([[level[3:] for level in images]], 7, torch.Generator())
        rows = [0, 2] if index else [0, 1, 2]  # of the other class
        one.fit([[level[rows] for level in images]], 5, torch.Generator())

    found = detector.fitted_maps([level[1:2] for level in images], [5], [1])

    torch.testing.assert_close(found, without.anomaly_maps([level[1:2] for level in images]))
    assert found.mean() > 1e3 * detector.anomaly_maps([level[1:2] for level in images]).mean()


def test_what_a_loaded_bank_was_made_of_is_not_known():
    detector, loaded = (build_detector("patchcore", "mini", (8, 16), (8, 16), 64) for _ in "ab")
    features = [torch.rand(3, width, side, side) for width, side in ((8, 8), (16, 4))]
    detector.fit([features], 0, torch.Generator())
    loaded.load_state_dict(detector.state_dict())

    found = loaded.fitted_maps(features, [0, 0, 0], [0, 1, 2])

    torch.testing.assert_close(found, detector.anomaly_maps(features), atol=1e-4, rtol=0)


def test_shrinking_keeps_the_coreset_of_the_smaller_size_of_every_class():
    preset = PatchCorePreset(image_size=32, bank_fraction=1.0, bank_limit=9)
    detector = PatchCore((4, 6, 8), (4, 8, 16), 32, preset)
    pyramids = [random_pyramid(seed, offset=20.0 * seed) for seed in range(3)]
    for index, pyramid in enumerate(pyramids):
        detector.fit([pyramid], index, stream())
    whole = detector.bank

    detector.shrink()

    assert detector.bank_class_index.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for index, pyramid in enumerate(pyramids):
        picks = greedy_coreset(detector.patches(pyramid).flatten(0, 1), 3, stream(), 128)
        own = detector.bank[detector.bank_class_index == index]
        assert torch.equal(own, detector.patches(pyramid).flatten(0, 1)[picks])
    assert len(whole) == 27
    detector.shrink()
    assert len(detector.bank) == 9, "what fits stays"


def test_a_routed_image_is_held_against_the_class_that_lies_nearest_to_all_of_it():
    near, far = random_pyramid(0), random_pyramid(2, offset=9.0)
    detectors = []
    for routed in (False, True):
        preset = PatchCorePreset(image_size=32, bank_fraction=1.0, is_routed=routed)
        detectors.append(PatchCore((4, 6, 8), (4, 8, 16), 32, preset))
        detectors[-1].fit([near], 0, stream())
        detectors[-1].fit([far], 1, stream())
    plain, routed = detectors

    # One corner of an image of the first class looks like the second class.
    mixed = [level.clone() for level in near]
    for level, other in zip(mixed, far, strict=True):
        level[:, :, : level.shape[2] // 2, : level.shape[3] // 2] = other[
            :, :, : level.shape[2] // 2, : level.shape[3] // 2
        ]

    assert torch.allclose(routed.anomaly_maps(near), plain.anomaly_maps(near), atol=1e-5)
    assert torch.allclose(routed.anomaly_maps(far), plain.anomaly_maps(far), atol=1e-5)
    assert routed.anomaly_maps(mixed).max() > 2 * plain.anomaly_maps(mixed).max()
    routed.shrink()
    assert routed.bank_class_index.bincount().tolist() == [32, 32]


def routed_over(pyramids, **changes):
    preset = PatchCorePreset(image_size=32, bank_fraction=1.0, is_routed=True, **changes)
    detector = PatchCore((4, 6, 8), (4, 8, 16), 32, preset)
    for index, pyramid in enumerate(pyramids):
        detector.fit([pyramid], index, stream())
    return detector


def test_the_first_picks_of_a_bank_route_to_where_all_of_it_would(monkeypatch):
    pyramids = [random_pyramid(seed, offset=4.0 * seed) for seed in range(3)]
    whole, few = routed_over(pyramids), routed_over(pyramids)
    alone = [routed_over([pyramid]) for pyramid in pyramids]

    expected = [one.anomaly_maps(pyramid) for one, pyramid in zip(alone, pyramids, strict=True)]
    for detector, picks in ((whole, 500), (few, 5)):
        monkeypatch.setattr(network, "ROUTE_PICKS", picks)
        for pyramid, alone_maps in zip(pyramids, expected, strict=True):
            torch.testing.assert_close(detector.anomaly_maps(pyramid), alone_maps)


def test_banks_of_different_sizes_lie_side_by_side_without_a_row_that_is_none():
    """A row of zeros that fills a bank up would be nearest to an image of zeros."""
    near, far = random_pyramid(0, offset=3.0), random_pyramid(1, offset=9.0)
    detector = routed_over([near])
    detector.fit([[level[:1] for level in far]], 1, stream())
    zeros = [torch.zeros_like(level[:1]) for level in near]

    means, _ = detector.class_distances(detector.patches(zeros))
    distances = detector._nearest(detector.patches(zeros)[0], means[0].argmin())

    bank, _ = detector.bank_of(0)
    assert detector._banks.shape[:2] == (2, len(bank))
    brute = torch.cdist(detector.patches(zeros)[0], bank).square().amin(dim=1)
    torch.testing.assert_close(distances, brute)


def test_the_distance_to_a_class_is_what_a_quarter_of_the_patches_stays_below():
    patches = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    firsts = torch.tensor([[[0.0], [9.0]], [[10.0], [0.0]]])  # the last row is filled up
    squares = torch.tensor([[0.0, 81.0], [100.0, torch.inf]])

    means, lows = network._class_distances(patches, firsts, squares)

    # To 0: 0, 1, 4, 9; to 10: 100, 81, 64, 49.
    assert means.tolist() == [3.5, 73.5]
    assert lows.tolist() == [1.0, 64.0]


def test_images_are_routed_to_the_class_that_is_nearest_and_held_against_it_without_themselves():
    pyramids = [random_pyramid(seed, offset=4.0 * seed) for seed in range(3)]
    detector = routed_over(pyramids)

    for index, pyramid in enumerate(pyramids):
        maps, means, lows = detector.routed_maps(pyramid)
        count = len(maps)
        _, distances = detector.fitted(pyramid, [index] * count, range(count))

        assert means.argmin(dim=1).tolist() == [index] * count
        # All patches are in the bank: an image is no distance from itself, and some from others.
        assert lows[:, index].abs().max() < 1e-3
        patches = detector.patches(pyramid)
        for row in range(count):
            others = torch.cat([patches[other] for other in range(count) if other != row])
            nearest = torch.cdist(patches[row], others).square().amin(dim=1)
            expected = nearest.sort().values[len(nearest) // 4]
            torch.testing.assert_close(distances[row], expected, rtol=1e-3, atol=1e-3)
    assert detector.known_classes() == [0, 1, 2]


def test_a_bank_that_was_kept_gives_what_the_class_gave():
    pyramids = [random_pyramid(seed, offset=4.0 * seed) for seed in range(2)]
    fitted, given = routed_over(pyramids), routed_over(pyramids[:1])

    given.set_bank(1, *fitted.bank_of(1))

    assert torch.equal(given.bank, fitted.bank)
    for pyramid in pyramids:
        assert torch.equal(given.anomaly_maps(pyramid), fitted.anomaly_maps(pyramid))
    places = [0, 1]
    assert torch.equal(
        given.fitted_maps([level[:2] for level in pyramids[1]], [1, 1], places),
        fitted.fitted_maps([level[:2] for level in pyramids[1]], [1, 1], places),
    )


def test_state_round_trip_restores_the_banks():
    trained, fresh = small_patchcore(), small_patchcore()
    trained.fit([random_pyramid(0)], 3, stream())

    fresh.load_state_dict(trained.state_dict())

    assert fresh.bank_class_index.tolist() == trained.bank_class_index.tolist()
    assert torch.equal(
        fresh.anomaly_maps(random_pyramid(1)), trained.anomaly_maps(random_pyramid(1))
    )


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="call fit first"):
        small_patchcore().anomaly_maps(random_pyramid(0))
    with pytest.raises(ValueError, match="no images"):
        small_patchcore().fit([], 0, stream())
    with pytest.raises(ConfigError, match="does not fit"):
        PatchCore((6,), (4,), 32, SMALL)
    with pytest.raises(ConfigError, match="no multiple of 16"):
        PatchCore((4, 6, 8), (4, 8, 16), 40, SMALL)
    with pytest.raises(ConfigError, match="halve in size"):
        PatchCore((4, 4, 4), (4, 16, 16), 32, SMALL)


def test_levels_of_one_size_as_transformers_have_lie_beside_each_other():
    detector = PatchCore((4, 6), (14, 14), 56, SMALL)
    levels = [torch.rand(3, width, 4, 4) for width in (4, 6)]
    detector.fit([levels], 0, stream())

    embedded = embed(*levels)

    assert embedded.shape == (3, 10, 4, 4)
    # inside, each level is the mean of its neighbourhood, of nine places a ninth each
    inside = levels[1][:, :, 0:3, 1:4].mean((2, 3)) * (4 / 6) ** 0.5
    torch.testing.assert_close(embedded[:, 4:, 1, 2], inside)
    assert detector.anomaly_maps(levels).shape == (3, 56, 56)


def test_a_scratch_scores_higher_than_the_texture_and_the_map_points_at_it(tiny_encoder, stripes):
    normal, scratched, scratch = stripes
    detector = build_detector("patchcore", "mini", tiny_encoder.channels, tiny_encoder.strides, 64)
    detector.fit([tiny_encoder.encode_images(normal[1:])], 0, stream())

    pair = torch.cat([normal[:1], scratched])
    maps = detector.anomaly_maps(tiny_encoder.encode_images(pair))

    scores = image_scores(maps)
    row, column = divmod(maps[1].argmax().item(), 64)
    assert maps.shape == (2, 64, 64)
    assert scores[1] > 2 * scores[0]
    assert scratch[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7].any()
