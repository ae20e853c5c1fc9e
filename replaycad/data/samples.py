"""Which images a class has: the folder layouts, found by looking."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from replaycad.data.views import WHOLE, View, Window
from replaycad.errors import DatasetError

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
)
IGNORE_PICTURE = "ignore.png"  # in the folder of a class: white where its pictures are ignored
VISA_TABLE = Path("split_csv") / "1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
MAX_NAMED = 20  # classes in a hint
LAYOUTS_HINT = (
    "expected <class>/train/good (MVTec), split_csv/1cls.csv or 1cls/ (VisA), "
    "or one plain folder of images per class"
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a class.

    Args:
        path: where it lies.
        image_id: posix path relative to the class folder.
        class_name: the product.
        kind: `good`, or the name of the defect's folder (`bad` where VisA names none).
        is_anomalous: whether it shows a defect.
        mask_path: anomaly mask of an anomalous image, else None.
        view: how the networks see the pictures of the class.
        window: the part of the picture that this is; None for the whole.
    """

    path: Path
    image_id: str
    class_name: str
    kind: str
    is_anomalous: bool = False
    mask_path: Path | None = None
    view: View = WHOLE
    window: Window | None = None


def find_classes(data: Path) -> list[str]:
    """Names of all classes below `data`, in alphabetical order.

    Raises:
        DatasetError: if `data` is no folder or holds no class.
    """
    with _reading(data):
        if (data / VISA_TABLE).is_file():
            found = sorted({row["object"] for row in _visa_rows(data)})
        else:
            root = _root(data)
            found = sorted(entry.name for entry in _entries(root) if _is_class_folder(entry))
        if not found and (data / "train").is_dir():
            raise DatasetError(
                f"{data} is itself the folder of a class",
                f"use --data {data.parent} --class {data.name}",
            )
    if not found:
        raise DatasetError(f"no class found in {data}", LAYOUTS_HINT)
    return found


def train_samples(data: Path, class_name: str) -> list[Sample]:
    """Normal training images of a class, ordered by image id; test images are not looked at.

    Raises:
        DatasetError: if the class does not exist or has no training image.
    """
    with _reading(data):
        if (data / VISA_TABLE).is_file():
            found = _visa_samples(data, class_name, "train")
        else:
            folder = _class_folder(data, class_name)
            good = folder / "train" / "good"
            found = [
                Sample(path=path, image_id=_id(path, folder), class_name=class_name, kind="good")
                for path in _images(good if good.is_dir() else folder)
                if path.parent != folder or path.name != IGNORE_PICTURE
            ]
    if not found:
        raise DatasetError(
            f"class '{class_name}' in {data} has no training image",
            f"put normal images into {data / class_name / 'train' / 'good'}",
        )
    return sorted(found, key=lambda sample: sample.image_id)


def test_samples(data: Path, class_name: str) -> list[Sample]:
    """Normal and anomalous test images of a class, ordered by image id.

    Raises:
        DatasetError: if the class does not exist, has no test image, or an anomalous image has no
            mask; the image is named.
    """
    with _reading(data):
        if (data / VISA_TABLE).is_file():
            found = _visa_samples(data, class_name, "test")
        else:
            folder = _class_folder(data, class_name)
            found = _folder_test_samples(folder, class_name) if (folder / "test").is_dir() else []
    if not found:
        raise DatasetError(
            f"class '{class_name}' in {data} has no test image",
            f"put images into {data / class_name / 'test'}/good and /<defect>, "
            "and masks into ground_truth/<defect>",
        )
    return sorted(found, key=lambda sample: sample.image_id)


test_samples.__test__ = False  # type: ignore[attr-defined]  # the name looks like a test to pytest


def ignore_path(data: Path, class_name: str) -> Path | None:
    """The picture beside a class that says what is ignored in its pictures; None if there is none.

    Raises:
        DatasetError: if the class does not exist.
    """
    with _reading(data):
        is_visa = (data / VISA_TABLE).is_file()
        folder = data / class_name if is_visa else _class_folder(data, class_name)
        path = folder / IGNORE_PICTURE
        return path if path.is_file() else None


@contextmanager
def _reading(data: Path) -> Iterator[None]:
    """Turn what the file system says about a folder into a sentence about it."""
    if not data.is_dir():
        raise DatasetError(f"the data folder {data} is not there", "use --data FOLDER")
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DatasetError(
            f"cannot read {error.filename or data}: {reason}", "check the permissions"
        ) from None


def _root(data: Path) -> Path:
    """The folder that holds the class folders: VisA's reorganised form has one more level."""
    return data / "1cls" if (data / "1cls").is_dir() else data


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _images(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if _is_image(entry)]


