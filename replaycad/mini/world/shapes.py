"""Signed distance fields (negative inside) of the outlines that parts are made of."""

import math

import numpy as np

from replaycad.mini.world.fields import Dice, Field


def circle(u: Field, v: Field, radius: float) -> Field:
    """Return the distance to a circle around the origin."""
    return np.sqrt(u * u + v * v) - radius


def ellipse(u: Field, v: Field, half_u: float, half_v: float) -> Field:
    """Return a first-order distance to an ellipse around the origin."""
    a = u / half_u
    b = v / half_v
    level = np.sqrt(a * a + b * b)
    slope = np.sqrt((a / half_u) ** 2 + (b / half_v) ** 2) + 1e-3
    return level * (level - 1) / slope


def box(u: Field, v: Field, half_u: float, half_v: float, corner: float = 0.0) -> Field:
    """Return the distance to an upright box with rounded corners."""
    corner = min(corner, half_u, half_v)
    a = np.abs(u) - (half_u - corner)
    b = np.abs(v) - (half_v - corner)
    outside = np.sqrt(np.maximum(a, 0) ** 2 + np.maximum(b, 0) ** 2)
    return outside + np.minimum(np.maximum(a, b), 0) - corner


def segment(
    u: Field, v: Field, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Field:
    """Return the distance to a straight bar with round ends."""
    along_u = end[0] - start[0]
    along_v = end[1] - start[1]
    length = along_u * along_u + along_v * along_v + 1e-9
    gap_u = u - start[0]
    gap_v = v - start[1]
    t = np.clip((gap_u * along_u + gap_v * along_v) / length, 0, 1)
    return np.sqrt((gap_u - t * along_u) ** 2 + (gap_v - t * along_v) ** 2) - radius


def arc(u: Field, v: Field, radius: float, half_angle: float, thickness: float) -> Field:
    """Return the distance to a bent bar: an arc around the origin, open towards -v."""
    end_u = math.sin(half_angle)
    end_v = math.cos(half_angle)
    side = np.abs(u)
    on_ring = np.abs(np.sqrt(u * u + v * v) - radius)
    at_end = np.sqrt((side - radius * end_u) ** 2 + (v - radius * end_v) ** 2)
    return np.where(end_v * side > end_u * v, at_end, on_ring) - thickness


def polygon(u: Field, v: Field, sides: int, radius: float, corner: float = 0.0) -> Field:
    """Return the distance to a regular polygon; radius is that of the inner circle."""
    step = 2 * math.pi / sides
    distance = np.full(u.shape, -9.0, dtype=np.float32)
    for side in range(sides):
        angle = side * step
        edge = u * math.cos(angle) + v * math.sin(angle) - (radius - corner)
        distance = np.maximum(distance, edge)
    if corner <= 0:
        return distance
    # Rounding by the radius keeps the corners finite without an exact corner distance.
    limit = np.sqrt(u * u + v * v) - radius * (1 / math.cos(step / 2) - 0.4 * corner)
    return np.maximum(distance - corner, limit)


def radial(u: Field, v: Field, harmonics: Field) -> Field:
    """Return the distance to a smooth closed outline given by Fourier terms of its radius.

    Args:
        u: first coordinate `[H, W]`.
        v: second coordinate `[H, W]`.
        harmonics: `[N, 2]` cosine and sine terms; row 0 column 0 is the mean radius.
    """
    angles = np.linspace(-math.pi, math.pi, 257)
    order = np.arange(len(harmonics))[:, None]
    outline = harmonics[:, :1] * np.cos(order * angles) + harmonics[:, 1:] * np.sin(order * angles)
    radius = outline.sum(axis=0)
    slope = np.gradient(radius, angles)
    scale = 1 / np.sqrt(1 + (slope / np.maximum(radius, 0.05)) ** 2)
    place = ((np.arctan2(v, u) + math.pi) * (256 / (2 * math.pi))).astype(np.float32)
    index = np.minimum(place.astype(np.int32), 255)
    part = place - index
    table = radius.astype(np.float32)
    limit = table[index] * (1 - part) + table[index + 1] * part
    return (np.sqrt(u * u + v * v) - limit) * scale.astype(np.float32)[index]


def draw_harmonics(dice: Dice, radius: float, wobble: float, orders: int) -> Field:
    """Return random Fourier terms `[orders + 1, 2]` of an outline for `radial`."""
    terms = dice.normals(orders + 1, 2)
    terms *= (wobble * radius / np.arange(1, orders + 2, dtype=np.float32) ** 1.1)[:, None]
    terms[0] = (radius, 0)
    terms[1] = 0
    return terms


def smooth_union(first: Field, second: Field, softness: float) -> Field:
    """Return the union of two distances, melted together over `softness`."""
    blend = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - blend * blend * (softness * 0.25)


def dome(distance: Field, width: float) -> Field:
    """Return a quarter-round profile: 0 at the outline, 1 from `width` inside on."""
    t = 1 - np.clip(distance * (-1 / width), 0, 1)
    return np.sqrt(1 - t * t)


def bevel(distance: Field, width: float) -> Field:
    """Return a straight chamfer: 0 at the outline, 1 from `width` inside on."""
    return np.clip(distance * (-1 / width), 0, 1)


def folded(u: Field, v: Field, count: int) -> tuple[Field, Field]:
    """Fold the plane into one of `count` equal sectors around the u axis."""
    step = 2 * math.pi / count
    angle = np.arctan2(v, u)
    angle = angle - step * np.round(angle / step)
    radius = np.sqrt(u * u + v * v)
    return radius * np.cos(angle), radius * np.sin(angle)
