"""The search: what it trains, that it is repeatable, that it can be interrupted."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from replaycad.config.stages import CompressConfig
from replaycad.diffusion import stopping
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.posterior import Posterior, encode_posterior
from replaycad.diffusion.prompts import TEMPLATES, tokenize, word_embedding
from replaycad.diffusion.search import CHECK_EVERY, draw_timesteps, search
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.diffusion.start import start_conditions
from replaycad.diffusion.variation import principal_variation
from replaycad.errors import ConfigError, TrainingError
from replaycad.progress import SilentReport
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES, WIDTH

CONFIG = CompressConfig(
    num_tokens=3, in_features=IN_FEATURES, out_features=OUT_FEATURES, init="random",
    num_steps=6, batch_size=2, learning_rate=1e-3, embedding_learning_rate=1e-2,
)  # fmt: skip


class MemoryCheckpoint:
    """Keeps every state that was saved."""

    def __init__(self, kept=None):
        self.kept = kept
        self.history = {}

    def load(self):
        return self.kept

    def save(self, step, tensors):
        self.kept = (step, tensors)
        self.history[step] = tensors


class InterruptAt(SilentReport):
    """A user who presses Ctrl-C after some steps."""

    def __init__(self, step):
        self._step = step

    def step(self, what, done, total, **values):  # noqa: ARG002
        if done == self._step:
            raise KeyboardInterrupt


class Notes(SilentReport):
    """Remembers what it was told in words."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


class Listener(SilentReport):
    """Remembers the losses."""

    def __init__(self):
        self.losses = {}

    def step(self, what, done, total, **values):  # noqa: ARG002
        if "loss" in values:
            self.losses[done] = values["loss"]


def posterior(seed, shape=(2, 5, *LATENT_SHAPE)):
    """Two augmentations of five pictures."""
    mean = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return Posterior(mean, torch.full(shape, 0.1))


def run(diffusion, seed=0, config=CONFIG, images=None, **options):
    """A search from a random start; returns the parameters by name."""
    images = images or posterior(1)
    conditions = start_conditions(diffusion, images, config, seed)
    search(diffusion, conditions, images, posterior(2), config, seed, **options)
    return {name: p.detach().clone() for name, p in conditions.named_parameters()}


