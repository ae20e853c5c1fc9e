"""Which classes and images a data folder has: the layouts, found by looking."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from replaycad.data.folders import has_image, is_class_folder
from replaycad.data.reading import read_folder
from replaycad.data.samples import IGNORE_PICTURE, Reading, Sample, is_image_name, listed
from replaycad.data.tables import (
    VISA_TABLE,
    is_one_name,
    read_real_iad,
    read_visa,
    real_iad_table,
    visa_classes,
)
from replaycad.data.words import is_exact, is_junk, is_label_of, meaning
from replaycad.errors import DatasetError

MAX_NAMED = 20  # classes in a hint
LAYOUTS_HINT = (
    "expected <class>/train/good (MVTec), <class>/OK and NG, split_csv/1cls.csv or 1cls/ (VisA), "
    "or one plain folder of images per class"
)


def find_classes(data: Path) -> list[str]:
    """Names of all classes below `data`, in alphabetical order.

    Raises:
        DatasetError: if `data` is no folder or holds no class.
    """
    with _reading(data):
        if (data / VISA_TABLE).is_file():
            found = visa_classes(data)
        else:
            root = _root(data)
            found = sorted(entry.name for entry in _folders(root) if is_class_folder(entry))
            if _is_one_class(root, found):
                whole = Path(os.path.abspath(data))  # noqa: PTH100 - resolve() would follow links
                raise DatasetError(
                    f"{data} is itself the folder of a class",
                    f"use --data {whole.parent} --class {whole.name}",
                )
            groups = [] if found else strangers(data)
            if groups:
                raise DatasetError(
                    f"no class found in {data}: nothing in {listed(groups)} says what is normal",
                    f"use --data {data / groups[0]} if its folders are classes, or call a folder "
                    "of normal images 'good'",
                )
    if not found:
        raise DatasetError(f"no class found in {data}", LAYOUTS_HINT)
    return found


def strangers(data: Path) -> list[str]:
    """Names of the folders that hold images somewhere and are no class.

    Raises:
        OSError: a folder cannot be read.
    """
    if (data / VISA_TABLE).is_file():
        return []
    return [
        one.name for one in _folders(_root(data))
        if not is_class_folder(one) and has_image(one)
    ]  # fmt: skip


def read_class(data: Path, class_name: str, only_training: bool = False) -> Reading:
    """Read a class: its images, what was guessed, what was left out.

    Args:
        data: the data folder.
        class_name: the class.
        only_training: do not look at the test images, where a folder says which those are.

    Raises:
        DatasetError: if the class does not exist, or a table is not understood.
    """
    with _reading(data):
        if (data / VISA_TABLE).is_file():
            reading = read_visa(data, class_name)
            if reading is None:
                raise _unknown_class(data, class_name)
        else:
            folder = _class_folder(data, class_name)
            table = real_iad_table(folder.parent, class_name)
            reading = read_real_iad(table, folder, class_name) if table else (
                read_folder(folder, class_name, only_training))  # fmt: skip
    for part in (reading.train, reading.test):
        part.sort(key=lambda sample: sample.image_id)
    return reading


def train_samples(data: Path, class_name: str) -> list[Sample]:
    """Normal training images of a class, ordered by image id; test images are not looked at.

    Raises:
        DatasetError: if the class does not exist or has no training image.
    """
    reading = read_class(data, class_name, only_training=True)
    if not reading.train:  # what a training folder lacks may lie beside it
        reading = read_class(data, class_name)
    if not reading.train:
        told = "; ".join(reading.sentences())
        raise DatasetError(
            f"class '{class_name}' in {data} has no training image" + (f": {told}" if told else ""),
            f"put normal images into {data / class_name / 'train' / 'good'}",
        )
    return reading.train


def test_samples(data: Path, class_name: str) -> list[Sample]:
    """Normal and anomalous test images of a class, ordered by image id.

    Raises:
        DatasetError: if the class does not exist or has no test image.
    """
    reading = read_class(data, class_name)
    if not reading.test:
        raise DatasetError(
            f"class '{class_name}' in {data} has no test image",
            f"put images into {data / class_name / 'test'}/good and /<defect>, "
            "and masks into ground_truth/<defect>",
        )
    return reading.test


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


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if not is_junk(one.name) and one.is_dir())


def _is_one_class(root: Path, found: list[str]) -> bool:
    """Whether the folder is that of one class: its own folders say a split or a label."""
    names = [one.name for one in _folders(root)]
    parts = [name for name in found if meaning(name) in ("truth", "defect") and is_exact(name)]
    if parts and (len(found) > len(parts) or meaning(parts[0]) == "defect"):
        return True
    says = [name for name in names if is_label_of(name, [one for one in found if one != name])]
    for name in says:
        below = [meaning(one.name) for one in _folders(root / name)]
        if not {"train", "test"} & set(below) and has_image(root / name):
            return True  # else it is a class that happens to be called so
    return not found and any(is_image_name(one.name) for one in root.iterdir())


def _class_folder(data: Path, class_name: str) -> Path:
    root = _root(data)
    if is_one_name(class_name) and (root / class_name).is_dir():
        return root / class_name
    raise _unknown_class(data, class_name)


def _unknown_class(data: Path, class_name: str) -> DatasetError:
    known = find_classes(data)
    near = get_close_matches(class_name, known, n=3)
    more = ", ..." if len(known) > MAX_NAMED else ""
    hint = f"did you mean: {', '.join(near)}" if near else (
        f"there are: {', '.join(known[:MAX_NAMED])}{more}")  # fmt: skip
    return DatasetError(f"there is no class '{class_name}' in {data}", hint)
