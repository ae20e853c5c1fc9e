"""The painter's canvas: layers of colour, gloss and height that posed frames paint into."""

import math
from typing import NamedTuple

import numpy as np

from replaycad.mini.world.fields import Dice, Field, bilinear, spline_noise
from replaycad.mini.world.materials import Colour, Material

# Faults that a painter must act on while it paints; all others are laid over the finished paint.
STRUCTURAL = frozenset(
    {"bent", "print", "thread_fault", "missing", "misplaced", "wrong_colour", "warped"}
)


class Flaw:
    """One defect to be drawn: its kind, its own dice, and how strong it is."""

    def __init__(self, kind: str, dice: Dice, strength: float) -> None:
        """Throw everything a painter may need; strength 1 is ordinary."""
        self.kind = kind
        self.dice = dice
        self.strength = strength
        self.victim = dice.between(0, 1)
        self.shift = (dice.between(-1, 1), dice.between(-1, 1))
        self.turn = dice.between(0.25, 0.8) * dice.pick((-1, 1))
        self.place = dice.between(-0.5, 0.5)
        self.hue = dice.uniforms(3)


class Pose(NamedTuple):
    """Where a frame lies: centre in picture units (-1 to 1), angle in radians, scale."""

    x: float
    y: float
    angle: float
    scale: float


class Placement(NamedTuple):
    """What happens to one countable component: moved, turned, left out or of another colour."""

    u: float
    v: float
    angle: float
    present: bool
    recoloured: bool


AS_PLANNED = Placement(0.0, 0.0, 0.0, True, False)


class Canvas:
    """Layers red, green, blue, gloss, metal `[5, S, S]`, height and cover `[S, S]`."""

    def __init__(self, size: int) -> None:
        """Start black, flat and uncovered."""
        self.size = size
        axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
        self.x = np.broadcast_to(axis[None, :], (size, size))
        self.y = np.broadcast_to(axis[:, None], (size, size))
        self.layers = np.zeros((5, size, size), dtype=np.float32)
        self.height = np.zeros((size, size), dtype=np.float32)
        self.cover = np.zeros((size, size), dtype=np.float32)


