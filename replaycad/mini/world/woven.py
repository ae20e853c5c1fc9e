"""Woven and strung surfaces: wire mesh, cloth, zippers; and how any surface is laid and warped."""

import math
from typing import Any

import numpy as np

from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field
from replaycad.mini.world.materials import Material, draw_material

Plan = dict[str, Any]
EVERYWHERE = -1.0


def lay(frame: Frame, stuff: Material, height: Field | float = 0.0) -> None:
    """Lay a stuff over the whole frame."""
    frame.paint(np.full_like(frame.u, EVERYWHERE), stuff, height)


def warped(frame: Frame, plan: Plan) -> tuple[Field, Field]:
    """Return the pattern coordinates, pushed aside around a spot when the flaw is a warp."""
    u, v = frame.u, frame.v
    bow = plan.get("bow", 0.0)
    if bow:
        u = u + bow * frame.noise(2)
        v = v + bow * frame.noise(2)
    flaw = frame.flaw
    if flaw is not None and flaw.kind == "warped":
        gap_u, gap_v = frame.canvas.x - flaw.shift[0] * 0.7, frame.canvas.y - flaw.shift[1] * 0.7
        near = np.exp(-(gap_u**2 + gap_v**2) * (1 / (0.03 + 0.03 * flaw.strength)))
        u = u + near * 0.1 * flaw.strength * math.copysign(1, flaw.turn)
        v = v + near * 0.08 * flaw.strength * math.copysign(1, flaw.place)
    return u, v


def plan_mesh(dice: Dice) -> Plan:
    """Draw a wire mesh or expanded-metal grid: two families of wires at an angle."""
    pitch = dice.between(0.1, 0.34)
    return {
        "stuff": draw_material(dice, ("metal", "metal", "plastic", "cloth")),
        "ground": draw_material(dice, ("plastic", "paper", "metal", "stone")),
        "pitch": (pitch, pitch * dice.between(0.7, 1.5)),
        "skew": dice.between(0.25, 0.8),
        "wire": dice.between(0.12, 0.36),
        "woven": dice.between(0.0, 1.0),
        "depth": dice.between(0.2, 0.7),
        "bow": dice.between(0.0, 0.02),
        "play": dice.between(0.0, 0.08),
    }


def paint_mesh(frame: Frame, plan: Plan) -> None:
    """Paint both wire families as round bars; woven ones pass over and under."""
    lay(frame, plan["ground"], -0.05)
    frame.weather(plan["ground"])
    u, v = warped(frame, plan)
    angle = plan["skew"] * (1 + frame.dice.around(0, plan["play"]))
    cosine, sine = math.cos(angle), math.sin(angle)
    first = (u * cosine + v * sine) * (1 / plan["pitch"][0])
    second = (u * cosine - v * sine) * (1 / plan["pitch"][1])
    thick, depth = plan["wire"], plan["depth"] * plan["pitch"][0] * 0.4
    for across, along, sign in ((first, second, 1), (second, first, -1)):
        number = np.round(across)
        gap = np.abs(across - number)
        parity = np.mod(number + np.round(along), 2) * 2 - 1
        lift = sign * plan["woven"] * depth * 0.5 * parity * np.cos(math.pi * along) ** 2
        tube = np.sqrt(np.maximum(thick * thick - gap * gap, 0)) * depth + lift
        distance = (gap - thick) * plan["pitch"][0]
        if sign < 0:
            distance = np.where((tube < frame.height) & (gap < thick), 0.5, distance)
        frame.paint(distance, plan["stuff"], tube)
    frame.weather(plan["stuff"])


def plan_weave(dice: Dice) -> Plan:
    """Draw cloth, carpet, knit or twill: warp and weft threads in a random over-under table."""
    repeat = dice.pick((2, 2, 3, 4, 4, 5, 8))
    table = np.array([[(i + j) % repeat for i in range(repeat)] for j in range(repeat)])
    ordered = table < dice.integer(1, repeat - 1)
    loose = dice.uniforms(repeat, repeat) > 0.5
    return {
        "stuff": draw_material(dice, ("cloth", "cloth", "rubber", "plastic")),
        "second": draw_material(dice, ("cloth",)),
        "two_tone": dice.chance(0.4),
        "pitch": (dice.between(0.03, 0.13), dice.between(0.03, 0.13)),
        "over": (loose if dice.chance(0.25) else ordered).astype(np.float32),
        "round": dice.between(0.3, 0.8),
        "bow": dice.between(0.0, 0.04),
        "fuzz": dice.between(0.0, 0.5),
    }


def paint_weave(frame: Frame, plan: Plan) -> None:
    """Paint warp over weft where the table says so, each thread round and fibrous."""
    u, v = warped(frame, plan)
    a, b = u * (1 / plan["pitch"][0]), v * (1 / plan["pitch"][1])
    column, row = np.floor(a), np.floor(b)
    repeat = plan["over"].shape[0]
    index = np.mod(row, repeat).astype(np.int32) * repeat + np.mod(column, repeat).astype(np.int32)
    over = plan["over"].ravel()[index]
    gap_a, gap_b = a - column - 0.5, b - row - 0.5
    warp = np.sqrt(np.maximum(0.27 - gap_a * gap_a, 0)) - 0.5 * gap_b * gap_b
    weft = np.sqrt(np.maximum(0.27 - gap_b * gap_b, 0)) - 0.5 * gap_a * gap_a
    level = over * warp + (1 - over) * weft + plan["fuzz"] * 0.25 * frame.noise(110)
    lay(frame, plan["stuff"], level * (plan["round"] * min(plan["pitch"])))
    if plan["two_tone"]:
        frame.tint(1 - over, plan["second"].colour)
    frame.shade(0.55 + 0.9 * np.maximum(level, 0))
    frame.weather(plan["stuff"])


def plan_zipper(dice: Dice) -> Plan:
    """Draw a zipper, seam or tooth strip running over cloth."""
    return {
        **plan_weave(dice),
        "teeth": draw_material(dice, ("metal", "plastic")),
        "width": dice.between(0.12, 0.35),
        "step": dice.between(0.08, 0.2),
        "tape": dice.between(0.3, 0.6),
        "upright": dice.chance(0.7),
    }


def paint_zipper(frame: Frame, plan: Plan) -> None:
    """Paint the cloth, then interleaved teeth along the middle."""
    paint_weave(frame, plan)
    along, across = (frame.v, frame.u) if plan["upright"] else (frame.u, frame.v)
    frame.shade(1 - 0.25 * np.clip((np.abs(across) - plan["tape"]) / frame.px, 0, 1))
    for side in (-1, 1):
        place = along * (1 / plan["step"]) + 0.25 * side
        gap = np.abs(place - np.round(place))
        number = np.round(place)
        half = plan["width"] * 0.62
        distance = np.maximum(
            (gap - 0.27) * plan["step"], np.abs(across - side * 0.35 * plan["width"]) - half * 0.8
        )
        flaw = frame.flaw
        if flaw is not None and flaw.kind == "missing":
            middle = np.round(flaw.shift[0] * 0.6 / plan["step"])
            distance = np.where(np.abs(number - middle) < 0.6 + flaw.strength, 1.0, distance)
        frame.paint(distance, plan["teeth"], 0.08 * (1 - 2 * gap))
    frame.weather(plan["teeth"])
