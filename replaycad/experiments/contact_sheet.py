"""Real image, object mask and replay of each class side by side in one PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from replaycad.artifacts.atomic import replacing
from replaycad.artifacts.conditions import CONDITIONS
from replaycad.artifacts.format import read_header
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.artifacts.store import Store
from replaycad.data.images import Reader, evenly_spaced, viewed
from replaycad.data.layouts import train_samples
from replaycad.data.pixels import white_of
from replaycad.data.views import View

CELL, GAP, HEAD, PER_KIND = 128, 4, 18, 3
GROUND, INK = (24, 24, 24), (230, 230, 230)


def draw_sheet(
    data: Path, store: Store, replays: Mapping[str, Mapping[str, str]], target: Path
) -> None:
    """Write the sheet: one row per class; a cell stays empty where there is no such artifact.

    Args:
        data: folder of the images.
        store: with masks and replays.
        replays: class -> what its replays are called on the sheet -> their name in the store; one
            row for each class, and in it as many kinds for all.
        target: the PNG.

    Raises:
        DatasetError: if a real image cannot be read.
        ArtifactError: if the sheet cannot be written or an artifact is damaged.
    """
    num_kinds = 2 + max(map(len, replays.values()))
    width = num_kinds * (PER_KIND * (CELL + GAP) + 2 * GAP)
    height = len(replays) * (CELL + HEAD + GAP)
    sheet = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(sheet)
    for row, (class_name, names) in enumerate(replays.items()):
        top = row * (CELL + HEAD + GAP)
        found = _real_pictures(data, store, class_name)
        found |= {kind: _replayed(store, name) for kind, name in names.items()}
        for column, (kind, pictures) in enumerate(found.items()):
            left = column * (PER_KIND * (CELL + GAP) + 2 * GAP) + GAP
            is_coded = kind in names and keeps_features(store, names[kind])
            none = " (none: kept as features)" if is_coded else " (none)"
            label = f"{class_name}: {kind}" + ("" if pictures else none)
            pen.text((left, top + 3), label, fill=INK)
            for index, picture in enumerate(pictures):
                place = (left + index * (CELL + GAP), top + HEAD)
                resized = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.BILINEAR)
                sheet.paste(resized, place)
    with replacing(target) as file:
        sheet.save(file, format="PNG")


def keeps_features(store: Store, name: str) -> bool:
    """Whether what is kept of a class is its memory bank, from which nothing is drawn."""
    path = store.path("conditions", name)
    return path.exists() and read_header(path, CONDITIONS).get("form") == "features"


def pictures_of(
    data: Path, store: Store, class_name: str, drawn: str
) -> dict[str, list[np.ndarray]]:
    """Pictures `[H, W, 3]` uint8 per kind; real ones and their masks belong together.

    Of a class that is seen as tiles, they are tiles.
    """
    return _real_pictures(data, store, class_name) | {"replay": _replayed(store, drawn)}


def _real_pictures(data: Path, store: Store, class_name: str) -> dict[str, list[np.ndarray]]:
    masks_path = store.path("masks", class_name)
    masks = MasksArtifact.load(masks_path) if masks_path.exists() else None
    real = train_samples(data, class_name)
    view = View.from_dict(masks.header.get("view")) if masks else (
        View(white=white_of(sample.path for sample in real)))  # fmt: skip
    samples = viewed(real, view)
    rows, reader = evenly_spaced(len(samples), PER_KIND), Reader()
    found: dict[str, list[np.ndarray]] = {
        "real": [reader.pixels(samples[row], CELL) for row in rows]
    }
    found["mask"] = []
    if masks is not None:
        # By name: images may have come or gone since the masks were made.
        place = {name: number for number, name in enumerate(masks.image_ids)}
        ids = [samples[row].image_id for row in rows]
        shown = [masks.object_masks[place[one]] if one in place else np.zeros((1, 1), bool)
                 for one in ids]  # fmt: skip
        found["mask"] = [np.repeat(one[..., None], 3, -1).astype(np.uint8) * 255 for one in shown]
    return found


def _replayed(store: Store, drawn: str) -> list[np.ndarray]:
    path = store.path("replays", drawn)
    if not path.exists() or keeps_features(store, drawn):  # those of an earlier form
        return []
    replays = ReplaysReader(path)
    images = replays.images(evenly_spaced(len(replays), PER_KIND))
    return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images]
