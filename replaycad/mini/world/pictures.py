"""A procedural world of industrial parts and surfaces with exact masks, captions and defects.

Everything is a pure function of whole numbers: a class seed draws a class, an image seed draws a
picture of it. The size of the picture changes its sharpness, not its content.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from replaycad.errors import ConfigError
from replaycad.mini.world.canvas import STRUCTURAL, Canvas, Flaw
from replaycad.mini.world.defects import LAID, lay_flaw
from replaycad.mini.world.fields import Dice, Field
from replaycad.mini.world.lighting import Light, compose, develop, digitise, draw_light, illuminate
from replaycad.mini.world.materials import COLOURS, KINDS, METAL_COLOURS, Material
from replaycad.mini.world.parts import OVERLAYS, PARTS, Family
from replaycad.mini.world.scenes import Scene, draw_scene, paint_ground, paint_objects
from replaycad.mini.world.surfaces import SURFACE_FAULTS, SURFACES

HELD_OUT_SEED = 1_000_000
FAMILIES: tuple[Family, ...] = (*PARTS, *SURFACES)
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {family.name for family in FAMILIES}
        | {*COLOURS, *METAL_COLOURS, *KINDS}
        | {"white", "light", "grey", "dark", "coloured", "plain", "textured", "monochrome"}
        | {"fixed", "steady", "turned", "shifted", "anywhere", "several", "one", "on", "surface"}
    )
)
SURFACE_SHARE = 0.33
GREY_SHARE = 0.35
# A change below this share of full scale is lost in noise and compression to the eye.
VISIBLE_CHANGE = 0.05
AREA_RANGE = (0.0012, 0.13)
ATTEMPTS = 6
# Stream numbers of SeedSequence([class_seed, image_seed, stream]); zero is avoided because
# trailing zeros do not change a seed sequence.
CLASS_STREAM, GROUND_STREAM, CAMERA_STREAM, SENSOR_STREAM, KIND_STREAM = 1, 2, 3, 4, 5
FLAW_STREAM, OBJECT_STREAM = 16, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSpec:
    """A class of pictures: everything its pictures share, drawn from one whole number."""

    class_seed: int
    family: str
    caption: str
    defects: tuple[str, ...]
    is_surface: bool
    painter: Family
    plan: Mapping[str, Any]
    scene: Scene
    light: Light


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture with its exact labels.

    Attributes:
        image: `[H, W, 3]` uint8, RGB.
        object_mask: `[H, W]` bool, true on the object (everywhere for surfaces).
        anomaly_mask: `[H, W]` bool, true where a defect visibly changes the picture.
        caption: plain words from `VOCABULARY`; the same for every picture of a class.
        defect: kind of the defect, or none.
    """

    image: NDArray[np.uint8]
    object_mask: NDArray[np.bool_]
    anomaly_mask: NDArray[np.bool_]
    caption: str
    defect: str | None


def draw_class(class_seed: int) -> ClassSpec:
    """Return the class of a seed; pre-training uses seeds below `HELD_OUT_SEED`.

    Args:
        class_seed: any whole number from 0.

    Raises:
        ConfigError: the seed is negative.
    """
    if class_seed < 0:
        raise ConfigError(f"class_seed must be 0 or more, found {class_seed}", "use another seed")
    dice = Dice(class_seed, 0, CLASS_STREAM)
    is_surface = dice.chance(SURFACE_SHARE)
    families = SURFACES if is_surface else PARTS
    family = dice.weighted(families, [item.weight for item in families])
    is_grey = dice.chance(GREY_SHARE)
    plan = family.plan(dice)
    brightness = sum(plan["stuff"].colour) / 3
    scene = draw_scene(dice, family, is_surface, brightness)
    light = draw_light(dice, is_grey, brightness)
    if not is_surface:
        light = light._replace(gain=1.0)
    faults = family.faults + (SURFACE_FAULTS if is_surface else OVERLAYS)
    return ClassSpec(
        class_seed=class_seed,
        family=family.name,
        caption=_caption(family, plan["stuff"], scene, is_surface, is_grey),
        defects=tuple(dict.fromkeys(faults)),
        is_surface=is_surface,
        painter=family,
        plan=plan,
        scene=scene,
        light=light,
    )


