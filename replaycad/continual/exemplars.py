"""Real images at equal bytes: which of a class to keep, how to store them, how to vary them."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.coreset import greedy_coreset
from replaycad.diffusion.alignment import between
from replaycad.mask_ops import Operation, apply_to_images

ByteArray = NDArray[np.uint8]

_GRID = 4  # cells a side that the features of an image are averaged over
_CHUNK = 32


def encode(image: ByteArray, quality: int) -> bytes:
    """One image `[3, H, W]` uint8 as AVIF, whose bytes depend on nothing but these arguments."""
    with io.BytesIO() as file:
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(file, "AVIF", quality=quality, speed=4, max_threads=1)
        return file.getvalue()


def decode(stored: bytes, size: int) -> ByteArray:
    """Undo `encode` but for what the quality lost: `[3, size, size]` uint8.

    An image that was stored smaller is enlarged.

    Raises:
        ValueError: if it is no image, no square or larger, which is seen before it is unpacked.
    """
    with io.BytesIO(stored) as file:
        try:
            picture = Image.open(file, formats=["AVIF"])
            width, height = picture.size
            if width != height or width > size:
                raise ValueError(f"it has {width} x {height} px, not {size}")
            return resized(np.asarray(picture.convert("RGB")).transpose(2, 0, 1), size)
        except (OSError, RuntimeError, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None


def stored_size(stored: bytes) -> int:
    """Side in pixels at which an image that `encode` gave is stored."""
    with io.BytesIO(stored) as file:
        return int(Image.open(file, formats=["AVIF"]).size[0])


def resized(image: ByteArray, size: int) -> ByteArray:
    """An image `[3, H, W]` uint8 as `[3, size, size]` uint8, sharply (Lanczos)."""
    if image.shape[1:] == (size, size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture).transpose(2, 0, 1)


def describe(images: ByteArray, encoder: Encoder) -> torch.Tensor:
    """What each image looks like to an encoder: `[N, D]` float32.

    Args:
        images: `[N, 3, S, S]` uint8, best in their common frame: then only what varies beside the
            pose tells them apart.
        encoder: frozen.
    """
    rows = []
    for chunk in torch.from_numpy(images).split(_CHUNK):
        levels = encoder.encode_images(chunk)[-2:]
        pooled = [F.adaptive_avg_pool2d(level.float(), _GRID).flatten(1) for level in levels]
        rows.append(torch.cat([F.normalize(level, dim=1) for level in pooled], dim=1).cpu())
    return torch.cat(rows)


def coverage_order(described: torch.Tensor, generator: torch.Generator) -> list[int]:
    """All images, each the one farthest from those before it (k-centre, greedily).

    Whatever number is kept of the front covers the class about as well as any so many can.

    Args:
        described: `[N, D]`, as `describe` gives.
        generator: CPU random stream.
    """
    count = len(described)
    picked = []
    if count > 1:  # all at once would come in no order
        picked = greedy_coreset(described, count - 1, generator, described.shape[1]).tolist()
    return picked + list(set(range(count)) - set(picked))


def fill(
    images: ByteArray, order: Sequence[int], quality: int, room: int, size: int = 0
) -> Iterator[bytes]:
    """Store images in the order given until the next does not fit into `room` bytes.

    Args:
        images: `[N, 3, S, S]` uint8.
        order: places of them.
        quality: of AVIF.
        room: bytes.
        size: side in pixels at which they are stored; 0 for S.
    """
    for index in order:
        stored = encode(resized(images[index], size or images.shape[-1]), quality)
        room -= len(stored)
        if room < 0:
            return
        yield stored


def vary(
    images: ByteArray,
    poses: NDArray[np.float32],
    wanted: NDArray[np.float32],
    beyond: str,
    operations: Sequence[Operation],
    choices: Sequence[np.random.Generator],
) -> ByteArray:
    """Move images from their own poses to others of the class, and turn or flip as it allows.

    Args:
        images: `[N, 3, S, S]` uint8.
        poses: `[N, 3]` of these images, as `diffusion.alignment` finds them.
        wanted: `[N, 3]` to move to.
        beyond: what is seen beyond the border, as in `diffusion.alignment`.
        operations: turns and flips, of which each image gets one; none for images as they are.
        choices: random streams, one per image.

    Returns:
        `[N, 3, S, S]` uint8.
    """
    moved = between(
        torch.from_numpy(images).float(), torch.from_numpy(poses), torch.from_numpy(wanted), beyond
    )
    drawn = moved.round().clamp(0, 255).to(torch.uint8).numpy()
    if not operations:
        return drawn
    picked = [operations[int(choice.integers(len(operations)))] for choice in choices]
    pairs = zip(picked, drawn, strict=True)
    return np.concatenate([apply_to_images(operation, image[None]) for operation, image in pairs])
