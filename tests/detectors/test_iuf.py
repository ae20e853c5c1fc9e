"""IUF: what tells objects apart, what that changes, and which loss moves what."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.detectors.encoders import IMAGENET_MEAN, IMAGENET_STD, images_of, load_encoder
from replaycad.detectors.iuf.network import IUF
from replaycad.detectors.iuf.preset import PRESETS, IUFPreset
from replaycad.detectors.settings import PICTURE
from replaycad.detectors.tokens import to_tokens
from replaycad.runtime import generator


def small(num_classes=2, is_first=True, **changes):
    torch.manual_seed(0)
    settings = {"width": 8, "num_heads": 2, "object_heads": 2, "hidden_width": 16, "num_layers": 2,
                "dropout": 0.0, "grid_level": 0, "rank": 2, "num_rows": 6}  # fmt: skip
    with_picture = "picture_px" in changes
    channels, strides = ((3, 3, 5), (1, 8, 16)) if with_picture else ((3, 5), (8, 16))
    detector = IUF(channels, strides, 64, IUFPreset(**settings | changes))
    detector.begin(num_classes, is_first)
    return detector


def features(seed=0, with_picture=False):
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 5, 4, 4, generator=g)]
    return [torch.randn(2, 3, 64, 64, generator=g), *levels] if with_picture else levels


LABELS = torch.tensor([0, 1])


def moved_by(loss, detector):
    detector.zero_grad()
    loss.backward()
    return {name for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()}


def test_queries_of_the_encoder_are_multiplied_by_what_is_seen_of_the_object():
    detector = small().eval()
    layer, place = detector.encoder[0], detector.places()
    x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1))
    objects = 2.0 + torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(2))

    found = layer(x, place, detector._forbidden, objects)

    # by hand, from the layer's own matrices: softmax((C Q) K / sqrt d) V for two heads of 4
    attention = layer.attention.attention
    wq, wk, wv = attention.in_proj_weight.split(8)
    bq, bk, bv = attention.in_proj_bias.split(8)
    query = ((x + place) * objects) @ wq.T + bq
    key, value = (x + place) @ wk.T + bk, x @ wv.T + bv
    heads = [one.unflatten(2, (2, 4)).transpose(1, 2) for one in (query, key, value)]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 2).softmax(dim=3)
    attended = attention.out_proj((weights @ heads[2]).transpose(1, 2).flatten(2))
    by_hand = layer.feed_forward(layer.attention.norm(x + attended))
    torch.testing.assert_close(found, by_hand)
    ones = layer(x, place, detector._forbidden, torch.ones_like(x))
    torch.testing.assert_close(layer(x, place, detector._forbidden), ones)
    assert not torch.allclose(ones, found)


def test_every_token_sees_all_others():
    detector = small().eval()
    assert not detector._forbidden.any()


def test_rows_of_a_picture_do_not_see_each_other():
    detector = small().eval()
    order = torch.tensor([3, 1, 0, 7, 5, 2, 6, 4])
    levels = features()
    shuffled = [levels[0][:, :, order], levels[1]]

    seen, logits = detector.discriminator(levels[0])
    others, same = detector.discriminator(shuffled[0])

    for one, other in zip(seen, others, strict=True):
        torch.testing.assert_close(one[:, :, order], other)
    torch.testing.assert_close(logits, same)
    columns = detector.discriminator(levels[0][:, :, :, order])[0]
    assert not torch.allclose(columns[0][:, :, :, :], seen[0][:, :, :, :])
    changed = levels[0].clone()
    changed[:, :, 2, 5] += 1.0
    away = (detector.discriminator(changed)[0][-1] - seen[-1]).abs().amax(dim=(0, 1))
    assert away[2].min() > 0, "all of its row"
    assert away[torch.arange(8) != 2].max() == 0, "and nothing else"


def test_only_the_cross_entropy_moves_what_tells_objects_apart():
    detector = small()
    own = {name for name, _ in detector.named_parameters() if name.startswith("discriminator.")}

    assert not moved_by(detector.loss(features()), detector) & own
    seen = moved_by(detector.labelled_loss(features(), LABELS), detector) & own
    # A bias of keys adds the same to all that a query is compared with.
    assert seen == own


def test_losses_are_the_error_the_cross_entropy_and_at_first_the_compression():
    parts = {"jitter": 0.0, "class_weight": 0.5, "compression_weight": 4.0}
    first, later = small(**parts), small(is_first=False, **parts)
    fused, (objects, logits) = first.fused(features()), first.objects(features())
    rebuilt, outputs = first._rebuilt(to_tokens(fused), objects)

    error = F.mse_loss(rebuilt, fused)
    entropy = F.cross_entropy(logits, LABELS)
    means = outputs[0].mean(dim=1)[None]
    values = torch.linalg.svdvals(torch.cat([torch.zeros(1, 0, 8), means], dim=1))[0]
    share = values[2:].sum() / values.sum()

    torch.testing.assert_close(later.labelled_loss(features(), LABELS), error + 0.5 * entropy)
    found = first.labelled_loss(features(), LABELS)
    torch.testing.assert_close(found, error + 0.5 * entropy + 4.0 * share)
    torch.testing.assert_close(first.loss(features()), error)
    assert len(outputs) == 2
    with torch.no_grad():
        first.norm.weight.fill_(2.0)
    again = first._rebuilt(to_tokens(fused), objects)[1]
    for one, other in zip(outputs, again, strict=True):
        torch.testing.assert_close(one, F.layer_norm(one, (8,)), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(other, 2 * one)  # one norm for all layers of the decoder


def test_compression_worked_by_hand():
    detector = small(rank=1, num_rows=4)

    # rows 3 e1 and e2: singular values 3 and 1, of which the second is behind the leading one
    first = detector.compression(torch.tensor([[[3.0] + [0.0] * 7, [0.0, 1.0] + [0.0] * 6]]))
    # below them 4 e2: columns of length 3 and sqrt 17
    second = detector.compression(torch.tensor([[[0.0, 4.0] + [0.0] * 6]]))

    assert first.item() == pytest.approx(1 / 4)
    assert second.item() == pytest.approx(3 / (3 + 17**0.5))
    detector.compression(torch.randn(1, 3, 8))
    assert detector._rows.shape == (1, 4, 8), "the last four"
    assert detector._rows[0, 0].tolist() == [0.0, 4.0] + [0.0] * 6


def test_compression_has_a_gradient_with_respect_to_this_batch_alone():
    detector = small()
    detector.compression(torch.randn(1, 3, 8))
    assert not detector._rows.requires_grad
    means = torch.randn(1, 3, 8, requires_grad=True)

    detector.compression(means).backward()

    assert means.grad.abs().max() > 1e-4
    # As released, all that it reads is detached, and the loss is a constant.
    assert not detector.compression(means.detach()).requires_grad


def test_the_loss_of_the_first_class_has_the_gradient_of_compression():
    gradients = []
    for weight in (0.0, 4.0):
        detector = small(rank=1, jitter=0.0, compression_weight=weight)
        detector.labelled_loss(features(), LABELS).backward()
        gradients.append(detector.decoder[0].feed_forward.layers[3].weight.grad)
    assert (gradients[1] - gradients[0]).abs().max() > 1e-3 * gradients[0].abs().max()


def test_a_score_is_the_highest_mean_over_16_px_of_224():
    channels, strides = (3, 24, 32, 56, 160), (1, 2, 4, 8, 16)
    detector = IUF(channels, strides, 224, PRESETS["lite"])
    anomaly_maps = torch.zeros(1, 224, 224)
    anomaly_maps[0, 100:116, 50:66] = 1.0
    assert detector.image_scores(anomaly_maps).item() == 1.0
    anomaly_maps[0, 115] = 0.0
    assert detector.image_scores(anomaly_maps).item() == pytest.approx(15 / 16)


def test_the_head_grows_by_a_row_for_each_class_and_keeps_those_it_has():
    one, two = small(num_classes=1), small(num_classes=1)
    kept = one.discriminator.weight.detach().clone()

    two.load_state_dict(one.state_dict())
    two.begin(3, is_first=False)

    assert two.objects(features())[1].shape == (2, 3)
    assert torch.equal(two.discriminator.weight[:1], kept)
    assert two.discriminator.weight[1:].abs().min() > 0
    three = small(num_classes=0)
    three.load_state_dict(two.state_dict())
    assert torch.equal(three.anomaly_maps(features()), two.anomaly_maps(features()))
    two.begin(2, is_first=False)
    assert len(two.discriminator.bias) == 3, "no class is forgotten"


def test_the_object_is_told_by_the_picture_where_the_preset_says_so():
    detector = small(picture_px=16).eval()
    levels = features(with_picture=True)

    objects, logits = detector.objects(levels)
    smaller = F.avg_pool2d(levels[0], 4)
    seen, wanted = detector.discriminator(smaller)

    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(objects[1], to_tokens(F.avg_pool2d(seen[1], 2)))
    torch.testing.assert_close(detector.fused(levels), small().fused(levels[1:]))
    encoder = load_encoder("mini", levels=(PICTURE, 1, 2))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = encoder.encode_images(images)
    assert [tuple(one.shape[1:]) for one in found] == [
        (count, 64 // stride, 64 // stride)
        for count, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    torch.testing.assert_close(found[0], encoder.normalize(images))
    assert torch.equal(images_of(found[0]), images)
    encoder = load_encoder("efficientnet-lite0", levels=(PICTURE, 1, 2))
    assert (encoder.mean, encoder.std) != (IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(encoder.encode_images(images)[0], found[0], atol=1e-4, rtol=1e-4)
    plain = load_encoder("mini", levels=(1, 2)).encode_images(images)
    assert all(torch.equal(one, other) for one, other in zip(found[1:], plain, strict=True))


def test_second_feed_forward_layers_are_guarded():
    detector = small()
    named = dict(detector.named_modules())
    assert [named[name].weight.shape for name in detector.guarded()] == [(8, 16)] * 4


def test_at_full_size_it_has_the_published_numbers_of_parameters():
    # UniAD's 7.7 M, and 1.39 M that tell objects apart, whatever the side of their pictures
    channels, strides = (3, 24, 32, 56, 160), (1, 2, 4, 8, 16)
    for name in ("full", "lite"):
        detector = IUF(channels, strides, 224, PRESETS[name])
        detector.begin(1, True)
        counts = {part: sum(one.numel() for one in network.parameters())
                  for part, network in detector.named_children()}  # fmt: skip
        objects = counts.pop("discriminator")
        assert objects == pytest.approx(1.39e6, abs=5e3)
        assert sum(counts.values()) == pytest.approx(7.7e6, abs=5e4)
        assert len(detector.guarded()) == 8


def test_lite_learns_of_pictures_of_56_px_at_the_published_sizes():
    detector = IUF((3, 24, 32, 56, 160), (1, 2, 4, 8, 16), 224, PRESETS["lite"])
    detector.begin(2, True)  # of one class alone there is nothing to tell apart
    levels = [torch.randn(1, width, 224 // stride, 224 // stride, generator=generator(0, "lite"))
              for width, stride in zip((3, 24, 32, 56, 160), (1, 2, 4, 8, 16), strict=True)]

    moved = moved_by(detector.labelled_loss(levels, torch.tensor([0])), detector)

    assert {name.split(".")[0] for name in moved} >= {"encoder", "decoder", "discriminator"}
    assert detector.anomaly_maps(levels).shape == (1, 224, 224)
