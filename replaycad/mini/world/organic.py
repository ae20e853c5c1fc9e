"""Soft, natural and soft-goods parts: pills, capsules, food, cables in section, brushes."""

import math
from typing import Any

import numpy as np

from replaycad.mini.world import shapes
from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field, smoothstep
from replaycad.mini.world.lettering import draw_lettering
from replaycad.mini.world.materials import draw_material

Plan = dict[str, Any]
STRONG = ("red", "orange", "yellow", "green", "blue", "white", "black", "brown", "grey")


def plan_pill(dice: Dice) -> Plan:
    """Draw a pill, capsule or tablet: an ellipse or stadium with print, score or two halves."""
    style = dice.pick(("round", "oval", "stadium", "stadium", "radial"))
    return {
        "stuff": draw_material(dice, ("ceramic", "plastic", "food")),
        "second": draw_material(dice, ("ceramic", "plastic")),
        "style": style,
        "half": (dice.between(0.8, 0.98), dice.between(0.35, 0.75)),
        "outline": shapes.draw_harmonics(dice, 0.8, 0.12, 6),
        "dome": dice.between(0.1, 0.8),
        "two_tone": dice.chance(0.35),
        "seam": dice.between(-0.2, 0.2),
        "score": dice.chance(0.35),
        "ring": dice.chance(0.3),
        "specks": dice.between(0.8, 1.6) if dice.chance(0.35) else 0.0,
        "lettering": draw_lettering(dice, dice.integer(1, 2)) if dice.chance(0.6) else None,
        "ink": dice.pick(((0.1, 0.1, 0.12), (0.6, 0.1, 0.1), (0.95, 0.95, 0.95), (0.1, 0.2, 0.5))),
    }


def paint_pill(frame: Frame, plan: Plan) -> None:
    """Paint the domed body, its halves, score line, specks and print."""
    u, v = frame.u, frame.v
    half_u, half_v = plan["half"]
    if plan["style"] == "round":
        distance, half_v, half_u = shapes.circle(u, v, 0.8), 0.8, 0.8
    elif plan["style"] == "oval":
        distance = shapes.ellipse(u, v, half_u, half_v)
    elif plan["style"] == "stadium":
        distance = shapes.box(u, v, half_u, half_v, half_v)
    else:
        distance = shapes.radial(u, v, plan["outline"])
    height = shapes.dome(distance, plan["dome"] * half_v + 0.02) * (
        0.25 + 0.5 * half_v * plan["dome"]
    )
    alpha = frame.paint(distance, plan["stuff"], height)
    if plan["two_tone"]:
        overlap = np.maximum(distance, plan["seam"] - u)
        frame.paint(overlap, plan["second"], 0.02, lift=True)
    if plan["ring"]:
        frame.raise_by(-0.04 * alpha * np.exp(-(((distance + 0.12) * 30) ** 2)))
    if plan["score"]:
        groove = np.exp(-((u * 18) ** 2)) * alpha
        frame.raise_by(-0.07 * groove)
    if plan["specks"]:
        spots = smoothstep(plan["specks"], plan["specks"] + 0.4, frame.noise(22)) * alpha
        frame.tint(spots * 0.8, plan["second"].colour)
    frame.weather(plan["stuff"])
    if plan["lettering"] is not None:
        frame.print_on(plan["lettering"], (0, 0, half_u * 0.6, half_v * 0.5), plan["ink"], 0.85)


def plan_morsel(dice: Dice) -> Plan:
    """Draw a nut, bean, candy, stone or fruit: one irregular blob with a skin."""
    return {
        "stuff": draw_material(dice, ("food", "food", "stone", "wood")),
        "second": draw_material(dice, ("food", "wood")),
        "outline": shapes.draw_harmonics(
            dice, dice.between(0.65, 0.85), dice.between(0.03, 0.25), 6
        ),
        "wobble": dice.between(0.0, 0.05),
        "stretch": dice.between(0.6, 1.0),
        "cap": (dice.between(0.15, 0.5), dice.between(-0.6, 0.6)) if dice.chance(0.5) else (0, 0),
        "streaks": dice.between(0.0, 0.3),
        "streak_aspect": dice.pick((0.1, 0.2, 5.0, 1.0)),
        "dome": dice.between(0.4, 1.0),
        "crease": dice.chance(0.3),
    }


