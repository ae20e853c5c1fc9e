"""Turned parts: rings seen from above, lathe profiles, screws and springs seen from the side."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.mini.world import shapes
from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice, Field, smoothstep
from replaycad.mini.world.materials import draw_material

Plan = dict[str, Any]
HARD = ("metal", "metal", "plastic", "ceramic", "glass")
TABLE = 400


def plan_rings(dice: Dice) -> Plan:
    """Draw a bottle, cap, lens, bearing or button seen from above: zones around one centre."""
    zones = dice.integer(2, 9)
    edges = sorted(dice.between(0.12, 0.97) for _ in range(zones - 1))
    stuffs = [draw_material(dice, HARD) for _ in range(2)]
    base = stuffs[0]
    colours = []
    for _ in range(zones):
        source = stuffs[1] if dice.chance(0.2) else base
        colours.append(source.tinted(dice.between(0.45, 1.35)))
    bore = dice.between(0.15, 0.6) if dice.chance(0.5) else 0.0
    arcs = [
        (
            dice.between(0.3, 0.97),
            dice.between(0.005, 0.03),
            dice.integer(1, 3),
            dice.between(0, 6.3),
            dice.between(0.2, 0.9),
        )
        for _ in range(dice.integer(0, 9))
    ]
    return {
        "stuff": base,
        "edges": edges,
        "colours": colours,
        "levels": [dice.between(-0.25, 0.3) for _ in range(zones)],
        "softness": [dice.between(0.01, 0.12) for _ in range(zones)],
        "bore": bore,
        "bore_is_hole": dice.chance(0.3),
        "arcs": arcs,
        "arc_tint": dice.pick(((1.0, 0.98, 0.92), (0.95, 0.7, 0.45), (0.85, 0.92, 1.0))),
        "hairlines": (dice.rough(90), dice.between(0.0, 0.3) if dice.chance(0.6) else 0.0),
        "grooves": (dice.integer(20, 90), dice.between(0.0, 0.01)) if dice.chance(0.3) else (0, 0),
        "knurl": (dice.integer(16, 70), dice.between(0.01, 0.04)) if dice.chance(0.25) else (0, 0),
        "balls": dice.integer(5, 14) if dice.chance(0.2) else 0,
    }


def paint_rings(frame: Frame, plan: Plan) -> None:
    """Paint zones by radius, with specular arcs and optional balls, knurl or bore."""
    radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
    place = np.linspace(0, 1.05, TABLE).astype(np.float32)
    table = np.empty((6, TABLE), dtype=np.float32)
    limits = [0.0, *plan["edges"]]
    table[:] = 0
    for start, stuff, level, soft in zip(
        limits, plan["colours"], plan["levels"], plan["softness"], strict=True
    ):
        values = np.array([*stuff.colour, stuff.gloss, stuff.metal, level], dtype=np.float32)
        step = np.clip((place - start) / soft + 0.5, 0, 1) if start > 0 else np.ones_like(place)
        blend = np.broadcast_to((place >= start).astype(np.float32), (6, TABLE)).copy()
        blend[5] = step * step * (3 - 2 * step)
        table += blend * (values[:, None] - table)
    count, depth = plan["grooves"]
    if count:
        table[5] += depth * np.sin(place * count)
    lines, depth = plan["hairlines"]
    fine = np.interp(place * 85, np.arange(90), lines).astype(np.float32)
    table[:3] *= np.maximum(1 + depth * fine, 0.1)
    table[5] += 0.02 * depth * fine
    if plan["bore"]:
        inside = np.clip((plan["bore"] - place) / 0.02 + 0.5, 0, 1)
        table[:3] *= 1 - 0.85 * inside
        table[3:5] *= 1 - inside
        table[5] -= 0.25 * inside
    index = np.minimum((radius * (TABLE / 1.05)).astype(np.int32), TABLE - 1)
    limit = radius - 1
    knurl_count, knurl_depth = plan["knurl"]
    angle = None
    if knurl_count or plan["arcs"]:
        angle = np.arctan2(frame.v, frame.u)
    if knurl_count:
        limit = limit + knurl_depth * (1 + np.cos(angle * knurl_count))
    if plan["bore"] and plan["bore_is_hole"]:
        limit = np.maximum(limit, plan["bore"] - radius)
    frame.paint(limit, plan["stuff"], 0.0)
    values = table[:, index]
    inside = np.clip(0.5 - limit * (1 / frame.px), 0, 1)
    frame.layers += inside * (values[:5] - frame.layers)
    edge = shapes.dome(limit, 0.08) * 0.15
    frame.height += inside * ((values[5] + edge) * frame.pose.scale - frame.height)
    if angle is not None:
        _paint_arcs(frame, plan, radius, angle)
    if plan["balls"]:
        _paint_balls(frame, plan)
    frame.weather(plan["stuff"])


def _paint_arcs(frame: Frame, plan: Plan, radius: Field, angle: Field) -> None:
    for where, width, order, phase, strength in plan["arcs"]:
        wobble = frame.dice.around(0, 0.12)
        ring = np.exp(-(((radius - where) * (1 / width)) ** 2))
        glow = 0.5 + 0.5 * np.cos(order * angle + (phase + frame.pose.angle * order + wobble))
        jitter = max(strength * (1 + frame.dice.around(0, 0.15)), 0)
        frame.tint(np.clip(ring * glow * glow * jitter, 0, 1), plan["arc_tint"])


def _paint_balls(frame: Frame, plan: Plan) -> None:
    count = plan["balls"]
    ring = 0.5 * (1 + max(plan["bore"], 0.3))
    size = min(0.16, 2.2 * ring / count)
    for number in range(count):
        where = frame.place(number, count, size)
        if not where.present:
            continue
        turn = 2 * math.pi * number / count
        ball = frame.inset(
            ring * math.cos(turn) + where.u, ring * math.sin(turn) + where.v, 0, size, 1.1
        )
        distance = shapes.circle(ball.u, ball.v, 1)
        stuff = ball.recolour(plan["stuff"]) if where.recoloured else plan["stuff"].tinted(1.2)
        ball.paint(distance, stuff, shapes.dome(distance, 1.0))


def plan_lathe(dice: Dice) -> Plan:
    """Draw a pin, plug, vial, resistor or battery lying on its side: a random turned profile."""
    knots = dice.integer(2, 7)
    cuts = sorted(dice.between(-0.95, 0.95) for _ in range(knots - 1))
    thick = dice.between(0.1, 0.42)
    base = draw_material(dice, ("metal", "metal", "plastic", "ceramic", "glass", "rubber", "wood"))
    other = draw_material(dice, HARD)
    stuffs = [other if dice.chance(0.35) else base for _ in range(knots)]
    return {
        "stuff": base,
        "cuts": cuts,
        "widths": [thick * dice.between(0.45, 1.3) for _ in range(knots)],
        "tapers": [dice.pick((0.0, 0.0, 0.0, dice.between(-0.4, 0.4))) for _ in range(knots)],
        "stuffs": [stuff.tinted(dice.between(0.7, 1.2)) for stuff in stuffs],
        "soft": dice.pick((0.008, 0.02, 0.05)),
        "end": dice.pick((0.01, 0.05, 0.15, 0.3)),
        "ribs": [
            (dice.between(20, 110), dice.between(0.004, 0.03)) if dice.chance(0.25) else (0, 0)
            for _ in range(knots)
        ],
        "flatness": dice.pick((1.0, 1.0, 0.5, 0.25)),
        "bands": [
            (dice.between(-0.8, 0.8), dice.between(0.02, 0.08), draw_material(dice, ("plastic",)))
            for _ in range(dice.pick((0, 0, 0, 1, 3, 4)))
        ],
    }


def _profile(plan: Plan, along: Field) -> tuple[Field, NDArray[np.int64]]:
    """Return half width and its zone number for each place along the axis."""
    cuts = np.array([-1.0, *plan["cuts"], 1.0])
    zone = np.clip(np.searchsorted(cuts, along, side="right") - 1, 0, len(cuts) - 2)
    middle = 0.5 * (cuts[:-1] + cuts[1:])
    widths, tapers = np.array(plan["widths"]), np.array(plan["tapers"])
    width = widths[zone] * (1 + tapers[zone] * (along - middle[zone]))
    ribs = np.array(plan["ribs"])
    width = width + ribs[zone, 1] * np.cos(ribs[zone, 0] * along)
    return width.astype(np.float32), zone


def paint_lathe(frame: Frame, plan: Plan) -> None:
    """Paint the solid of revolution; height is the half circle over the axis."""
    along = np.linspace(-1.1, 1.1, TABLE)
    width, zone = _profile(plan, along)
    spread = max(int(plan["soft"] * TABLE / 2.2), 1)
    kernel = np.ones(spread) / spread
    width = np.convolve(np.pad(width, spread, mode="edge"), kernel, mode="same")
    width = width[spread:-spread]
    end = plan["end"]
    inner = np.clip((1 - np.abs(along)) / end, 0, 1)
    width = (width * np.sqrt(1 - (1 - inner) ** 2)).astype(np.float32)
    index = np.clip((frame.u + 1.1) * (TABLE / 2.2), 0, TABLE - 1).astype(np.int32)
    half = width[index]
    distance = np.maximum(np.abs(frame.v) - half, np.abs(frame.u) - 1)
    alpha = frame.paint(distance, plan["stuff"], 0.0)
    table = np.array([[*s.colour, s.gloss, s.metal] for s in plan["stuffs"]], dtype=np.float32).T
    frame.layers += alpha * (table[:, zone][:, index] - frame.layers)
    round_height = np.sqrt(np.maximum(half * half - frame.v * frame.v, 0)) * plan["flatness"]
    frame.height += alpha * (round_height * frame.pose.scale - frame.height)
    for number, (where, thick, stuff) in enumerate(plan["bands"]):
        at = frame.place(number, len(plan["bands"]), 0.3)
        if at.present:
            used = frame.recolour(stuff) if at.recoloured else stuff
            stripe = np.clip((thick - np.abs(frame.u - where - at.u)) / frame.px + 0.5, 0, 1)
            frame.tint(stripe * alpha, used.colour)
    frame.weather(plan["stuff"])


def plan_screw(dice: Dice) -> Plan:
    """Draw a screw or bolt from the side: head, shank, thread and tip."""
    head = dice.pick(("countersunk", "countersunk", "pan", "hex", "cylinder", "none"))
    shank = dice.between(0.08, 0.17)
    return {
        "stuff": draw_material(dice, ("metal", "metal", "metal", "metal", "plastic")),
        "head": head,
        "head_length": dice.between(0.12, 0.34),
        "head_width": shank * dice.between(1.7, 2.9),
        "shank": shank,
        "thread_start": dice.pick((-0.6, -0.3, 0.0, 0.15)) + dice.between(-0.1, 0.1),
        "pitch": dice.between(0.055, 0.14),
        "depth": shank * dice.between(0.15, 0.5),
        "core": dice.between(0.7, 1.0),
        "slant": dice.between(0.1, 0.35) * dice.pick((-1, 1)),
        "tip": dice.pick((0.03, 0.06, 0.25, 0.35)),
        "drive": dice.pick(("cross", "slot", "hex", "none")),
        "tilt": dice.between(0.15, 0.45) if dice.chance(0.55) else 0.0,
        "sharp": dice.between(1.0, 3.0),
    }


def paint_screw(frame: Frame, plan: Plan) -> None:
    """Paint shank and helical thread, then the head and, when tilted, its face with the drive."""
    u, v = frame.u, frame.v
    head_end = -1 + (plan["head_length"] if plan["head"] != "none" else 0.02)
    shank, start = plan["shank"], plan["thread_start"]
    roll = frame.dice.between(0, 1)
    bend = 1 - smoothstep(1 - plan["tip"], 1.0, u) * 0.95
    on_thread = smoothstep(start - 0.03, start + 0.05, u)
    core = shank * (1 + on_thread * (plan["core"] - 1)) * bend
    if frame.flaw is not None and frame.flaw.kind == "thread_fault":
        where = start + (0.9 - start) * frame.flaw.victim
        hit = np.exp(-(((u - where) * (1 / (0.1 * frame.flaw.strength + 0.05))) ** 2))
        on_thread = on_thread * (1 - 1.3 * np.minimum(hit, 0.75))
        core = core * (1 - 0.18 * hit)
    slope = np.arcsin(np.clip(v / (shank * 1.3), -1, 1))
    phase = (u + plan["slant"] * slope * shank) * (1 / plan["pitch"]) + roll
    wave = (0.5 + 0.5 * np.cos(2 * math.pi * phase)) ** plan["sharp"]
    half = core + plan["depth"] * on_thread * wave * np.minimum(bend * 1.4, 1)
    distance = np.maximum(np.abs(v) - half, np.maximum(head_end - 0.02 - u, u - 1))
    height = np.sqrt(np.maximum(half * half - v * v, 0))
    alpha = frame.paint(distance, plan["stuff"], height)
    frame.shade(1 - alpha * on_thread * (1 - wave) * 0.35)
    if plan["head"] != "none":
        _paint_head(frame, plan, head_end)
    frame.weather(plan["stuff"])


def _paint_head(frame: Frame, plan: Plan, head_end: float) -> None:
    u, v, width, shank = frame.u, frame.v, plan["head_width"], plan["shank"]
    middle = 0.5 * (head_end - 1)
    length = 0.5 * (head_end + 1)
    if plan["head"] == "countersunk":
        t = np.clip((u + 1) / (2 * length), 0, 1)
        half = width + (shank - width) * t * (0.6 + 0.4 * t)
    elif plan["head"] == "pan":
        t = np.clip((head_end - u) / (2 * length), 0, 1)
        half = width * np.sqrt(np.maximum(1 - t * t, 0))
    else:
        half = np.full_like(u, width)
    distance = np.maximum(np.abs(v) - half, np.abs(u - middle) - length)
    if plan["head"] == "hex":
        facet = np.abs(np.abs(v) - 0.5 * width) * (1 / width)
        height = width * (0.9 - 0.5 * np.maximum(facet - 0.25, 0) - (np.abs(v) > 0.5 * width) * 0.2)
    else:
        height = np.sqrt(np.maximum(half * half - v * v, 0))
    frame.paint(distance, plan["stuff"].tinted(1.05), height)
    if plan["tilt"] > 0:
        face = frame.inset(-1, 0, 0, width, 1.1)
        outline = shapes.ellipse(face.u, face.v, plan["tilt"], 1.0)
        face.paint(outline, plan["stuff"].tinted(0.85), 0.5 + shapes.bevel(outline, 0.1) * 0.05)
        paint_drive(face, plan["drive"], face.u / plan["tilt"], face.v)


def paint_drive(frame: Frame, drive: str, u: Field, v: Field) -> None:
    """Press a screw drive into a face; u and v are unit coordinates on the face."""
    if drive == "none":
        return
    if drive == "hex":
        pit = shapes.polygon(u, v, 6, 0.42)
    elif drive == "slot":
        pit = shapes.box(u, v, 0.14, 0.85)
    else:
        pit = np.minimum(shapes.box(u, v, 0.15, 0.6, 0.05), shapes.box(u, v, 0.6, 0.15, 0.05))
    inside = np.clip(0.5 - pit * (0.3 / frame.px), 0, 1)
    frame.shade(1 - 0.65 * inside)
    frame.raise_by(-0.15 * inside)


def plan_spring(dice: Dice) -> Plan:
    """Draw a coil spring or a chain of links from the side."""
    return {
        "stuff": draw_material(dice, ("metal", "metal", "plastic")),
        "turns": dice.integer(5, 14),
        "width": dice.between(0.2, 0.45),
        "wire": dice.between(0.03, 0.06),
        "back": dice.between(0.4, 0.7),
    }


def paint_spring(frame: Frame, plan: Plan) -> None:
    """Paint the back half of the coils dark, then the front half."""
    turns, width, wire = plan["turns"], plan["width"], plan["wire"]
    stretch = 1 + frame.dice.around(0, 0.03)
    step = 1.8 * stretch / turns
    for layer, factor in ((-1, plan["back"]), (1, 1.0)):
        slant = layer * step * 0.5 / (2 * width)
        shifted = frame.u - slant * frame.v + (0.25 * step * layer)
        number = np.clip(np.round(shifted / step), -turns // 2, turns // 2)
        gap = np.abs(shifted - number * step)
        curve = np.maximum(np.abs(frame.v) - width, 0)
        distance = np.sqrt(gap * gap + curve * curve) - wire
        height = np.sqrt(np.maximum(wire * wire - gap * gap, 0)) + (0.12 if layer > 0 else 0)
        frame.paint(distance, plan["stuff"].tinted(factor), height)
    frame.weather(plan["stuff"])


def plan_coil(dice: Dice) -> Plan:
    """Draw a flat coil, hose roll or spiral seen from above."""
    return {
        "stuff": draw_material(dice, ("metal", "plastic", "rubber", "cloth")),
        "second": draw_material(dice, ("plastic", "metal")),
        "turns": dice.between(3.0, 9.0),
        "fill": dice.between(0.3, 0.5),
        "core": dice.between(0.1, 0.45),
        "hand": dice.pick((-1, 1)),
        "twist": dice.between(20, 60) if dice.chance(0.4) else 0.0,
        "hub": dice.chance(0.4),
    }


def paint_coil(frame: Frame, plan: Plan) -> None:
    """Paint the spiral tube between its core and its outer turn."""
    radius = np.sqrt(frame.u * frame.u + frame.v * frame.v)
    angle = np.arctan2(frame.v, frame.u) * plan["hand"]
    pitch = (0.97 - plan["core"]) / plan["turns"]
    place = (radius - plan["core"]) * (1 / pitch) - angle * (0.5 / math.pi)
    place = place + frame.dice.around(0, 0.05)
    gap = np.abs(place - np.floor(place) - 0.5) * pitch
    half = plan["fill"] * pitch
    limits = np.maximum(plan["core"] - radius, radius - 0.97)
    distance = np.maximum(gap - half, limits)
    height = np.sqrt(np.maximum(half * half - gap * gap, 0))
    alpha = frame.paint(distance, plan["stuff"], height)
    if plan["twist"]:
        frame.shade(1 - 0.15 * alpha * (1 + np.sin(angle * plan["twist"] + place * 20)))
    if plan["hub"]:
        hub = radius - plan["core"] * 0.8
        frame.paint(hub, plan["second"], 0.1 + 0.1 * shapes.dome(hub, 0.1))
    frame.weather(plan["stuff"])
