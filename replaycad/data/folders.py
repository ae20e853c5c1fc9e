"""What lies below the folder of a class, and what its folders' names make of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from replaycad.data.samples import IGNORE_PICTURE, UNREAD_SUFFIXES, is_image_name
from replaycad.data.words import is_exact, is_junk, is_session, key_of, meaning

Parts = tuple[str, ...]
MAX_DEPTH = 8


@dataclass
class Tree:
    """Files below a folder.

    Attributes:
        images: by folder, as the parts of its path, in order of their names.
        folders: names of the folders in each folder.
        dangling: links to nowhere, of images or folders.
        skipped: links to folders that are read anyway.
        unread: photos of formats that are not read.
    """

    images: dict[Parts, list[Path]] = field(default_factory=dict)
    folders: dict[Parts, list[str]] = field(default_factory=dict)
    dangling: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a folder's path says about the pictures in it.

    Attributes:
        split: `train`, `test`, `held` or empty.
        is_truth: whether they are anomaly masks.
        label: `normal`, `defect` or empty.
        kind: name of the defect, `good` for normal ones, or empty.
        word: the folder that says the label.
        key: what images and their masks have in common.
        session: names of the recordings, if any.
        stray: a folder that takes its pictures out of use: its name says nothing where it should,
            or another thing than those around it; else empty.
    """

    split: str = ""
    is_truth: bool = False
    label: str = ""
    kind: str = ""
    word: str = ""
    key: Parts = ()
    session: Parts = ()
    stray: str = ""


def walk(folder: Path, only_training: bool = False) -> Tree:
    """Find all files below a folder; what starts with a dot and what archives leave is skipped.

    Args:
        folder: of a class.
        only_training: look into the folders for training alone, where there are such; and into
            those of masks, if no folder for training says what is normal.

    Raises:
        OSError: a folder cannot be read.
    """
    tree, linked, top = Tree(), {folder.resolve()}, folder.resolve()
    waiting: list[Parts] = [()]
    while waiting:
        parts = waiting.pop()
        folders: list[str] = []
        for entry in sorted(os.scandir(folder.joinpath(*parts)), key=lambda one: one.name):
            path = Path(entry.path)
            if is_junk(entry.name):
                continue
            if entry.is_symlink() and not path.exists():
                if is_image_name(entry.name) or not path.suffix:
                    tree.dangling.append(path)
            elif path.is_dir():
                if entry.is_symlink() and not _is_new(path, top, linked):
                    tree.skipped.append(path)
                elif len(parts) < MAX_DEPTH:
                    folders.append(entry.name)
            elif path.suffix.lower() in UNREAD_SUFFIXES:
                tree.unread.append(path)
            elif is_image_name(entry.name) and (parts or entry.name != IGNORE_PICTURE):
                tree.images.setdefault(parts, []).append(path)
        tree.folders[parts] = folders
        if not parts and only_training:
            folders = _for_training(folder, folders)
            if folders != tree.folders[parts]:
                tree.images.pop((), None)
        waiting += [(*parts, name) for name in reversed(folders)]
    return tree


def _for_training(folder: Path, names: list[str]) -> list[str]:
    """Folders that must be looked into to find the training images of a class."""
    training = [name for name in names if meaning(name) == "train"]
    below = [one.name for name in training for one in (folder / name).iterdir() if one.is_dir()]
    if not training:
        return names
    if any(meaning(name) in ("normal", "defect") for name in below):
        return training
    return [name for name in names if name in training or meaning(name) == "truth"]


def _is_new(link: Path, top: Path, linked: set[Path]) -> bool:
    """Whether a link leads to what is neither walked through anyway nor holds it; remembers it."""
    real = link.resolve()
    if real in linked or real.is_relative_to(top) or top.is_relative_to(real):
        return False
    linked.add(real)
    return True


