"""Surfaces that fill the frame: wood, leather, stone, tiles, ground metal and mixtures."""

import math
from typing import Any

import numpy as np

from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field, lattice_noise, smoothstep, voronoi
from replaycad.mini.world.materials import draw_material
from replaycad.mini.world.parts import Family
from replaycad.mini.world.woven import (
    lay,
    paint_mesh,
    paint_weave,
    paint_zipper,
    plan_mesh,
    plan_weave,
    plan_zipper,
    warped,
)

Plan = dict[str, Any]
SURFACE_FAULTS = (
    "scratch",
    "crack",
    "dent",
    "stain",
    "contamination",
    "hole",
    "spot",
    "cut",
    "patch",
)


def plan_wood(dice: Dice) -> Plan:
    """Draw wood grain, veined stone or brushed metal: streaks along one direction."""
    stuff = draw_material(dice, ("wood", "wood", "metal", "stone", "plastic"))
    if stuff.kind == "wood":
        stuff = draw_material(dice, ("wood",), ("brown", "beige", "orange", "grey"))
    return {
        "stuff": stuff,
        "lines": dice.between(8, 110),
        "length": dice.between(0.5, 6),
        "warp": dice.between(0.0, 0.25),
        "rings": dice.between(3, 14),
        "ring_depth": dice.between(0.0, 0.4),
        "depth": dice.between(0.05, 0.35),
        "relief": dice.between(0.0, 0.006),
        "planks": dice.between(0.3, 0.8) if dice.chance(0.25) else 0.0,
        "bow": 0.0,
    }


def paint_wood(frame: Frame, plan: Plan) -> None:
    """Paint fine streaks over slow rings that a noise bends."""
    u, v = warped(frame, plan)
    lay(frame, plan["stuff"])
    bend = plan["warp"] * frame.noise(2.5)
    rings = np.sin((v + bend) * plan["rings"] + lattice_noise(frame.dice, u, v, 1.5, 6))
    fine = lattice_noise(frame.dice, u, v + bend * 0.4, plan["length"], plan["lines"])
    coarse = lattice_noise(frame.dice, u, v, plan["length"] * 0.7, plan["lines"] * 0.3)
    frame.shade(
        np.maximum(
            1 + plan["depth"] * (0.4 * fine + 0.4 * coarse) + 0.5 * plan["ring_depth"] * rings, 0.1
        )
    )
    frame.raise_by(plan["relief"] * fine)
    if plan["planks"]:
        gap = np.abs(v / plan["planks"] - np.round(v / plan["planks"])) * plan["planks"]
        frame.shade(1 - 0.7 * np.clip((0.012 - gap) / frame.px + 0.5, 0, 1))
    frame.weather(plan["stuff"])


def plan_cast(dice: Dice) -> Plan:
    """Draw a low-contrast ground face: faint streaks, slow shading, darker borders, few specks."""
    return {
        "stuff": draw_material(dice, ("metal", "stone", "ceramic", "plastic", "rubber", "paper")),
        "upright": dice.chance(0.7),
        "streaks": (dice.between(20, 128), dice.between(0.5, 4), dice.between(0.02, 0.14)),
        "slow": (dice.between(1, 4), dice.between(0.05, 0.35)),
        "border": dice.between(0.1, 0.7) if dice.chance(0.6) else 0.0,
        "border_width": dice.between(0.1, 0.5),
        "chips": dice.chance(0.4),
        "specks": dice.between(2.4, 3.4),
        "exposure": dice.between(0.0, 0.25),
        "bow": 0.0,
    }


