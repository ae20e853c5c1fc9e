"""What the unet attends to: prompts with learned vectors in them or beside them, spatial tokens."""

import copy

import pytest
import torch

from replaycad.diffusion.conditioning import Conditions, SpatialEncoder, num_spatial_tokens
from replaycad.diffusion.presets import BACKBONES
from replaycad.diffusion.prompts import (
    TEMPLATES,
    Prompts,
    encode_texts,
    insert_slots,
    tokenize,
    unconditional,
    word_embedding,
)
from replaycad.errors import ConfigError
from tests.tiny import (
    IN_FEATURES,
    LATENT_SHAPE,
    NUM_SPATIAL,
    OUT_FEATURES,
    TEXT_LENGTH,
    WIDTH,
)

FIRST = torch.tensor([0])


def word(diffusion, text):
    """Token embedding of a word that is one token: `[1, D]`."""
    (token,) = diffusion.tokenizer(text, add_special_tokens=False)["input_ids"]
    return diffusion.text_encoder.get_input_embeddings().weight[token : token + 1]


def prompts(diffusion, texts, placement, num_tokens):
    """Prompts of a backbone."""
    return Prompts(diffusion.tokenizer, diffusion.text_encoder, texts, placement, num_tokens)


@pytest.fixture(params=["diffusion", "ldm"])
def backbone(request):
    """Each of the two kinds of text model."""
    return request.getfixturevalue(request.param)


def test_there_are_81_templates_of_which_57_are_distinct():
    counts = sorted(TEMPLATES.count(text) for text in set(TEMPLATES))

    assert len(TEMPLATES) == 81
    assert counts == [1] * 45 + [3] * 12
    assert all(text.endswith(" *") for text in TEMPLATES)


@pytest.mark.parametrize(
    ("name", "spatial", "total"), [("sd15", 32, 109), ("ldm256", 5, 82), ("mini", 12, 36)]
)
def test_token_counts_of_the_known_backbones(name, spatial, total):
    preset = BACKBONES[name]
    encoder = SpatialEncoder(preset.in_features, preset.out_features, preset.cross_attention_dim)

    tokens = encoder(torch.randn(2, *preset.latent_shape))

    assert tokens.shape == (2, spatial, preset.cross_attention_dim)
    assert preset.text_length + spatial == total
    assert (tokens >= 0).all()


@pytest.mark.parametrize(("name", "count"), [("ldm256", 25_800), ("sd15", 24_768)])
def test_the_spatial_encoder_has_the_papers_size(name, count):
    preset = BACKBONES[name]
    encoder = SpatialEncoder(preset.in_features, preset.out_features, preset.cross_attention_dim)

    assert sum(p.numel() for p in encoder.parameters()) == count
    assert set(encoder.state_dict()) == {"weight", "bias"}


def test_spatial_tokens_are_latent_rows_in_channel_row_column_order():
    encoder = SpatialEncoder(32, 32, 32)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(32))
        encoder.bias.zero_()
    mask_latents = torch.arange(-64.0, 64.0).reshape(1, 2, 8, 8)

    tokens = encoder(mask_latents)

    assert torch.equal(tokens[0], torch.arange(-64.0, 64.0).clamp(min=0).reshape(4, 32))


def test_the_papers_visa_size_is_refused_and_the_right_one_named():
    with pytest.raises(ConfigError, match=r"32\.67") as caught:
        num_spatial_tokens((4, 64, 64), 128, 196, 768)

    assert "192 or 198" in caught.value.hint
    assert num_spatial_tokens((4, 64, 64), 128, 198, 768) == 33


@pytest.mark.parametrize("in_features", [0, 100])
def test_rows_that_do_not_fill_the_latent_are_refused(in_features):
    with pytest.raises(ConfigError, match="does not divide the 16384") as caught:
        num_spatial_tokens((4, 64, 64), in_features, 192, 768)

    assert caught.value.hint.startswith("use in_features ")


def test_vectors_take_the_placeholders_place_and_push_the_rest_out():
    ids, slots = insert_slots(torch.tensor([[7, 1, 9, 2, 3], [7, 9, 2, 3, 3]]), 9, 3)

    assert ids.tolist() == [[7, 1, 9, 9, 9], [7, 9, 9, 9, 2]]
    assert slots.tolist() == [[-1, -1, 0, 1, 2], [-1, 0, 1, 2, -1]]


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="do not fit") as caught:
        insert_slots(torch.tensor([[7, 1, 9, 2, 3]]), 9, 4)

    assert caught.value.hint == "use num_tokens 3 or fewer"


def test_a_prompt_without_placeholder_is_refused():
    with pytest.raises(ConfigError, match="no placeholder"):
        insert_slots(torch.tensor([[7, 1, 2]]), 9, 1)


