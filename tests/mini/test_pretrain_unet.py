"""What the bundled diffusion model is made of, before and while it is trained."""

import torch

from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.mini.pretrain.text import TEXT_LENGTH, build_tokenizer
from replaycad.mini.pretrain.unet import NUM_TOKENS, ROW, ROW_TOKENS, WIDTH, Generator
from replaycad.mini.pretrain.vae import reconstruction_loss
from replaycad.mini.world import VOCABULARY


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


def test_set_encoder_gives_k_tokens_whatever_the_number_of_references():
    encoder = SetEncoder(8, 16, WIDTH, NUM_TOKENS)

    for references in (1, 3):
        assert encoder(torch.randn(2, references, 8, 16, 16)).shape == (2, NUM_TOKENS, WIDTH)


def test_set_encoder_does_not_mind_the_order_of_references():
    encoder = SetEncoder(8, 16, WIDTH, NUM_TOKENS).eval()
    latents = torch.randn(1, 4, 8, 16, 16, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        torch.testing.assert_close(encoder(latents), encoder(latents.flip(1)), atol=1e-5, rtol=1e-4)


def test_dropped_conditions_are_zero_tokens(tmp_path):
    model = Generator(build_tokenizer(tmp_path), ["one red metal ring"], torch.device("cpu"))
    keep = torch.tensor([1.0, 0.0])

    with torch.no_grad():
        tokens = model.condition(
            model.templates[:2], model.set_encoder(torch.randn(1, 2, 8, 16, 16)),
            torch.randn(2, 8, 16, 16), keep,
            1 - keep,
        )  # fmt: skip

    spatial = 8 * ROW // ROW * ROW_TOKENS // WIDTH
    assert tokens.shape == (2, TEXT_LENGTH + NUM_TOKENS + spatial, WIDTH)
    semantic = tokens[:, TEXT_LENGTH : TEXT_LENGTH + NUM_TOKENS]
    assert semantic[0].abs().sum() > 0
    assert semantic[1].abs().sum() == 0
    assert tokens[0, -spatial:].abs().sum() == 0


def test_reconstruction_loss_is_zero_for_equal_pictures_and_counts_lost_grain():
    picture = torch.rand(1, 3, 8, 8) * 2 - 1

    assert reconstruction_loss(picture, picture) == 0
    smooth = picture.mean((2, 3), keepdim=True).expand_as(picture)
    assert reconstruction_loss(smooth, picture) > (smooth - picture).pow(2).mean()
