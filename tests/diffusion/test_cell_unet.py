"""The bundled U-Net reads its tokens as pictures, each kind where it stands in the sequence."""

import copy
import dataclasses
import shutil

import pytest
import torch
from diffusers import DDIMScheduler

from replaycad.config.stages import CompressConfig
from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.patch_codec import PatchCodec
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.search import search
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.diffusion.start import start_conditions
from replaycad.errors import ConfigError
from tests import tiny

TEXT, SPATIAL, WIDTH = 5, 2, 16


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    built = CellUNet(
        sample_size=8, latent_channels=4, block_out_channels=(8, 16), cross_attention_dim=WIDTH,
        text_length=TEXT, num_spatial_tokens=SPATIAL, cell_channels=10, norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(built.guess[-1].weight, std=0.05)
    return built.eval().requires_grad_(False)


def tokens(count):
    return torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(count))


def test_a_semantic_token_changes_the_guess_around_its_own_cell_alone(unet):
    sequence = tokens(TEXT + 16 + SPATIAL)
    changed = sequence.clone()
    changed[:, TEXT] += 1  # the first of 4 x 4 cells

    difference = (unet.read(changed).mean - unet.read(sequence).mean).abs().amax((0, 1))

    assert (difference[:2, :2] > 0).all()
    assert difference[4:, 4:].max() == 0  # two convolutions see two places beyond the cell


def test_spatial_tokens_stand_at_the_end_with_or_without_semantic_ones(unet):
    sequence = tokens(TEXT + 16 + SPATIAL)
    spatial_alone = torch.cat([sequence[:, :TEXT], sequence[:, -SPATIAL:]], 1)

    assert torch.equal(unet.read(sequence).places, unet.read(spatial_alone).places)


def test_a_kind_of_token_that_is_missing_counts_as_zero_tokens(unet):
    sequence = tokens(TEXT + 16 + SPATIAL)
    sequence[:, -SPATIAL:] = 0

    for left_out, zeros in zip(unet.read(sequence[:, :-SPATIAL]), unet.read(sequence), strict=True):
        assert torch.equal(left_out, zeros)
    sequence[:, TEXT:] = 0
    for left_out, zeros in zip(unet.read(sequence[:, :TEXT]), unet.read(sequence), strict=True):
        assert torch.equal(left_out, zeros)


@pytest.mark.parametrize("count", [TEXT + 1, TEXT + 17, TEXT + 32])
def test_a_sequence_that_cannot_be_told_apart_is_refused(unet, count):
    with pytest.raises(ValueError, match="tokens are not 5 of text"):
        unet.read(tokens(count))


def test_before_training_the_prediction_is_the_best_one_under_the_guess(unet):
    """Known answer: the mean over 100,000 latents of the guess, weighted by what was seen."""
    sequence = tokens(TEXT + 16 + SPATIAL)[:1]
    guess = unet.read(sequence)
    signal = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod[400]
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    velocity = unet(noisy, torch.tensor(400), sequence).sample

    mean, spread = guess.mean[0, 0, 0, 0], guess.log_spread[0, 0, 0, 0].exp()
    draws = torch.Generator().manual_seed(2)
    clean = mean + spread * torch.randn(100_000, generator=draws)
    noise = (noisy[0, 0, 0, 0] - signal.sqrt() * clean) / (1 - signal).sqrt()
    weights = torch.softmax(-0.5 * noise.square(), 0)
    wanted = (weights * (signal.sqrt() * noise - (1 - signal).sqrt() * clean)).sum()
    assert velocity[0, 0, 0, 0].item() == pytest.approx(wanted.item(), abs=0.02)


def test_a_trained_prediction_depends_on_every_kind_of_token(unet):
    sequence, noise = tokens(TEXT + 16 + SPATIAL), torch.randn(2, 4, 8, 8)
    trained = copy.deepcopy(unet)
    torch.nn.init.normal_(trained.unet.conv_out.weight)

    plain = trained(noise, torch.tensor(500), sequence).sample

    assert plain.shape == noise.shape
    for place in (0, TEXT, TEXT + 16):
        changed = sequence.clone()
        changed[:, place] += 1
        assert not torch.equal(trained(noise, torch.tensor(500), changed).sample, plain)