def same(one, two):
    """Bit equality of all parameters."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("placement", ["prompt", "context"])
@pytest.mark.parametrize("kind", ["diffusion", "ldm"])
def test_only_the_two_trainable_parts_change(request, kind, placement):
    diffusion = request.getfixturevalue(kind)
    config = dataclasses.replace(CONFIG, semantic_placement=placement)
    start = start_conditions(diffusion, posterior(1), config, 0)
    frozen = [diffusion.unet, diffusion.text_encoder, diffusion.vae]
    before = [p.clone() for network in frozen for p in network.parameters()]

    found = run(diffusion, config=config)

    after = [p for network in frozen for p in network.parameters()]
    assert set(found) == {"semantic_embedding", "spatial_encoder.weight", "spatial_encoder.bias"}
    assert not any(torch.equal(found[name], p) for name, p in start.named_parameters())
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert all(p.grad is None and not p.requires_grad for p in after)


def test_half_precision_networks_train_full_precision_conditions(diffusion):
    half = dataclasses.replace(
        diffusion,
        unet=copy.deepcopy(diffusion.unet).bfloat16(),
        text_encoder=copy.deepcopy(diffusion.text_encoder).bfloat16(),
    )
    config = dataclasses.replace(CONFIG, semantic_placement="prompt", num_steps=2)

    found = run(half, config=config)

    assert {p.dtype for p in found.values()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in found.values())


def test_first_step_moves_each_part_by_its_own_rate_and_decays_it(diffusion):
    config = dataclasses.replace(CONFIG, num_steps=1, weight_decay=0.5, semantic_placement="prompt")
    start = dict(start_conditions(diffusion, posterior(1), config, 0).named_parameters())

    found = run(diffusion, config=config)

    for name, rate in {"semantic_embedding": 1e-2, "spatial_encoder.weight": 1e-3}.items():
        moved = found[name] - start[name].detach() * (1 - rate * 0.5)  # Adam's first step: rate
        assert moved.abs().median().item() == pytest.approx(rate, rel=0.05)


def test_same_seed_same_bits_and_another_seed_others(diffusion):
    first = run(diffusion)

    assert same(first, run(diffusion))
    assert not same(first, run(diffusion, seed=1))


def drawn(diffusion, monkeypatch, seed, start):
    """What the steps of a search learn from, where images and masks say which ones they are."""
    found = []

    def backward(_diffusion, _conditions, _prompts, draws, *_others):
        found.append(draws)
        return torch.zeros(())

    monkeypatch.setattr("replaycad.diffusion.search._backward", backward)
    number = torch.arange(10.0).reshape(2, 5, 1)  # of the image under its augmentation
    means = number[..., None, None].expand(2, 5, *LATENT_SHAPE)
    images, masks = (Posterior(means + more, torch.zeros_like(means)) for more in (0, 100))
    search(diffusion, start, images, masks, CONFIG, seed, coefficients=number)
    assert len(found) == CONFIG.num_steps
    return found


def test_an_image_is_learned_from_with_its_own_mask_and_coefficients(diffusion, monkeypatch):
    start = start_conditions(diffusion, posterior(1), CONFIG, 0)

    steps = drawn(diffusion, monkeypatch, 0, start)

    seen = torch.cat([one.latents for one in steps])
    assert len(seen.unique()) > 3
    assert torch.equal(torch.cat([one.mask_latents for one in steps]), seen + 100)
    assert torch.equal(torch.cat([one.coefficients for one in steps]), seen[:, 0, 0, :1])


def test_what_a_step_learns_from_belongs_to_the_seed_and_to_the_step(diffusion, monkeypatch):
    start = start_conditions(diffusion, posterior(1), CONFIG, 0)

    one, again, other = (drawn(diffusion, monkeypatch, seed, start) for seed in (0, 0, 1))

    noise = [[step.noise for step in steps] for steps in (one, again, other)]
    assert all(map(torch.equal, noise[0], noise[1]))
    assert not any(map(torch.equal, noise[0], noise[2]))
    assert not torch.equal(noise[0][0], noise[0][1])


def test_a_resumed_search_gives_the_bits_of_an_undisturbed_one(diffusion):
    checkpoint = MemoryCheckpoint()
    undisturbed = run(diffusion, checkpoint=checkpoint, save_every_seconds=0)

    kept = MemoryCheckpoint((3, checkpoint.history[3]))

    assert list(checkpoint.history) == [1, 2, 3, 4, 5, 6]
    assert same(run(diffusion, checkpoint=kept), undisturbed)


def test_a_search_whose_loss_stands_still_stops_and_resumes_to_the_same_end(diffusion, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 1)
    monkeypatch.setattr(stopping, "MOVING", 10.0)  # whatever moves, it moves less than that
    config = dataclasses.replace(CONFIG, num_steps=50, stop_window=2)
    notes, checkpoint = Notes(), MemoryCheckpoint()

    stopped = run(diffusion, config=config, report=notes, checkpoint=checkpoint,
                  save_every_seconds=0)  # fmt: skip

    assert any("came to rest after 4 of 50 steps" in text for text in notes.texts)
    assert max(checkpoint.history) == 4
    kept = MemoryCheckpoint((3, checkpoint.history[3]))
    again = run(diffusion, config=config, checkpoint=kept, save_every_seconds=0)
    assert same(again, stopped)
    assert max(kept.history) == 4


def test_looking_does_not_change_the_search(diffusion):
    assert same(run(diffusion, config=dataclasses.replace(CONFIG, stop_window=3)), run(diffusion))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5, 4, 3, 2, 1, 0], False),  # still falling
        ([5, 3, 2, 1, 1, 1], True),
        ([5, 1, 1, 1, 1], False),  # not twice the window yet
        ([1, 1, 1, 1, 1, 1], True),
    ],
)
def test_losses_have_settled_when_the_last_ones_hardly_vary(losses, expected):
    assert stopping.has_settled(losses, 3) is expected


def test_variations_are_trained_with_each_images_coefficients_and_resumed(diffusion):
    images = posterior(1)
    variation = principal_variation(images.mean, 2)

    def varied(checkpoint, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        conditions = start_conditions(diffusion, images, config, 0, variation=variation)
        assert not conditions.semantic_variations.any(), "a word says nothing of them"
        search(
            diffusion, conditions, images, posterior(2), config, 0, checkpoint=checkpoint,
            save_every_seconds=0, coefficients=variation.coefficients,
        )  # fmt: skip
        return {name: p.detach().clone() for name, p in conditions.named_parameters()}

    checkpoint = MemoryCheckpoint()
    undisturbed = varied(checkpoint)
    apart = varied(MemoryCheckpoint(), pass_size=1)

    assert undisturbed["semantic_variations"].shape == (2, 3, WIDTH)
    assert undisturbed["semantic_variations"].abs().amax((1, 2)).gt(0).all()
    assert same(varied(MemoryCheckpoint((3, checkpoint.history[3]))), undisturbed)
    for name, values in undisturbed.items():
        torch.testing.assert_close(apart[name], values, atol=1e-3, rtol=0)


def test_an_interrupt_keeps_the_state_and_is_raised_again(diffusion):
    undisturbed = run(diffusion)
    checkpoint = MemoryCheckpoint()

    with pytest.raises(KeyboardInterrupt):
        run(diffusion, report=InterruptAt(4), checkpoint=checkpoint)

    assert list(checkpoint.history) == [4]
    assert same(run(diffusion, checkpoint=checkpoint), undisturbed)


def test_an_interrupt_before_the_first_step_keeps_nothing(diffusion, monkeypatch):
    def pressed(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("replaycad.diffusion.search._backward", pressed)
    checkpoint = MemoryCheckpoint()

    with pytest.raises(KeyboardInterrupt):
        run(diffusion, checkpoint=checkpoint)

    assert checkpoint.history == {}


def test_a_finished_search_resumes_to_itself(diffusion):
    checkpoint = MemoryCheckpoint()
    finished = run(diffusion, checkpoint=checkpoint, save_every_seconds=0)

    assert same(run(diffusion, checkpoint=checkpoint), finished)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(diffusion):
    images = posterior(1)
    images.mean[:, 4] = float("nan")  # drawn sooner or later
    checkpoint = MemoryCheckpoint()
    config = dataclasses.replace(CONFIG, num_steps=200)

    with pytest.raises(TrainingError, match="stopped being finite") as caught:
        run(diffusion, config=config, images=images, checkpoint=checkpoint, save_every_seconds=0)

    assert "lower learning_rate" in caught.value.hint
    for tensors in checkpoint.history.values():
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_a_loss_that_is_not_finite_stops_without_checkpoint_too(diffusion):
    images = posterior(1)
    images.mean[:] = float("inf")

    with pytest.raises(TrainingError, match=f"between steps 0 and {CHECK_EVERY}"):
        run(diffusion, config=dataclasses.replace(CONFIG, num_steps=200), images=images)


def test_training_lowers_the_loss_of_the_same_draws(diffusion):
    losses = []
    for rate in (0.0, 1e-2):
        listener = Listener()
        config = dataclasses.replace(
            CONFIG, num_steps=2 * CHECK_EVERY, semantic_placement="prompt",
            learning_rate=rate, embedding_learning_rate=10 * rate,
        )  # fmt: skip
        run(diffusion, config=config, report=listener)
        losses.append(listener.losses)

    untrained, trained = losses
    assert list(trained) == [CHECK_EVERY, 2 * CHECK_EVERY]
    assert trained[2 * CHECK_EVERY] < untrained[2 * CHECK_EVERY]


def test_timestep_laws_have_their_means():
    rng = torch.Generator().manual_seed(0)

    uniform = draw_timesteps("uniform", 100_000, 1000, rng)
    cubic = draw_timesteps("cubic", 100_000, 1000, rng)

    assert uniform.float().mean().item() == pytest.approx(500, abs=5)
    assert cubic.float().mean().item() == pytest.approx(800, abs=5)
    assert cubic.float().quantile(0.5).item() == pytest.approx(1000 * 0.5**0.25, abs=5)
    for timesteps in (uniform, cubic):
        assert timesteps.min() >= 0
        assert timesteps.max() == 999


def test_latents_are_drawn_anew_from_the_posterior():
    kept = Posterior(torch.zeros(2, 3, 1, 1, 1), torch.ones(2, 3, 1, 1, 1))
    kept.mean[1, 2] = 5.0
    noise = torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)

    latents = kept.sample(torch.tensor([1, 0]), torch.tensor([2, 2]), noise)

    assert latents.flatten().tolist() == [5.5, -1.0]


def test_posteriors_are_encoded_for_every_augmentation_in_half_precision(diffusion):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    kept = encode_posterior(diffusion, [images, images.flip(-1)], torch.float16)

    assert kept.mean.shape == kept.std.shape == (2, 3, *LATENT_SHAPE)
    assert kept.mean.dtype == torch.float16
    torch.testing.assert_close(kept.mean[0], diffusion.encode_images(images)[0].half())
    assert not torch.equal(kept.mean[0], kept.mean[1])


def test_masks_are_needed_and_must_match_the_images(diffusion):
    conditions = start_conditions(diffusion, posterior(1), CONFIG, 0)

    with pytest.raises(ConfigError, match="needs object masks"):
        search(diffusion, conditions, posterior(1), None, CONFIG, 0)
    masks = posterior(2, (1, 5, *LATENT_SHAPE))
    with pytest.raises(ConfigError, match=r"\[1, 5, 4, 16, 16\]"):
        search(diffusion, conditions, posterior(1), masks, CONFIG, 0)


def test_semantic_conditioning_alone_searches_without_masks(diffusion):
    config = dataclasses.replace(CONFIG, conditioning="semantic")
    conditions = start_conditions(diffusion, posterior(1), config, 0)

    search(diffusion, conditions, posterior(1), None, config, 0)

    assert [name for name, _ in conditions.named_parameters()] == ["semantic_embedding"]


def test_spatial_conditioning_alone_has_no_vectors(diffusion):
    config = dataclasses.replace(CONFIG, conditioning="spatial")

    found = run(diffusion, config=config)

    assert set(found) == {"spatial_encoder.weight", "spatial_encoder.bias"}


def test_the_word_start_prefers_the_configs_word_to_the_policys(diffusion):
    tokenizer, text_encoder = diffusion.tokenizer, diffusion.text_encoder
    config = dataclasses.replace(CONFIG, init="word", init_word="screw", num_steps=0)
    silent_config = dataclasses.replace(config, init_word="")

    def start(config, **options):
        return start_conditions(diffusion, posterior(1), config, 0, **options).semantic_embedding

    def expected(text):
        return word_embedding(tokenizer, text_encoder, text, 3, "context")

    assert torch.equal(start(config, init_word="nice"), expected("screw"))
    assert torch.equal(start(silent_config, init_word="nice"), expected("nice"))
    assert torch.equal(start(silent_config), expected("object"))


def test_copies_of_a_word_beside_the_prompt_are_refused_before_they_are_searched(diffusion):
    tied = dataclasses.replace(CONFIG, init="word", init_word="screw")

    with pytest.raises(ConfigError, match="3 copies of a word beside the prompt") as refused:
        start_conditions(diffusion, posterior(1), tied, 0)

    assert "compress.init=random" in refused.value.hint
    one = start_conditions(diffusion, posterior(1), dataclasses.replace(tied, num_tokens=1), 0)
    assert one.num_tokens == 1


@pytest.mark.parametrize("placement", ["context", "prompt"])
def test_the_random_start_is_at_the_scale_of_what_it_stands_among(diffusion, placement):
    config = dataclasses.replace(CONFIG, num_tokens=12, semantic_placement=placement)

    first, again, other = (
        start_conditions(diffusion, posterior(1), config, seed).semantic_embedding.detach()
        for seed in (0, 0, 1)
    )

    text_encoder = diffusion.text_encoder
    among = text_encoder.get_input_embeddings().weight
    if placement == "context":  # a sentence's states, after the final LayerNorm
        ids = tokenize(diffusion.tokenizer, text_encoder, ["a photo of a"])
        with torch.no_grad():
            among = text_encoder(ids).last_hidden_state
    ratio = first.square().mean().sqrt() / among.square().mean().sqrt()
    assert ratio.item() == pytest.approx(1, abs=0.15)
    assert abs(first.mean().item()) < 0.15 * first.std().item()
    assert torch.linalg.matrix_rank(first) == 12
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_random_start_and_its_search_encode_the_prompts_once(diffusion):
    fresh = dataclasses.replace(diffusion)
    config = dataclasses.replace(CONFIG, semantic_placement="context", num_steps=1)
    rows = []
    handle = diffusion.text_encoder.register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )

    start = start_conditions(fresh, posterior(1), config, 0)
    search(fresh, start, posterior(1), posterior(1), config, 0)
    handle.remove()

    assert sum(rows) == len(set(TEMPLATES)) == 57


def test_the_random_spatial_start_has_the_law_of_a_linear_layer(diffusion):
    encoder = start_conditions(diffusion, posterior(1), CONFIG, 0).spatial_encoder

    bound = IN_FEATURES**-0.5
    assert bound * 0.9 < encoder.weight.abs().max() <= bound
    assert encoder.weight.requires_grad


def with_starts(diffusion):
    """The tiny backbone with the two networks that the bundled one has."""
    torch.manual_seed(0)
    set_encoder = SetEncoder(4, 16, WIDTH, width=12, depth=1)
    spatial_init = SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH)
    return dataclasses.replace(
        diffusion,
        set_encoder=set_encoder.eval().requires_grad_(False),
        spatial_init=spatial_init.requires_grad_(False),
    )


SET_CONFIG = dataclasses.replace(
    CONFIG, init="set_encoder", num_tokens=0, in_features=0, out_features=0
)


def test_the_set_encoder_start_reads_the_images(diffusion):
    diffusion = with_starts(diffusion)

    one = start_conditions(diffusion, posterior(1), SET_CONFIG, 0)
    again = start_conditions(diffusion, posterior(1), SET_CONFIG, 0)
    other = start_conditions(diffusion, posterior(7), SET_CONFIG, 0)

    assert one.semantic_embedding.shape == (64, WIDTH)
    assert torch.equal(one.semantic_embedding, again.semantic_embedding)
    assert not torch.equal(one.semantic_embedding, other.semantic_embedding)


def test_the_set_encoder_says_what_a_step_along_each_direction_changes(diffusion):
    diffusion, images = with_starts(diffusion), posterior(1)
    variation = principal_variation(images.mean[:1], 2)

    found = start_conditions(diffusion, images, SET_CONFIG, 0, variation=variation)

    # An untrained set encoder tells the statistics of its set alone: four latents of each channel.
    cells = F.unfold(variation.directions, 2, stride=2).transpose(1, 2)
    told = cells @ diffusion.set_encoder.statistics.weight[:, : cells.shape[2]].T
    torch.testing.assert_close(found.semantic_variations.detach(), told, atol=1e-5, rtol=0)
    plain = start_conditions(diffusion, images, SET_CONFIG, 0)
    assert plain.semantic_variations is None
    assert not torch.equal(plain.semantic_embedding, found.semantic_embedding)


def test_the_pretrained_spatial_layer_is_copied_not_trained_in_place(diffusion):
    diffusion = with_starts(diffusion)
    before = diffusion.spatial_init.weight.clone()

    found = run(diffusion, config=SET_CONFIG)

    assert torch.equal(diffusion.spatial_init.weight, before)
    assert not torch.equal(found["spatial_encoder.weight"], before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 7}, "num_tokens is 7, but the set encoder gives 64"),
        ({"semantic_placement": "prompt"}, "context placement"),
    ],
)
def test_settings_that_contradict_the_set_encoder_are_refused(diffusion, changes, message):
    config = dataclasses.replace(SET_CONFIG, **changes)

    with pytest.raises(ConfigError, match=message):
        start_conditions(with_starts(diffusion), posterior(1), config, 0)


def test_a_backbone_without_set_encoder_says_so(diffusion):
    with pytest.raises(ConfigError, match="no set encoder"):
        start_conditions(diffusion, posterior(1), SET_CONFIG, 0)


def test_an_unknown_backbone_gets_the_sizes_of_stable_diffusion(diffusion):
    config = dataclasses.replace(CONFIG, in_features=0, out_features=0)

    layer = start_conditions(diffusion, posterior(1), config, 0).spatial_encoder

    assert (layer.in_features, layer.out_features) == (128, 192)


def test_sizes_that_make_no_whole_tokens_are_refused_before_the_search(diffusion):
    with pytest.raises(ConfigError, match="not a whole number"):
        start_conditions(diffusion, posterior(1), dataclasses.replace(CONFIG, out_features=7), 0)


def test_conditions_survive_a_state_dict_round_trip(diffusion):
    conditions = start_conditions(diffusion, posterior(1), CONFIG, 0)
    other = Conditions(
        torch.zeros(3, WIDTH), SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH), "context"
    )

    other.load_state_dict(conditions.state_dict())

    assert same(dict(conditions.named_parameters()), dict(other.named_parameters()))


def test_latents_of_no_weight_say_nothing(diffusion):
    """Two posteriors that differ only where nothing counts are searched to the same bits."""
    images = posterior(1)
    weights = torch.ones(2, 5, 1, *LATENT_SHAPE[1:])
    weights[..., 0] = 0
    other = Posterior(images.mean.clone(), images.std.clone())
    other.mean[..., 0] += 3
    # what the unet sees there it may well use elsewhere: one that sees each place alone shows it
    alone = dataclasses.replace(diffusion, unet=_PlaceByPlace(diffusion.unet.config))
    config = dataclasses.replace(CONFIG, gradient_checkpointing="off")
    weighed, moved = (run(alone, 0, config, one, weights=weights) for one in (images, other))
    plain, plain_moved = (run(alone, 0, config, one) for one in (images, other))

    assert same(weighed, moved)
    assert not same(plain, plain_moved)


class _PlaceByPlace(torch.nn.Module):
    """Predicts each latent from itself and from the mean of the conditions."""

    def __init__(self, config):
        super().__init__()
        self.config, self.dtype, self.device = config, torch.float32, torch.device("cpu")

    def forward(self, latents, timesteps, encoder_hidden_states):  # noqa: ARG002
        told = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1)
        return type("Output", (), {"sample": latents * told})