def place_of(parts: Parts, folders: Mapping[Parts, list[str]]) -> Place:
    """Read the path of a folder below that of its class, from the top.

    Beside a folder of normal images, and in a test folder, a name that says nothing is taken as
    that of a kind of defect, unless a folder below it says more: then it is a view.

    Args:
        parts: of the path.
        folders: as of `Tree`.
    """
    split = label = kind = word = stray = above = ""
    is_truth = is_guess = False
    key: list[str] = []
    session: list[str] = []
    for depth, name in enumerate(parts):
        what = _meaning_here(parts[: depth + 1], folders, is_truth)
        below = folders.get(parts[: depth + 1], ())
        if what in ("train", "test", "held") and not split:
            split, stray = what, stray or above
            continue
        if what == "truth":
            is_truth = True
            key += [key_of(name)] if not is_exact(name) and key_of(name) else []
            continue
        if what == "other":
            stray = stray or name
            continue
        is_beside = _is_beside(parts[: depth + 1], folders)
        if is_session(name) and what in ("", "neutral") and (
            not is_beside or any(_says_label(one) for one in below)
        ):  # fmt: skip
            session.append(name)
            key.append(key_of(name))
            continue
        if what == "neutral" and not is_beside:
            continue
        key.append(key_of(name))
        if what in ("normal", "defect"):
            if label and not is_guess and what != label:
                stray = stray or name
            elif not label or is_guess:
                label, word, is_guess = what, name, False
                kind = "good" if what == "normal" else name
        elif not label and not (is_beside or split == "test" or is_truth):
            above = above or name
        elif not label or (is_guess and is_beside):
            label, kind, word, is_guess = "defect", name, name, True
        elif label == "defect" and meaning(kind) == "defect":
            kind = name
    return Place(
        split=split, is_truth=is_truth, label=label, kind=kind, word=word, key=tuple(key),
        session=tuple(session), stray=stray or ("" if label else above),
    )  # fmt: skip


def _meaning_here(path: Parts, folders: Mapping[Parts, list[str]], is_truth: bool) -> str:
    """What a folder's name says where it stands.

    A kind of defect may be called `label`: then a folder of masks has one of that name too, or it
    is that one.
    """
    name, what = path[-1], meaning(path[-1])
    if what == "truth" and (is_truth or _has_masks_of(name, path, folders)):
        return ""
    return what


def _has_masks_of(name: str, path: Parts, folders: Mapping[Parts, list[str]]) -> bool:
    """Whether another folder of masks has a folder of this name."""
    return any(
        parts and parts != path and meaning(parts[-1]) == "truth" and name in below
        for parts, below in folders.items()
    )


def _says_label(name: str) -> bool:
    return meaning(name) in ("normal", "defect")


def _is_beside(path: Parts, folders: Mapping[Parts, list[str]]) -> bool:
    """Whether a folder lies beside one of normal images."""
    return any(meaning(one) == "normal" for one in folders.get(path[:-1], ()) if one != path[-1])


def is_class_folder(folder: Path) -> bool:
    """Whether a folder is that of a class, and not one of classes or of something else.

    It holds images, or a folder whose name says a split or a label, or recordings alone.

    Raises:
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        return False
    folders = []
    for entry in os.scandir(folder):
        if is_junk(entry.name):
            continue
        if Path(entry).is_dir():
            folders.append(entry.name)
        elif is_image_name(entry.name) and entry.name != IGNORE_PICTURE and Path(entry).is_file():
            return True
    says = [name for name in folders if meaning(name) not in ("", "neutral", "other")]
    if says:
        return any(has_image(folder / name) for name in says)
    return any(_holds_photos(folder / name) for name in folders if meaning(name) == "neutral")


def has_image(folder: Path, depth: int = 0) -> bool:
    """Whether an image lies anywhere below a folder.

    Raises:
        OSError: it cannot be read.
    """
    deeper = []
    for entry in os.scandir(folder):
        if is_junk(entry.name):
            continue
        if Path(entry).is_dir():
            deeper.append(entry.path)
        elif is_image_name(entry.name) and (depth or entry.name != IGNORE_PICTURE):
            return True
    return depth < MAX_DEPTH and any(has_image(Path(one), depth + 1) for one in deeper)


def _holds_photos(folder: Path) -> bool:
    """Whether a recording, or a folder named `images`, holds photos and no class of its own."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    says = [
        entry.name for entry in entries
        if entry.is_dir() and meaning(entry.name) not in ("", "neutral", "other")
    ]  # fmt: skip
    if says:  # `01/train` is a class of its own; `Data/Images/Normal` is a part of one
        return not is_session(folder.name) and any(meaning(one) != "train" for one in says)
    if any(is_image_name(entry.name) and entry.is_file() for entry in entries):
        return True
    deeper = [entry.name for entry in entries if entry.is_dir() and meaning(entry.name)]
    return any(_holds_photos(folder / name) for name in deeper)
