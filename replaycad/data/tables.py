"""Data sets that bring a list of their images: VisA's table, Real-IAD's JSON."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from replaycad.data.samples import Reading, Sample
from replaycad.errors import DatasetError

VISA_TABLE = Path("split_csv") / "1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image", "mask")


def visa_classes(data: Path) -> list[str]:
    """Names of the classes in VisA's table.

    Raises:
        DatasetError: it is not understood.
    """
    return sorted({row["object"] for row in _visa_rows(data)})


def read_visa(data: Path, class_name: str) -> Reading | None:
    """A class as VisA's table has it; None if it does not know the class.

    Raises:
        DatasetError: the table is not understood.
    """
    rows = [row for row in _visa_rows(data) if row["object"] == class_name]
    if not rows:
        return None
    reading = Reading(class_name=class_name, layout=f"VisA as published ({VISA_TABLE})")
    folder = data / class_name
    for row in rows:
        is_anomalous = row["label"] == "anomaly"
        path = data / row["image"]
        image_id = sample_id(path, folder if path.is_relative_to(folder) else data)
        mask = data / row["mask"] if row["mask"] else (
            folder / "Data" / "Masks" / "Anomaly" / f"{path.stem}.png")  # fmt: skip
        sample = Sample(
            path=path,
            image_id=image_id,
            class_name=class_name,
            kind="bad" if is_anomalous else "good",
            is_anomalous=is_anomalous,
            mask_paths=(mask,) if is_anomalous and mask.is_file() else (),
        )
        _add(reading, sample, row["split"])
    return reading


def real_iad_table(data: Path, class_name: str) -> Path | None:
    """The JSON list of a class of Real-IAD, where it lies beside the data or in it."""
    name = f"{class_name}.json"
    places = (".", "realiad_jsons", "realiad_jsons/realiad_jsons", "jsons", class_name)
    beside = ("../realiad_jsons", "../realiad_jsons/realiad_jsons")
    for folder in (*places, *beside):
        path = data / folder / name
        if path.is_file() and '"image_path"' in path.read_text(errors="replace")[:4096]:
            return path
    return None


def read_real_iad(table: Path, folder: Path, class_name: str) -> Reading:
    """A class as its JSON list has it.

    Args:
        table: the list.
        folder: of the class.
        class_name: the class.

    Raises:
        DatasetError: the list is not understood or names files elsewhere.
    """
    hint = 'expected {"meta": ..., "train": [{"image_path": ...}], "test": [...]}'
    try:
        document = json.loads(table.read_text(encoding="utf-8"))
        normal = str(document.get("meta", {}).get("normal_class", "OK"))
        rows = [(split, row) for split in ("train", "test") for row in document[split]]
        found = [_real_iad_sample(split, row, folder, class_name, normal) for split, row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{table} is not understood: {error!r}", hint) from None
    reading = Reading(class_name=class_name, layout=f"Real-IAD's list ({table.name})")
    for split, sample in found:
        if sample.path.is_file():
            _add(reading, sample, split)
        else:
            reading.left_out.setdefault("in the list and not there", []).append(sample.image_id)
    return reading


def _real_iad_sample(
    split: str, row: dict[str, Any], folder: Path, class_name: str, normal: str
) -> tuple[str, Sample]:
    image, mask, kind = row["image_path"], row.get("mask_path") or "", row["anomaly_class"]
    if not all(isinstance(one, str) for one in (image, mask, kind)):
        raise ValueError("a path is no text")
    if not image or not stays(image) or not stays(mask):
        raise ValueError(f"a row leaves its folder: {row}")
    is_anomalous = kind != normal
    if image.startswith(f"{class_name}/") and not (folder / image).is_file():
        image, mask = (one.removeprefix(f"{class_name}/") for one in (image, mask))
    mask_path = folder / mask
    return split, Sample(
        path=folder / image,
        image_id=sample_id(folder / image, folder),
        class_name=class_name,
        kind=kind if is_anomalous else "good",
        is_anomalous=is_anomalous,
        mask_paths=(mask_path,) if is_anomalous and mask and mask_path.is_file() else (),
    )


def _add(reading: Reading, sample: Sample, split: str) -> None:
    """Put an image where its table wants it; one that shows a defect is never learned from."""
    if split == "train" and sample.is_anomalous:
        reading.left_out.setdefault("defects are not learned from", []).append(sample.image_id)
    elif split in ("train", "test"):
        (reading.train if split == "train" else reading.test).append(sample)
    else:
        reading.left_out.setdefault(f"the table says '{split}'", []).append(sample.image_id)


def sample_id(path: Path, folder: Path) -> str:
    """Relative path as text; bytes that are no UTF-8 are spelled out, so that JSON can hold it."""
    relative = path.relative_to(folder).as_posix()
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def is_one_name(class_name: str) -> bool:
    """Whether a name could be that of one folder."""
    return class_name not in ("", ".", "..") and not set("/\\\0") & set(class_name)


def stays(relative: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    path = Path(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def _visa_rows(data: Path) -> list[dict[str, str]]:
    table = data / VISA_TABLE
    hint = f"expected the columns {', '.join(VISA_COLUMNS)}"
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = set(VISA_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise DatasetError(f"{table} lacks the columns {', '.join(sorted(missing))}", hint)
        try:
            rows = [{name: (row[name] or "").strip() for name in VISA_COLUMNS} for row in reader]
        except csv.Error as error:
            raise DatasetError(f"{table} cannot be read as CSV: {error}", hint) from None
    for row in rows:
        if row["label"] not in ("normal", "anomaly") or not row["object"] or not row["image"]:
            raise DatasetError(f"{table} has a row that is not understood: {row}", hint)
        if not is_one_name(row["object"]) or not all(map(stays, (row["image"], row["mask"]))):
            # A table of a stranger must not have files read that lie elsewhere.
            raise DatasetError(f"{table} has a row that leaves its folder: {row}", hint)
    return rows