def paint_morsel(frame: Frame, plan: Plan) -> None:
    """Paint the blob with an outline that differs a little in every picture."""
    u, v = frame.u, frame.v
    outline = plan["outline"].copy()
    orders = np.arange(2, len(outline), dtype=np.float32)[:, None]
    outline[2:] += frame.dice.normals(*outline[2:].shape) * (plan["wobble"] / orders)
    distance = shapes.radial(u, v * (1 / plan["stretch"]), outline) * plan["stretch"]
    height = shapes.dome(distance, 0.8 * plan["dome"]) * 0.6 * plan["dome"]
    alpha = frame.paint(distance, plan["stuff"], height)
    size, where = plan["cap"]
    if size:
        cap = np.sqrt((u - where) ** 2 + v * v) - size + 0.06 * frame.noise(8)
        frame.tint(np.clip(-cap * 12, 0, 1) * alpha * 0.8, plan["second"].colour)
    if plan["streaks"]:
        lines = frame.noise(34, plan["streak_aspect"])
        frame.shade(1 + plan["streaks"] * lines * alpha * 0.5)
        frame.raise_by(0.012 * lines * alpha)
    if plan["crease"]:
        fold = np.exp(-(((v - 0.15 * u * u) * 16) ** 2)) * alpha
        frame.raise_by(-0.12 * fold)
        frame.shade(1 - 0.4 * fold)
    frame.weather(plan["stuff"])


def plan_curl(dice: Dice) -> Plan:
    """Draw a cashew, macaroni, hook, pretzel piece or ring: a bent tube."""
    return {
        "stuff": draw_material(dice, ("food", "food", "plastic", "metal", "rubber")),
        "radius": dice.between(0.4, 0.75),
        "half_angle": dice.between(0.7, 3.1),
        "thick": dice.between(0.1, 0.32),
        "ribs": dice.integer(3, 9) if dice.chance(0.4) else 0,
        "hollow": dice.chance(0.4),
        "taper": dice.between(-0.12, 0.12),
        "wobble": dice.between(0.0, 0.08),
    }


def paint_curl(frame: Frame, plan: Plan) -> None:
    """Paint the bent tube with ribs along it and dark openings when hollow."""
    u, v = frame.u, frame.v + 0.25
    thick = plan["thick"] * (1 + frame.dice.around(0, 0.5) * plan["wobble"])
    opening = plan["half_angle"] * (1 + frame.dice.around(0, 0.5) * plan["wobble"])
    centre = shapes.arc(u, v, plan["radius"], opening, 0.0)
    limit = thick + plan["taper"] * u
    distance = centre - limit
    round_height = np.sqrt(np.maximum(limit * limit - centre * centre, 0))
    if plan["ribs"]:
        across = np.sqrt(u * u + v * v) - plan["radius"]
        round_height = round_height + 0.02 * np.cos(across * (plan["ribs"] * 3.14 / thick))
    frame.paint(distance, plan["stuff"], round_height)
    if plan["hollow"]:
        for sign in (-1, 1):
            end_u = sign * plan["radius"] * math.sin(opening)
            end_v = plan["radius"] * math.cos(opening)
            hole = shapes.ellipse(u - end_u, v - end_v, thick * 0.7, thick * 0.45)
            inside = np.clip(-hole / frame.px, 0, 1)
            frame.shade(1 - 0.6 * inside)
    frame.weather(plan["stuff"])


