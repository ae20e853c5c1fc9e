"""A random encoder and a plain texture with a scratch, so small that tests train in seconds."""

import pytest
import timm
import torch

from replaycad.detectors.encoders import Encoder


@pytest.fixture(scope="session")
def tiny_encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "test_resnet", pretrained=False, features_only=True, out_indices=(1, 2, 3)
        )
    return Encoder(model)


@pytest.fixture(scope="session")
def stripes():
    """Four images of stripes [4, 3, 64, 64], a scratched one [1, 3, 64, 64], its mask [64, 64]."""
    g = torch.Generator().manual_seed(0)
    wave = 120 + 40 * torch.sin(torch.arange(64) * 0.8).expand(3, 64, 64)
    images = wave + 4 * torch.randn(5, 3, 64, 64, generator=g)
    scratch = torch.zeros(64, 64, dtype=torch.bool)
    for offset in range(18):
        scratch[36 + offset // 2, 14 + offset : 18 + offset] = True
    images[4, :, scratch] = 250.0
    images = images.clamp(0, 255).to(torch.uint8)
    return images[:4], images[4:], scratch
