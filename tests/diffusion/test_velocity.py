"""A unet that predicts the velocity instead of the noise, told so by its scheduler config."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.sampling import make_scheduler, sample
from replaycad.diffusion.search import search
from replaycad.diffusion.start import start_conditions
from replaycad.progress import SilentReport
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES

SEARCH = CompressConfig(
    num_tokens=2, in_features=IN_FEATURES, out_features=OUT_FEATURES, init="random",
    conditioning="semantic", num_steps=1, batch_size=4,
)  # fmt: skip


class Oracle(nn.Module):
    """Knows the only picture there is, and so the exact velocity of any noisy one."""

    def __init__(self, unet, picture, alphas_cumprod):
        super().__init__()
        self.config, self.picture, self.alphas_cumprod = unet.config, picture, alphas_cumprod
        self.device, self.dtype = unet.device, unet.dtype

    def forward(self, noisy, timesteps, hidden_states):
        signal = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noise = (noisy - signal.sqrt() * self.picture) / (1 - signal).sqrt()
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * self.picture
        return SimpleNamespace(sample=velocity + 0 * hidden_states.sum())


class Listener(SilentReport):
    loss = None

    def step(self, what, done, total, **values):  # noqa: ARG002
        self.loss = values.get("loss", self.loss)


@pytest.fixture
def oracle(diffusion):
    picture = torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
    config = {**diffusion.scheduler_config, "prediction_type": "v_prediction"}
    unet = Oracle(diffusion.unet, picture, diffusion.alphas_cumprod)
    return dataclasses.replace(diffusion, unet=unet, scheduler_config=config)


def test_the_search_compares_velocities(oracle):
    mean = oracle.unet.picture.expand(1, 3, *LATENT_SHAPE)
    images, report = Posterior(mean, torch.zeros_like(mean)), Listener()

    search(oracle, start_conditions(oracle, images, SEARCH, 0), images, None, SEARCH, 0, report)

    assert report.loss < 1e-8


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_sampling_ends_at_the_picture(sampler, oracle):
    images = Posterior(*[oracle.unet.picture.expand(1, 1, *LATENT_SHAPE)] * 2)
    conditions = start_conditions(oracle, images, SEARCH, 0)
    config = ReplayConfig(num_images=1, sampler=sampler, num_inference_steps=10, guidance_scale=1.0)

    drawn = next(sample(oracle, conditions, None, [5], config))

    wanted = oracle.decode(oracle.unet.picture[None])
    # DDIM as released ends at timestep 0, not at the clean picture: 3 % of noise stay in it.
    assert (drawn.float() - wanted.float()).abs().mean() < 1.5


def test_the_scheduler_is_told_what_the_unet_predicts():
    for kind in ("epsilon", "v_prediction"):
        assert make_scheduler("ddim", {"prediction_type": kind}).config.prediction_type == kind
