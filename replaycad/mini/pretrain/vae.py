"""Pre-training of the bundled AutoencoderKL: 128 px pictures to 8 x 16 x 16 latents."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from replaycad.mini.pretrain.loop import LoopConfig, train_loop
from replaycad.mini.pretrain.pool import Pool
from replaycad.runtime import generator

LATENT_CHANNELS = 8
BLOCK_OUT_CHANNELS = (16, 32, 64, 128)
KL_WEIGHT = 3e-5
GRADIENT_WEIGHT = 0.2


def build_vae() -> AutoencoderKL:
    """The bundled auto-encoder, untrained: four resolutions, 2.6 M parameters."""
    warnings.filterwarnings("ignore", message=".*Accelerate.*")
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=BLOCK_OUT_CHANNELS,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        # A posterior that starts narrow lets the decoder learn before the noise drowns the mean.
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    return vae


def to_pixel_values(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in -1 .. 1."""
    pixel_values = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return (pixel_values.float() / 127.5 - 1).contiguous()


def _gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error, plus the absolute error of the image gradients, which keeps edges and grain.

    Args:
        prediction, target: `[B, 3, H, W]` float, -1 .. 1.
    """
    loss = F.mse_loss(prediction, target) + 0.05 * F.l1_loss(prediction, target)
    for ours, theirs in zip(_gradients(prediction), _gradients(target), strict=True):
        loss = loss + GRADIENT_WEIGHT * F.mse_loss(ours, theirs)
    return loss


def train_vae(
    pool: Pool,
    work: Path,
    weights: Path,
    config: LoopConfig,
    device: torch.device,
    batch_size: int = 16,
) -> AutoencoderKL:
    """Train on the pool (normal and defective pictures, masks as RGB), export to `weights/vae`.

    Masks go through the same encoder (they are the spatial condition), so batches hold some.
    """
    vae = build_vae().to(device)
    images = pool.images.reshape(-1, *pool.images.shape[2:])
    defective = pool.defective_images.reshape(-1, *pool.images.shape[2:])
    object_masks = pool.object_masks.reshape(-1, *pool.object_masks.shape[2:])
    num_masks, num_defective = batch_size // 16, batch_size // 4

    def batch(step: int) -> torch.Tensor:
        rng = generator(0, "vae", step)

        def pick(count: int, total: int) -> np.ndarray:
            return torch.randint(total, (count,), generator=rng).sort().values.numpy()

        parts = [
            images[pick(batch_size - num_masks - num_defective, len(images))],
            defective[pick(num_defective, len(defective))],
            np.repeat(object_masks[pick(num_masks, len(object_masks))][..., None] * 255, 3, -1),
        ]
        pixel_values = to_pixel_values(np.concatenate(parts), device)
        if step % 4 < 3:
            # A quarter of the area for the same cost: four times as many pictures are seen.
            top, left = torch.randint(pixel_values.shape[-1] // 2 + 1, (2,), generator=rng).tolist()
            half = pixel_values.shape[-1] // 2
            return pixel_values[..., top : top + half, left : left + half].contiguous()
        return pixel_values[torch.randperm(batch_size, generator=rng)[: batch_size // 4]]

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixel_values = batch(step)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixel_values).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator(0, "vae noise", step)).to(device)
            prediction = vae.decode(mean + (logvar / 2).exp() * noise).sample.float()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(prediction, pixel_values) + KL_WEIGHT * kl
        if step % config.log_every != config.log_every - 1:
            return loss, {}
        error = (prediction - pixel_values).detach().pow(2).mean((1, 2, 3))
        return loss, {"psnr": (10 * torch.log10(4 / error)).mean().item(), "kl": kl.item()}

    def sample_sheet(step: int) -> None:
        pixel_values = torch.cat([batch(number) for number in (3, 7, 11)])
        with torch.no_grad():
            rows = torch.cat([pixel_values, vae(pixel_values).sample], 2)
        sheet = ((rows.clamp(-1, 1) + 1) * 127.5).byte().permute(2, 0, 3, 1).flatten(1, 2)
        Image.fromarray(sheet.cpu().numpy()).save(work / f"vae-{step:06d}.png")

    train_loop("vae", {"vae": vae}, loss_function, work, config, sample_sheet)
    _set_scaling_factor(vae, images, device)
    vae.half().save_pretrained(weights / "vae")
    vae.float()
    _forget_paths(weights / "vae" / "config.json")
    return vae


@torch.no_grad()
def _set_scaling_factor(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> None:
    # Unit variance of the latents is what the noise schedule expects (LDM, section 3.3).
    rows = np.linspace(0, len(images) - 1, 256).astype(int)
    latents = vae.encode(to_pixel_values(images[rows], device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def _forget_paths(path: Path) -> None:
    # diffusers notes from where a model was loaded; a shipped file names no folder of this machine.
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