def test_an_inserted_word_gives_the_bits_of_the_written_word(backbone):
    ids = tokenize(backbone.tokenizer, backbone.text_encoder, ["a photo of screw"])
    written = backbone.text_encoder(ids)[0]

    inserted = prompts(backbone, ["a photo of *"], "prompt", 1).encode(
        FIRST, word(backbone, "screw")
    )

    assert torch.equal(inserted, written)


def test_several_inserted_words_give_the_bits_of_the_written_words(backbone):
    words = torch.cat([word(backbone, text) for text in ("nice", "small", "screw")])
    ids = tokenize(backbone.tokenizer, backbone.text_encoder, ["a photo of nice small screw"])

    inserted = prompts(backbone, ["a photo of *"], "prompt", 3).encode(FIRST, words)

    assert torch.equal(inserted, backbone.text_encoder(ids)[0])


def test_the_text_encoder_is_left_as_it_was(diffusion):
    before = encode_texts(diffusion.tokenizer, diffusion.text_encoder, ["a photo of *"])

    prompts(diffusion, ["a photo of *"], "prompt", 2).encode(FIRST, torch.randn(2, WIDTH))

    assert not diffusion.text_encoder.get_input_embeddings()._forward_hooks
    after = encode_texts(diffusion.tokenizer, diffusion.text_encoder, ["a photo of *"])
    assert torch.equal(before, after)


def test_clip_looks_back_only_while_ldmbert_looks_both_ways(diffusion, ldm):
    def rows_before(backbone):
        book = prompts(backbone, ["a photo of *"], "prompt", 2)
        generator = torch.Generator().manual_seed(0)
        one, two = torch.randn(2, 2, WIDTH, generator=generator)
        return book.encode(FIRST, one)[0, :4], book.encode(FIRST, two)[0, :4]

    assert torch.equal(*rows_before(diffusion))
    assert not torch.allclose(*rows_before(ldm))


def test_each_image_gets_its_own_prompt(backbone):
    book = prompts(backbone, TEMPLATES, "prompt", 2)
    vectors = torch.randn(2, WIDTH)

    rows = book.encode(torch.tensor([3, 80, 3]), vectors)

    assert len(book) == 81
    assert rows.shape == (3, TEXT_LENGTH, WIDTH)
    assert torch.equal(rows[0], rows[2])
    alone = book.encode(torch.tensor([80]), vectors)[0]
    torch.testing.assert_close(rows[1], alone)


def test_gradient_reaches_the_vectors_through_the_frozen_text_encoder(backbone):
    vectors = torch.randn(3, WIDTH, requires_grad=True)

    prompts(backbone, TEMPLATES, "prompt", 3).encode(torch.tensor([0, 5]), vectors).sum().backward()

    assert (vectors.grad != 0).any(1).all()
    assert all(p.grad is None for p in backbone.text_encoder.parameters())


def test_context_order_is_text_then_semantic_then_spatial(diffusion):
    conditions = Conditions(
        torch.randn(5, WIDTH), SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH), "context"
    )
    mask_latents = torch.randn(2, *LATENT_SHAPE)

    states = conditions(
        prompts(diffusion, ["a photo of a *"], "context", 5), torch.tensor([0, 0]), mask_latents
    )

    text = encode_texts(diffusion.tokenizer, diffusion.text_encoder, ["a photo of a"])
    assert states.shape == (2, TEXT_LENGTH + 5 + NUM_SPATIAL, WIDTH)
    assert torch.equal(states[:, :TEXT_LENGTH], text.expand(2, -1, -1))
    assert torch.equal(states[1, TEXT_LENGTH:-NUM_SPATIAL], conditions.semantic_embedding)
    assert torch.equal(states[:, -NUM_SPATIAL:], conditions.spatial_encoder(mask_latents))


def test_variations_move_the_tokens_of_each_image_by_its_coefficients(diffusion):
    variations = torch.randn(2, 5, WIDTH)
    conditions = Conditions(torch.randn(5, WIDTH), None, "context", variations)
    coefficients = torch.tensor([[0.0, 0.0], [1.0, -2.0]])

    states = conditions(
        prompts(diffusion, ["a photo of a *"], "context", 5), torch.tensor([0, 0]), None,
        coefficients,
    )  # fmt: skip

    moved = conditions.semantic_embedding + variations[0] - 2 * variations[1]
    assert torch.equal(states[0, TEXT_LENGTH:], conditions.semantic_embedding)
    torch.testing.assert_close(states[1, TEXT_LENGTH:], moved)


