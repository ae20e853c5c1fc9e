"""Unnamed parts of random geometry: melted unions, blobs, plates and assemblies of components."""

import math
from typing import Any

import numpy as np

from replaycad.mini.world import shapes
from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field, smoothstep
from replaycad.mini.world.lettering import draw_lettering
from replaycad.mini.world.materials import Material, draw_material

Plan = dict[str, Any]
ANY = (
    "metal",
    "metal",
    "plastic",
    "plastic",
    "rubber",
    "ceramic",
    "wood",
    "glass",
    "food",
    "stone",
)


def _draw_piece(dice: Dice, reach: float, size: float) -> Plan:
    return {
        "form": dice.pick(("circle", "box", "box", "bar", "polygon", "ellipse", "arc", "blob")),
        "at": (dice.between(-reach, reach), dice.between(-reach, reach)),
        "angle": dice.pick((0.0, math.pi / 2, dice.between(-3.1, 3.1))),
        "size": (size * dice.between(0.5, 1.2), size * dice.between(0.25, 1.0)),
        "corner": dice.pick((0.0, 0.2, 0.6)),
        "sides": dice.integer(3, 8),
        "outline": shapes.draw_harmonics(dice, size, 0.3, 7),
        "sign": dice.pick((1, 1, 1, -1)),
    }


def _piece_distance(u: Field, v: Field, piece: Plan) -> Field:
    cosine, sine = math.cos(piece["angle"]), math.sin(piece["angle"])
    right, down = u - piece["at"][0], v - piece["at"][1]
    a, b = right * cosine + down * sine, down * cosine - right * sine
    long, short = piece["size"]
    form = piece["form"]
    if form == "circle":
        return shapes.circle(a, b, long)
    if form == "box":
        return shapes.box(a, b, long, short, piece["corner"] * short)
    if form == "bar":
        return shapes.segment(a, b, (-long, 0), (long, 0), 0.4 * short)
    if form == "polygon":
        return shapes.polygon(a, b, piece["sides"], long * 0.8, piece["corner"] * 0.3 * long)
    if form == "ellipse":
        return shapes.ellipse(a, b, long, short)
    if form == "arc":
        return shapes.arc(a, b, long, 0.6 + 2 * piece["corner"], 0.35 * short)
    return shapes.radial(a, b, piece["outline"])


def _draw_decoration(dice: Dice) -> Plan:
    return {
        "form": dice.pick(("inset", "stripes", "rings", "dots", "noise", "contour", "half")),
        "stuff": draw_material(dice, ANY),
        "width": dice.between(0.03, 0.15),
        "level": dice.between(-0.1, 0.12),
        "count": dice.between(6, 26),
        "angle": dice.between(-3.1, 3.1),
        "duty": dice.between(-0.5, 0.6),
        "limit": dice.between(0.05, 0.3),
        "phase": dice.between(0, 6.3),
    }


def _decorate(frame: Frame, distance: Field, item: Plan) -> None:
    form = item["form"]
    along = frame.u * math.cos(item["angle"]) + frame.v * math.sin(item["angle"])
    across = frame.v * math.cos(item["angle"]) - frame.u * math.sin(item["angle"])
    inner = distance + item["limit"]
    scale = 1 / item["count"]
    if form == "inset":
        area = inner
    elif form == "contour":
        area = np.maximum(inner, -inner - item["width"])
    elif form == "half":
        area = np.maximum(distance, along - item["duty"] * 0.5)
    elif form == "stripes":
        area = np.maximum(
            inner, (np.cos(along * item["count"] + item["phase"]) - item["duty"]) * scale
        )
    elif form == "rings":
        radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
        area = np.maximum(inner, (np.cos(radius * item["count"]) - item["duty"]) * scale)
    elif form == "dots":
        dots = np.cos(along * item["count"]) + np.cos(across * item["count"])
        area = np.maximum(inner, (0.6 + item["duty"] - dots) * scale * 0.7)
    else:
        area = np.maximum(inner, (frame.noise(item["count"] * 0.6) - item["duty"]) * 0.5 * scale)
    frame.paint(area, item["stuff"], item["level"] * shapes.bevel(area, 0.04), lift=True)