def paint_cast(frame: Frame, plan: Plan) -> None:
    """Paint the face; slow shading and streak strength differ from picture to picture."""
    stuff = plan["stuff"].tinted(1 + frame.dice.around(0, plan["exposure"]))
    lay(frame, stuff._replace(metal=stuff.metal * 0.3))
    lines, length, depth = plan["streaks"]
    x, y = (frame.canvas.x, frame.canvas.y) if plan["upright"] else (frame.canvas.y, frame.canvas.x)
    size = (lines, length) if plan["upright"] else (length, lines)
    streak = lattice_noise(frame.dice, frame.canvas.x, frame.canvas.y, size[0], size[1])
    cells, slow = plan["slow"]
    light = 1 + slow * frame.noise(cells) * 0.6 + slow * lattice_noise(frame.dice, x, y, 3.0, 0.4)
    frame.shade(np.maximum(light * (1 + depth * streak * (0.6 + 0.4 * frame.noise(2))), 0.08))
    if plan["border"]:
        side = smoothstep(1 - plan["border_width"], 1.05, np.abs(x + frame.dice.around(0, 0.05)))
        frame.shade(1 + side * plan["border"] * (frame.dice.around(-0.3, 0.5)))
    if plan["chips"]:
        edge = np.abs(y) + 0.03 * lattice_noise(frame.dice, x, y, 6, 1)
        frame.shade(1 - 0.8 * smoothstep(0.95, 0.99, edge))
    specks = smoothstep(plan["specks"], plan["specks"] + 0.6, frame.noise(80))
    frame.shade(1 - 0.5 * specks)
    frame.weather(plan["stuff"])


def plan_cells(dice: Dice) -> Plan:
    """Draw leather, terrazzo, pebbles, foam or crystal: random cells with borders."""
    return {
        "stuff": draw_material(dice, ("rubber", "stone", "cloth", "ceramic", "metal", "plastic")),
        "palette": [draw_material(dice, ("stone", "ceramic", "metal")) for _ in range(4)],
        "cells": dice.between(4, 26),
        "jitter": dice.between(0.5, 1.0),
        "stretch": dice.between(0.6, 1.0),
        "table": dice.uniforms(32, 32, 2),
        "style": dice.pick(
            ("leather", "leather", "leather", "terrazzo", "terrazzo", "foam", "crystal")
        ),
        "depth": dice.between(0.005, 0.03),
        "gap": dice.between(0.03, 0.2),
        "size": dice.between(0.25, 0.6),
        "bow": dice.between(0.0, 0.04),
    }


def paint_cells(frame: Frame, plan: Plan) -> None:
    """Paint cells as bumps with seams, chips in a ground, pores, or flat crystals."""
    u, v = warped(frame, plan)
    shift_u, shift_v = frame.dice.between(0, 32), frame.dice.between(0, 32)
    first, second, owner = voronoi(
        u * (plan["cells"] * 0.5) + shift_u,
        v * (plan["cells"] * 0.5 / plan["stretch"]) + shift_v,
        plan["table"],
        plan["jitter"],
    )
    seam = second - first
    style = plan["style"]
    shade = plan["table"].reshape(-1, 2)[owner, 0]
    lay(frame, plan["stuff"])
    if style == "leather":
        bump = smoothstep(0.0, plan["gap"] * 2.5, seam)
        frame.raise_by(bump * plan["depth"] * 1.5)
        frame.shade(0.75 + 0.25 * bump)
    elif style == "terrazzo":
        limit = plan["size"] * (0.4 + 0.9 * shade)
        inside = smoothstep(0.0, 0.08, np.minimum(limit - first, seam * 0.6 - 0.02))
        colours = np.array([m.colour for m in plan["palette"]], dtype=np.float32)
        chosen = colours[owner & 3].transpose(2, 0, 1)
        frame.layers[:3] += inside * (chosen - frame.layers[:3])
    elif style == "foam":
        pore = smoothstep(0.0, 0.12, plan["size"] * (0.5 + 0.8 * shade) - first)
        frame.shade(1 - 0.5 * pore)
        frame.raise_by(-pore * plan["depth"] * 2)
    else:
        frame.shade(0.75 + 0.5 * shade)
        frame.raise_by((shade - 0.5) * plan["depth"] * 0.3)
    frame.weather(plan["stuff"])


def plan_lattice(dice: Dice) -> Plan:
    """Draw tiles, perforated sheet, knurl, ribs, honeycomb or solar cells: one repeated motif."""
    return {
        "stuff": draw_material(dice, ("metal", "metal", "plastic", "ceramic", "stone", "rubber")),
        "second": draw_material(dice, ("metal", "plastic", "ceramic", "paper")),
        "style": dice.pick(
            ("tiles", "bricks", "holes", "holes", "pyramids", "ribs", "studs", "hexes", "lines")
        ),
        "pitch": (dice.between(0.1, 0.5), dice.between(0.1, 0.5)),
        "square": dice.chance(0.5),
        "gap": dice.between(0.06, 0.2),
        "size": dice.between(0.25, 0.42),
        "depth": dice.between(0.05, 0.3),
        "sharp": dice.between(1.0, 4.0),
        "mottle": dice.between(0.0, 0.25),
        "bars": dice.between(0.3, 0.9),
        "bow": dice.between(0.0, 0.01),
    }


