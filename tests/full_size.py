"""The full-size networks with random weights and a toy tokenizer: right in size alone."""

from pathlib import Path

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from transformers import AutoTokenizer

from replaycad.detectors.encoders import Encoder
from replaycad.diffusion.backbones import Diffusion, default_dtype
from tests.diffusion.published import networks
from tests.tiny import write_tokenizer

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def random_diffusion(
    name: str, device: torch.device, folder: Path, dtype: torch.dtype | None = None
) -> Diffusion:
    """`sd15` or `ldm256` as `load_backbone` would give it.

    Args:
        name: of the backbone.
        device: where the networks are made and stay.
        folder: for the tokenizer's files.
        dtype: of unet and text encoder; as on this device by default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = networks(name, str(device))
    text = "clip" if name == "sd15" else "ldmbert"
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder, text))
    tokenizer.model_max_length = 77
    dtypes = {"vae": torch.float32}
    frozen = {
        part: nn.Module.to(net, device, dtypes.get(part, dtype or default_dtype(device)))
        .eval()
        .requires_grad_(False)
        for part, net in built.items()
    }
    return Diffusion(**frozen, tokenizer=tokenizer, scheduler_config=SCHEDULE)


def random_encoder(timm_name: str, levels: tuple[int, ...], device: torch.device) -> Encoder:
    """An encoder as `load_encoder` would give it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(timm_name, features_only=True, out_indices=levels)
    return Encoder(model, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD).to(device)