def test_half_precision_keeps_the_schedule_exact(unet):
    rounded = copy.deepcopy(unet).to(torch.bfloat16)
    sequence, noise = tokens(TEXT + 16), torch.randn(2, 4, 8, 8)

    ours = rounded(noise.bfloat16(), torch.tensor(1), sequence.bfloat16()).sample

    exact = unet(noise.bfloat16().float(), torch.tensor(1), sequence).sample
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def with_cells(diffusion):
    """The tiny backbone with an untrained unet that reads tokens as pictures: 64 cells."""
    torch.manual_seed(0)
    unet = CellUNet(
        sample_size=16, latent_channels=4, block_out_channels=(8, 16),
        cross_attention_dim=tiny.WIDTH,
        text_length=diffusion.text_encoder.config.max_position_embeddings,
        num_spatial_tokens=2, cell_channels=10, norm_num_groups=4,
    )  # fmt: skip
    set_encoder = SetEncoder(4, 16, tiny.WIDTH, width=12, depth=1)
    unet.read_statistics(set_encoder.statistics.weight)
    config = {**diffusion.scheduler_config, "prediction_type": "v_prediction"}
    return dataclasses.replace(
        diffusion, unet=unet.eval().requires_grad_(False), scheduler_config=config,
        set_encoder=set_encoder.eval().requires_grad_(False),
    )  # fmt: skip


SEARCH = CompressConfig(
    conditioning="semantic", num_steps=60, batch_size=4, embedding_learning_rate=0.1
)


def test_a_search_learns_how_far_a_class_varies(diffusion):
    backbone = with_cells(diffusion)
    picture = torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 40, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    images = Posterior(picture + 0.3 * noise, torch.zeros(1, 40, 4, 16, 16))
    start = start_conditions(backbone, images, SEARCH, 0)
    with torch.no_grad():
        start.semantic_embedding.add_(backbone.unet.cells.weight[32:48].sum(0))  # far too spread

    found = search(backbone, start, images, None, SEARCH, 0)

    text = torch.zeros(1, backbone.unet.config.text_length, tiny.WIDTH)
    guess = backbone.unet.read(torch.cat([text, found.semantic_embedding.detach()[None]], 1))
    assert guess.log_spread.exp().mean().item() == pytest.approx(0.3, abs=0.1)
    assert (guess.mean - picture[0]).abs().mean() < 0.2


def test_a_number_of_tokens_that_has_no_cells_is_refused(diffusion):
    images = Posterior(*[torch.zeros(1, 3, 4, 16, 16)] * 2)
    config = dataclasses.replace(SEARCH, num_tokens=7)

    with pytest.raises(ConfigError, match=r"num_tokens is 7, but .* reads 64"):
        start_conditions(with_cells(diffusion), images, config, 0)


def test_a_word_is_put_into_every_cell(diffusion):
    images = Posterior(*[torch.zeros(1, 3, 4, 16, 16)] * 2)
    config = dataclasses.replace(SEARCH, init="word", init_word="screw")

    start = start_conditions(with_cells(diffusion), images, config, 0)

    assert start.semantic_embedding.shape == (64, tiny.WIDTH)


def test_a_folder_that_names_our_own_classes_is_loaded_with_them(tmp_path):
    folder = tiny.make_tiny_backbone(tmp_path / "backbone")
    unet = with_cells(tiny.tiny_diffusion(tmp_path / "other")).unet
    for name in ("unet", "vae"):
        shutil.rmtree(folder / name)
    unet.save_pretrained(folder / "unet")
    PatchCodec(latent_channels=4, patch_size=2).save_pretrained(folder / "vae")

    loaded = load_backbone(folder, torch.device("cpu"))

    assert isinstance(loaded.unet, CellUNet)
    assert isinstance(loaded.vae, PatchCodec)
    assert (loaded.image_size, loaded.latent_shape) == (32, (4, 16, 16))
    assert (loaded.scaling_factor, loaded.num_placed_tokens) == (1.0, 64)
    assert torch.equal(loaded.unet.cells.weight, unet.cells.weight)
