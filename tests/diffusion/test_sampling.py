"""Replay: the samplers' steps, guidance, and that an image depends on its seed alone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from replaycad.config.stages import ReplayConfig
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.sampling import _predict, make_scheduler, pass_size, sample
from replaycad.errors import ConfigError
from replaycad.progress import SilentReport
from tests.tiny import (
    IN_FEATURES,
    LATENT_SHAPE,
    NUM_SPATIAL,
    OUT_FEATURES,
    TEXT_LENGTH,
    WIDTH,
)

CONFIG = ReplayConfig(sampler="ddim", num_inference_steps=4, guidance_scale=5.0, batch_size=4)
SEEDS = [11, 2**62, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def conditions():
    """Random conditions of one class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spatial_encoder = SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH)
        return Conditions(torch.randn(3, WIDTH), spatial_encoder, "context")


def masks(count=6):
    """Each mask another box, 40 x 50 px."""
    boxes = np.zeros((count, 40, 50), bool)
    for index, box in enumerate(boxes):
        box[5 : 20 + index, 10 : 30 + index] = True
    return boxes


def draw(diffusion, conditions, seeds=SEEDS, object_masks=None, **changes):
    """All images in one tensor."""
    object_masks = masks(len(seeds)) if object_masks is None else object_masks
    config = dataclasses.replace(CONFIG, **changes)
    return torch.cat(list(sample(diffusion, conditions, object_masks, seeds, config)))


def test_ddim_visits_the_papers_timesteps(diffusion):
    scheduler = make_scheduler("ddim", diffusion.scheduler_config)
    scheduler.set_timesteps(50)

    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    assert not scheduler.config.clip_sample


def test_ddim_follows_its_formula_without_noise(diffusion):
    scheduler = make_scheduler("ddim", diffusion.scheduler_config)
    scheduler.set_timesteps(50)
    latents, noise_pred = torch.randn(2, 1, *LATENT_SHAPE)

    result = scheduler.step(noise_pred, 981, latents).prev_sample

    now, then = scheduler.alphas_cumprod[981], scheduler.alphas_cumprod[961]
    clean = (latents - (1 - now).sqrt() * noise_pred) / now.sqrt()
    torch.testing.assert_close(result, then.sqrt() * clean + (1 - then).sqrt() * noise_pred)


def test_dpm_solver_needs_twenty_steps_of_second_order(diffusion):
    scheduler = make_scheduler("dpm++", diffusion.scheduler_config)
    scheduler.set_timesteps(20)

    assert len(scheduler.timesteps) == 20
    assert scheduler.config.solver_order == 2
    assert scheduler.config.algorithm_type == "dpmsolver++"
    assert scheduler.init_noise_sigma == 1


def test_both_samplers_keep_the_backbones_noise_schedule(diffusion):
    for name in ("ddim", "dpm++", "unipc"):
        scheduler = make_scheduler(name, diffusion.scheduler_config)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        torch.testing.assert_close(scheduler.betas, betas)


def test_an_unknown_sampler_is_refused(diffusion):
    with pytest.raises(ConfigError, match="unknown sampler 'euler'"):
        make_scheduler("euler", diffusion.scheduler_config)


def test_images_come_in_order_as_bytes(diffusion, conditions):
    batches = list(sample(diffusion, conditions, masks(), SEEDS, CONFIG))

    assert [len(batch) for batch in batches] == [4, 2]
    assert batches[0].dtype == torch.uint8
    assert batches[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_batch_size_does_not_change_a_byte(diffusion, conditions, sampler, scale):
    one = draw(diffusion, conditions, sampler=sampler, guidance_scale=scale, batch_size=1)
    four = draw(diffusion, conditions, sampler=sampler, guidance_scale=scale, batch_size=4)

    assert torch.equal(one, four)
    assert not torch.equal(one[0], one[1])


def test_an_image_depends_on_its_own_seed_and_mask_alone(diffusion, conditions):
    together = draw(diffusion, conditions)

    alone = draw(diffusion, conditions, [13], masks()[2:3])
    backwards = draw(diffusion, conditions, SEEDS[::-1], masks()[::-1])

    assert torch.equal(alone[0], together[2])
    assert torch.equal(backwards.flip(0), together)


def test_not_only_the_bytes_but_the_bits_behind_them_are_equal(diffusion, conditions):
    estimates = []
    handle = diffusion.unet.register_forward_hook(
        lambda _module, _args, output: estimates.append(output.sample.clone())
    )

    draw(diffusion, conditions, SEEDS[:4], guidance_scale=5.0)
    draw(diffusion, conditions, [13], masks()[2:3], guidance_scale=5.0, batch_size=1)
    handle.remove()

    steps = CONFIG.num_inference_steps
    for together, alone in zip(estimates[:steps], estimates[steps:], strict=True):
        assert torch.equal(together[[2, 6]], alone[[0, 4]])  # both branches


def test_another_seed_and_another_mask_give_other_images(diffusion, conditions):
    first = draw(diffusion, conditions, [1])

    assert not torch.equal(first, draw(diffusion, conditions, [2]))
    assert not torch.equal(first, draw(diffusion, conditions, [1], ~masks(1)))


def test_passes_hold_eight_rows_on_the_cpu_and_the_batch_elsewhere():
    unguided = dataclasses.replace(CONFIG, guidance_scale=1.0)

    assert pass_size(CONFIG, torch.device("cpu")) == 4
    assert pass_size(unguided, torch.device("cpu")) == 8
    assert pass_size(CONFIG, torch.device("cuda")) == CONFIG.batch_size


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_scale_one_skips_the_unconditional_branch(diffusion, conditions, scale):
    rows = []
    handle = diffusion.unet.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))

    draw(diffusion, conditions, SEEDS[:1], guidance_scale=scale)
    handle.remove()

    images = pass_size(dataclasses.replace(CONFIG, guidance_scale=scale), torch.device("cpu"))
    assert rows == [images * (1 if scale == 1 else 2)] * CONFIG.num_inference_steps


