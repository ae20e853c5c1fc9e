"""Defects laid over finished paint: scratches, cracks, dents, stains, losses, foreign bodies."""

import math

import numpy as np

from replaycad.mini.world.canvas import Canvas, Flaw
from replaycad.mini.world.fields import Dice, Field, smoothstep, spline_noise

LAID = frozenset(
    {
        "scratch",
        "crack",
        "dent",
        "stain",
        "contamination",
        "broken",
        "fragment",
        "hole",
        "spot",
        "cut",
        "patch",
    }
)
TRIES = 160


def find_place(cover: Field, dice: Dice, near_edge: bool) -> tuple[float, float]:
    """Return a point of the picture on the object, near its outline if asked.

    Args:
        cover: soft object mask `[S, S]`.
        dice: the source; always draws the same number of candidates.
        near_edge: prefer points whose surroundings are only partly covered.
    """
    size = cover.shape[0]
    points = dice.uniforms(TRIES, 2) * 2 - 1
    index = np.clip(((points + 1) * (size / 2)).astype(np.int64), 0, size - 1)
    on_object = cover[index[:, 1], index[:, 0]] > 0.6
    if near_edge:
        step = max(size // 12, 1)
        around = [
            cover[np.clip(index[:, 1] + dy, 0, size - 1), np.clip(index[:, 0] + dx, 0, size - 1)]
            for dx, dy in ((step, 0), (-step, 0), (0, step), (0, -step))
        ]
        rim = on_object & (np.min(around, axis=0) < 0.5)
        on_object = rim if rim.any() else on_object
    if on_object.any():
        point = points[int(np.argmax(on_object))]
    else:
        flat = int(np.argmax(cover))
        point = np.array([flat % size, flat // size]) * (2 / size) - 1
    return float(point[0]), float(point[1])


def _blob(canvas: Canvas, flaw: Flaw, centre: tuple[float, float], size: float) -> Field:
    """Return an irregular distance around a point, negative inside."""
    dice = flaw.dice
    turn = dice.between(0, math.pi)
    stretch = dice.between(0.4, 1.0)
    right, down = canvas.x - centre[0], canvas.y - centre[1]
    u = right * math.cos(turn) + down * math.sin(turn)
    v = (down * math.cos(turn) - right * math.sin(turn)) * (1 / stretch)
    whole = slice(0, canvas.size)
    rough = spline_noise(dice, canvas.size, 1.2 / size, 1.2 / size, whole, whole)
    fine = spline_noise(dice, canvas.size, 3.5 / size, 3.5 / size, whole, whole)
    return np.sqrt(u * u + v * v) - size * (1 + 0.22 * rough + 0.1 * fine)


def _stroke(
    canvas: Canvas, flaw: Flaw, centre: tuple[float, float], length: float, bend: float
) -> tuple[Field, Field]:
    """Return distance to a wandering line and the place along it (-1 to 1)."""
    dice = flaw.dice
    count = 9
    turn = dice.between(-math.pi, math.pi)
    headings = turn + np.cumsum(dice.normals(count) * bend)
    points = np.zeros((count + 1, 2), dtype=np.float32)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / count)
    points[1:] = np.cumsum(steps, axis=0)
    points += np.array(centre, dtype=np.float32) - points.mean(axis=0)
    best = np.full(canvas.x.shape, 9.0, dtype=np.float32)
    along = np.zeros_like(best)
    for number in range(count):
        start, step = points[number], steps[number].astype(np.float32)
        gap_x, gap_y = canvas.x - start[0], canvas.y - start[1]
        t = np.clip((gap_x * step[0] + gap_y * step[1]) / float(step @ step), 0, 1)
        distance = np.sqrt((gap_x - t * step[0]) ** 2 + (gap_y - t * step[1]) ** 2)
        along = np.where(distance < best, (number + t) * (2 / count) - 1, along)
        best = np.minimum(best, distance)
    return best, along


def _tint(canvas: Canvas, alpha: Field, colour: Field) -> None:
    canvas.layers[:3] += alpha * (colour[:, None, None] - canvas.layers[:3])


def _contrasting(canvas: Canvas, flaw: Flaw, centre: tuple[float, float]) -> Field:
    """Return a colour that stands out from what lies at the place."""
    size = canvas.size
    column = min(max(int((centre[0] + 1) * size / 2), 0), size - 1)
    row = min(max(int((centre[1] + 1) * size / 2), 0), size - 1)
    here = canvas.layers[:3, row, column]
    tone = flaw.dice.between(0.02, 0.35) if here.mean() > 0.45 else flaw.dice.between(0.6, 0.95)
    tinge = (flaw.dice.uniforms(3) - 0.5) * flaw.dice.pick((0.05, 0.15, 0.5))
    return np.clip(tone + tinge, 0, 1).astype(np.float32)


def lay_flaw(canvas: Canvas, flaw: Flaw) -> None:
    """Lay one defect over the finished parts of a canvas, in place.

    Args:
        canvas: finished paint; its layers, height and cover are changed.
        flaw: kind (one of `LAID`), dice and strength (1 ordinary, larger more visible).
    """
    near_edge = flaw.kind in ("broken", "fragment")
    centre = find_place(canvas.cover, flaw.dice, near_edge)
    size = flaw.dice.between(0.07, 0.26) * min(flaw.strength, 2.0)
    if flaw.kind in ("scratch", "crack", "cut"):
        _lay_line(canvas, flaw, centre)
    elif flaw.kind in ("dent", "patch", "stain", "spot"):
        _lay_mark(canvas, flaw, centre, size)
    elif flaw.kind == "contamination":
        _lay_foreign(canvas, flaw, centre, size * 0.8)
    else:
        _lay_loss(canvas, flaw, centre, size)


def _lay_line(canvas: Canvas, flaw: Flaw, centre: tuple[float, float]) -> None:
    px = 2 / canvas.size
    length = flaw.dice.between(0.25, 0.9)
    bend = {"scratch": 0.08, "crack": 0.55, "cut": 0.15}[flaw.kind]
    distance, along = _stroke(canvas, flaw, centre, length, bend)
    width = flaw.dice.between(0.008, 0.02) * (1.6 if flaw.kind == "cut" else 1.0) * flaw.strength
    taper = np.sqrt(np.maximum(1 - along * along, 0))
    alpha = np.clip((width * (0.3 + 0.7 * taper) - distance) * (0.7 / px) + 0.5, 0, 1)
    alpha = alpha * canvas.cover
    if flaw.kind == "scratch":
        bright = canvas.layers[:3].mean() < 0.5 or flaw.dice.chance(0.4)
        tone = 0.9 if bright else 0.15
        breaks = 0.65 + 0.35 * np.sin(along * 9 + flaw.place * 20)
        _tint(canvas, alpha * breaks * 0.65, np.full(3, tone, dtype=np.float32))
        canvas.height -= alpha * 0.01 * flaw.strength
    else:
        _tint(canvas, alpha * 0.85, np.full(3, 0.05, dtype=np.float32))
        canvas.height -= alpha * 0.03
        if flaw.kind == "cut":
            lip = np.exp(-(((distance - width * 2) * (1 / (width + px))) ** 2)) * (taper > 0.2)
            canvas.height += lip * canvas.cover * 0.02


def _lay_mark(canvas: Canvas, flaw: Flaw, centre: tuple[float, float], size: float) -> None:
    if flaw.kind == "spot":
        size *= 0.4
    distance = _blob(canvas, flaw, centre, size)
    soft = size * flaw.dice.between(0.1, 0.6)
    inside = smoothstep(0.0, -soft, distance) * canvas.cover
    whole = slice(0, canvas.size)
    if flaw.kind == "dent":
        sign = flaw.dice.pick((-1, -1, 1))
        level = np.clip(-distance * (1 / size), 0, 1)
        bowl = level * level * (3 - 2 * level)
        canvas.height += sign * bowl * size * 0.35 * flaw.strength * canvas.cover
        canvas.layers[:3] *= 1 - 0.15 * bowl * canvas.cover
    elif flaw.kind == "patch":
        rough = spline_noise(flaw.dice, canvas.size, 60, 60, whole, whole)
        canvas.height += inside * rough * 0.012 * flaw.strength
        canvas.layers[:3] *= 1 + inside * (0.2 * rough + 0.18 * math.copysign(1, flaw.turn))
    else:
        colour = _contrasting(canvas, flaw, centre)
        opacity = flaw.dice.between(0.35, 0.75) if flaw.kind == "stain" else 0.9
        rim = 1 + 0.5 * np.exp(-((distance * (4 / size)) ** 2)) * (flaw.turn > 0)
        _tint(canvas, np.clip(inside * rim * opacity * min(flaw.strength, 1.5), 0, 1), colour)
        canvas.layers[3] += inside * 0.3 * (flaw.place > 0.2)


def _lay_foreign(canvas: Canvas, flaw: Flaw, centre: tuple[float, float], size: float) -> None:
    px = 2 / canvas.size
    colour = _contrasting(canvas, flaw, centre)
    tone: Field
    if flaw.dice.chance(0.45):
        line, along = _stroke(canvas, flaw, centre, flaw.dice.between(0.3, 0.9), 0.6)
        width = flaw.dice.between(0.012, 0.03) * flaw.strength
        distance = line - width
        tone = 1 + 0.25 * np.sin(along * 60)
    else:
        distance = _blob(canvas, flaw, centre, size)
        width = size * 0.5
        whole = slice(0, canvas.size)
        tone = 1 + 0.2 * spline_noise(flaw.dice, canvas.size, 30, 30, whole, whole)
    # A foreign body may hang over the outline of the part, but it starts on it.
    alpha = np.clip(0.5 - distance / px, 0, 1)
    level = np.clip(-distance / width, 0, 1)
    target = colour[:, None, None] * tone
    canvas.layers[:3] += alpha * (target - canvas.layers[:3])
    canvas.layers[3] += alpha * (flaw.dice.between(0, 0.6) - canvas.layers[3])
    canvas.layers[4] *= 1 - alpha
    base = canvas.height * canvas.cover
    bump = base + np.sqrt(level * (2 - level)) * width
    canvas.height += alpha * (bump - canvas.height)
    np.maximum(canvas.cover, alpha, out=canvas.cover)


def _lay_loss(canvas: Canvas, flaw: Flaw, centre: tuple[float, float], size: float) -> None:
    px = 2 / canvas.size
    distance = _blob(canvas, flaw, centre, size)
    inside = np.clip(0.5 - distance / px, 0, 1)
    if flaw.kind == "broken":
        canvas.cover *= 1 - inside
        rim = np.exp(-((distance * (1 / 0.025)) ** 2)) * canvas.cover
        canvas.layers[:3] += rim * 0.5 * (0.75 - canvas.layers[:3])
        return
    inside = inside * canvas.cover
    if flaw.kind == "hole":
        canvas.layers[:3] *= 1 - 0.85 * inside
        canvas.layers[3:] *= 1 - inside
        canvas.height -= inside * 0.06
        return
    # A fragment: the stuff breaks into tilted facets that catch the light.
    whole = slice(0, canvas.size)
    tilt = spline_noise(flaw.dice, canvas.size, 12, 12, whole, whole)
    facet = np.round(tilt * 1.5) * 0.5
    canvas.height += inside * facet * 0.06
    canvas.layers[:3] += inside * (np.clip(0.35 + 0.35 * facet, 0.02, 1) - canvas.layers[:3]) * 0.7
    canvas.layers[3] += inside * 0.4