def plan_union(dice: Dice) -> Plan:
    """Draw a random part: pieces melted together or cut out, mirrored or repeated in a ring."""
    symmetry = dice.pick(("none", "none", "mirror", "both", "ring"))
    pieces = [_draw_piece(dice, 0.15, 0.45), _draw_piece(dice, 0.3, 0.5)]
    pieces[0]["sign"] = pieces[1]["sign"] = 1
    pieces += [_draw_piece(dice, 0.7, 0.3) for _ in range(dice.integer(1, 4))]
    return {
        "stuff": draw_material(dice, ANY),
        "symmetry": symmetry,
        "folds": dice.integer(3, 8),
        "twist": dice.between(-1.5, 1.5) if dice.chance(0.2) else 0.0,
        "pieces": pieces,
        "melt": dice.pick((0.01, 0.05, 0.15, 0.3)),
        "edge": dice.pick((0.03, 0.08, 0.2, 0.5)),
        "top": dice.between(0.08, 0.4),
        "is_domed": dice.chance(0.6),
        "decorations": [_draw_decoration(dice) for _ in range(dice.pick((0, 1, 1, 2, 2, 3)))],
        "lettering": draw_lettering(dice, dice.integer(1, 2)) if dice.chance(0.3) else None,
        "ink": dice.pick(((0.95, 0.95, 0.95), (0.05, 0.05, 0.05), (0.7, 0.1, 0.1))),
    }


def _union_distance(frame: Frame, plan: Plan) -> Field:
    u, v = frame.u, frame.v
    if plan["twist"]:
        turn = plan["twist"] * np.sqrt(u * u + v * v)
        cosine, sine = np.cos(turn), np.sin(turn)
        u, v = u * cosine - v * sine, u * sine + v * cosine
    if plan["symmetry"] in ("mirror", "both"):
        v = np.abs(v)
    if plan["symmetry"] == "both":
        u = np.abs(u)
    if plan["symmetry"] == "ring":
        u, v = shapes.folded(u, v, plan["folds"])
    distance = _piece_distance(u, v, plan["pieces"][0])
    for piece in plan["pieces"][1:]:
        other = _piece_distance(u, v, piece)
        if piece["sign"] > 0:
            distance = shapes.smooth_union(distance, other, plan["melt"])
        else:
            distance = np.maximum(distance, -other)
    # The part may not leave its frame, or the window would cut it straight.
    return np.maximum(distance, np.sqrt(frame.u * frame.u + frame.v * frame.v) - 1.05)


def paint_union(frame: Frame, plan: Plan) -> None:
    """Paint the body, then its decorations and lettering."""
    distance = _union_distance(frame, plan)
    profile = shapes.dome if plan["is_domed"] else shapes.bevel
    frame.paint(
        distance, plan["stuff"], plan["top"] * (0.3 + 0.7 * profile(distance, plan["edge"]))
    )
    for item in plan["decorations"]:
        _decorate(frame, distance, item)
    if plan["lettering"] is not None:
        frame.print_on(plan["lettering"], (0, 0, 0.35, 0.18), plan["ink"], 0.8)
    frame.weather(plan["stuff"])


def plan_blob(dice: Dice) -> Plan:
    """Draw a random smooth outline with layered inner contours."""
    return {
        "stuff": draw_material(dice, ANY),
        "outline": shapes.draw_harmonics(dice, dice.between(0.6, 0.75), dice.between(0.1, 0.6), 9),
        "folds": dice.pick((1, 1, 1, 2, 3, 4, 5, 6)),
        "stretch": dice.between(0.45, 1.0),
        "edge": dice.pick((0.04, 0.1, 0.3, 0.7)),
        "top": dice.between(0.08, 0.5),
        "wobble": dice.pick((0.0, 0.0, 0.01, 0.03)),
        "decorations": [_draw_decoration(dice) for _ in range(dice.pick((0, 1, 1, 2, 3)))],
        "core": dice.between(0.1, 0.4) if dice.chance(0.3) else 0.0,
    }


