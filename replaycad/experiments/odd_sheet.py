"""Training images that are unlike the others of their class, in one PNG, with their names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from replaycad.artifacts.atomic import replacing
from replaycad.data.pixels import read_picture, white_of

CELL, GAP, HEAD, PER_ROW, MAX_SHOWN = 160, 6, 16, 6, 12
GROUND, INK = (24, 24, 24), (230, 230, 230)


def draw_odd(odd: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Write the sheet: of every class the first dozen, or a line that there are none.

    Args:
        odd: class -> images, the most unlike first.
        target: the PNG.

    Raises:
        DatasetError: if an image cannot be read.
        ArtifactError: if the sheet cannot be written.
    """
    shown = {name: list(paths[:MAX_SHOWN]) for name, paths in odd.items()}
    rows = {name: -(-len(paths) // PER_ROW) for name, paths in shown.items()}
    height = sum(HEAD + GAP + count * (CELL + HEAD + GAP) for count in rows.values())
    sheet = Image.new("RGB", (PER_ROW * (CELL + GAP) + GAP, height), GROUND)
    pen, top = ImageDraw.Draw(sheet), 0
    for name, paths in shown.items():
        told = f"{len(odd[name])} unlike the others" if paths else "none is unlike the others"
        pen.text((GAP, top + 2), f"{name}: {told}", fill=INK)
        top += HEAD + GAP
        white = white_of(paths)
        for number, path in enumerate(paths):
            left = GAP + number % PER_ROW * (CELL + GAP)
            y = top + number // PER_ROW * (CELL + HEAD + GAP)
            picture = read_picture(path, white)
            picture.thumbnail((CELL, CELL))
            sheet.paste(picture, (left, y))
            pen.text((left, y + CELL), path.name[:26], fill=INK)
        top += rows[name] * (CELL + HEAD + GAP)
    with replacing(target) as file:
        sheet.save(file, format="PNG")
