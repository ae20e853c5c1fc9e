"""How a class is staged: ground, number of objects, and how far their pose may vary."""

import math
from typing import Any, NamedTuple

import numpy as np

from replaycad.mini.world.canvas import Canvas, Flaw, Frame, Pose
from replaycad.mini.world.fields import Dice
from replaycad.mini.world.materials import Material, draw_material
from replaycad.mini.world.parts import Family
from replaycad.mini.world.surfaces import SURFACES

GROUND_NAMES = ("mesh", "weave", "grain", "cast", "lattice", "speckle", "speckle", "texture")


class Scene(NamedTuple):
    """Staging of a class; angles in radians, places in picture units (-1 to 1)."""

    tone: str
    stuff: Material
    ground: Family | None
    ground_plan: dict[str, Any]
    fade: float
    places: tuple[tuple[float, float], ...]
    scale: float
    scale_jitter: float
    angle: float
    angle_jitter: float
    shift: float
    pose_word: str


def draw_scene(dice: Dice, family: Family, is_surface: bool, brightness: float) -> Scene:
    """Return the staging of a class.

    Args:
        dice: the class's dice.
        family: what is staged.
        is_surface: it fills the frame.
        brightness: mean colour of the object, 0 to 1; the ground should stand off it.
    """
    tones, chances = ("white", "light", "grey", "dark", "coloured"), (2, 3, 2, 2.5, 1.5)
    tone = dice.weighted(tones, chances)
    if tone == "dark" and brightness < 0.33:
        tone = dice.pick(("white", "light", "grey", "coloured"))
    elif tone in ("white", "light") and brightness > 0.72:
        tone = dice.pick((tone, "grey", "dark", "coloured"))
    stuff = draw_material(dice, ("paper", "plastic", "stone", "cloth", "metal"))
    if tone != "coloured":
        level = {"white": 1.25, "light": 0.78, "grey": 0.45, "dark": 0.08}[tone]
        level = level * dice.between(0.85, 1.12)
        tinge = dice.between(-0.03, 0.03) * min(level, 1)
        stuff = stuff._replace(colour=(level + tinge, level, level - tinge))
    stuff = stuff._replace(
        gloss=stuff.gloss * 0.3, metal=stuff.metal * 0.2, grain=stuff.grain * dice.between(0, 0.6)
    )
    textured = not is_surface and dice.chance(0.28)
    name = dice.pick(GROUND_NAMES)
    ground = next(item for item in SURFACES if item.name == name) if textured else None
    word, turn, shift = dice.weighted(
        (
            ("fixed", 0.0, 0.0),
            ("steady", dice.between(0.02, 0.12), dice.between(0.01, 0.05)),
            ("turned", math.pi, 0.02),
            ("shifted", 0.06, dice.between(0.08, 0.25)),
            ("anywhere", math.pi, dice.between(0.08, 0.25)),
        ),
        (2, 3, 2.5, 1, 2),
    )
    if is_surface:
        word, turn, shift = dice.weighted(
            (
                ("fixed", 0.0, 3.0),
                ("steady", dice.between(0.02, 0.4), 3.0),
                ("turned", math.pi, 3.0),
            ),
            (2, 2, 1.5),
        )
    places, scale = _draw_layout(dice, family, is_surface)
    if len(places) == 1 and shift > 0.07:
        scale *= dice.between(0.5, 0.85)
    return Scene(
        tone=tone,
        stuff=stuff,
        ground=ground,
        ground_plan=ground.plan(dice) if ground is not None else {},
        fade=dice.between(0.2, 1.0),
        places=places,
        scale=scale,
        scale_jitter=dice.pick((0.0, 0.01, 0.03, 0.06)),
        angle=dice.pick((0.0, 0.0, math.pi / 2, math.pi / 4, dice.between(-3.1, 3.1))),
        angle_jitter=turn,
        shift=shift if len(places) == 1 else shift * scale * 0.8,
        pose_word=word,
    )


def _draw_layout(
    dice: Dice, family: Family, is_surface: bool
) -> tuple[tuple[tuple[float, float], ...], float]:
    if is_surface:
        return ((0.0, 0.0),), 1.0
    kind = dice.weighted(("single", "row", "grid", "scatter"), (8, 0.6, 0.8, 1.0))
    if kind == "single" or family.name in ("board", "brush"):
        # Some classes are close-ups whose part runs out of the frame.
        if dice.chance(0.07):
            return ((0.0, 0.0),), dice.between(1.1, 1.7)
        high = 0.98 if family.elongated or dice.chance(0.5) else 0.88
        return ((0.0, 0.0),), dice.between(0.62, high)
    if kind == "row":
        count = dice.integer(2, 4)
        places = [((i + 0.5) * 2 / count - 1, 0.0) for i in range(count)]
        if dice.chance(0.5):
            places = [(y, x) for x, y in places]
        return tuple(places), 0.9 / count
    count = dice.integer(2, 4) if kind == "grid" else 3
    step = 2 / count
    nodes = [
        ((i + 0.5) * step - 1, (j + 0.5) * step - 1) for j in range(count) for i in range(count)
    ]
    if kind == "scatter":
        nodes = [
            (x + dice.between(-0.15, 0.15), y + dice.between(-0.15, 0.15))
            for x, y in nodes
            if dice.chance(0.6)
        ] or [(0.0, 0.0)]
    return tuple(nodes), step * dice.between(0.34, 0.48)


def paint_ground(canvas: Canvas, scene: Scene, dice: Dice) -> None:
    """Paint what lies below the parts; its pattern drifts a little from picture to picture."""
    pose = Pose(dice.around(0, 0.05), dice.around(0, 0.05), dice.around(0, 0.02), 1.0)
    frame = Frame(canvas, pose, 9.0, dice, None)
    frame.paint(np.full_like(frame.u, -1.0), scene.stuff, 0.0)
    if scene.ground is None:
        frame.weather(scene.stuff)
        return
    scene.ground.paint(frame, scene.ground_plan)
    base = np.array([*scene.stuff.colour, 0.0, 0.0], dtype=np.float32)[:, None, None]
    canvas.layers += (1 - scene.fade) * (base - canvas.layers)
    canvas.height *= 0.5 * scene.fade


def paint_objects(
    canvas: Canvas,
    family: Family,
    plan: dict[str, Any],
    scene: Scene,
    seeds: tuple[int, int, int],
    flaw: Flaw | None,
) -> None:
    """Paint every object in its pose; each has its own dice, so a flaw in one leaves the others.

    Args:
        canvas: where to paint.
        family: painter of the class.
        plan: class parameters.
        scene: staging of the class.
        seeds: class seed, image seed and the first free stream number.
        flaw: structural defect for one of the objects, or none.
    """
    count = len(scene.places)
    victim = min(int(float(flaw.hue[0]) * count), count - 1) if flaw is not None else -1
    for number, (x, y) in enumerate(scene.places):
        dice = Dice(seeds[0], seeds[1], seeds[2] + number)
        pose = Pose(
            x + dice.between(-1, 1) * scene.shift,
            y + dice.between(-1, 1) * scene.shift,
            scene.angle + dice.between(-1, 1) * scene.angle_jitter,
            scene.scale * (1 + dice.around(0, 1) * scene.scale_jitter),
        )
        family.paint(
            Frame(canvas, pose, family.reach, dice, flaw if number == victim else None), plan
        )