def test_variations_without_a_place_are_refused():
    spatial = SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH)
    for embedding, placement in ((torch.zeros(2, WIDTH), "prompt"), (None, "context")):
        with pytest.raises(ConfigError, match="variations need a semantic embedding"):
            Conditions(embedding, spatial, placement, torch.zeros(1, 2, WIDTH))


def test_context_prompts_are_encoded_once(diffusion):
    calls = []
    handle = diffusion.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    book = prompts(diffusion, TEMPLATES, "context", 2)
    built = len(calls)

    book.encode(torch.tensor([0, 80]), torch.randn(2, WIDTH))
    handle.remove()

    assert len(calls) == built > 0


def test_prompt_placement_appends_spatial_tokens_only(diffusion):
    conditions = Conditions(
        torch.randn(5, WIDTH), SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH), "prompt"
    )

    states = conditions(
        prompts(diffusion, ["a photo of *"], "prompt", 5), FIRST, torch.randn(1, *LATENT_SHAPE)
    )

    assert states.shape == (1, TEXT_LENGTH + NUM_SPATIAL, WIDTH)


@pytest.mark.parametrize("placement", ["prompt", "context"])
def test_spatial_conditioning_alone_drops_the_placeholder(diffusion, placement):
    conditions = Conditions(None, SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH), placement)

    states = conditions(
        prompts(diffusion, ["a photo of *"], placement, conditions.num_tokens),
        FIRST,
        torch.randn(1, *LATENT_SHAPE),
    )

    text = encode_texts(diffusion.tokenizer, diffusion.text_encoder, ["a photo of"])
    assert conditions.num_tokens == 0
    assert torch.equal(states[:, :TEXT_LENGTH], text)


def test_semantic_conditioning_alone_needs_no_mask(diffusion):
    conditions = Conditions(torch.randn(5, WIDTH), None, "context")

    states = conditions(prompts(diffusion, ["a photo of a *"], "context", 5), FIRST, None)

    assert states.shape == (1, TEXT_LENGTH + 5, WIDTH)


def test_conditions_without_parts_or_with_an_unknown_placement_are_refused():
    with pytest.raises(ConfigError, match="semantic embedding, a spatial encoder or both"):
        Conditions(None, None, "prompt")
    with pytest.raises(ConfigError, match="unknown placement 'beside'"):
        Conditions(torch.zeros(1, WIDTH), None, "beside")


def test_a_placeholder_foreign_to_the_tokenizer_is_refused(diffusion):
    tokenizer = copy.deepcopy(diffusion.tokenizer)
    tokenizer.unk_token = "*</w>"

    with pytest.raises(ConfigError, match="no single token"):
        Prompts(tokenizer, diffusion.text_encoder, ["a photo of *"], "prompt", 2)


def test_word_start_is_copies_of_the_token_embedding_without_position(backbone):
    start = word_embedding(backbone.tokenizer, backbone.text_encoder, "screw", 4)

    assert torch.equal(start, word(backbone, "screw").expand(4, -1))


def test_a_word_of_two_tokens_counts_as_their_mean(backbone):
    start = word_embedding(backbone.tokenizer, backbone.text_encoder, "nice screw", 1)

    expected = (word(backbone, "nice") + word(backbone, "screw")) / 2
    torch.testing.assert_close(start, expected)


def test_context_word_start_is_the_encoded_word(backbone):
    tokenizer, text_encoder = backbone.tokenizer, backbone.text_encoder

    start = word_embedding(tokenizer, text_encoder, "screw", 2, "context")

    row = encode_texts(tokenizer, text_encoder, ["a photo of a screw"])[0, 5]
    assert torch.equal(start, row.expand(2, -1))


def test_a_word_that_the_backbone_does_not_know_is_refused(backbone):
    with pytest.raises(ConfigError, match="does not know the word 'é'"):
        word_embedding(backbone.tokenizer, backbone.text_encoder, "é", 2)


def test_unconditional_sequence_has_zero_tokens_in_front(diffusion):
    empty = encode_texts(diffusion.tokenizer, diffusion.text_encoder, [""])

    padded = unconditional(empty, TEXT_LENGTH + 3)

    assert torch.equal(padded[:, :3], torch.zeros(1, 3, WIDTH))
    assert torch.equal(padded[:, 3:], empty)


def test_zero_tokens_dilute_what_the_unet_reads(diffusion):
    attention = copy.deepcopy(
        diffusion.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    )
    attention.to_out = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    queries, token = torch.randn(1, 6, 8), torch.randn(1, 1, WIDTH)

    alone = attention(queries, token)
    diluted = attention(queries, unconditional(token, 4))

    share = diluted / alone
    assert attention.to_k.bias is None
    assert attention.to_v.bias is None
    assert ((share > 0) & (share < 1)).all()
