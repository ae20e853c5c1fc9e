"""What can be done to a mask: pack it into bits, and turn or shift it, alone or with its image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from replaycad.errors import ConfigError

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

TRAIN_AUGMENTATIONS = ("none", "rotate_180", "six_way", "free_rotation")
REPLAY_AUGMENTATIONS = ("identity", "six_way", "free_rotation", "small", "one_object")

WORN_SHARE, WORN_FRACTION = 0.3, 0.05  # of the masks; of the width, to either side

# The release measures the border in 20 px strips of native images of about 1024 px.
BORDER_STRIP_FRACTION = 20 / 1024


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One turn, counter-clockwise, or one flip: `left_right` or `up_down`, empty for none."""

    rotate_degrees: int = 0
    flip: str = ""


def pack_bits(object_masks: BoolArray) -> ByteArray:
    """Pack masks `[N, H, W]` bool into `[N, H, ceil(W/8)]` uint8, first pixel in the top bit."""
    return np.packbits(np.asarray(object_masks, dtype=np.bool_), axis=-1)


def unpack_bits(packed: ByteArray, width: int) -> BoolArray:
    """Undo `pack_bits`: `[N, H, ceil(W/8)]` uint8 back into `[N, H, W]` bool with `W = width`.

    Raises:
        ValueError: if `width` pixels do not fill exactly the last axis.
    """
    if packed.shape[-1] != -(-width // 8):
        raise ValueError(f"{packed.shape[-1]} bytes per row cannot hold {width} pixels")
    return np.unpackbits(packed, axis=-1, count=width).astype(np.bool_)


def resize_masks(object_masks: BoolArray, size: int) -> BoolArray:
    """Masks `[N, H, W]` bool at `size` px, an area of at least one half counting as object."""
    if object_masks.shape[1:] == (size, size):
        return object_masks
    resized = np.empty((len(object_masks), size, size), dtype=np.bool_)
    for index, object_mask in enumerate(object_masks):
        grey = Image.fromarray(object_mask.astype(np.uint8) * 255)
        resized[index] = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR)) >= 128
    return resized


def bounding_boxes(object_masks: BoolArray) -> BoolArray:
    """Fill the upright rectangle around each mask's object: `[N, H, W]` bool."""
    rows: BoolArray = np.any(object_masks, axis=2)
    columns: BoolArray = np.any(object_masks, axis=1)
    filled: BoolArray = _between_ends(rows)[:, :, None] & _between_ends(columns)[:, None, :]
    return filled


def _between_ends(line: BoolArray) -> BoolArray:
    """True from the first to the last true place of each row of `[N, n]`."""
    before = np.maximum.accumulate(line, axis=1)
    after = np.maximum.accumulate(line[:, ::-1], axis=1)[:, ::-1]
    return before & after