def paint_blob(frame: Frame, plan: Plan) -> None:
    """Paint the outline, domed or flat, with its decorations and an optional bore."""
    u, v = frame.u, frame.v * (1 / plan["stretch"])
    outline = plan["outline"].copy()
    if plan["wobble"]:
        outline[2:] += frame.dice.normals(*outline[2:].shape) * plan["wobble"]
    if plan["folds"] > 1:
        spread = np.zeros((1 + (len(outline) - 1) * plan["folds"], 2), dtype=np.float32)
        spread[:: plan["folds"]] = outline
        outline = spread[:20]
    distance = shapes.radial(u, v, outline) * plan["stretch"]
    distance = np.maximum(distance, np.sqrt(frame.u * frame.u + frame.v * frame.v) - 1.05)
    if plan["core"]:
        distance = np.maximum(distance, plan["core"] - np.sqrt(u * u + v * v))
    height = plan["top"] * (0.2 + 0.8 * shapes.dome(distance, plan["edge"]))
    frame.paint(distance, plan["stuff"], height)
    for item in plan["decorations"]:
        _decorate(frame, distance, item)
    frame.weather(plan["stuff"])


def _draw_component(dice: Dice, stuffs: list[Material]) -> Plan:
    piece = _draw_piece(dice, 0.0, 0.75)
    return {
        "piece": piece,
        "stuff": dice.pick(stuffs).tinted(dice.between(0.7, 1.3)),
        "top": dice.between(0.2, 1.0),
        "edge": dice.between(0.1, 0.8),
        "ring": draw_material(dice, ANY) if dice.chance(0.4) else None,
    }


def plan_assembly(dice: Dice) -> Plan:
    """Draw a housing that carries a lattice, ring or scatter of one or two small components."""
    stuffs = [draw_material(dice, ANY) for _ in range(3)]
    layout = dice.pick(("grid", "ring", "scatter", "row"))
    count = dice.integer(2, 9)
    places = []
    size = dice.between(0.1, 0.22)
    if layout == "grid":
        columns = dice.integer(2, 4)
        rows = dice.integer(2, 3)
        places = [
            ((i - 0.5 * (columns - 1)) * 1.3 / columns, (j - 0.5 * (rows - 1)) * 1.0 / rows)
            for j in range(rows)
            for i in range(columns)
        ]
    elif layout == "ring":
        places = [
            (0.55 * math.cos(2 * math.pi * i / count), 0.55 * math.sin(2 * math.pi * i / count))
            for i in range(count)
        ]
    elif layout == "row":
        places = [((i - 0.5 * (count - 1)) * 1.5 / count, 0.0) for i in range(count)]
    else:
        places = [(dice.between(-0.6, 0.6), dice.between(-0.4, 0.4)) for _ in range(count)]
    return {
        "stuff": stuffs[0],
        "has_body": dice.chance(0.85),
        "half": (dice.between(0.8, 0.98), dice.between(0.55, 0.95)),
        "corner": dice.between(0.0, 0.6),
        "is_round": layout == "ring" and dice.chance(0.7),
        "edge": dice.between(0.03, 0.2),
        "well": dice.between(0.05, 0.2) if dice.chance(0.4) else 0.0,
        "places": places,
        "size": size,
        "components": [_draw_component(dice, stuffs[1:]) for _ in range(dice.integer(1, 2))],
        "turns": [dice.pick((0.0, dice.between(-3.1, 3.1))) for _ in places],
        "decorations": [_draw_decoration(dice) for _ in range(dice.pick((0, 0, 1)))],
        "play": dice.between(0.0, 0.03),
    }


