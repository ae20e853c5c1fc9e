"""Our arithmetic against somebody else's: the libraries' own pipelines, and attention by hand."""

import copy

import pytest
import torch
from diffusers import LDMTextToImagePipeline, StableDiffusionPipeline

from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.prompts import Prompts, encode_texts, tokenize, unconditional
from replaycad.diffusion.sampling import _denoise, _noise, make_scheduler
from replaycad.diffusion.search import search
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES, TEXT_LENGTH, WIDTH

NUM_TOKENS = 5
CONFIG = ReplayConfig(sampler="ddim", num_inference_steps=3, guidance_scale=7.0)
SEEDS = [3, 4]


def written_out(diffusion, text, vectors):
    """Embedding rows `[1, T, D]` of a prompt whose placeholder is replaced by hand."""
    ids = tokenize(diffusion.tokenizer, diffusion.text_encoder, [text])
    (star,) = diffusion.tokenizer("*", add_special_tokens=False)["input_ids"]
    place = ids[0].tolist().index(star)
    rows = diffusion.text_encoder.get_input_embeddings().weight[ids[0]]
    return torch.cat([rows[:place], vectors, rows[place + 1 :]])[:TEXT_LENGTH][None]


def encode(diffusion, vectors):
    """What replaycad makes of the prompt of replay."""
    book = Prompts(
        diffusion.tokenizer, diffusion.text_encoder, ["a photo of *"], "prompt", len(vectors)
    )
    return book.encode(torch.tensor([0]), vectors)


def test_inserted_vectors_are_inputs_embeds_of_ldmbert(ldm):
    vectors = torch.randn(NUM_TOKENS, WIDTH)
    rows = written_out(ldm, "a photo of *", vectors)

    plain = ldm.text_encoder.model(inputs_embeds=rows)[0]

    torch.testing.assert_close(encode(ldm, vectors), plain)


def test_inserted_vectors_are_embedded_positions_through_clips_layers(diffusion):
    vectors = torch.randn(NUM_TOKENS, WIDTH)
    rows = written_out(diffusion, "a photo of *", vectors)

    hidden = clip_by_hand(diffusion.text_encoder, rows)

    torch.testing.assert_close(encode(diffusion, vectors), hidden, atol=1e-5, rtol=1e-5)