def _caption(family: Family, stuff: Material, scene: Scene, is_surface: bool, is_grey: bool) -> str:
    colour = stuff.word
    if is_grey:
        luminance = sum(stuff.colour) / 3
        colour = "dark" if luminance < 0.3 else "grey" if luminance < 0.6 else "light"
    words = ["monochrome"] if is_grey else []
    if is_surface:
        return " ".join([*words, colour, stuff.kind, family.name, "surface", scene.pose_word])
    words.append("one" if len(scene.places) == 1 else "several")
    ground = "plain" if scene.ground is None else "textured"
    tone = "grey" if is_grey and scene.tone == "coloured" else scene.tone
    words += [colour, stuff.kind, family.name, "on", tone, ground, scene.pose_word]
    return " ".join(words)


def draw(spec: ClassSpec, image_seed: int, size: int = 128, defect: str | None = None) -> Picture:
    """Return one picture of a class.

    Args:
        spec: from `draw_class`.
        image_seed: any whole number from 0; with and without defect the picture is the same.
        size: side in pixels.
        defect: one of `spec.defects`, "any" to let the image seed choose, or none.

    Raises:
        ConfigError: the defect does not fit the class, or a number is out of range.
    """
    if image_seed < 0 or size < 8:
        raise ConfigError(
            f"image_seed must be 0 or more and size 8 or more, found {image_seed} and {size}",
            "use other numbers",
        )
    sensor = Dice(spec.class_seed, image_seed, SENSOR_STREAM)
    good, cover = _render(spec, image_seed, size, None)
    object_mask = np.ones((size, size), dtype=bool) if spec.is_surface else cover > 0.5
    if defect is None:
        return Picture(
            image=digitise(good, spec.light, sensor),
            object_mask=object_mask,
            anomaly_mask=np.zeros((size, size), dtype=bool),
            caption=spec.caption,
            defect=None,
        )
    kind = _choose_defect(spec, image_seed, defect)
    developed, anomaly_mask = _render_defect(spec, image_seed, size, kind, good)
    return Picture(
        image=digitise(developed, spec.light, sensor),
        object_mask=object_mask,
        anomaly_mask=anomaly_mask,
        caption=spec.caption,
        defect=kind,
    )


def _choose_defect(spec: ClassSpec, image_seed: int, defect: str) -> str:
    if defect == "any":
        return Dice(spec.class_seed, image_seed, KIND_STREAM).pick(spec.defects)
    if defect not in spec.defects:
        raise ConfigError(
            f"defect {defect!r} does not fit a class of family {spec.family}",
            f"choose from: {', '.join(spec.defects)}, any",
        )
    return defect


def _render(spec: ClassSpec, image_seed: int, size: int, flaw: Flaw | None) -> tuple[Field, Field]:
    """Return the developed picture without sensor noise, and the cover `[S, S]`."""
    ground, parts = Canvas(size), Canvas(size)
    painted = flaw if flaw is not None and flaw.kind in STRUCTURAL else None
    seeds = (spec.class_seed, image_seed, OBJECT_STREAM)
    paint_objects(parts, spec.painter, dict(spec.plan), spec.scene, seeds, painted)
    if flaw is not None and flaw.kind in LAID:
        lay_flaw(parts, flaw)
    if not spec.is_surface or (flaw is not None and flaw.kind == "broken"):
        paint_ground(ground, spec.scene, Dice(spec.class_seed, image_seed, GROUND_STREAM))
        layers, height = compose(ground, parts, spec.light)
    else:
        layers, height = parts.layers, parts.height
    colour = illuminate(layers, height, spec.light)
    camera = Dice(spec.class_seed, image_seed, CAMERA_STREAM)
    return develop(colour, spec.light, camera), parts.cover


