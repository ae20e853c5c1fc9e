"""Flat and boxy parts: nuts, gears, brackets, keys, connectors, transistors, circuit boards."""

import math
from typing import Any

import numpy as np

from replaycad.mini.world import shapes
from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field
from replaycad.mini.world.lettering import draw_lettering
from replaycad.mini.world.materials import Material, draw_material

Plan = dict[str, Any]
WHITE = (0.92, 0.92, 0.9)


def plan_nut(dice: Dice) -> Plan:
    """Draw a nut, washer-nut or flanged nut seen from above."""
    return {
        "stuff": draw_material(dice, ("metal", "metal", "metal", "plastic")),
        "sides": dice.pick((4, 5, 6, 6, 6, 6, 8, 12)),
        "corner": dice.pick((0.0, 0.1, 0.25)),
        "bore": dice.between(0.3, 0.62),
        "flange": dice.between(1.05, 1.18) if dice.chance(0.3) else 0.0,
        "lip": dice.between(0.05, 0.2),
        "rings": dice.integer(1, 4),
        "lobes": dice.pick((0, 0, 0, 4, 6)),
        "chamfer": dice.between(0.05, 0.25),
    }


def paint_nut(frame: Frame, plan: Plan) -> None:
    """Paint the polygon with chamfered edge, then thread rings in the bore."""
    u, v = frame.u, frame.v
    radius = np.sqrt(u * u + v * v)
    outline = shapes.polygon(u, v, plan["sides"], 0.86, plan["corner"])
    if plan["lobes"]:
        outline = radius - 0.8 - 0.1 * np.cos(np.arctan2(v, u) * plan["lobes"])
    bore = plan["bore"] - radius
    if plan["flange"]:
        frame.paint(np.maximum(radius - plan["flange"], bore), plan["stuff"].tinted(0.9), 0.1)
    distance = np.maximum(outline, bore)
    rim = np.minimum(shapes.bevel(outline, plan["chamfer"]), shapes.bevel(bore, plan["lip"]))
    frame.paint(distance, plan["stuff"], 0.15 + 0.18 * rim)
    inner = np.maximum(bore - 0.09, -bore)
    thread = 0.06 * np.cos((radius - plan["bore"]) * (plan["rings"] * 70))
    frame.paint(
        np.maximum(radius - plan["bore"], plan["bore"] - 0.1 - radius),
        plan["stuff"].tinted(0.55),
        thread,
    )
    frame.shade(1 - 0.2 * np.exp(-np.abs(inner) * 20))
    frame.weather(plan["stuff"])


def plan_gear(dice: Dice) -> Plan:
    """Draw a gear, sprocket, pulley or saw seen from above."""
    return {
        "stuff": draw_material(dice, ("metal", "metal", "plastic")),
        "second": draw_material(dice, ("metal", "plastic")),
        "teeth": dice.integer(8, 42),
        "depth": dice.between(0.04, 0.16),
        "sharp": dice.between(1.0, 4.0),
        "bore": dice.between(0.08, 0.3),
        "hub": dice.between(0.35, 0.6),
        "web": dice.between(0.0, 0.25),
        "spokes": dice.pick((0, 0, 3, 4, 5, 6, 8)),
        "spoke_width": dice.between(0.06, 0.14),
        "holes": dice.pick((0, 3, 4, 6)),
        "saw": dice.between(-0.6, 0.6),
    }