def clip_by_hand(text_encoder, rows):
    """CLIP's text model written out: causal and nothing else masked, final LayerNorm last."""
    weights = {k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()}
    heads = text_encoder.config.num_attention_heads

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = rows[0] + weights["embeddings.position_embedding.weight"]
    past = torch.ones(len(x), len(x)).tril().bool()
    for index in range(text_encoder.config.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        y = norm(x, f"{layer}.layer_norm1")
        query, key, value = (
            linear(y, f"{layer}.self_attn.{part}_proj").unflatten(1, (heads, -1)).transpose(0, 1)
            for part in "qkv"
        )
        logits = (query @ key.transpose(1, 2)) / query.shape[-1] ** 0.5
        share = logits.masked_fill(~past, -torch.inf).softmax(-1)
        x = x + linear((share @ value).transpose(0, 1).flatten(1), f"{layer}.self_attn.out_proj")
        y = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{layer}.mlp.fc2")
    return norm(x, "final_layer_norm")[None]


def test_padding_is_attended_by_ldmbert_and_not_masked(ldm):
    short = encode_texts(ldm.tokenizer, ldm.text_encoder, ["a photo of"])
    ids = tokenize(ldm.tokenizer, ldm.text_encoder, ["a photo of"])
    real = ids[0] != ldm.tokenizer.pad_token_id

    masked = ldm.text_encoder.model(ids, attention_mask=real[None].long())[0]

    assert not real.all()
    assert not torch.allclose(short[0, real], masked[0, real])


def ours(diffusion, text):
    """Latents that we draw of a plain prompt: K and S are 0."""
    states = encode_texts(diffusion.tokenizer, diffusion.text_encoder, [text]).expand(2, -1, -1)
    empty = encode_texts(diffusion.tokenizer, diffusion.text_encoder, [""])
    with torch.no_grad():
        return _denoise(diffusion, states, empty, SEEDS, CONFIG)


def test_without_conditions_we_draw_what_the_stable_diffusion_pipeline_draws(diffusion):
    pipeline = StableDiffusionPipeline(
        vae=diffusion.vae, text_encoder=diffusion.text_encoder, tokenizer=diffusion.tokenizer,
        unet=diffusion.unet, scheduler=make_scheduler("ddim", diffusion.scheduler_config),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    drawn = pipeline(
        ["a photo of"] * 2, num_inference_steps=3, guidance_scale=7.0, output_type="latent",
        latents=_noise("latents", SEEDS, LATENT_SHAPE), height=32, width=32,
    ).images  # fmt: skip

    torch.testing.assert_close(ours(diffusion, "a photo of"), drawn, atol=1e-4, rtol=1e-4)


def test_without_conditions_we_draw_what_the_latent_diffusion_pipeline_draws(ldm):
    # That pipeline pads to 77 places, which the tiny text model lacks.
    tokenizer = copy.deepcopy(ldm.tokenizer)
    call = type(tokenizer).__call__

    class Short(type(tokenizer)):
        def __call__(self, text, **kwargs):
            return call(self, text, **kwargs | {"max_length": TEXT_LENGTH})

    tokenizer.__class__ = Short
    pipeline = LDMTextToImagePipeline(
        vqvae=ldm.vae, bert=ldm.text_encoder, tokenizer=tokenizer, unet=ldm.unet,
        scheduler=make_scheduler("ddim", ldm.scheduler_config),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    drawn = pipeline(
        ["a photo of"] * 2, num_inference_steps=3, guidance_scale=7.0, output_type="np",
        latents=_noise("latents", SEEDS, LATENT_SHAPE),
        height=8 * LATENT_SHAPE[1], width=8 * LATENT_SHAPE[2],
    ).images  # fmt: skip

    images = ldm.decode(ours(ldm, "a photo of")).permute(0, 2, 3, 1).float() / 255
    torch.testing.assert_close(images, torch.from_numpy(drawn), atol=0.003, rtol=0)


def test_zero_padding_is_attention_with_explicit_zero_keys(diffusion):
    attention = diffusion.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    queries, text = torch.randn(1, 6, 8), torch.randn(1, TEXT_LENGTH, WIDTH)
    extra = 5

    padded = attention(queries, unconditional(text, TEXT_LENGTH + extra))

    def heads(x):
        return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    query, key = heads(queries @ attention.to_q.weight.T), heads(text @ attention.to_k.weight.T)
    value = heads(text @ attention.to_v.weight.T)
    weights = (query @ key.transpose(2, 3) * attention.scale).exp()
    # A zero key has logit 0, so it adds exp(0) = 1 to the denominator and nothing above.
    share = weights / (weights.sum(-1, keepdim=True) + extra)
    mixed = (share @ value).transpose(1, 2).flatten(2)
    expected = mixed @ attention.to_out[0].weight.T + attention.to_out[0].bias
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("placement", ["prompt", "context"])
@pytest.mark.parametrize("kind", ["diffusion", "ldm"])
def test_a_step_of_search_changes_the_two_trained_parts_alone(request, kind, placement):
    backbone = request.getfixturevalue(kind)
    frozen = (backbone.vae, backbone.unet, backbone.text_encoder)
    before = [copy.deepcopy(network.state_dict()) for network in frozen]
    layer = SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH)
    conditions = Conditions(torch.randn(NUM_TOKENS, WIDTH), layer, placement)
    start = copy.deepcopy(conditions.state_dict())
    latents = Posterior(torch.randn(1, 4, *LATENT_SHAPE), torch.ones(1, 4, *LATENT_SHAPE))
    config = CompressConfig(num_steps=1, batch_size=2, weight_decay=0.0)

    search(backbone, conditions, latents, latents, config, seed=0)

    assert set(start) == {"semantic_embedding", "spatial_encoder.weight", "spatial_encoder.bias"}
    for name, value in conditions.state_dict().items():
        assert not torch.equal(value, start[name]), name
    for network, state in zip(frozen, before, strict=True):
        assert all(torch.equal(value, state[k]) for k, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