def plan_cable(dice: Dice) -> Plan:
    """Draw a cable cut across: sheath, insulated cores and strands."""
    cores = dice.integer(1, 7)
    words = [dice.pick(STRONG) for _ in range(cores)]
    return {
        "stuff": draw_material(dice, ("rubber", "plastic"), (dice.pick(STRONG),)),
        "second": draw_material(dice, ("metal",), ("copper", "silver", "gold")),
        "inner": dice.between(0.72, 0.9),
        "filling": draw_material(dice, ("rubber", "paper", "plastic")),
        "cores": [draw_material(dice, ("plastic",), (word,)) for word in words],
        "conductor": dice.between(0.5, 0.78),
        "strand": dice.between(3.0, 8.0),
        "phase": dice.between(0, 6.3),
        "table": dice.uniforms(16, 16, 2),
    }


def paint_cable(frame: Frame, plan: Plan) -> None:
    """Paint the sheath ring, then each core as insulation around strands."""
    u, v = frame.u, frame.v
    rim = shapes.circle(u, v, 0.97)
    frame.paint(rim, plan["stuff"], 0.2 * shapes.dome(rim, 0.1))
    hollow = shapes.circle(u, v, plan["inner"])
    frame.paint(hollow, plan["filling"].tinted(0.5), -0.1)
    frame.weather(plan["stuff"])
    count = len(plan["cores"])
    if count == 1:
        size, ring = plan["inner"] * 0.9, 0.0
    else:
        sine = math.sin(math.pi / count)
        size = plan["inner"] * sine / (1 + sine) * 0.98
        ring = plan["inner"] - size
    for number, stuff in enumerate(plan["cores"]):
        at = frame.place(number, count, size)
        turn = plan["phase"] + 2 * math.pi * number / count + frame.dice.around(0, 0.03)
        outline = shapes.draw_harmonics(frame.dice, 0.97, 0.015, 4)
        core = frame.inset(
            ring * math.cos(turn) + at.u, ring * math.sin(turn) + at.v, turn, size, 1.1
        )
        used = core.recolour(stuff) if at.recoloured else stuff
        wander = core.noise(10)
        shift = core.dice.between(0, 1)
        if not at.present:
            continue
        distance = shapes.radial(core.u, core.v, outline)
        core.paint(distance, used, 0.15 * shapes.dome(distance, 0.15))
        _paint_strands(core, plan, wander, shift)


def _paint_strands(core: Frame, plan: Plan, wander: Field, turn: float) -> None:
    u = core.u * plan["strand"] + turn
    v = core.v * plan["strand"] * 1.155
    row = np.floor(v)
    u = u + 0.5 * np.mod(row, 2)
    gap_u = u - np.floor(u) - 0.5
    gap_v = (v - row - 0.5) * 0.866
    strand = np.sqrt(gap_u * gap_u + gap_v * gap_v)
    area = shapes.circle(core.u, core.v, plan["conductor"]) + 0.04 * wander
    dome = np.sqrt(np.maximum(0.25 - strand * strand, 0)) * (1 / plan["strand"])
    alpha = core.paint(area, plan["second"], 0.05 + dome)
    core.shade(1 - alpha * np.clip(strand - 0.3, 0, 1) * 2.2)


def plan_brush(dice: Dice) -> Plan:
    """Draw a brush head or tufted strip: a backing with a lattice of bristle tufts."""
    words = [dice.pick(STRONG) for _ in range(3)]
    return {
        "stuff": draw_material(dice, ("plastic", "wood", "rubber")),
        "tufts": [draw_material(dice, ("plastic",), (word,)) for word in words],
        "half": (dice.between(0.6, 0.95), dice.between(0.25, 0.5)),
        "corner": dice.between(0.1, 0.4),
        "count": dice.integer(6, 12),
        "rows": dice.integer(3, 6),
        "fill": dice.between(0.75, 1.15),
        "pattern": dice.integer(0, 2),
        "fray": dice.between(0.1, 0.5),
    }