def paint_lattice(frame: Frame, plan: Plan) -> None:
    """Paint the motif at every node; tiles differ slightly from each other."""
    u, v = warped(frame, plan)
    pitch_u, pitch_v = plan["pitch"][0], plan["pitch"][0 if plan["square"] else 1]
    style = plan["style"]
    a, b = u * (1 / pitch_u), v * (1 / pitch_v)
    row = np.floor(b)
    if style in ("bricks", "holes", "hexes"):
        a = a + 0.5 * np.mod(row, 2)
    column = np.floor(a)
    gap_a, gap_b = a - column - 0.5, b - row - 0.5
    lay(frame, plan["stuff"])
    depth, tone = plan["depth"] * pitch_u, np.ones_like(u)
    if style in ("tiles", "bricks"):
        number = np.mod(column * 7 + row * 13, 64).astype(np.int32)
        tone = 1 + plan["mottle"] * 0.5 * frame.dice.normals(64)[number]
        inner = 0.5 - np.maximum(np.abs(gap_a), np.abs(gap_b) * (pitch_v / pitch_u))
        level = np.clip(inner * (1 / plan["gap"]) - 0.3, 0, 1)
        joint = np.clip((plan["gap"] * 0.35 - inner) * (pitch_u / frame.px) + 0.5, 0, 1)
    elif style == "ribs":
        wave = 0.5 + 0.5 * np.cos(2 * math.pi * a)
        level, joint = wave ** plan["sharp"], (1 - wave) ** 3 * 0.5
    elif style == "pyramids":
        level = 1 - np.abs(gap_a + gap_b) - np.abs(gap_a - gap_b)
        joint = np.clip(0.25 - level, 0, 1) * 2
    elif style == "lines":
        joint = np.clip((0.06 - np.abs(gap_a)) * (pitch_u / frame.px) + 0.5, 0, 1)
        bar = np.abs(v / plan["bars"] - np.round(v / plan["bars"])) * plan["bars"]
        joint = np.maximum(joint, np.clip((0.02 - bar) * (1 / frame.px) + 0.5, 0, 1))
        level = 0.2 * joint
        depth *= 0.3
    else:
        radius = np.sqrt(gap_a**2 + (gap_b * (pitch_v / pitch_u)) ** 2)
        limit = plan["size"] * min(1.0, pitch_v / pitch_u)
        inside = np.clip((limit - radius) * (pitch_u / frame.px) + 0.5, 0, 1)
        hole = style != "studs"
        level = -inside if hole else np.sqrt(np.maximum(limit * limit - radius * radius, 0)) * 2
        joint = inside if hole else inside * 0.0
    frame.shade(tone)
    frame.raise_by(level * depth)
    frame.tint(joint, plan["second"].tinted(0.7).colour)
    frame.weather(plan["stuff"])


def plan_plain(dice: Dice) -> Plan:
    """Draw concrete, paper, carpet pile, painted or speckled ground: noise at several scales."""
    return {
        "stuff": draw_material(dice, ("stone", "paper", "cloth", "metal", "ceramic", "rubber")),
        "second": draw_material(dice, ("stone", "paper", "cloth")),
        "octaves": [
            (4 * 2.2**k * dice.between(0.7, 1.3), dice.between(0.0, 0.05 + 0.025 * k))
            for k in range(5)
        ],
        "relief": dice.between(0.0, 0.012),
        "specks": (dice.between(16, 110), dice.between(0.8, 2.2)) if dice.chance(0.6) else None,
        "blend": dice.between(0.3, 0.9),
        "bow": 0.0,
    }


