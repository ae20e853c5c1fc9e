"""The bundled autoencoder: principal components of the pool's patches, found in one pass."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from replaycad.diffusion.patch_codec import PatchCodec
from replaycad.mini.pretrain.loop import LoopConfig
from replaycad.mini.pretrain.pool import Pool

PATCH_SIZE = 8
LATENT_CHANNELS = 24
CLASSES_AT_ONCE = 64


def to_pixel_values(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in -1 .. 1."""
    pixel_values = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return (pixel_values.float() / 127.5 - 1).contiguous()


@torch.no_grad()
def fit_codec(
    images: np.ndarray, device: torch.device, latent_channels: int = LATENT_CHANNELS
) -> PatchCodec:
    """Fit the codec to pictures.

    Each component is divided by the root of its spread over the pictures, not by the spread itself:
    coarse components stay larger than fine ones, so that the noise of the diffusion drowns them
    last. All together have unit variance, as the noise schedule expects (LDM, section 3.3).

    Args:
        images: uint8 `[N, H, W, 3]`; read a few at a time.
        latent_channels: components kept.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(images), CLASSES_AT_ONCE):
        pixel_values = to_pixel_values(images[start : start + CLASSES_AT_ONCE], device)
        patches = F.pixel_unshuffle(pixel_values, PATCH_SIZE).permute(0, 2, 3, 1).flatten(0, 2)
        count += len(patches)
        total = total.to(device) + patches.double().sum(0)
        products = products.to(device) + (patches.T @ patches).double()
    mean = total / count
    variances, directions = torch.linalg.eigh(products / count - mean[:, None] * mean)
    spread = variances.flip(0)[:latent_channels].clamp_min(1e-12).sqrt()
    codec = PatchCodec(latent_channels, PATCH_SIZE).to(device)
    codec.mean.copy_(mean)
    codec.directions.copy_(directions.T.flip(0)[:latent_channels])
    codec.scale.copy_((spread * spread.mean()).sqrt())
    return codec


def psnr(codec: PatchCodec, images: np.ndarray, device: torch.device) -> float:
    """Mean over pictures uint8 `[N, H, W, 3]` of the peak signal-to-noise ratio, dB."""
    with torch.no_grad():
        pixel_values = to_pixel_values(images, device)
        again = codec.decode(codec.encode(pixel_values).latent_dist.mean).sample.clamp(-1, 1)
    error = (again - pixel_values).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


def train_vae(
    pool: Pool, work: Path, weights: Path, config: LoopConfig, device: torch.device
) -> PatchCodec:
    """Fit the codec to a picture of every class of the pool and export it to `weights/vae`.

    Args:
        config: not read; nothing is trained step by step.
    """
    del config
    images = pool.images[:, 0]
    codec = fit_codec(images, device)
    folder = weights / "vae"
    codec.save_pretrained(folder)  # float32: a few kilobytes, and grey levels stay exact
    _forget_paths(folder / "config.json")
    sample = images[:: max(1, len(images) // 8)][:8]
    with torch.no_grad():
        pixel_values = to_pixel_values(sample, device)
        again = codec.decode(codec.encode(pixel_values).latent_dist.mean).sample
    sheet = ((torch.cat([pixel_values, again], 2).clamp(-1, 1) + 1) * 127.5).byte()
    Image.fromarray(sheet.permute(2, 0, 3, 1).flatten(1, 2).cpu().numpy()).save(work / "vae.png")
    return codec


def _forget_paths(path: Path) -> None:
    # diffusers notes from where a model was loaded; a shipped file names no folder of this machine.
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
