"""What the bundled diffusion model is made of, before and while it is trained."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from replaycad.diffusion.set_encoder import LEAST_SPREAD, SetEncoder, cell_statistics
from replaycad.mini.pretrain.pool import lying_still, open_pool
from replaycad.mini.pretrain.text import TEXT_LENGTH, build_tokenizer
from replaycad.mini.pretrain.unet import (
    NUM_REFERENCES,
    NUM_TOKENS,
    ROW,
    ROW_TOKENS,
    SEEN,
    TARGETS,
    WIDTH,
    Generator,
    Shown,
    Variations,
    draw_classes,
    tell,
    turn_each,
)
from replaycad.mini.pretrain.vae import fit_codec, psnr, to_pixel_values
from replaycad.mini.world.pictures import VOCABULARY, draw_class
from replaycad.runtime import generator

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


def test_every_word_of_the_world_is_one_token(tmp_path):
    tokenizer = build_tokenizer(tmp_path)

    assert {word for word in VOCABULARY if len(tokenizer.tokenize(word)) != 1} == set()
    assert tokenizer.model_max_length == TEXT_LENGTH


def test_the_placeholder_and_any_other_word_can_be_tokenized(tmp_path):
    tokenizer = build_tokenizer(tmp_path)

    assert len(tokenizer.tokenize("*")) == 1
    assert (
        tokenizer.unk_token_id
        not in tokenizer("zebra crossing 42", add_special_tokens=False)["input_ids"]
    )


def test_set_encoder_gives_a_token_for_each_cell_whatever_the_number_of_references():
    encoder = SetEncoder(24, 16, WIDTH)

    for references in (1, 3):
        assert encoder(torch.randn(2, references, 24, 16, 16)).shape == (2, NUM_TOKENS, WIDTH)


def test_set_encoder_does_not_mind_the_order_of_references():
    encoder = SetEncoder(24, 16, WIDTH).eval()
    latents = torch.randn(1, 4, 24, 16, 16, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        torch.testing.assert_close(encoder(latents), encoder(latents.flip(1)), atol=1e-5, rtol=1e-4)


def test_dropped_conditions_are_zero_tokens(tmp_path):
    model = Generator(build_tokenizer(tmp_path), ["one red metal ring"], CPU)
    keep = torch.tensor([1.0, 0.0])

    with torch.no_grad():
        tokens = model.condition(
            model.templates[:2], model.set_encoder(torch.randn(2, 2, 24, 16, 16)),
            torch.randn(2, 24, 16, 16), keep,
            1 - keep,
        )  # fmt: skip

    spatial = 24 * ROW // ROW * ROW_TOKENS // WIDTH
    assert tokens.shape == (2, TEXT_LENGTH + NUM_TOKENS + spatial, WIDTH)
    semantic = tokens[:, TEXT_LENGTH : TEXT_LENGTH + NUM_TOKENS]
    assert semantic[0].abs().sum() > 0
    assert semantic[1].abs().sum() == 0
    assert tokens[0, -spatial:].abs().sum() == 0


def test_cells_know_their_part_of_the_mean_picture_and_how_far_it_varies():
    references = torch.zeros(1, 2, 1, 4, 4)
    references[0, :, 0, 0, 2:] = torch.tensor([[1.0, 2.0], [3.0, 2.0]])

    cells = cell_statistics(references)

    assert cells.shape == (1, 4, 5)
    assert cells[0, 1, :4].tolist() == [2, 2, 0, 0]
    assert cells[0, 1, 4].exp().item() == pytest.approx((0.25 + LEAST_SPREAD**2) ** 0.5)
    assert cells[0, [0, 2, 3], 4].exp().tolist() == pytest.approx([LEAST_SPREAD] * 3)


def test_untrained_the_guess_is_the_mean_picture_of_the_references(tmp_path):
    model = Generator(build_tokenizer(tmp_path), ["one red metal ring"], CPU)
    references = torch.randn(2, 3, 24, 16, 16)
    keep = torch.ones(2)

    with torch.no_grad():
        tokens = model.condition(
            model.templates[:2], model.set_encoder(references), references[:, 0], keep, keep
        )
        guess = model.unet.read(tokens)

    torch.testing.assert_close(guess.mean, references.mean(1), atol=1e-4, rtol=1e-4)
    spread = cell_statistics(references)[:, :, -24:].transpose(1, 2).reshape(2, 24, 8, 8)
    torch.testing.assert_close(guess.log_spread[..., ::2, 1::2], spread, atol=1e-4, rtol=1e-4)


def test_a_class_is_turned_and_coloured_as_a_whole(tmp_path):
    pool = open_pool(tmp_path, 16, num_pictures=8, num_defective=1, size=32, workers=1)
    shown = Shown.of(pool, CPU)
    draw = [draw_classes(shown, generator(0, "test"), CPU) for _ in range(2)]

    classes, images, masks = draw[0]

    assert images.shape == (len(classes), 8, 3, 32, 32)
    assert masks.shape == (len(classes), 8, 32, 32)
    assert -1 <= images.min() < images.max() <= 1
    assert torch.equal(images, draw[1][1])
    plain = draw_classes(shown, generator(0, "test"), CPU, is_changed=False)[1]
    assert not torch.equal(images, plain)


def test_each_class_is_turned_in_one_of_eight_ways():
    pictures = torch.arange(8 * 2 * 9).view(8, 2, 3, 3)
    turns = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]).T.bool()

    turned = turn_each(pictures, turns)

    ways = {tuple((turned[i, 0] - pictures[i, 0, 0, 0]).flatten().tolist()) for i in range(8)}
    assert len(ways) == 8
    assert torch.equal(turned[3], pictures[3].rot90(2, (-2, -1)))
    assert torch.equal(turned[4], pictures[4].mT)


def test_classes_lie_still_for_the_unet_as_compress_moves_them():
    spec = next(one for one in map(draw_class, range(40)) if one.scene.pose_word == "anywhere")
    stilled = [lying_still(draw_class(seed)).scene for seed in range(200)]

    shares = [scene.angle_jitter <= 0.02 for scene in stilled]
    assert 0.75 <= np.mean(shares) < 1
    assert lying_still(spec).scene.places == spec.scene.places


def test_variations_tell_where_a_picture_lies_along_what_its_class_does():
    along = torch.randn(1, 2, 24, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([[-2.0, 1], [1, 2], [2, -1], [-1, -2], [0, 0]])
    latents = torch.tensordot(steps, along[0], 1)[None] + 5

    vary = Variations.of(latents, torch.tensor([6]))

    assert (vary.directions.flatten(2).square().sum(2) > 1e-3).sum() == 2
    torch.testing.assert_close(vary.taken_out(latents), torch.full_like(latents, 5.0))
    coefficients = vary.coefficients(latents)
    torch.testing.assert_close(
        coefficients.square().mean(1)[0, :2], torch.ones(2), atol=1e-3, rtol=0
    )
    one = Variations.of(latents, torch.tensor([1]))
    assert (one.directions.flatten(2).square().sum(2) > 1e-3).sum() == 1


def test_targets_are_told_where_they_lie_along_the_variations(tmp_path):
    encoder = Generator(build_tokenizer(tmp_path), ["one red metal ring"], CPU).set_encoder
    count = TARGETS + NUM_REFERENCES + SEEN
    along = torch.randn(24, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = torch.linspace(-1, 1, count)[None, :, None, None, None] * along

    with torch.no_grad():
        still, moved = (tell(encoder, latents, 4, torch.tensor([n])) for n in (0, 1))

    assert still.shape == (TARGETS, NUM_TOKENS, WIDTH)
    assert torch.equal(still[0], still[1])
    pictures = moved @ encoder.statistics.weight[:, :96]  # untrained, tokens are mean pictures
    expected = F.unfold(latents[0, :TARGETS], 2, stride=2).mT
    torch.testing.assert_close(pictures, expected, atol=1e-3, rtol=1e-3)


def test_the_codec_of_pictures_with_few_directions_loses_nothing():
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (12, 4, 4, 3), dtype=np.uint8)
    images = colours.repeat(8, 1).repeat(8, 2)  # flat squares of 8 px: three directions suffice

    codec = fit_codec(images, CPU, latent_channels=3)

    assert psnr(codec, images, CPU) > 60
    with torch.no_grad():
        latents = codec.encode(to_pixel_values(images, CPU)).latent_dist
    assert latents.mean.shape == (12, 3, 4, 4)
    assert latents.std.abs().max() == 0
    assert latents.mean.var((0, 2, 3), correction=0).mean() == pytest.approx(1, abs=1e-3)
