"""From layers to a photograph: light on relief, shadow, lens blur, vignette and sensor noise."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replaycad.mini.world.canvas import Canvas
from replaycad.mini.world.fields import Dice, Field, blur, shifted, spline_noise

MAX_SLOPE = 2.5


class Light(NamedTuple):
    """Lamp, lens and sensor of a class; the same for every picture of it."""

    azimuth: float
    elevation: float
    ambient: float
    shine: float
    sharpness: int
    mirror_bands: float
    occlusion: float
    shadow: float
    shadow_length: float
    shadow_softness: float
    falloff: float
    unevenness: float
    vignette: float
    exposure_jitter: float
    lens_blur: float
    noise: float
    is_grey: bool
    contrast: float
    gain: float
    chroma: float


def draw_light(dice: Dice, is_grey: bool, brightness: float) -> Light:
    """Return the lamp, lens and sensor of a class.

    Args:
        dice: the class's dice.
        is_grey: the camera sees no colour.
        brightness: mean of what fills the frame, 0 to 1; the exposure makes up for extremes.
    """
    hard = dice.chance(0.5)
    return Light(
        azimuth=dice.between(-math.pi, math.pi),
        elevation=dice.between(0.5, 1.1) if hard else dice.between(0.9, 1.45),
        ambient=dice.between(0.2, 0.5) if hard else dice.between(0.4, 0.75),
        shine=dice.between(0.2, 1.0),
        sharpness=dice.integer(2, 6),
        mirror_bands=dice.between(1.5, 7.0),
        occlusion=dice.between(0.5, 3.0),
        shadow=dice.between(0.1, 0.6) if dice.chance(0.75) else 0.0,
        shadow_length=dice.between(0.0, 0.05),
        shadow_softness=dice.between(0.006, 0.05),
        falloff=dice.between(0.0, 0.18) if dice.chance(0.7) else 0.0,
        unevenness=dice.between(0.0, 0.05) if dice.chance(0.7) else 0.0,
        vignette=dice.between(0.0, 0.25) if dice.chance(0.4) else 0.0,
        exposure_jitter=dice.between(0.0, 0.05),
        lens_blur=dice.between(0.0025, 0.007) if dice.chance(0.6) else 0.0,
        noise=dice.between(0.002, 0.022),
        is_grey=is_grey,
        contrast=dice.between(0.85, 1.15),
        gain=min(max(dice.between(0.25, 0.65) / max(brightness, 0.02), 0.75), 3.0),
        chroma=dice.between(0.3, 0.8) if dice.chance(0.55) else 1.0,
    )


def compose(ground: Canvas, parts: Canvas, light: Light) -> tuple[Field, Field]:
    """Lay the parts over the ground with their shadow; returns layers `[5, S, S]` and height."""
    cover = parts.cover
    layers = ground.layers
    if light.shadow > 0:
        soft = shifted(
            blur(cover, light.shadow_softness),
            -math.cos(light.azimuth) * light.shadow_length,
            -math.sin(light.azimuth) * light.shadow_length,
        )
        layers = layers.copy()
        layers[:3] *= 1 - light.shadow * soft
    layers = layers + cover * (parts.layers - layers)
    return layers, ground.height + cover * (parts.height - ground.height)


def illuminate(layers: Field, height: Field, light: Light) -> Field:
    """Light the relief; returns linear RGB `[3, S, S]`.

    Args:
        layers: red, green, blue, gloss, metal `[5, S, S]`.
        height: relief `[S, S]` in picture units (the picture is two units wide).
        light: the lamp.
    """
    size = height.shape[0]
    steep = size / 4
    padded = np.pad(height, 1, mode="edge")
    slope_x = np.clip((padded[1:-1, 2:] - padded[1:-1, :-2]) * steep, -MAX_SLOPE, MAX_SLOPE)
    slope_y = np.clip((padded[2:, 1:-1] - padded[:-2, 1:-1]) * steep, -MAX_SLOPE, MAX_SLOPE)
    upright = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lean_x = -slope_x * upright
    lean_y = -slope_y * upright
    level = math.cos(light.elevation)
    lamp_x, lamp_y = math.cos(light.azimuth) * level, math.sin(light.azimuth) * level
    lamp_z = math.sin(light.elevation)
    facing = np.maximum(lean_x * lamp_x + lean_y * lamp_y + upright * lamp_z, 0)
    diffuse = light.ambient + (1 - light.ambient) / lamp_z * facing
    half = math.sqrt(2 + 2 * lamp_z)
    shine = np.maximum((lean_x * lamp_x + lean_y * lamp_y + upright * (1 + lamp_z)) * (1 / half), 0)
    level_shine = half / 2
    for _ in range(light.sharpness):
        shine = shine * shine
        level_shine = level_shine * level_shine
    # A lamp overhead would veil everything flat; only part of that sheen is kept.
    shine = np.maximum(shine - 0.75 * level_shine, 0)
    across = lean_x * (lamp_x / level) + lean_y * (lamp_y / level)
    along = lean_y * (lamp_x / level) - lean_x * (lamp_y / level)
    mirror = 0.62 + 0.38 * np.cos(light.mirror_bands * across + 0.8 * along * light.mirror_bands)
    mirror += 0.35 * across
    gloss, metal = layers[3], layers[4]
    strength = diffuse + metal * (0.4 * diffuse + 0.75 * mirror - diffuse)
    crevice = np.clip(1 + light.occlusion * 4 * (height - blur(height, 0.02)), 0.45, 1.15)
    return layers[:3] * (strength * crevice) + (shine * gloss) * (light.shine * 0.9)


def develop(colour: Field, light: Light, dice: Dice) -> Field:
    """Expose linear RGB `[3, S, S]` through lens and camera curve; returns `[1 or 3, S, S]`."""
    size = colour.shape[-1]
    whole = slice(0, size)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    exposure = 1 + light.exposure_jitter * dice.around(0, 1)
    field = exposure + (light.falloff * math.cos(light.azimuth)) * axis[None, :]
    field = field + (light.falloff * math.sin(light.azimuth)) * axis[:, None]
    if light.unevenness > 0:
        field = field + light.unevenness * spline_noise(dice, size, 2, 2, whole, whole)
    if light.vignette > 0:
        squares = axis * axis
        field = field * (1 - light.vignette * 0.5 * (squares[None, :] + squares[:, None]))
    if light.is_grey:
        colour = (0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2])[None]
    elif light.chroma < 1:
        luma = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
        colour = luma + light.chroma * (colour - luma)
    colour = colour * np.maximum(field * (light.contrast * light.gain), 0) + (
        0.5 - 0.5 * light.contrast
    )
    # A soft shoulder keeps highlights from clipping hard, as a camera curve does.
    above = np.minimum(np.maximum(colour - 0.85, 0) * (1 / 0.3), 1)
    colour = np.minimum(colour, 0.85) + 0.15 * above * (2 - above)
    return blur(colour, light.lens_blur) if light.lens_blur > 0 else colour


def digitise(colour: Field, light: Light, sensor: Dice) -> NDArray[np.uint8]:
    """Add sensor noise and store as `[S, S, 3]` uint8."""
    size = colour.shape[-1]
    # Two even draws add up to nearly a bell, much cheaper than normal numbers.
    grain = sensor.rough(*colour.shape) + sensor.rough(*colour.shape)
    colour = colour + (light.noise / math.sqrt(2)) * grain
    picture = np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture, (3, size, size)).transpose(1, 2, 0))
