"""A hundred ways to write down what a person sees as the same: the figures stay the same."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image

from replaycad.config.stages import EvalConfig
from replaycad.data.layouts import find_classes, read_class
from replaycad.data.pixels import white_of
from replaycad.data.views import View
from replaycad.stages.eval import evaluate
from tests.stages.stubs import Mirror, Plain, mirror_artifact

WIDTH, HEIGHT, SIDE = 24, 16, 16
TURNS = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
"""EXIF orientation -> how a picture is stored that is shown upright by it."""

LAYOUTS = {  # training, normal tests, defective tests, masks; `S` becomes a recording's name
    "mvtec": ("train/good", "test/good", "test/spot", "ground_truth/spot"),
    "btad": ("train/ok", "test/ok", "test/ko", "ground_truth/ko"),
    "german": ("Training/Gut", "Test/gut", "Test/Fehler", "Masken/Fehler"),
    "nested": ("train/good/S", "test/good/S", "test/spot/S", "ground_truth/spot/S"),
    "recordings": ("OK/S0001", "OK/S0002", "NG/AK/S0001", "NG/AK/S0001"),
    "beside": ("train/good", "test/good", "test/spot", "test/spot"),
    "public": ("train/good", "test_public/good", "test_public/bad", "test_public/ground_truth/bad"),
}
FORMATS = ("png", "bmp", "tif", "webp", "ppm", "PNG", "TIFF")
BITS = {"8": None, "10": (np.uint16, 4), "12": (np.uint16, 16), "16": (np.uint16, 257),
        "float": (np.float32, 1 / 255), "float of levels": (np.float32, 1.0)}  # fmt: skip
MASKS = ("0/255", "0/1", "1/2", "236/255", "bit", "deep", "red", "alpha", "palette", "jpg")
AFFIXES = ("{}_mask", "{}", "mask_{}", "{}_label", "{}_GT", "{}.mask", "gt-{}")


def pictures():
    """Six normal training images, three normal and three defective tests, and what is defective."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(12):
        # even levels from black to white, so that every number of bits can hold the range
        values = (rng.integers(0, 50, (HEIGHT, WIDTH)) * 2).astype(np.uint8)
        truth = np.zeros((HEIGHT, WIDTH), np.bool_)
        if number >= 9:
            truth[4:9, 3 + number - 9 : 12] = True
            values[truth] += 70
        values[0, 0], values[-1, -1] = 255, 0
        found.append((values, truth))
    return found


def draw(values, bits):
    if BITS[bits] is None:
        return Image.fromarray(values)
    kind, factor = BITS[bits]
    return Image.fromarray((values.astype(np.float64) * factor).round(6).astype(kind))


def draw_mask(truth, style):
    if style == "alpha":
        rgba = np.full((*truth.shape, 4), 255, np.uint8)
        rgba[..., 3] = np.where(truth, 255, 0)
        return Image.fromarray(rgba)
    if style == "palette":
        picture = Image.fromarray(np.where(truth, 3, 7).astype(np.uint8), "P")
        picture.putpalette([0] * 9 + [250, 40, 0] + [0] * 12)
        return picture
    if style == "red":
        return Image.fromarray(np.stack([np.where(truth, 255, 0), *[truth * 0] * 2], -1)
                               .astype(np.uint8))  # fmt: skip
    if style == "bit":
        return Image.fromarray(truth)
    if style == "deep":
        return Image.fromarray((truth * 65535).astype(np.uint16))
    low, high = map(int, style.split("/")) if "/" in style else (0, 255)
    return Image.fromarray(np.where(truth, high, low).astype(np.uint8))


