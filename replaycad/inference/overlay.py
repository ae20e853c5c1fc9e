"""An anomaly map laid over its picture, in the picture's own size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL = 2.0  # times the threshold: where the colours end
OPACITY = 0.75  # of the map at its strongest
# Dark to light like heated iron, so that the order of colours survives in print and for eyes that
# do not tell red from green.
_ANCHORS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32
)


def overlay(picture: Image.Image, relative_map: NDArray[np.float32]) -> Image.Image:
    """Colour what is unusual; what is ordinary stays as it was.

    Args:
        picture: RGB, any size.
        relative_map: `[S, S]` float32 of the squared picture: 0 is typical of normal pixels, 1 the
            threshold.

    Returns:
        RGB of the picture's size.
    """
    small = Image.fromarray(np.clip(relative_map / FULL, 0, 1).astype(np.float32))
    strength = np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    opacity = OPACITY * np.clip(2 * strength, 0, 1) ** 2  # full at the threshold, faint below
    pixels = np.asarray(picture, np.float32)
    mixed = (1 - opacity) * pixels + opacity * heat(strength[..., 0])
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def heat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours `[..., 3]` in 0..255 of values in 0..1."""
    places = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(values, places, _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)
