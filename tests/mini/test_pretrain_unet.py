"""What the bundled diffusion model is made of, before and while it is trained."""

import numpy as np
import pytest
import torch

from replaycad.diffusion.set_encoder import LEAST_SPREAD, SetEncoder, cell_statistics
from replaycad.mini.pretrain.pool import open_pool
from replaycad.mini.pretrain.text import TEXT_LENGTH, build_tokenizer
from replaycad.mini.pretrain.unet import (
    NUM_TOKENS,
    ROW,
    ROW_TOKENS,
    WIDTH,
    Generator,
    _turn,
    draw_classes,
)
from replaycad.mini.pretrain.vae import fit_codec, psnr, to_pixel_values
from replaycad.mini.world import VOCABULARY
from replaycad.runtime import generator

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
            model.templates[:2], model.set_encoder(torch.randn(1, 2, 24, 16, 16)),
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
    draw = [draw_classes(pool, generator(0, "test"), CPU) for _ in range(2)]

    classes, images, masks = draw[0]

    assert images.shape == (len(classes), 6, 3, 32, 32)
    assert masks.shape == (len(classes), 6, 32, 32)
    assert -1 <= images.min() < images.max() <= 1
    assert torch.equal(images, draw[1][1])
    assert torch.equal(_turn(_turn(masks, 5), 5), masks)  # mirrored and turned twice
    plain = draw_classes(pool, generator(0, "test"), CPU, is_changed=False)[1]
    assert not torch.equal(images, plain)


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