def write(folder, layout, form, bits, style, affix, turn, is_turned_too):
    """The class under one choice of everything."""
    parts = LAYOUTS[layout]
    for number, (values, truth) in enumerate(pictures()):
        part = parts[(number >= 6) + (number >= 9)]
        place = folder / "nut" / part.replace("/S", f"/S{number % 3 + 1:04}" if part[-2:] == "/S"
                                              else "/S")  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        picture, options = draw(values, bits), {}
        if form == "webp":
            picture, options = picture.convert("RGB"), {"lossless": True}
        if turn:
            exif = Image.Exif()
            exif[0x0112] = turn
            picture, options["exif"] = picture.transpose(TURNS[turn]), exif
        picture.save(place / f"{number:03}.{form}", **options)
        if number >= 9:
            where = folder / "nut" / parts[3].replace(
                "/S", f"/S{number % 3 + 1:04}" if parts[3][-2:] == "/S" else "/S")  # fmt: skip
            where.mkdir(parents=True, exist_ok=True)
            mask = draw_mask(truth, style)
            if is_turned_too:
                mask = mask.transpose(TURNS[turn])
            ending = "jpg" if style == "jpg" else "png"
            quality = {"quality": 95} if style == "jpg" else {}
            mask.save(where / f"{affix.format(f'{number:03}')}.{ending}", **quality)


def figures(folder):
    """What an evaluation by a detector whose maps are the pictures themselves comes to."""
    assert find_classes(folder) == ["nut"]
    reading = read_class(folder, "nut")
    assert (len(reading.train), len(reading.test)) == (6, 6)
    view = View(white=white_of(sample.path for sample in reading.train))
    trained = mirror_artifact(image_size=SIDE, header={
        "class_order": ["nut"], "views": {"nut": view.as_dict()}})  # fmt: skip
    found = evaluate({"nut": reading.test}, trained, Plain(), EvalConfig(), {})
    return found.metrics["classes"]["nut"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write(folder, "mvtec", "png", "8", "0/255", "{}_mask", 0, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replaycad.stages.eval.build_detector", lambda *_: Mirror())
        return figures(folder)


@pytest.mark.parametrize("seed", range(100))
def test_figures_do_not_depend_on_how_things_are_written(tmp_path, monkeypatch, expected, seed):
    monkeypatch.setattr("replaycad.stages.eval.build_detector", lambda *_: Mirror())
    dice = Random(seed)
    form = dice.choice(FORMATS)
    bits = dice.choice(list(BITS)) if form.lower() in ("tif", "tiff") else (
        dice.choice(("8", "10", "12", "16")) if form.lower() == "png" else "8")  # fmt: skip
    turn = dice.choice((0, 3, 6, 8)) if form.lower() in ("png", "webp", "tif", "tiff") else 0
    layout, style = dice.choice(list(LAYOUTS)), dice.choice(MASKS)
    affix = dice.choice(AFFIXES)
    if affix == "{}" and LAYOUTS[layout][2] == LAYOUTS[layout][3]:
        affix = "{}_mask"  # one name would be one file
    choice = (layout, form, bits, style, affix, turn, turn in (6, 8) and dice.random() < 0.5)
    write(tmp_path, *choice)

    found = figures(tmp_path)

    # one grey level of 255 may go to rounding, which swaps neighbours of some thousand pixels
    assert found == pytest.approx(expected, abs=0.01), choice


def test_a_wrong_range_or_a_lost_turn_is_seen_in_the_figures(tmp_path, monkeypatch, expected):
    """The property can fail: the same with masks turned wrongly is far away."""
    monkeypatch.setattr("replaycad.stages.eval.build_detector", lambda *_: Mirror())
    write(tmp_path, "mvtec", "png", "8", "0/255", "{}_mask", 0, False)
    reading = read_class(tmp_path, "nut")
    masks = [sample.mask_paths for sample in reading.test]
    others = [*masks[1:], masks[0]]
    pairs = zip(reading.test, others, strict=True)
    shifted = [replace(sample, mask_paths=other) for sample, other in pairs]

    found = evaluate({"nut": shifted}, mirror_artifact(image_size=SIDE, header={
        "class_order": ["nut"]}), Plain(), EvalConfig(), {}).metrics["classes"]["nut"]  # fmt: skip

    assert abs(found["pixel_ap"] - expected["pixel_ap"]) > 0.02