def paint_gear(frame: Frame, plan: Plan) -> None:
    """Paint the toothed rim, the web with spokes or holes, and the hub."""
    u, v = frame.u, frame.v
    radius = np.sqrt(u * u + v * v)
    angle = np.arctan2(v, u)
    phase = angle * plan["teeth"] + plan["saw"] * np.cos(angle * plan["teeth"])
    tooth = np.tanh(plan["sharp"] * np.cos(phase)) * (1 / math.tanh(plan["sharp"]))
    outline = radius - 1 + plan["depth"] * (0.5 - 0.5 * tooth)
    distance = np.maximum(outline, plan["bore"] - radius)
    rim = 1 - 1.4 * plan["depth"] - 0.08
    folded_u, folded_v = u, v
    if plan["spokes"] or plan["holes"]:
        folded_u, folded_v = shapes.folded(u, v, plan["spokes"] or plan["holes"])
    web = np.maximum(radius - rim, plan["hub"] - radius)
    if plan["spokes"]:
        gap = np.maximum(web, plan["spoke_width"] - np.abs(folded_v))
        distance = np.maximum(distance, -gap)
    elif plan["holes"]:
        middle = 0.5 * (rim + plan["hub"])
        hole = shapes.circle(folded_u - middle, folded_v, 0.35 * (rim - plan["hub"]))
        distance = np.maximum(distance, -hole)
    level = 0.2 + 0.06 * shapes.bevel(distance, 0.04) - plan["web"] * shapes.bevel(web, 0.03)
    alpha = frame.paint(distance, plan["stuff"], level)
    hub = np.maximum(radius - plan["hub"], plan["bore"] - radius)
    if plan["second"].metal > 0.3:
        frame.paint(hub, plan["second"], 0.28 + 0.05 * shapes.bevel(hub, 0.05))
    frame.shade(1 - 0.1 * alpha * np.cos(radius * 40) * (plan["web"] > 0.1))
    frame.weather(plan["stuff"])


def plan_bracket(dice: Dice) -> Plan:
    """Draw a plate, bracket, key or wrench: a bar with ends, holes and embossing."""
    count = dice.integer(1, 5)
    return {
        "stuff": draw_material(dice, ("metal", "metal", "plastic", "wood", "rubber")),
        "second": draw_material(dice, ("metal", "plastic")),
        "half": (dice.between(0.5, 0.98), dice.between(0.1, 0.6)),
        "corner": dice.between(0.0, 0.3),
        "end": dice.pick(("none", "round", "fork", "ring", "teeth")),
        "end_size": dice.between(0.2, 0.45),
        "holes": [
            (dice.between(-0.75, 0.75), dice.between(-0.25, 0.25), dice.between(0.04, 0.16))
            for _ in range(count)
        ],
        "symmetric": dice.chance(0.6),
        "bosses": dice.chance(0.4),
        "slot": dice.between(0.2, 0.7) if dice.chance(0.3) else 0.0,
        "edge": dice.between(0.02, 0.2),
        "rib": dice.chance(0.3),
        "lettering": draw_lettering(dice, 2) if dice.chance(0.35) else None,
    }


def _end_outline(frame: Frame, plan: Plan, distance: Field) -> Field:
    u, v, size = frame.u, frame.v, plan["end_size"]
    at = plan["half"][0] - 0.6 * size
    if plan["end"] == "round":
        return shapes.smooth_union(distance, shapes.circle(u - at, v, size), 0.1)
    if plan["end"] == "ring":
        ring = np.abs(shapes.circle(u - at, v, size * 0.8)) - size * 0.25
        return np.minimum(np.maximum(distance, u - at), ring)
    if plan["end"] == "fork":
        jaw = shapes.smooth_union(distance, shapes.circle(u - at, v, size), 0.1)
        return np.maximum(jaw, -shapes.box(u - at - size, v, size, size * 0.45, 0.1))
    if plan["end"] == "teeth":
        bite = 0.12 * np.abs(np.mod(u * 6.5, 2) - 1) + 0.1 * np.abs(np.mod(u * 2.3, 2) - 1)
        return np.maximum(distance, np.where(u > 0, v - plan["half"][1] + bite, -1))
    return distance