def perturbed(object_masks: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Grow or shrink `WORN_SHARE` of the masks `[N, H, W]` bool by `WORN_FRACTION` (Table 5).

    The paper says how many masks change, and neither which nor by how much.
    """
    spoilt = object_masks.copy()
    size = 2 * max(1, round(WORN_FRACTION * object_masks.shape[-1])) + 1
    filters = (ImageFilter.MaxFilter(size), ImageFilter.MinFilter(size))
    for index in rng.permutation(len(spoilt))[: round(WORN_SHARE * len(spoilt))]:
        grey = Image.fromarray(object_masks[index].astype(np.uint8))
        spoilt[index] = np.asarray(grey.filter(filters[rng.integers(2)])) > 0
    return spoilt


def augmentations(name: str, num_angles: int = 24) -> list[Operation]:
    """List the equally likely operations of a training augmentation, as in the release.

    Args:
        name: one of `TRAIN_AUGMENTATIONS`.
        num_angles: how many evenly spaced angles stand for the free rotation.

    Raises:
        ConfigError: if there is no augmentation of that name.
    """
    if name == "none":
        return [Operation()]
    if name == "rotate_180":
        return [Operation(), Operation(rotate_degrees=180)]
    if name == "six_way":
        turns = [Operation(rotate_degrees=degrees) for degrees in (0, 90, 180, 270)]
        return [*turns, Operation(flip="left_right"), Operation(flip="up_down")]
    if name == "free_rotation":
        # Deviation: free rotation draws from evenly spaced angles (24 by default) instead of every
        # integer angle, so that the latents of each can be computed once.
        return [Operation(rotate_degrees=round(i * 360 / num_angles)) for i in range(num_angles)]
    raise ConfigError(
        f"unknown augmentation '{name}'", f"valid augmentations: {', '.join(TRAIN_AUGMENTATIONS)}"
    )


def apply_to_images(operation: Operation, images: ByteArray) -> ByteArray:
    """Turn or flip images `[N, 3, H, W]` uint8; bare corners get each image's border colour."""
    if operation == Operation():
        return images.copy()
    source = _source_pixels(operation, *images.shape[-2:])
    flat = images.reshape(*images.shape[:2], -1)
    colour = border_colour(images)[..., None, None]
    turned: ByteArray = np.where(source >= 0, flat[..., source.clip(0)], colour)
    return turned


def apply_to_masks(operation: Operation, object_masks: BoolArray) -> BoolArray:
    """Turn or flip masks `[N, H, W]` bool as `apply_to_images`; bare corners are background."""
    if operation == Operation():
        return object_masks.copy()
    source = _source_pixels(operation, *object_masks.shape[-2:])
    flat = object_masks.reshape(*object_masks.shape[:-2], -1)
    return flat[..., source.clip(0)] & (source >= 0)


def border_colour(images: ByteArray) -> ByteArray:
    """Mean colour `[N, 3]` uint8 of the four border strips of images `[N, 3, H, W]` uint8."""
    strip = max(1, round(BORDER_STRIP_FRACTION * min(images.shape[-2:])))
    strips = (
        images[..., :strip, :],
        images[..., -strip:, :],
        images[..., :strip],
        images[..., -strip:],
    )
    means = [part.mean(axis=(-2, -1), dtype=np.float64) for part in strips]
    colour: ByteArray = np.rint(np.mean(means, axis=0)).astype(np.uint8)
    return colour


def replay_mask(
    object_mask: BoolArray,
    augmentation: str,
    rng: np.random.Generator,
    *,
    rotate_degrees: int = 0,
    shift_fraction: float = 0.0,
    rotate_180: bool = False,
) -> BoolArray:
    """Draw a new pose for a stored mask (paper section 4.3).

    Args:
        object_mask: `[H, W]` bool, true on the object.
        augmentation: one of `REPLAY_AUGMENTATIONS`.
        rng: source of every random choice.
        rotate_degrees: largest angle of `small` and `one_object`, either direction.
        shift_fraction: largest shift of `small` and `one_object`, as a fraction of the width.
        rotate_180: whether `small` first turns every second mask upside down.

    Returns:
        `[H, W]` bool, a new array.

    Raises:
        ConfigError: if there is no augmentation of that name.
    """
    if augmentation == "identity":
        return object_mask.copy()
    if augmentation == "six_way":
        operations = augmentations("six_way")
        return apply_to_masks(operations[rng.integers(len(operations))], object_mask)
    if augmentation == "free_rotation":
        return _rotate(object_mask, int(rng.integers(360)))
    if augmentation == "small":
        return _move_all(object_mask, rng, rotate_degrees, shift_fraction, rotate_180)
    if augmentation == "one_object":
        return _move_one_object(object_mask, rng, rotate_degrees, shift_fraction)
    raise ConfigError(
        f"unknown mask transform '{augmentation}'",
        f"valid transforms: {', '.join(REPLAY_AUGMENTATIONS)}",
    )


def shift(object_mask: BoolArray, right: int, down: int) -> BoolArray:
    """Move the mask `[H, W]` bool by whole pixels; what enters at the edge is background."""
    height, width = object_mask.shape
    moved = np.zeros_like(object_mask)
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    from_row, from_column = max(0, -down), max(0, -right)
    to_row, to_column = max(0, down), max(0, right)
    moved[to_row : to_row + rows, to_column : to_column + columns] = object_mask[
        from_row : from_row + rows, from_column : from_column + columns
    ]
    return moved


def label_components(object_mask: BoolArray) -> tuple[NDArray[np.int32], int]:
    """Number the 8-connected parts of a mask `[H, W]` bool from 1 in reading order.

    Returns:
        Labels `[H, W]` int32, 0 on the background, and the number of parts.
    """
    # The import takes longer than the up-to-date check of a stage, which reads masks too.
    from scipy import ndimage  # noqa: PLC0415

    labels, count = ndimage.label(object_mask, structure=np.ones((3, 3)))
    return labels, count


def _source_pixels(operation: Operation, height: int, width: int) -> NDArray[np.int32]:
    """Flat index `[H, W]` of the pixel that each pixel comes from; -1 if that lies outside."""
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    if operation.flip:
        return np.flip(index, axis=1 if operation.flip == "left_right" else 0)
    turned = Image.fromarray(index).rotate(
        operation.rotate_degrees, resample=Image.Resampling.NEAREST, fillcolor=-1
    )
    return np.asarray(turned, dtype=np.int32)


def _rotate(object_mask: BoolArray, degrees: int) -> BoolArray:
    return apply_to_masks(Operation(rotate_degrees=degrees % 360), object_mask)


def _move_all(
    object_mask: BoolArray,
    rng: np.random.Generator,
    rotate_degrees: int,
    shift_fraction: float,
    rotate_180: bool,
) -> BoolArray:
    half_turn = 180 if rotate_180 and rng.integers(2) else 0
    angle = int(rng.integers(rotate_degrees + 1)) * (1 if rng.integers(2) else -1)
    moved = _rotate(_rotate(object_mask, half_turn), angle)
    distance = int(rng.integers(int(object_mask.shape[1] * shift_fraction) + 1))
    right, down = ((1, 0), (-1, 0), (0, 1), (0, -1))[rng.integers(4)]
    return shift(moved, right * distance, down * distance)


def _move_one_object(
    object_mask: BoolArray, rng: np.random.Generator, rotate_degrees: int, shift_fraction: float
) -> BoolArray:
    labels, count = label_components(object_mask)
    if count == 0:
        return object_mask.copy()
    chosen = labels == 1 + rng.integers(count)
    reach = round(object_mask.shape[1] * shift_fraction)
    right, down = (int(step) for step in rng.integers(-reach, reach + 1, size=2))
    moved = shift(chosen, right, down)
    if rotate_degrees:
        # About the image centre, not the object's, as the release does.
        moved = _rotate(moved, int(rng.integers(-rotate_degrees, rotate_degrees + 1)))
    pasted: BoolArray = (object_mask & ~chosen) | moved
    return pasted
