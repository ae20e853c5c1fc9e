"""CDAD: what is told of a picture and what is not, the ladder of noise, and what is trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from replaycad.continual.guard import (
    HOLDS,
    Guard,
    extended,
    guarded_layers,
    inputs_of,
    moments,
    orthonormal,
)
from replaycad.detectors.cdad.network import CDAD, MaskedNetwork, sine_places
from replaycad.detectors.cdad.preset import PRESETS, CDADPreset
from replaycad.detectors.cdad.spoil import spoilt
from replaycad.detectors.encoders import images_of, load_encoder
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import variant_of
from replaycad.detectors.settings import PICTURE
from replaycad.diffusion.backbones import Diffusion
from replaycad.errors import ConfigError
from replaycad.runtime import generator
from tests.diffusion.published import CLIP, UNETS, VAE
from tests.full_size import SCHEDULE, random_encoder
from tests.tiny import write_tokenizer

SIDE = 128


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini", levels=(PICTURE, 1, 2, 3))


def small(encoder, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"num_inference_steps": 2, "training": PRESETS["mini"].training}
    preset = CDADPreset(**settings | changes)
    return CDAD(encoder.channels, encoder.strides, SIDE, preset)


def features(encoder, seed=0, count=2):
    random = np.random.default_rng(seed)
    waves = np.sin(np.arange(SIDE) * random.uniform(0.1, 0.6, (count, 3, 1, 1)))
    pictures = 120 + 60 * waves + random.normal(0, 8, (count, 3, SIDE, SIDE))
    return encoder.encode_images(torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)))


def trained(detector, pyramid, guard=None, steps=2, rate=1e-3):
    training = detector.preset.training
    optimizers = make_optimizers(detector, training, rate)
    torch.manual_seed(0)
    detector.train()
    return [
        float(optimize_step(detector, optimizers, pyramid, training, guard=guard))
        for _ in range(steps)
    ]


@pytest.fixture(scope="module")
def learned(encoder):
    """A detector of one class, what its layers were given, and bases of that."""
    detector = small(encoder)
    trained(detector, features(encoder))
    layers = guarded_layers(detector)
    found = moments(detector, layers, [features(encoder)], "input")
    none = {name: one.new_zeros(len(one), 0).half() for name, one in found.items()}
    bases = {name: extended(none[name], one, 0.999) for name, one in found.items()}
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    return state, found, bases


def test_convolutions_and_linear_layers_are_trained_but_no_time_norm_or_bias_of_the_unet(encoder):
    detector = small(encoder)
    named = dict(detector.named_parameters())
    trained_ones = {name for name, one in named.items() if one.requires_grad}

    of_unet = {name for name in trained_ones if name.startswith("unet.")}
    assert all(name.endswith("weight") for name in of_unet)
    assert not [name for name in of_unet if "time" in name or "norm" in name]
    assert {name for name in named if name.startswith("masked.")} <= trained_ones
    layers = guarded_layers(detector)
    assert {f"{name}.weight" for name in layers} >= of_unet
    assert sum(named[name].numel() for name in trained_ones) == 4_159_690
    assert not [name for name in detector.state_dict() if "vae" in name or "encoder" in name]


def test_the_guess_of_the_unet_is_trained_and_what_reads_tokens_is_given_none(encoder):
    detector = small(encoder)
    pyramid = features(encoder)
    readers = (detector.unet.cells.weight, detector.unet.places.weight)
    for weight in readers:
        weight.requires_grad_()

    detector.loss(pyramid).backward()

    guess = {name: detector.get_parameter(f"unet.guess.{name}.weight") for name in (0, 2)}
    assert all(one.grad.norm() > 0 for one in guess.values())
    assert {"unet.guess.0", "unet.guess.2"} <= guarded_layers(detector).keys()
    assert not any(weight.grad.any() for weight in readers)


def test_a_guarded_step_leaves_what_layers_of_the_real_unet_give_for_old_inputs(encoder, learned):
    state, found, bases = learned
    held, plain = small(encoder), small(encoder)
    for detector in (held, plain):
        detector.load_state_dict(state)
    new = features(encoder, 1)
    trained(held, new, Guard(held, bases, HOLDS["cdad"]))
    trained(plain, new)

    layers, others = guarded_layers(held), guarded_layers(plain)
    over = 0
    for name, layer in layers.items():
        before = state[f"{name}.weight"].double().flatten(1)
        change = layer.weight.detach().double().flatten(1) - before
        free = others[name].weight.detach().double().flatten(1) - before
        basis, moment = orthonormal(bases[name]), found[name]
        assert (change @ basis).norm() <= 1e-3 * free.norm()  # float32 weights, steps of 1e-3
        bound = torch.linalg.matrix_norm(change, 2).square() * (1 - 0.999) * moment.trace()
        rounding = 1e-12 * moment.trace()  # of weights, which a full basis holds still
        assert (change @ moment @ change.T).trace() <= 1.01 * bound + rounding
        wide = torch.linalg.matrix_norm(free, 2).square() * (1 - 0.999) * moment.trace()
        over += bool((free @ moment @ free.T).trace() > wide)
    assert over > 0.9 * len(layers), "a plain run breaks the bound"


def test_after_the_first_class_time_layers_norms_and_biases_stay_bit_still(encoder, learned):
    state, _, bases = learned
    detector = small(encoder)
    detector.load_state_dict(state)

    trained(detector, features(encoder, 1), Guard(detector, bases, HOLDS["cdad"]))

    layers = {f"{name}.weight" for name in guarded_layers(detector)}
    for name, value in detector.state_dict().items():
        assert torch.equal(value, state[name]) == (name not in layers), name


def test_a_basis_of_a_convolution_of_the_unet_is_in_the_order_of_its_weight(encoder):
    detector = small(encoder)
    layer = detector.unet.unet.down_blocks[0].downsamplers[0].conv
    assert layer.stride == (2, 2)
    given = torch.randn(1, layer.in_channels, 8, 8, generator=generator(0, "given"))
    basis = torch.linalg.qr(inputs_of(layer, given).T).Q

    made = layer(given) - layer.bias[:, None, None]

    flat = made.flatten(2)[0].T
    torch.testing.assert_close(
        inputs_of(layer, given) @ basis @ (layer.weight.flatten(1) @ basis).T, flat,
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_told_nothing_it_draws_as_the_backbone_does(encoder):
    detector = small(encoder).eval()
    latents = torch.randn(2, 24, 16, 16, generator=generator(1, "latents"))
    scheduler = detector._scheduler
    assert scheduler.timesteps.tolist() == [999, 499]

    found = detector.redrawn(latents, torch.zeros(2, 64, 16, 16))

    # by hand: DDIM without noise, from the velocity v: x0 = a x - s v, e = a v + s x
    now, signal = None, scheduler.alphas_cumprod
    for timestep, after in ((999, signal[499]), (499, scheduler.final_alpha_cumprod)):
        alpha, sigma = signal[timestep].sqrt(), (1 - signal[timestep]).sqrt()
        if now is None:  # as noisy as the first step says
            now = alpha * latents + sigma * detector._noise
        with torch.no_grad():
            velocity = detector.unet(
                now, torch.full((2,), timestep), detector._empty.expand(2, -1, -1)
            ).sample
        clean, noise = alpha * now - sigma * velocity, alpha * velocity + sigma * now
        now = after.sqrt() * clean + (1 - after).sqrt() * noise
    torch.testing.assert_close(found, now, atol=1e-3, rtol=1e-3)
    told = detector.redrawn(latents, torch.ones(2, 64, 16, 16))
    assert not torch.allclose(told, found, atol=1e-2)


def test_a_place_is_told_by_none_of_its_window():
    torch.manual_seed(0)
    network = MaskedNetwork(CDADPreset(reach=1), 16)
    layer, place = network.layers[0], network._place
    x = torch.randn(1, 256, 64)

    gradients = torch.zeros(256)
    values = x.clone().requires_grad_()
    seen = layer.attended(values, place, network._allowed)[0, 16 * 5 + 7].sum()
    (gradient,) = torch.autograd.grad(seen, values)
    gradients = gradient[0].abs().sum(1).reshape(16, 16)

    window = torch.zeros(16, 16, dtype=torch.bool)
    window[4:7, 6:9] = True
    # A token asks by its own place; of the others within the window it sees neither key nor value.
    window[5, 7] = False
    assert gradients[window].max() == 0
    window[5, 7] = True
    assert gradients[~window].min() > 0
    assert network._allowed.reshape(256, 16, 16)[16 * 5 + 7].sum() == 256 - 9


def test_maps_of_an_image_do_not_depend_on_its_batch(encoder):
    detector = small(encoder)
    pyramid = features(encoder, 2, 3)

    together = detector.anomaly_maps(pyramid)
    alone = detector.anomaly_maps([level[1:2] for level in pyramid])

    torch.testing.assert_close(alone[0], together[1], atol=1e-2, rtol=1e-3)
    assert together.shape == (3, SIDE, SIDE)
    assert together.min() >= 0


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_losses_are_those_of_the_prediction_and_of_what_is_told_of_spoilt_pictures(encoder, weight):
    detector = small(encoder, masked_weight=weight).eval()
    pyramid = features(encoder, count=4)
    torch.manual_seed(7)
    found = detector.loss(pyramid)

    torch.manual_seed(7)
    pictures = pyramid[0]
    changed = spoilt(pictures, share=0.5, max_patches=3)
    differ = [not torch.equal(one, other) for one, other in zip(pictures, changed, strict=True)]
    assert sum(differ) in {2, 3}  # of four, so that their order counts
    latents = detector._frozen[0].encode_images(images_of(pictures))[0]
    timesteps = torch.randint(0, 1000, (4,))
    noise = torch.randn_like(latents)
    signal = detector._scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    told = detector.masked(changed)
    error = F.mse_loss(detector._predict(noisy, timesteps, told), velocity)
    masked = F.mse_loss(told, detector.masked.seen(pictures))
    torch.testing.assert_close(found, error + weight * masked)


def test_before_any_step_the_u_net_is_told_of_each_picture_something_else(encoder):
    detector = small(encoder)
    pictures = features(encoder, count=4)[0]
    with torch.no_grad():
        seen, told = detector.masked.seen(pictures), detector.masked(pictures)
    for one in (seen, told):
        assert one.std(dim=0).mean() > 0.1 * one.std()


@pytest.mark.parametrize("size", ["mini", "standard", "full"])
def test_of_each_size_there_is_one_that_learns_by_the_loss_of_the_prediction_alone(size):
    name = variant_of("cdad", size, "one-loss")
    assert PRESETS[name] == replace(PRESETS[size], masked_weight=0.0)
    assert PRESETS[size].masked_weight == 1.0


def test_it_learns_a_class(encoder):
    losses = trained(small(encoder), features(encoder, count=4), steps=10)
    assert losses[-1] < 0.95 * losses[0]


def test_pieces_are_moved_within_a_picture_and_half_of_them_stay_as_they_are():
    torch.manual_seed(0)
    pictures = torch.rand(64, 3, 32, 32)
    result = spoilt(pictures, 0.5, 3)
    changed = (result != pictures).flatten(1).any(1)
    assert 20 < int(changed.sum()) < 44
    area = (result != pictures).any(1).float().mean((1, 2))[changed]
    assert area.min() > 0.002
    assert area.max() < 0.95
    assert torch.equal(spoilt(pictures, 0.0, 3), pictures)
    assert result.min() >= 0
    assert result.max() <= 1


def test_places_differ_and_lie_within_one():
    places = sine_places(16, 64)
    assert places.shape == (256, 64)
    assert places.abs().max() <= 1
    assert torch.pdist(places).min() > 0.01
    # a row in the first half, a column in the second
    assert torch.equal(places[16 * 3 + 5, :32], places[16 * 3 + 9, :32])
    assert torch.equal(places[16 * 3 + 5, 32:], places[16 * 8 + 5, 32:])


def test_it_wants_the_picture(encoder):
    with pytest.raises(ConfigError, match="reads pictures"):
        CDAD(encoder.channels[1:], encoder.strides[1:], SIDE, CDADPreset())


def test_frozen_networks_come_along_and_do_not_move(encoder):
    detector = small(encoder)
    diffusion, own = detector._frozen
    before = [one.clone() for one in (*diffusion.vae.parameters(), *own.parameters())]
    trained(detector, features(encoder))
    after = [*diffusion.vae.parameters(), *own.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    moved = small(encoder).double()
    assert next(moved._frozen[0].vae.parameters()).dtype == torch.float64
    assert isinstance(moved._frozen[0].vae, nn.Module)


def thin_diffusion(folder, first=320):
    """Stable Diffusion with its first width, its text width and little else."""
    config = {**UNETS["sd15"], "block_out_channels": [first, 32, 32, 32], "layers_per_block": 1}
    vae = {**VAE, "block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 8}
    text = {**CLIP, "num_hidden_layers": 1, "intermediate_size": 64}
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer", "clip"))
    tokenizer.model_max_length = 77
    torch.manual_seed(0)
    return Diffusion(
        vae=AutoencoderKL(**vae).eval().requires_grad_(False),
        unet=UNet2DConditionModel(**config),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)).eval(),
        tokenizer=tokenizer,
        scheduler_config=SCHEDULE,
    )


def test_the_full_preset_redraws_256_px_with_a_network_of_sds_shape(monkeypatch, tmp_path):
    where = "replaycad.detectors.cdad.network"
    diffusion = thin_diffusion(tmp_path)
    monkeypatch.setattr(f"{where}.load_backbone", lambda *_: diffusion)
    monkeypatch.setattr(
        f"{where}.load_encoder",
        lambda name, levels: random_encoder(name, levels, torch.device("cpu")),
    )
    preset = replace(PRESETS["full"], num_inference_steps=1)
    own = random_encoder(preset.encoder, preset.levels[1:], torch.device("cpu"))
    picture = torch.randn(1, 3, 256, 256)
    channels, strides = (3, *own.channels), (1, *own.strides)
    detector = CDAD(channels, strides, preset.image_size, preset)

    first = trained(detector, [picture], steps=1, rate=1e-5)
    maps = detector.anomaly_maps([picture])

    # half of Stable Diffusion's 64 latents along a side, for 256 px are half of its 512
    assert detector.masked(picture).shape == (1, 320, 32, 32)
    assert detector._noise.shape == (1, 4, 32, 32)
    assert own.strides == (4, 8, 16)
    assert np.isfinite(first).all()
    assert maps.shape == (1, 256, 256)
    # "9.64 M, trained from scratch"
    count = sum(one.numel() for one in detector.masked.parameters())
    assert count == pytest.approx(9.64e6, abs=5e3)


def test_a_unet_of_another_width_is_refused(monkeypatch, tmp_path):
    diffusion = thin_diffusion(tmp_path, first=32)
    monkeypatch.setattr("replaycad.detectors.cdad.network.load_backbone", lambda *_: diffusion)
    preset = replace(PRESETS["full"], encoder="mini", levels=(PICTURE, 1, 2, 3))
    with pytest.raises(ConfigError, match="begins with 32 channels, and CDAD would tell it 320"):
        CDAD((3, 24, 48, 96), (1, 4, 8, 16), 256, preset)


def test_of_stable_diffusion_258_layers_are_guarded_whose_whole_bases_are_28_gb():
    # The published count, made from the released program's rule.
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS["sd15"])
    names = CDAD._layers(SimpleNamespace(unet=unet))
    layers = dict(unet.named_modules())
    widths = [layers[name.removeprefix("unet.")].weight[0].numel() for name in names]
    assert len(names) == 258
    assert 4 * sum(width**2 for width in widths) / 1e9 == pytest.approx(28.0, abs=0.05)