def paint_bracket(frame: Frame, plan: Plan) -> None:
    """Paint the bar, drill it, and add bosses or lettering."""
    u, v = frame.u, frame.v
    side = np.abs(u) if plan["symmetric"] else u
    distance = shapes.box(u, v, plan["half"][0], plan["half"][1], plan["corner"])
    distance = _end_outline(frame, plan, distance)
    if plan["slot"]:
        distance = np.maximum(distance, -shapes.box(u, v, plan["slot"], 0.08, 0.08))
    count = len(plan["holes"])
    for number, (hole_u, hole_v, size) in enumerate(plan["holes"]):
        at = frame.place(number, count, 0.3)
        if at.present:
            hole = shapes.circle(
                side - abs(hole_u) - at.u, v - hole_v * plan["half"][1] - at.v, size
            )
            distance = np.maximum(distance, -hole)
    height = 0.12 + 0.12 * shapes.bevel(distance, plan["edge"])
    if plan["rib"]:
        height = height + 0.06 * shapes.bevel(shapes.box(u, v, 0.8, 0.07), 0.05)
    alpha = frame.paint(distance, plan["stuff"], height)
    if plan["bosses"]:
        hole_u, hole_v, size = plan["holes"][0]
        gap = shapes.circle(side - abs(hole_u), v - hole_v * plan["half"][1], size * 1.6)
        boss = np.maximum(np.maximum(gap, -gap - size * 0.6), distance)
        frame.paint(boss, plan["second"], 0.3)
    if plan["lettering"] is not None:
        size = plan["half"][1] * 0.35
        frame.print_on(plan["lettering"], (0, 0, min(size * 2.5, 0.5), size), WHITE, 0.8)
    frame.shade(1 - 0.05 * (1 - alpha))
    frame.weather(plan["stuff"])


def plan_connector(dice: Dice) -> Plan:
    """Draw a connector, terminal, chip or switch: a housing with rows of contacts."""
    return {
        "stuff": draw_material(dice, ("plastic", "plastic", "rubber", "ceramic")),
        "second": draw_material(dice, ("metal",)),
        "half": (dice.between(0.55, 0.9), dice.between(0.2, 0.6)),
        "corner": dice.between(0.0, 0.15),
        "count": dice.integer(2, 12),
        "rows": dice.pick((1, 1, 2, 3)),
        "leads": dice.pick((0.0, 0.0, dice.between(0.1, 0.35))),
        "sides": dice.pick((1, 2, 2)),
        "pin": dice.between(0.25, 0.7),
        "is_round": dice.chance(0.4),
        "sunk": dice.chance(0.6),
        "lip": dice.between(0.02, 0.12),
        "lettering": draw_lettering(dice, dice.integer(1, 2)) if dice.chance(0.5) else None,
    }


def paint_connector(frame: Frame, plan: Plan) -> None:
    """Paint leads first, then the housing, then pins or an imprint on top."""
    half_u, half_v = plan["half"]
    count, rows = plan["count"], plan["rows"]
    step = 1.8 * half_u / count
    if plan["leads"]:
        for number in range(count):
            _paint_lead(frame, plan, number, (number - 0.5 * (count - 1)) * step, step)
    body = shapes.box(frame.u, frame.v, half_u, half_v, plan["corner"])
    frame.paint(body, plan["stuff"], 0.15 + 0.2 * shapes.bevel(body, plan["lip"]))
    frame.weather(plan["stuff"])
    if plan["lettering"] is not None:
        frame.print_on(plan["lettering"], (0, 0, half_u * 0.7, half_v * 0.5), WHITE, 0.7)
        return
    if plan["sunk"]:
        well = shapes.box(frame.u, frame.v, half_u * 0.92, half_v * 0.75, 0.05)
        frame.paint(well, plan["stuff"].tinted(0.55), 0.05)
    gap = 1.5 * half_v / rows
    size = 0.5 * plan["pin"] * min(step, gap)
    for number in range(count * rows):
        at = frame.place(number, count * rows, step)
        if not at.present:
            continue
        row, column = divmod(number, count)
        pin = frame.inset(
            (column - 0.5 * (count - 1)) * step + at.u,
            (row - 0.5 * (rows - 1)) * gap + at.v,
            at.angle,
            size,
            1.5,
        )
        stuff = pin.recolour(plan["second"]) if at.recoloured else plan["second"]
        outline = (
            shapes.circle(pin.u, pin.v, 1) if plan["is_round"] else shapes.box(pin.u, pin.v, 1, 0.7)
        )
        pin.paint(outline, stuff, 0.5 + shapes.dome(outline, 0.6))