def _is_class_folder(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if (folder / "train" / "good").is_dir() or (folder / "test").is_dir():
        return True
    return any(_is_image(entry) and entry.name != IGNORE_PICTURE for entry in _entries(folder))


def _class_folder(data: Path, class_name: str) -> Path:
    root = _root(data)
    if _is_one_name(class_name) and (root / class_name).is_dir():
        return root / class_name
    raise _unknown_class(data, class_name)


def _is_one_name(class_name: str) -> bool:
    return class_name not in ("", ".", "..") and not set("/\\\0") & set(class_name)


def _stays(relative: str) -> bool:
    """Whether a path stays below the folder that it is relative to."""
    path = Path(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def _unknown_class(data: Path, class_name: str) -> DatasetError:
    known = find_classes(data)
    near = get_close_matches(class_name, known, n=3)
    more = ", ..." if len(known) > MAX_NAMED else ""
    hint = f"did you mean: {', '.join(near)}" if near else (
        f"there are: {', '.join(known[:MAX_NAMED])}{more}")  # fmt: skip
    return DatasetError(f"there is no class '{class_name}' in {data}", hint)


def _id(path: Path, folder: Path) -> str:
    """Relative path as text; bytes that are no UTF-8 are spelled out, so that JSON can hold it."""
    relative = path.relative_to(folder).as_posix()
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def _folder_test_samples(folder: Path, class_name: str) -> list[Sample]:
    found = []
    for kind_folder in _entries(folder / "test"):
        if not kind_folder.is_dir():
            continue
        kind = kind_folder.name
        images = _images(kind_folder)
        truth = folder / "ground_truth" / kind
        masks = {}
        if kind != "good" and truth.is_dir():
            masks = {path.stem: path for path in _images(truth)}
        for path in images:
            mask_path = None
            if kind != "good":
                mask_path = masks.get(f"{path.stem}_mask") or masks.get(path.stem)
                if mask_path is None:
                    raise _missing_mask(path, truth / f"{path.stem}_mask.png")
            found.append(
                Sample(
                    path=path,
                    image_id=_id(path, folder),
                    class_name=class_name,
                    kind=kind,
                    is_anomalous=kind != "good",
                    mask_path=mask_path,
                )
            )
    return found


def _missing_mask(image: Path, expected: Path) -> DatasetError:
    return DatasetError(
        f"the defective image {image} has no anomaly mask",
        f"expected {expected}; masks are paired with images by file name",
    )


def _visa_rows(data: Path) -> list[dict[str, str]]:
    table = data / VISA_TABLE
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = set(VISA_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise DatasetError(
                f"{table} lacks the columns {', '.join(sorted(missing))}",
                f"expected the columns {', '.join(VISA_COLUMNS)}",
            )
        try:
            rows = [{name: (row[name] or "").strip() for name in VISA_COLUMNS} for row in reader]
        except csv.Error as error:
            raise DatasetError(f"{table} cannot be read as CSV: {error}", LAYOUTS_HINT) from None
    for row in rows:
        if row["label"] not in ("normal", "anomaly") or not row["object"] or not row["image"]:
            raise DatasetError(f"{table} has a row that is not understood: {row}", LAYOUTS_HINT)
        if not _is_one_name(row["object"]) or not all(map(_stays, (row["image"], row["mask"]))):
            # A table of a stranger must not have files read that lie elsewhere.
            raise DatasetError(f"{table} has a row that leaves its folder: {row}", LAYOUTS_HINT)
    return rows


def _visa_samples(data: Path, class_name: str, split: str) -> list[Sample]:
    rows = [row for row in _visa_rows(data) if row["object"] == class_name]
    if not rows:
        raise _unknown_class(data, class_name)
    found = []
    for row in rows:
        is_anomalous = row["label"] == "anomaly"
        # Training is on normal images only, whatever a table of another split may say.
        if row["split"] != split or (split == "train" and is_anomalous):
            continue
        path = data / row["image"]
        folder = data / class_name
        mask_path = None
        if is_anomalous:
            mask_path = data / row["mask"] if row["mask"] else _visa_mask(folder, path)
            if not mask_path.is_file():
                raise _missing_mask(path, mask_path)
        found.append(
            Sample(
                path=path,
                image_id=_id(path, folder if path.is_relative_to(folder) else data),
                class_name=class_name,
                kind="bad" if is_anomalous else "good",
                is_anomalous=is_anomalous,
                mask_path=mask_path,
            )
        )
    return found


def _visa_mask(folder: Path, image: Path) -> Path:
    return folder / "Data" / "Masks" / "Anomaly" / f"{image.stem}.png"