def paint_plain(frame: Frame, plan: Plan) -> None:
    """Paint noise octaves and thresholded specks of a second stuff."""
    lay(frame, plan["stuff"])
    total = np.zeros_like(frame.u)
    for cells, weight in plan["octaves"]:
        total += weight * frame.noise(cells)
    frame.shade(np.maximum(1 + total, 0.1))
    frame.raise_by(total * plan["relief"])
    if plan["specks"] is not None:
        cells, limit = plan["specks"]
        spots = smoothstep(limit, limit + 0.5, frame.noise(cells))
        frame.tint(spots * plan["blend"], plan["second"].colour)
    frame.weather(plan["stuff"])


def plan_mixture(dice: Dice) -> Plan:
    """Draw an unnamed texture: a few random waves, lattices, cells and noises laid together."""
    layers = []
    for _ in range(dice.integer(2, 4)):
        layers.append(
            {
                "form": dice.pick(("wave", "wave", "dots", "noise", "streaks", "cells", "checks")),
                "angle": dice.pick((0.0, math.pi / 2, dice.between(-3.1, 3.1))),
                "count": dice.between(5, 60),
                "bend": dice.pick((0.0, dice.between(0.0, 1.5))),
                "limit": dice.between(-0.6, 0.9),
                "sharp": dice.between(0.05, 1.0),
                "stuff": draw_material(
                    dice, ("metal", "plastic", "cloth", "stone", "wood", "rubber", "ceramic")
                ),
                "opacity": dice.between(0.0, 0.9),
                "depth": dice.between(-0.25, 0.25),
                "table": dice.uniforms(16, 16, 2),
                "aspect": dice.between(0.05, 0.5),
            }
        )
    return {
        "stuff": draw_material(
            dice, ("metal", "plastic", "cloth", "stone", "wood", "rubber", "paper")
        ),
        "layers": layers,
        "bow": dice.between(0.0, 0.05),
    }


def _pattern(frame: Frame, layer: Plan, u: Field, v: Field) -> Field:
    cosine, sine = math.cos(layer["angle"]), math.sin(layer["angle"])
    a, b = u * cosine + v * sine, v * cosine - u * sine
    count, form = layer["count"], layer["form"]
    if layer["bend"]:
        a = a + layer["bend"] * 0.1 * np.sin(b * (count * 0.2))
    if form == "wave":
        return np.sin(a * count)
    if form == "dots":
        return (np.sin(a * count) + np.sin(b * count)) * 0.7
    if form == "checks":
        return np.sign(np.sin(a * count)) * np.sign(np.sin(b * count)) * 0.8
    if form == "noise":
        return frame.noise(count)
    if form == "streaks":
        return lattice_noise(frame.dice, a, b, count, count * layer["aspect"])
    first, second, _ = voronoi(a * count * 0.25, b * count * 0.25, layer["table"], 0.9)
    return 1 - 3 * (second - first)


def paint_mixture(frame: Frame, plan: Plan) -> None:
    """Paint each layer where its pattern passes its limit."""
    u, v = warped(frame, plan)
    lay(frame, plan["stuff"])
    for layer in plan["layers"]:
        pattern = _pattern(frame, layer, u, v)
        alpha = smoothstep(
            layer["limit"] - layer["sharp"], layer["limit"] + layer["sharp"], pattern
        )
        frame.tint(alpha * layer["opacity"], layer["stuff"].colour)
        frame.raise_by(alpha * (layer["depth"] * layer["sharp"] / layer["count"] * 3))
    frame.weather(plan["stuff"])


SURFACES: tuple[Family, ...] = (
    Family("mesh", plan_mesh, paint_mesh, ("warped",), 2.0, 9.0, False),
    Family("weave", plan_weave, paint_weave, ("warped",), 1.8, 9.0, False),
    Family("grain", plan_wood, paint_wood, (), 1.5, 9.0, False),
    Family("cast", plan_cast, paint_cast, (), 1.8, 9.0, False),
    Family("cells", plan_cells, paint_cells, (), 1.6, 9.0, False),
    Family("lattice", plan_lattice, paint_lattice, ("warped",), 1.8, 9.0, False),
    Family("speckle", plan_plain, paint_plain, (), 1.3, 9.0, False),
    Family("texture", plan_mixture, paint_mixture, (), 4.0, 9.0, False),
    Family("zipper", plan_zipper, paint_zipper, ("missing",), 0.6, 9.0, False),
)