def _paint_lead(frame: Frame, plan: Plan, number: int, where: float, step: float) -> None:
    at = frame.place(number, plan["count"], step)
    if not at.present:
        return
    half_u, half_v = plan["half"]
    reach = half_v + plan["leads"]
    middle = 0.0 if plan["sides"] == 2 else 0.5 * reach
    half = reach if plan["sides"] == 2 else 0.5 * reach
    lead = frame.inset(where + at.u * 2, middle, at.angle * 0.5, half, 1.2)
    thick = 0.5 * plan["pin"] * min(step, 0.3 * half_u) / half
    bar = shapes.box(lead.u, lead.v, thick, 1.0, 0.02)
    lead.paint(bar, plan["second"], 0.2 * shapes.dome(bar, thick))


def plan_board(dice: Dice) -> Plan:
    """Draw a circuit board or panel with tracks, pads, chips and small parts."""
    word = dice.pick(("green", "green", "blue", "black", "red", "beige", "white"))
    parts = []
    for _ in range(dice.integer(4, 16)):
        kind = dice.pick(("chip", "small", "small", "pad", "can", "hole"))
        size = dice.between(0.1, 0.26) if kind in ("chip", "can") else dice.between(0.04, 0.11)
        stuff = draw_material(
            dice, ("metal",) if kind in ("pad", "can") else ("plastic", "ceramic")
        )
        if kind == "chip":
            stuff = draw_material(dice, ("plastic",), ("black", "black", "grey"))
        turn = dice.pick((0.0, math.pi / 2))
        parts.append((kind, dice.between(-0.85, 0.85), dice.between(-0.6, 0.6), size, turn, stuff))
    return {
        "stuff": draw_material(dice, ("plastic",), (word,)),
        "half": (dice.between(0.75, 0.98), dice.between(0.45, 0.8)),
        "corner": dice.between(0.0, 0.1),
        "parts": parts,
        "tracks": [
            (
                dice.between(-0.9, 0.9),
                dice.between(-0.7, 0.7),
                dice.between(0.2, 0.8),
                dice.chance(0.5),
            )
            for _ in range(dice.integer(3, 12))
        ],
        "lettering": draw_lettering(dice, 1),
        "mounts": dice.chance(0.6),
    }


def paint_board(frame: Frame, plan: Plan) -> None:
    """Paint the board, its tracks, then each part in its own small frame."""
    half_u, half_v = plan["half"]
    board = shapes.box(frame.u, frame.v, half_u, half_v, plan["corner"])
    if plan["mounts"]:
        hole = shapes.circle(np.abs(frame.u) - half_u + 0.12, np.abs(frame.v) - half_v + 0.12, 0.06)
        board = np.maximum(board, -hole)
    alpha = frame.paint(board, plan["stuff"], 0.06)
    for track_u, track_v, length, is_upright in plan["tracks"]:
        half = (0.012, length * half_v) if is_upright else (length * half_u, 0.012)
        line = shapes.box(frame.u - track_u * half_u, frame.v - track_v * half_v, half[0], half[1])
        inside = np.clip(0.5 - line / frame.px, 0, 1) * alpha
        frame.shade(1 + 0.35 * inside)
        frame.raise_by(0.01 * inside)
    frame.weather(plan["stuff"])
    for number, part in enumerate(plan["parts"]):
        _paint_board_part(frame, plan, number, part)
    frame.print_on(plan["lettering"], (half_u * 0.4, half_v * 0.8, 0.25, 0.07), WHITE, 0.8)


