"""The families of parts: how each is planned, painted, called, and which faults fit it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from replaycad.mini.world import freeform, organic, plates, shapes, turned
from replaycad.mini.world.canvas import Frame
from replaycad.mini.world.fields import Dice
from replaycad.mini.world.materials import draw_material

OVERLAYS = ("scratch", "crack", "dent", "stain", "contamination", "broken", "spot")
COUNTABLE = ("missing", "misplaced", "wrong_colour")


class Family(NamedTuple):
    """One family of classes: `plan` draws a class, `paint` draws a picture of it."""

    name: str
    plan: Callable[[Dice], dict[str, Any]]
    paint: Callable[[Frame, dict[str, Any]], None]
    faults: tuple[str, ...]
    weight: float
    reach: float
    elongated: bool


SINGLES: tuple[Family, ...] = (
    Family("ring", turned.plan_rings, turned.paint_rings, ("broken", "fragment"), 3.0, 1.15, False),
    Family("pin", turned.plan_lathe, turned.paint_lathe, ("bent",), 3.0, 1.1, True),
    Family(
        "screw", turned.plan_screw, turned.paint_screw, ("thread_fault", "bent"), 3.0, 1.1, True
    ),
    Family("spring", turned.plan_spring, turned.paint_spring, ("bent",), 0.7, 1.1, True),
    Family("nut", plates.plan_nut, plates.paint_nut, (), 1.5, 1.25, False),
    Family("gear", plates.plan_gear, plates.paint_gear, (), 1.3, 1.1, False),
    Family(
        "bracket", plates.plan_bracket, plates.paint_bracket, ("bent", "missing"), 2.0, 1.2, True
    ),
    Family("connector", plates.plan_connector, plates.paint_connector, COUNTABLE, 1.5, 1.1, True),
    Family("board", plates.plan_board, plates.paint_board, COUNTABLE, 1.5, 1.25, True),
    Family(
        "transistor",
        plates.plan_transistor,
        plates.paint_transistor,
        ("missing", "misplaced", "bent", "print"),
        1.3,
        1.15,
        False,
    ),
    Family("pill", organic.plan_pill, organic.paint_pill, ("print",), 2.0, 1.1, True),
    Family("morsel", organic.plan_morsel, organic.paint_morsel, ("hole",), 2.0, 1.15, False),
    Family("curl", organic.plan_curl, organic.paint_curl, ("bent",), 1.3, 1.2, False),
    Family("cable", organic.plan_cable, organic.paint_cable, COUNTABLE, 1.3, 1.05, False),
    Family("brush", organic.plan_brush, organic.paint_brush, COUNTABLE, 0.8, 1.15, True),
    Family("candle", organic.plan_candle, organic.paint_candle, ("missing",), 0.8, 1.05, False),
    Family("piece", freeform.plan_union, freeform.paint_union, ("hole",), 6.0, 1.1, False),
    Family("blob", freeform.plan_blob, freeform.paint_blob, ("hole",), 4.5, 1.15, False),
    Family("assembly", freeform.plan_assembly, freeform.paint_assembly, COUNTABLE, 5.0, 1.4, False),
    Family("coil", turned.plan_coil, turned.paint_coil, (), 0.8, 1.05, False),
    Family("bundle", freeform.plan_strands, freeform.paint_strands, ("missing",), 1.5, 1.2, True),
)


def plan_unit(dice: Dice) -> dict[str, Any]:
    """Draw a unit: a housing, or nothing, that carries smaller parts of other families."""
    members = []
    for _ in range(dice.integer(2, 4)):
        family = dice.weighted(SINGLES, [item.weight for item in SINGLES])
        size = dice.between(0.2, 0.45)
        room = 0.9 - size
        members.append(
            (
                family,
                family.plan(dice),
                (dice.between(-room, room), dice.between(-room, room) * 0.8),
                dice.pick((0.0, 1.5708, dice.between(-3.1, 3.1))),
                size,
            )
        )
    return {
        "stuff": draw_material(dice, ("metal", "plastic", "plastic", "wood", "rubber", "paper")),
        "members": members,
        "has_body": dice.chance(0.75),
        "half": (dice.between(0.85, 1.0), dice.between(0.7, 1.0)),
        "corner": dice.between(0.0, 0.5),
        "edge": dice.between(0.03, 0.15),
        "wall": dice.between(0.05, 0.15) if dice.chance(0.4) else 0.0,
        "play": dice.pick((0.0, 0.01, 0.04)),
    }


def paint_unit(frame: Frame, plan: dict[str, Any]) -> None:
    """Paint the housing and every member in a frame of its own."""
    if plan["has_body"]:
        body = shapes.box(frame.u, frame.v, plan["half"][0], plan["half"][1], plan["corner"])
        frame.paint(body, plan["stuff"], 0.1 + 0.1 * shapes.bevel(body, plan["edge"]))
        if plan["wall"]:
            frame.paint(body + plan["wall"], plan["stuff"].tinted(0.75), 0.05)
        frame.weather(plan["stuff"])
    count = len(plan["members"])
    for number, (family, member, (u, v), angle, size) in enumerate(plan["members"]):
        at = frame.place(number, count, 0.35)
        play_u, play_v = frame.dice.around(0, plan["play"]), frame.dice.around(0, plan["play"])
        child = frame.inset(
            u + at.u + play_u, v + at.v + play_v, angle + at.angle, size, family.reach
        )
        # A member has dice of its own, so leaving it out does not disturb the others.
        child.dice = Dice(frame.dice.integer(0, 2**31 - 1), number + 1)
        child.flaw = None
        if at.present:
            if at.recoloured:
                member = {**member, "stuff": frame.recolour(member["stuff"])}
            family.paint(child, member)


PARTS: tuple[Family, ...] = (
    *SINGLES,
    Family("unit", plan_unit, paint_unit, COUNTABLE, 4.0, 1.45, False),
)
