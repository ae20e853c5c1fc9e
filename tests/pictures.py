"""Draws the README's picture: what is kept of a class, what is made of it, what is found.

`python -m tests.pictures FOLDER` draws the demo classes, runs the stages on them and writes
`replaycad/guide/overview.webp`. Stages that ran before in FOLDER do not run again.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "replaycad" / "guide" / "overview.webp"
DEFECTS = {"pill": "broken/022", "weave": "contamination/019", "screw": "contamination/013"}
"""Class, in the order of learning -> a defective test image; the detector sees real photos of the
last one and replays of the others."""

CELL, GAP, SIDE, TOP, FOOT = 158, 8, 78, 56, 30  # px
INK, FAINT, EDGE, ALARM = (30, 30, 34), (110, 110, 118), (150, 150, 156), (190, 30, 30)
PAPER = (255, 255, 255)
COLUMNS = (
    ("a real photo", "one of 60"),
    ("where the part is", "object mask"),
    ("kept of the class", "squares of photos"),
    ("put together of it", "replay 1"),
    ("put together of it", "replay 2"),
    ("a new photo", "with a defect"),
    ("what predict says", "alarm above 1"),
)


def run_stages(folder: Path) -> dict[str, dict]:
    """Run all stages on the demo classes; what `predict` prints of each class's defective image."""
    data = folder / "data"
    if not data.exists():
        _python("replaycad.mini.world.demo", data, "--size", "256")
    *past, newest = DEFECTS
    shared = ["--data", data, "--store", folder / "artifacts", "--device", "cpu", "--quiet"]
    _python("replaycad", "compress", "--class", ",".join(DEFECTS), "--keep", "fragments",
            "--budget", "50kB", "--image-size", "256", *shared)  # fmt: skip
    _python("replaycad", "replay", "--class", ",".join(DEFECTS), "--num", "60", *shared[2:])
    _python("replaycad", "train", "--class", newest, "--past", ",".join(past), "--detector",
            "patchcore", "--name", "line", *shared)  # fmt: skip
    found = {}
    for name, image in DEFECTS.items():
        said = _python("replaycad", "predict", _defective(data, name, image), "--name", "line",
                       "--out", folder / "heatmaps" / name, "--json", *shared[2:])  # fmt: skip
        found[name] = json.loads(said.splitlines()[0])
    return found


def draw(folder: Path, said: dict[str, dict]) -> Image.Image:
    """One row for each class, one column for each step."""
    width = _left(len(COLUMNS))
    sheet = Image.new("RGB", (width, TOP + len(said) * (CELL + FOOT) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (title, remark) in enumerate(COLUMNS):
        middle = _left(column) + CELL // 2
        pen.text((middle, 17), title, INK, _font(17), anchor="mm")
        pen.text((middle, 40), remark, FAINT, _font(14), anchor="mm")
    for row, name in enumerate(said):
        top = TOP + row * (CELL + FOOT)
        place = (SIDE // 2 + 4, top + CELL // 2)
        pen.text(place, name, INK, _font(19), anchor="mm")
        is_newest = row == len(said) - 1
        remark = f"trained on\n{'photos' if is_newest else 'replays'}"
        pen.multiline_text(
            (place[0], place[1] + 16), remark, FAINT, _font(13), anchor="ma", align="center"
        )
        for column, picture in _pictures(folder, name, said[name]).items():
            large = picture.resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(large, (_left(column), top))
            corner = (_left(column) + CELL, top + CELL)
            pen.rectangle([(_left(column) - 1, top - 1), corner], outline=EDGE)
            if column == 1 and not np.any(np.asarray(picture) == 0):
                middle = (_left(1) + CELL // 2, top + CELL // 2)
                pen.multiline_text(
                    middle, "a surface:\nthe whole photo", FAINT, _font(14), anchor="mm",
                    align="center",
                )  # fmt: skip
        conditions = folder / "artifacts" / "conditions" / f"{name}.safetensors"
        _draw_file(pen, top, f"{conditions.stat().st_size / 1000:.0f} kB")
        _draw_verdict(pen, top + CELL + FOOT // 2 - 2, said[name])
    return sheet


def _pictures(folder: Path, name: str, said: dict) -> dict[int, Image.Image]:
    """Column -> picture; the third column shows no picture."""
    store, data = folder / "artifacts", folder / "data"
    real = sorted((data / name / "train" / "good").iterdir())[0]
    masks = MasksArtifact.load(store / "masks" / f"{name}.safetensors")
    replays = ReplaysReader(store / "replays" / f"{name}.safetensors")
    first, second = replays.images([0, 1]).transpose(0, 2, 3, 1)
    return {
        0: Image.open(real).convert("RGB"),
        1: Image.fromarray(masks.object_masks[0]).convert("RGB"),
        3: Image.fromarray(first),
        4: Image.fromarray(second),
        5: Image.open(said["image"]).convert("RGB"),
        6: Image.open(said["overlay"]).convert("RGB"),
    }


def _draw_file(pen: ImageDraw.ImageDraw, top: int, size: str) -> None:
    """A sheet of paper with its size on it, between two arrows."""
    left, middle = _left(2) + 46, top + CELL // 2
    right, upper, lower, fold = left + 66, middle - 42, middle + 42, 18
    outline = [(left, upper), (right - fold, upper), (right, upper + fold), (right, lower),
               (left, lower), (left, upper)]  # fmt: skip
    pen.polygon(outline[:-1], fill=(238, 243, 250))
    pen.line(outline, INK, 2, joint="curve")
    pen.line([(right - fold, upper), (right - fold, upper + fold), (right, upper + fold)], INK, 2)
    pen.text(((left + right) // 2, middle + 6), size, INK, _font(16), anchor="mm")
    for start in (_left(2) + 6, right + 8):
        pen.line([(start, middle), (start + 26, middle)], INK, 3)
        pen.polygon([(start + 22, middle - 7), (start + 34, middle), (start + 22, middle + 7)], INK)


def _draw_verdict(pen: ImageDraw.ImageDraw, middle: int, said: dict) -> None:
    text = f"score {said['score']:.1f}: {said['verdict']}"
    colour = ALARM if said["verdict"] == "anomalous" else INK
    pen.text((_left(6) + CELL // 2, middle), text, colour, _font(15), anchor="mm")


def _left(column: int) -> int:
    """Left edge of a column; the last two stand apart, for they are of the finished detector."""
    return SIDE + GAP + column * (CELL + GAP) + (2 * GAP if column > 4 else 0)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _defective(data: Path, name: str, image: str) -> Path:
    return data / name / "test" / f"{image}.png"


def _python(module: str, *arguments: object) -> str:
    typed = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(typed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Run what has not run and write the picture."""
    folder = Path(sys.argv[1]).resolve()
    sheet = draw(folder, run_stages(folder))
    sheet.save(TARGET, quality=82, method=6)
    sys.stdout.write(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