def _paint_board_part(
    frame: Frame, plan: Plan, number: int, part: tuple[str, float, float, float, float, Material]
) -> None:
    kind, part_u, part_v, size, turn, stuff = part
    at = frame.place(number, len(plan["parts"]), 0.25)
    if not at.present:
        return
    half_u, half_v = plan["half"]
    child = frame.inset(
        part_u * (half_u - size) + at.u,
        part_v * (half_v - size) + at.v,
        turn + at.angle,
        size,
        1.6,
    )
    stuff = child.recolour(stuff) if at.recoloured else stuff
    u, v = child.u, child.v
    if kind == "chip":
        legs = np.maximum(shapes.box(u, v, 0.9, 1.2), 0.08 - np.abs(np.mod(u * 3, 1) - 0.5) / 3)
        child.paint(legs, stuff._replace(colour=(0.75, 0.75, 0.77), metal=0.6), 0.25)
        body = shapes.box(u, v, 1.0, 0.9, 0.05)
        child.paint(body, stuff, 0.6 + 0.1 * shapes.bevel(body, 0.1))
        child.print_on(plan["lettering"], (0, 0, 0.7, 0.3), (0.7, 0.7, 0.7), 0.6)
    elif kind == "small":
        ends = shapes.box(u, v, 1.2, 0.6, 0.05)
        child.paint(ends, stuff._replace(colour=(0.75, 0.74, 0.72), metal=0.5), 0.5)
        child.paint(shapes.box(u, v, 0.75, 0.6), stuff, 0.6)
    elif kind == "hole":
        ring = shapes.circle(u, v, 0.8)
        child.paint(ring, stuff._replace(colour=(0.7, 0.62, 0.4), metal=0.6), 0.2)
        child.shade(1 - 0.9 * np.clip(-(ring + 0.4) / child.px, 0, 1))
    else:
        disc = shapes.circle(u, v, 0.9)
        top = 0.8 if kind == "can" else 0.25
        child.paint(disc, stuff, top * (0.7 + 0.3 * shapes.dome(disc, 0.3)))


def plan_transistor(dice: Dice) -> Plan:
    """Draw a device with a body, optional tab and a few long leads."""
    return {
        "stuff": draw_material(dice, ("plastic",), ("black", "black", "grey", "green", "blue")),
        "second": draw_material(dice, ("metal",), ("silver", "steel", "gold")),
        "body": (dice.between(0.25, 0.5), dice.between(0.2, 0.42)),
        "leads": dice.integer(2, 5),
        "lead_width": dice.between(0.03, 0.06),
        "tab": dice.between(0.15, 0.4) if dice.chance(0.5) else 0.0,
        "is_round": dice.chance(0.35),
        "lettering": draw_lettering(dice, 2),
        "both": dice.chance(0.25),
    }


def paint_transistor(frame: Frame, plan: Plan) -> None:
    """Paint leads, tab and body; the body's top carries the imprint."""
    half_u, half_v = plan["body"]
    u, v = frame.u, frame.v
    count = plan["leads"]
    for number in range(count):
        at = frame.place(number, count, 0.2)
        if not at.present:
            continue
        where = (number - 0.5 * (count - 1)) * (1.6 * half_u / count)
        low = -0.95 if plan["both"] else 0.0
        end = (where * 1.15 + at.u * 2, 0.95 + frame.dice.around(0, 0.01) - abs(at.v))
        bar = shapes.segment(u, v, (where, low), end, plan["lead_width"])
        frame.paint(bar, plan["second"], 0.05 + 0.06 * shapes.dome(bar, plan["lead_width"]))
    if plan["tab"]:
        tab = shapes.box(u, v + half_v + 0.4 * plan["tab"], half_u, plan["tab"], 0.04)
        tab = np.maximum(tab, 0.09 - np.sqrt(u * u + (v + half_v + 0.5 * plan["tab"]) ** 2))
        frame.paint(tab, plan["second"], 0.1)
    body = (
        np.maximum(shapes.circle(u, v, half_u), v - half_u * 0.6)
        if plan["is_round"]
        else shapes.box(u, v, half_u, half_v, 0.03)
    )
    frame.paint(body, plan["stuff"], 0.25 + 0.1 * shapes.bevel(body, 0.08))
    frame.weather(plan["stuff"])
    frame.print_on(plan["lettering"], (0, 0, half_u * 0.7, half_v * 0.45), WHITE, 0.6)