def _render_defect(
    spec: ClassSpec, image_seed: int, size: int, kind: str, good: Field
) -> tuple[Field, NDArray[np.bool_]]:
    """Return the developed defective picture and its anomaly mask, of a sensible area."""
    strength = 1.0
    best: tuple[float, Field, NDArray[np.bool_]] | None = None
    for attempt in range(ATTEMPTS):
        # The last resort of a defect that never shows is a stain in its place.
        shown = kind if attempt < ATTEMPTS - 1 or best is not None else "contamination"
        dice = Dice(spec.class_seed, image_seed, FLAW_STREAM + attempt)
        bad, _ = _render(spec, image_seed, size, Flaw(shown, dice, strength))
        anomaly_mask = _visible_change(good, bad, spec.light.noise)
        area = float(anomaly_mask.mean())
        if area > 0:
            miss = max(AREA_RANGE[0] / area, area / AREA_RANGE[1])
            if best is None or miss < best[0]:
                best = (miss, bad, anomaly_mask)
            if miss <= 1:
                break
        strength *= 0.6 if area > AREA_RANGE[1] else 1.5
    if best is None:
        column = _square_mark(good)
        return column
    _, bad, anomaly_mask = best
    # Changes too faint to be labelled (far shadow, blur) are taken back, so that outside the
    # surroundings of the mask both pictures are the same.
    reach = max(size // 42, 1)
    near = ndimage.uniform_filter(
        ndimage.maximum_filter(anomaly_mask.astype(np.float32), 2 * reach + 1), 2 * reach + 1
    )
    return good + near * (bad - good), anomaly_mask


def _square_mark(good: Field) -> tuple[Field, NDArray[np.bool_]]:
    """Return the picture with a small mark in its middle, for a defect that cannot show."""
    size = good.shape[-1]
    middle = slice(size // 2 - max(size // 24, 1), size // 2 + max(size // 24, 1))
    bad = good.copy()
    bad[:, middle, middle] = np.where(good[:, middle, middle] > 0.5, 0.1, 0.9)
    anomaly_mask = np.zeros((size, size), dtype=bool)
    anomaly_mask[middle, middle] = True
    return bad, anomaly_mask


def _visible_change(good: Field, bad: Field, noise: float) -> NDArray[np.bool_]:
    change = np.abs(bad - good).max(axis=0)
    strong = change > max(VISIBLE_CHANGE, 2 * noise)
    # Single pixels are not a defect anybody would outline.
    crowd = ndimage.uniform_filter(strong.astype(np.float32), 3)
    return strong & (crowd > 0.3)


def write_dataset(
    folder: Path,
    classes: Mapping[str, int],
    num_train: int,
    num_good: int,
    num_defective: int,
    seed: int,
    size: int = 128,
) -> None:
    """Write classes as PNG files in the MVTec layout.

    Args:
        folder: root; each class becomes a folder in it.
        classes: class name to class seed.
        num_train: normal pictures to train on, per class.
        num_good: normal pictures to test on, per class.
        num_defective: defective pictures to test on, per class.
        seed: start of the image seeds; other seeds give other pictures of the same classes.
        size: side in pixels.
    """
    first = seed * 1_000_000
    for class_name, class_seed in classes.items():
        spec = draw_class(class_seed)
        root = Path(folder) / class_name
        for number in range(num_train):
            _save(draw(spec, first + number, size).image, root / "train" / "good", f"{number:03d}")
        for number in range(num_good):
            picture = draw(spec, first + 100_000 + number, size)
            _save(picture.image, root / "test" / "good", f"{number:03d}")
        for number in range(num_defective):
            picture = draw(spec, first + 200_000 + number, size, "any")
            kind = str(picture.defect)
            _save(picture.image, root / "test" / kind, f"{number:03d}")
            label = picture.anomaly_mask.astype(np.uint8) * 255
            _save(label, root / "ground_truth" / kind, f"{number:03d}_mask")


def _save(pixels: NDArray[np.uint8], folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{stem}.png")
