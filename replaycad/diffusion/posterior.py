"""What the VAE says of a class's pictures, kept in place of them for the whole search."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from replaycad.diffusion.backbones import Diffusion


@dataclass(frozen=True)
class Posterior:
    """What the VAE says of N pictures under A augmentations, kept instead of the pictures.

    Attributes:
        mean: `[A, N, C, h, w]` float16 or float32, scaled.
        std: the same shape and dtype.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def sample(
        self, augmentation: torch.Tensor, index: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Draw latents anew: `[B, C, h, w]` float32 from `[B]`, `[B]` int64, `[B, C, h, w]`."""
        mean, std = self.mean[augmentation, index].float(), self.std[augmentation, index].float()
        return mean + std * noise


def encode_posterior(
    diffusion: Diffusion, augmented: Iterable[torch.Tensor], dtype: torch.dtype = torch.float32
) -> Posterior:
    """Encode every picture under every augmentation once, before the search.

    Args:
        diffusion: frozen.
        augmented: per augmentation `[N, 3, H, W]` uint8 RGB at the backbone's image size; for
            masks, what `mask_images` draws.
        dtype: float16 halves the memory.

    Returns:
        a posterior on the CPU.
    """
    encoded = [diffusion.encode_images(images) for images in augmented]
    mean, std = (torch.stack(part).to("cpu", dtype) for part in zip(*encoded, strict=True))
    return Posterior(mean, std)