def paint_assembly(frame: Frame, plan: Plan) -> None:
    """Paint the housing, its decorations, and every component in its own frame."""
    if plan["has_body"]:
        body = (
            shapes.circle(frame.u, frame.v, 0.95)
            if plan["is_round"]
            else shapes.box(frame.u, frame.v, plan["half"][0], plan["half"][1], plan["corner"])
        )
        frame.paint(body, plan["stuff"], 0.1 + 0.1 * shapes.bevel(body, plan["edge"]))
        if plan["well"]:
            frame.paint(body + plan["well"], plan["stuff"].tinted(0.7), 0.02)
        for item in plan["decorations"]:
            _decorate(frame, body, item)
        frame.weather(plan["stuff"])
    count = len(plan["places"])
    for number, (u, v) in enumerate(plan["places"]):
        at = frame.place(number, count, 0.3)
        play_u, play_v = frame.dice.around(0, 1), frame.dice.around(0, 1)
        if not at.present:
            continue
        part = plan["components"][number % len(plan["components"])]
        child = frame.inset(
            u + at.u + play_u * plan["play"],
            v + at.v + play_v * plan["play"],
            plan["turns"][number] + at.angle,
            plan["size"],
            1.6,
        )
        distance = np.maximum(
            _piece_distance(child.u, child.v, part["piece"]),
            np.sqrt(child.u * child.u + child.v * child.v) - 1.5,
        )
        stuff = child.recolour(part["stuff"]) if at.recoloured else part["stuff"]
        child.paint(distance, stuff, 0.8 + part["top"] * shapes.dome(distance, part["edge"]))
        if part["ring"] is not None:
            child.paint(distance + 0.35, part["ring"], 1.0 + part["top"])


def plan_strands(dice: Dice) -> Plan:
    """Draw a bundle: several wavy wires, straws or fibres lying side by side."""
    return {
        "stuff": draw_material(dice, ("metal", "plastic", "cloth", "food")),
        "strands": [
            (
                dice.between(-0.5, 0.5),
                dice.between(0.03, 0.13),
                dice.between(0.0, 0.2),
                dice.between(1.0, 6.0),
                dice.between(0, 6.3),
                draw_material(dice, ("plastic", "metal", "rubber")),
            )
            for _ in range(dice.integer(1, 6))
        ],
        "twist": dice.between(10, 60) if dice.chance(0.4) else 0.0,
        "same": dice.chance(0.5),
    }


def paint_strands(frame: Frame, plan: Plan) -> None:
    """Paint the wires one over the other, each a wavy tube."""
    count = len(plan["strands"])
    for number, (where, thick, depth, waves, phase, stuff) in enumerate(plan["strands"]):
        at = frame.place(number, count, 0.4)
        drift = frame.dice.around(0, 0.15)
        if not at.present:
            continue
        centre = where + at.v + depth * np.sin(frame.u * waves + phase + drift)
        slope = depth * waves * np.cos(frame.u * waves + phase + drift)
        gap = np.abs(frame.v - centre) / np.sqrt(1 + slope * slope)
        distance = np.maximum(gap - thick, np.abs(frame.u) - 1)
        used = plan["stuff"] if plan["same"] else stuff
        used = frame.recolour(used) if at.recoloured else used
        height = 0.1 * number / count + np.sqrt(np.maximum(thick * thick - gap * gap, 0))
        alpha = frame.paint(distance, used, height)
        if plan["twist"]:
            turn = np.sin(frame.u * plan["twist"] + (frame.v - centre) * (1.2 / thick))
            frame.shade(1 - 0.35 * alpha * smoothstep(0.0, 1.0, turn))
            frame.raise_by(-0.02 * alpha * np.maximum(turn, 0))
    frame.weather(plan["stuff"])
