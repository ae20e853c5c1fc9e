"""UCAD: prompts in the transformer, the loss over regions, memories, and routing of images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import variant_of
from replaycad.detectors.settings import PICTURE
from replaycad.detectors.ucad.network import UCAD
from replaycad.detectors.ucad.prefixes import load_blocks
from replaycad.detectors.ucad.preset import PRESETS, UCADPreset
from replaycad.detectors.ucad.regions import contrastive_loss, region_map
from replaycad.errors import ConfigError, WeightsError
from replaycad.runtime import generator

SIDE = 128
SIZE = 2  # pixels that a ring or bar is soft by


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini", levels=(PICTURE, 2, 3))


@pytest.fixture(scope="module")
def blocks():
    return load_blocks("mini", 2)


def small(encoder, seed=0, **changes):
    torch.manual_seed(seed)
    preset = UCADPreset(**{"training": PRESETS["mini"].training} | changes)
    return UCAD(encoder.channels, encoder.strides, SIDE, preset)


def class_images(kind, seed, count):
    """Images of one of three kinds: a disc, bars, or noise."""
    random = np.random.default_rng((kind, seed))
    axis = np.arange(SIDE)
    found = []
    for _ in range(count):
        row, column = random.uniform(56, 72, 2)
        distance = np.hypot(axis[:, None] - row, axis - column)
        disc = 1 / (1 + np.exp((distance - 40) / SIZE))
        bars = np.broadcast_to(np.sin(axis * 0.5 + random.uniform(0, 6)) > 0, (SIDE, SIDE))
        noise = random.random((SIDE, SIDE))
        shape = (disc, bars, noise)[kind][..., None]
        colours = np.array([[200, 60, 40], [90, 90, 150], [120, 140, 110]][kind])
        picture = 30 + shape * colours + random.normal(0, 4, (SIDE, SIDE, 3))
        found.append(picture.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


def pyramid(encoder, kind, seed=0, count=4):
    return encoder.encode_images(class_images(kind, seed, count))


def known(encoder, *kinds, **changes):
    """A detector that has learned these kinds, prompts as drawn."""
    detector = small(encoder, **changes)
    for index, kind in enumerate(kinds):
        detector.begin(index + 1, is_first=not index)
        detector.fit([pyramid(encoder, kind)], index, generator(kind, "fit"))
    return detector


def test_a_prefix_is_one_more_key_and_value_that_every_token_attends_to(blocks):
    tokens = torch.randn(2, 256, 128, generator=generator(0, "tokens"))
    prompt = torch.randn(2, 2, 128, generator=generator(1, "prompt"))
    block = blocks._blocks[0]

    found = blocks.features(tokens, prompt)

    # by hand, head by head
    x = tokens
    for number, block in enumerate(blocks._blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).split(128, dim=2)
        heads = []
        for head in range(4):
            own = slice(32 * head, 32 * head + 32)
            keys = torch.cat([prompt[number, 0, own].expand(2, 1, 32), k[..., own]], dim=1)
            values = torch.cat([prompt[number, 1, own].expand(2, 1, 32), v[..., own]], dim=1)
            weights = (q[..., own] @ keys.transpose(1, 2) / math.sqrt(32)).softmax(dim=2)
            heads.append(weights @ values)
        x = x + block.attn.proj(torch.cat(heads, dim=2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    assert found.shape == tokens.shape, "the sequence does not grow"


def test_without_a_prompt_blocks_are_those_of_the_libraries(blocks, tmp_path):
    pictures = torch.randn(2, 3, 128, 128, generator=generator(0, "pictures"))
    sam, x = blocks.owner, blocks.owner.patch_embed(pictures) + blocks.owner.pos_embed
    for block in sam.blocks[:2]:
        x = block(x)
    found = blocks.features(blocks.embedded(pictures))
    torch.testing.assert_close(found, x.flatten(1, 2), atol=1e-4, rtol=1e-4)

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    own = load_blocks(f"vit_tiny_patch16_224:{tmp_path / 'vit.safetensors'}", 6)
    pictures = torch.randn(1, 3, 224, 224, generator=generator(0, "pictures"))
    found = own.features(own.embedded(pictures))
    wanted = vit.eval().forward_intermediates(
        pictures, indices=[5], norm=False, intermediates_only=True, output_fmt="NLC"
    )[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert found.shape == (1, 196, 192)
    with pytest.raises(WeightsError, match="vit_tiny"):
        load_blocks(f"vit_tiny_patch16_224:{tmp_path / 'vit.safetensors'}", 13)


def test_maps_of_an_image_do_not_depend_on_its_batch(encoder):
    detector = known(encoder, 0, 1)
    mixed = torch.cat([class_images(0, 5, 2), class_images(1, 5, 2)])

    together = detector.anomaly_maps(encoder.encode_images(mixed))
    alone = detector.anomaly_maps(encoder.encode_images(mixed[2:3]))

    torch.testing.assert_close(alone[0], together[2], atol=1e-3, rtol=1e-4)
    assert together.shape == (4, SIDE, SIDE)


def test_maps_of_a_class_are_bit_equal_after_later_classes(encoder):
    detector = known(encoder, 0)
    images = pyramid(encoder, 0, 7)
    before = detector.anomaly_maps(images)

    detector.begin(2, is_first=False)
    detector.fit([pyramid(encoder, 1)], 1, generator(0, "fit"))

    assert torch.equal(detector.anomaly_maps(images), before)


def test_images_are_routed_to_their_class(encoder):
    detector = known(encoder, 0, 1, 2)
    for kind in range(3):
        tokens = detector._tokens(pyramid(encoder, kind, 9, 20))
        routes = detector.routes(detector._frozen[0].features(tokens))
        assert (routes == kind).float().mean() >= 0.95


def test_the_sum_of_distances_of_patches_routes_an_image(encoder):
    # 16 patches, of which class 0 knows all but one, that lies 5 away; of class 1 each lies 1 away.
    # Sums are 5 and 16; by the farthest patch (5, 1) or by squares (25, 16) it would be class 1.
    detector = small(encoder, num_picks=2)
    along = torch.zeros(16, 128)
    along[0, 0] = 5.0
    keys = torch.zeros(2, 2, 128)
    keys[1, :, 1] = 1.0
    keys[1, 1, 0] = 5.0
    detector.memory_key, detector.memory_class = keys, torch.arange(2)
    assert detector.routes(along[None]).tolist() == [0]


def test_of_two_copies_of_a_class_the_first_is_taken_and_both_score_alike(encoder):
    one, two = known(encoder, 0), known(encoder, 0, 0)
    images = pyramid(encoder, 0, 7)
    tokens = two._tokens(images)

    assert two.routes(two._frozen[0].features(tokens)).tolist() == [0] * 4
    first, second = (two._maps(tokens, torch.full((4,), row)) for row in (0, 1))
    assert torch.equal(first, one.anomaly_maps(images))
    assert second.mean().item() == pytest.approx(first.mean().item(), rel=0.2)


def test_vectors_of_a_bank_are_features_of_the_class_and_know_their_image(encoder):
    detector = known(encoder, 0, num_picks=20)
    tokens = detector._tokens(pyramid(encoder, 0))
    found = detector._frozen[0].features(tokens, detector.memory_prompt[0])
    plain = detector._frozen[0].features(tokens)

    pool = plain.flatten(0, 1)
    for vector in detector.memory_key[0]:
        assert (pool == vector).all(1).any()
    for vector, place in zip(detector.memory_knowledge[0], detector.memory_place[0], strict=True):
        assert (found[place] - vector).abs().amax(1).min() < 1e-3
    assert set(detector.memory_place[0].tolist()) <= {0, 1, 2, 3}


def test_an_image_that_was_fitted_is_held_against_the_others(encoder):
    detector = known(encoder, 2, num_picks=1024)  # all its patches
    images = pyramid(encoder, 2)

    as_new = detector.anomaly_maps(images)
    fitted = detector.fitted_maps(images, [0] * 4, [0, 1, 2, 3])

    assert as_new.max() < 0.1, "each patch finds itself, but for rounding of large norms"
    assert fitted.amax((1, 2)).min() > 1.0


def test_frozen_weights_stay_and_the_prompt_moves_by_the_loss_alone(encoder):
    images = pyramid(encoder, 0)
    for weight in (1.0, 0.0):
        detector = small(encoder, loss_weight=weight)
        before = [one.clone() for one in detector._frozen[0].owner.parameters()]
        prompt = detector.prompt.detach().clone()
        training = detector.preset.training
        optimizers = make_optimizers(detector, training, 5e-4)
        for _ in range(2):
            optimize_step(detector, optimizers, images, training)
        after = detector._frozen[0].owner.parameters()
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert torch.equal(detector.prompt, prompt) == (weight == 0.0)
        assert [name for name, _ in detector.named_parameters()] == ["prompt"]


def test_a_prefix_behind_the_features_would_get_no_gradient(encoder):
    # A prompt has a row for each block up to the features, and none behind them.
    detector = small(encoder, num_blocks=1)
    assert detector.prompt.shape == (1, 2, 128)
    tokens = detector._tokens(pyramid(encoder, 0))
    prompt = torch.zeros(2, 2, 128, requires_grad=True)
    behind_one = load_blocks("mini", 1).features(tokens, prompt)
    behind_one.square().sum().backward()
    assert prompt.grad[0].abs().max() > 0
    assert prompt.grad[1].abs().max() == 0


def test_the_loss_draws_regions_apart():
    unit = torch.eye(4)
    features = unit[[0, 0, 1, 1]] + 0.01
    apart, mixed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])

    assert contrastive_loss(features, apart, 0.5) < contrastive_loss(features, mixed, 0.5)
    one = contrastive_loss(features, torch.zeros(4), 0.5)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    torch.testing.assert_close(one, -cosines.mean() / 0.5)
    # two orthogonal regions of two: eight pairs within, at -2, and eight between, at exp(0)
    exact = contrastive_loss(unit[[0, 0, 1, 1]], apart, 0.5)
    torch.testing.assert_close(exact, torch.tensor((8 * -2.0 + 8 * 1.0) / 16))


def test_smaller_masks_are_painted_over_larger_ones_and_places_take_their_middle():
    large, little = np.zeros((8, 8), np.bool_), np.zeros((8, 8), np.bool_)
    large[:, :5], little[2:6, 2:4] = True, True

    found = region_map([little, large], 4, 4).view(4, 4)

    # middles are rows and columns 1, 3, 5, 7
    assert found.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [1, 2, 0, 0], [1, 1, 0, 0]]
    assert region_map([], 2, 2).tolist() == [0] * 4


def test_an_image_of_one_region_is_left_out_and_others_count_alike(encoder, monkeypatch):
    detector = small(encoder)
    images = pyramid(encoder, 0)
    maps = [torch.zeros(256), torch.arange(256) % 2, torch.zeros(256), torch.arange(256) // 128]
    monkeypatch.setattr(detector, "_regions_of", lambda _: maps)
    found = detector._frozen[0].features(detector._tokens(images), detector.prompt)

    wanted = [contrastive_loss(found[row], maps[row], 0.5) for row in (1, 3)]

    torch.testing.assert_close(detector.loss(images), sum(wanted) / 2)
    monkeypatch.setattr(detector, "_regions_of", lambda _: [torch.zeros(256)] * 4)
    assert detector.loss(images).item() == 0


def test_regions_are_those_of_the_segmenter_and_found_once(encoder, monkeypatch):
    detector = small(encoder)
    images = pyramid(encoder, 0, count=2)
    first = detector._regions_of(images)
    disc = first[0].view(16, 16)
    assert disc[8, 8] != disc[0, 0], "a disc and its ground"
    monkeypatch.setattr(detector, "_segmenter", None)
    monkeypatch.setattr("replaycad.detectors.ucad.network.load_segmenter", None)
    assert all(
        torch.equal(one, other)
        for one, other in zip(first, detector._regions_of(images), strict=True)
    )


def test_prompts_of_a_class_start_alike_and_bytes_are_as_counted(encoder):
    detector = known(encoder, 0)
    one = detector.memory_key[0].nbytes + detector.memory_knowledge[0].nbytes
    assert one + detector.memory_prompt[0].nbytes == 202_752
    assert detector.prompt.abs().max() <= 1
    assert detector.prompt.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    two = small(encoder)
    two.load_state_dict(detector.state_dict())
    images = pyramid(encoder, 0, 3)
    assert torch.equal(two.anomaly_maps(images), detector.anomaly_maps(images))


def test_it_wants_the_picture_and_a_class(encoder):
    with pytest.raises(ConfigError, match="reads pictures"):
        UCAD(encoder.channels[1:], encoder.strides[1:], SIDE, UCADPreset())
    with pytest.raises(ValueError, match="no class yet"):
        small(encoder).anomaly_maps(pyramid(encoder, 0))
    with pytest.raises(ValueError, match="no images"):
        small(encoder).fit([], 0, generator(0, "fit"))


def test_vectors_are_compared_at_the_published_width(encoder):
    # Of three numbers a, b, c four: a, (a + b) / 2, (b + c) / 2, c.
    detector = small(encoder, compared_width=4)
    vectors = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 6.0]])
    assert detector._wide(vectors).tolist() == [[1.0, 1.5, 3.0, 4.0], [0.0, 0.0, 3.0, 6.0]]
    assert torch.equal(small(encoder)._wide(vectors), vectors)
    assert PRESETS["full"].compared_width == 1024


def test_its_control_differs_by_the_loss_alone_at_any_size():
    for name, control in {"full": "full-untrained", "mini": "untrained"}.items():
        assert variant_of("ucad", name, "untrained") == control
        assert PRESETS[control] == replace(PRESETS[name], loss_weight=0.0)
    assert variant_of("ucad", "standard", "untrained") == "untrained"


def test_at_full_size_a_class_keeps_the_published_bytes(monkeypatch, tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224.augreg_in21k", pretrained=False, num_classes=0)
    file = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), file)
    preset = replace(PRESETS["full"], transformer=f"vit_base_patch16_224:{file}")
    detector = UCAD((3, 1024, 2048), (1, 16, 32), 224, preset)
    halves = torch.arange(196) // 98
    monkeypatch.setattr(detector, "_regions_of", lambda levels: [halves] * len(levels[0]))
    pictures = [torch.randn(1, 3, 224, 224, generator=generator(0, "pictures"))]

    detector.loss(pictures).backward()
    detector.fit([pictures], 0, generator(0, "fit"))

    # six blocks of a key and a value of 768: each of them reaches the loss
    assert detector.prompt.nbytes == 36_864
    assert detector.prompt.grad.flatten(1).abs().amax(dim=1).min() > 0
    # and twice 196 vectors of 768; the published 1,024 numbers of each are made of these
    kept = (detector.memory_key, detector.memory_knowledge, detector.memory_prompt)
    assert sum(one.nbytes for one in kept) == 2 * 196 * 768 * 4 + 36_864
    assert detector.anomaly_maps(pictures).shape == (1, 224, 224)