def paint_brush(frame: Frame, plan: Plan) -> None:
    """Paint the backing and the tufts, each one a little frayed disc of fibres."""
    half_u, half_v = plan["half"]
    body = shapes.box(frame.u, frame.v, half_u, half_v, plan["corner"])
    frame.paint(body, plan["stuff"], 0.2 * shapes.dome(body, 0.1))
    count, rows = plan["count"], plan["rows"]
    step_u, step_v = 1.85 * half_u / count, 1.8 * half_v / rows
    fibres = frame.noise(90)
    for row in range(rows):
        for column in range(count):
            at = frame.place(row * count + column, rows * count, step_u)
            where_u = (column - 0.5 * (count - 1)) * step_u + frame.dice.around(0, 0.08) * step_u
            where_v = (row - 0.5 * (rows - 1)) * step_v + frame.dice.around(0, 0.08) * step_v
            shade = frame.dice.between(0.85, 1.1)
            corner = (abs(where_u) / half_u) ** 4 + (abs(where_v) / half_v) ** 4
            if corner > 1.0 or not at.present:
                continue
            pick = (row, column // 3, (row + column) % 2)[plan["pattern"]] % 3
            size = 0.5 * plan["fill"] * min(step_u, step_v)
            tuft = frame.inset(where_u + at.u, where_v + at.v, 0, size, 1.4)
            used = tuft.recolour(plan["tufts"][pick]) if at.recoloured else plan["tufts"][pick]
            radius = np.sqrt(tuft.u * tuft.u + tuft.v * tuft.v)
            local = fibres[
                tuft.rows.start - frame.rows.start : tuft.rows.stop - frame.rows.start,
                tuft.columns.start - frame.columns.start : tuft.columns.stop - frame.columns.start,
            ]
            distance = radius - 1 + plan["fray"] * 0.3 * local
            tuft.paint(distance, used.tinted(shade), 1.2 - 0.5 * radius)
            tuft.shade(1 + np.clip(-distance, 0, 1) * 0.35 * local)
    frame.weather(plan["stuff"])


def plan_candle(dice: Dice) -> Plan:
    """Draw a candle, cup, tin or blossom from above: a lobed round body with a centre mark."""
    return {
        "stuff": draw_material(dice, ("plastic", "ceramic", "food", "glass")),
        "second": draw_material(dice, ("metal", "plastic", "paper")),
        "lobes": dice.pick((0, 5, 8, 12, 24)),
        "depth": dice.between(0.02, 0.12),
        "rim": dice.between(0.04, 0.15),
        "melt": dice.between(-0.2, 0.2),
        "wick": dice.between(0.04, 0.14),
        "lean": dice.between(0.05, 0.4),
    }


def paint_candle(frame: Frame, plan: Plan) -> None:
    """Paint rim, body and the centre mark, which leans another way in every picture."""
    u, v = frame.u, frame.v
    radius = np.sqrt(u * u + v * v)
    distance = radius - 0.95
    if plan["lobes"]:
        lobes = np.cos(np.arctan2(v, u) * plan["lobes"])
        distance = distance + plan["depth"] * (0.5 - 0.5 * lobes)
    frame.paint(distance, plan["second"], 0.25 * shapes.dome(distance, plan["rim"]))
    inner = distance + plan["rim"]
    frame.paint(inner, plan["stuff"], 0.1 + plan["melt"] * shapes.bevel(inner, 0.7))
    frame.weather(plan["stuff"])
    at = frame.place(0, 1, 0.5)
    if at.present:
        turn = frame.dice.between(0, 6.3)
        end = (plan["lean"] * math.cos(turn) + at.u, plan["lean"] * math.sin(turn) + at.v)
        stick = shapes.segment(u, v, (at.u * 0.5, at.v * 0.5), end, plan["wick"])
        frame.paint(stick, plan["second"].tinted(0.4), 0.4)