def test_guidance_extrapolates_from_the_unconditional_estimate(diffusion):
    latents = torch.randn(1, *LATENT_SHAPE)
    states = torch.randn(2, TEXT_LENGTH, WIDTH)  # unconditional, conditional

    with torch.no_grad():
        uncond, cond = (_predict(diffusion, latents, 500, (row,), 1) for row in states.split(1))
        guided = _predict(diffusion, latents, 500, (states,), 3.0)

    torch.testing.assert_close(guided, uncond + 3.0 * (cond - uncond), atol=1e-4, rtol=1e-4)


def test_the_unconditional_branch_may_go_without_its_zero_tokens(diffusion, conditions):
    lengths = []
    handle = diffusion.unet.register_forward_hook(lambda _, args, __: lengths.append(args[2].shape))
    padded = draw(diffusion, conditions, [1], num_inference_steps=1)
    bare = draw(diffusion, conditions, [1], num_inference_steps=1, zero_padding=False)
    again = draw(diffusion, conditions, [1], num_inference_steps=1, zero_padding=False,
                 guidance_scale=1.0)  # fmt: skip
    handle.remove()

    text, full = TEXT_LENGTH, TEXT_LENGTH + 3 + NUM_SPATIAL
    assert [tuple(shape[:2]) for shape in lengths] == [(8, full), (4, full), (4, text), (8, full)]
    assert not torch.equal(padded, bare)
    plain = draw(diffusion, conditions, [1], num_inference_steps=1, guidance_scale=1.0)
    assert torch.equal(again, plain)


def test_without_conditional_tokens_padding_changes_nothing(diffusion):
    inside = Conditions(torch.randn(3, WIDTH), None, "prompt")

    padded, bare = (
        draw(diffusion, inside, [1], zero_padding=zero_padding) for zero_padding in (True, False)
    )

    assert (padded.int() - bare.int()).abs().max() <= 1


def test_masks_are_read_a_pass_at_a_time(diffusion, conditions):
    read = []

    def lazily():
        for index, mask in enumerate(masks()):
            read.append(index)
            yield mask

    images = sample(diffusion, conditions, lazily(), SEEDS, CONFIG)
    next(images)

    assert read == [0, 1, 2, 3]


def test_missing_masks_are_refused(diffusion, conditions):
    with pytest.raises(ConfigError, match="need object masks"):
        list(sample(diffusion, conditions, None, SEEDS, CONFIG))
    with pytest.raises(ConfigError, match="5 object masks for 6 images"):
        list(sample(diffusion, conditions, masks(5), SEEDS, CONFIG))


def test_half_precision_networks_draw_with_full_precision_conditions(diffusion, conditions):
    half = dataclasses.replace(
        diffusion,
        unet=copy.deepcopy(diffusion.unet).bfloat16(),
        text_encoder=copy.deepcopy(diffusion.text_encoder).bfloat16(),
    )

    images = draw(half, conditions, [1, 2])

    assert images.shape == (2, 3, 32, 32)
    assert conditions.semantic_embedding.dtype == torch.float32


@pytest.mark.parametrize("placement", ["prompt", "context"])
def test_semantic_conditions_draw_without_masks(diffusion, placement):
    conditions = Conditions(torch.randn(3, WIDTH), None, placement)

    (images,) = sample(diffusion, conditions, None, [1, 2], CONFIG)

    assert images.shape == (2, 3, 32, 32)


def test_the_report_hears_of_every_image(diffusion, conditions):
    heard = []

    class Listener(SilentReport):
        def step(self, what, done, total, **values):  # noqa: ARG002
            heard.append((what, done, total))

    list(sample(diffusion, conditions, masks(), SEEDS, CONFIG, Listener()))

    assert heard == [("replay", 4, 6), ("replay", 6, 6)]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_images_to_start_from_are_kept_the_more_the_less_noise_is_put_on_them(
    diffusion, conditions, sampler
):
    size = diffusion.image_size
    starts = np.random.default_rng(0).integers(0, 256, (4, 3, size, size), np.uint8)
    whole = diffusion.decode(diffusion.encode_images(torch.from_numpy(starts))[0]).float()

    def away(strength):
        config = dataclasses.replace(
            CONFIG, sampler=sampler, num_inference_steps=10, guidance_scale=1.0, strength=strength
        )
        drawn = sample(diffusion, conditions, masks(4), SEEDS[:4], config, starts=iter(starts))
        return (torch.cat(list(drawn)).float() - whole).abs().mean().item()

    distances = [away(strength) for strength in (0.0, 0.3, 0.6, 1.0)]

    assert distances == sorted(distances)
    assert distances[0] < 0.9 * distances[-1]


def test_too_few_images_to_start_from_are_refused(diffusion, conditions):
    starts = np.zeros((3, 3, diffusion.image_size, diffusion.image_size), np.uint8)

    with pytest.raises(ConfigError, match="3 images to start 6 from"):
        list(sample(diffusion, conditions, masks(), SEEDS, CONFIG, starts=iter(starts)))