class Frame:
    """A posed window of the canvas with its own coordinates u, v; outlines are about one unit."""

    def __init__(
        self, canvas: Canvas, pose: Pose, reach: float, dice: Dice, flaw: Flaw | None
    ) -> None:
        """Cut the window that holds `reach` frame units around the pose."""
        size = canvas.size
        self.canvas = canvas
        self.pose = pose
        self.dice = dice
        self.flaw = flaw
        self.px = 2 / size / pose.scale
        self.rows = _window(pose.y, pose.scale * reach, size)
        self.columns = _window(pose.x, pose.scale * reach, size)
        right = (canvas.x[self.rows, self.columns] - pose.x) * (1 / pose.scale)
        down = (canvas.y[self.rows, self.columns] - pose.y) * (1 / pose.scale)
        cosine, sine = math.cos(pose.angle), math.sin(pose.angle)
        self.u = right * cosine + down * sine
        self.v = down * cosine - right * sine
        self.layers = canvas.layers[:, self.rows, self.columns]
        self.height = canvas.height[self.rows, self.columns]
        self.cover = canvas.cover[self.rows, self.columns]
        if flaw is not None and flaw.kind == "bent":
            self._bend(flaw)

    def _bend(self, flaw: Flaw) -> None:
        beyond = np.maximum(self.u * math.copysign(1, flaw.turn) - flaw.place * 0.6, 0)
        self.v = self.v + beyond * beyond * (flaw.strength * 0.6 * math.copysign(1, flaw.shift[0]))

    def paint(
        self, distance: Field, material: Material, height: Field | float, lift: bool = False
    ) -> Field:
        """Lay a stuff inside an outline; returns the soft coverage.

        Args:
            distance: signed distance `[h, w]` in frame units, negative inside.
            material: what to lay.
            height: relief in frame units, absolute, or on top of what lies there if `lift`.
            lift: add to the present height instead of replacing it.
        """
        alpha = np.clip(0.5 - distance * (1 / self.px), 0, 1)
        values = np.array([*material.colour, material.gloss, material.metal], dtype=np.float32)
        self.layers += alpha * (values[:, None, None] - self.layers)
        raised = height * self.pose.scale
        self.height += alpha * (raised if lift else raised - self.height)
        np.maximum(self.cover, alpha, out=self.cover)
        return alpha

    def inset(self, u: float, v: float, angle: float, scale: float, reach: float) -> "Frame":
        """Return a smaller frame at a place of this one; it shares the canvas and the dice."""
        cosine, sine = math.cos(self.pose.angle), math.sin(self.pose.angle)
        pose = Pose(
            self.pose.x + (u * cosine - v * sine) * self.pose.scale,
            self.pose.y + (u * sine + v * cosine) * self.pose.scale,
            self.pose.angle + angle,
            self.pose.scale * scale,
        )
        flaw = self.flaw if self.flaw is not None and self.flaw.kind != "bent" else None
        return Frame(self.canvas, pose, reach, self.dice, flaw)

    def tint(self, alpha: Field, colour: Colour) -> None:
        """Blend a colour over what lies there; alpha `[h, w]` in 0 to 1."""
        target = np.array(colour, dtype=np.float32)[:, None, None]
        self.layers[:3] += alpha * (target - self.layers[:3])

    def shade(self, factor: Field) -> None:
        """Multiply the colour by a field."""
        self.layers[:3] *= factor

    def raise_by(self, height: Field) -> None:
        """Add relief in frame units."""
        self.height += height * self.pose.scale

    def noise(self, cells: float, aspect: float = 1.0) -> Field:
        """Return unit noise on the window; cells per two frame units, aspect stretches along u."""
        count = cells / self.pose.scale
        return spline_noise(
            self.dice, self.canvas.size, count, count * aspect, self.rows, self.columns
        )

    def weather(self, material: Material, amount: Field | float = 1.0) -> None:
        """Give the painted stuff its grain and its relief."""
        if material.grain > 0.004:
            coarse = self.noise(material.grain_cells, material.aspect)
            fine = self.noise(material.grain_cells * 2.3, material.aspect)
            mixed = (coarse * 0.7 + fine * 0.5) * amount
            self.shade(np.maximum(1 + material.grain * mixed, 0))
        if material.rough > 0.0008:
            relief = self.noise(material.rough_cells, material.aspect)
            self.raise_by(relief * (material.rough * 20 / material.rough_cells) * amount)

    def place(self, index: int, count: int, step: float) -> Placement:
        """Say where component `index` of `count` goes; only a flaw makes it differ.

        Args:
            index: number of the component.
            count: how many there are.
            step: typical distance between components, frame units.
        """
        flaw = self.flaw
        if flaw is None or flaw.kind not in ("missing", "misplaced", "wrong_colour"):
            return AS_PLANNED
        if index != int(flaw.victim * count):
            return AS_PLANNED
        if flaw.kind == "missing":
            return Placement(0.0, 0.0, 0.0, False, False)
        if flaw.kind == "wrong_colour":
            return Placement(0.0, 0.0, 0.0, True, True)
        reach = step * 0.5 * flaw.strength
        return Placement(flaw.shift[0] * reach, flaw.shift[1] * reach, flaw.turn, True, False)

    def recolour(self, material: Material) -> Material:
        """Return the stuff in a clearly different colour, for a wrong part."""
        hue = self.flaw.hue if self.flaw is not None else np.zeros(3, dtype=np.float32)
        parts = [
            float((part + 0.35 + 0.3 * h) % 1.0)
            for part, h in zip(material.colour, hue, strict=True)
        ]
        return material._replace(colour=(parts[0], parts[1], parts[2]))

    def print_on(
        self, bitmap: Field, box: tuple[float, float, float, float], colour: Colour, ink: float
    ) -> None:
        """Print a bitmap `[h, w]` into a box (centre u, centre v, half u, half v)."""
        u = (self.u - box[0]) * (0.5 / box[2]) + 0.5
        v = (self.v - box[1]) * (0.5 / box[3]) + 0.5
        flaw = self.flaw if self.flaw is not None and self.flaw.kind == "print" else None
        if flaw is not None and flaw.victim < 0.35:
            u = u + 0.25 * flaw.shift[0]
            v = v + 0.35 * flaw.shift[1]
        alpha = bilinear(bitmap, u, v)
        if flaw is not None and flaw.victim >= 0.35:
            edge = 0.5 + flaw.place * 0.6
            if flaw.victim < 0.7:
                alpha = alpha * (
                    u * math.copysign(1, flaw.turn) < edge * math.copysign(1, flaw.turn)
                )
            else:
                for step in range(1, 6):
                    smear = bilinear(bitmap, u + 0.03 * step, v + 0.02 * step)
                    alpha = np.maximum(alpha, smear * 0.8)
        self.tint(np.clip(alpha * ink, 0, 1), colour)


def _window(centre: float, reach: float, size: int) -> slice:
    first = math.floor((centre - reach + 1) * size / 2) - 1
    last = math.ceil((centre + reach + 1) * size / 2) + 1
    first = min(max(first, 0), size - 1)
    return slice(first, max(min(last, size), first + 1))
