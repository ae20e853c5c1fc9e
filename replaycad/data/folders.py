"""What lies below the folder of a class, and what its folders' names make of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from replaycad.data.samples import IGNORE_PICTURE, UNREAD_SUFFIXES, is_image_name
from replaycad.data.words import is_junk, is_session, meaning

Parts = tuple[str, ...]
MAX_DEPTH = 8


@dataclass
class Tree:
    """Files below a folder.

    Attributes:
        images: by folder, as the parts of its path, in order of their names.
        folders: names of the folders in each folder.
        dangling: links to nowhere that are named like images.
        unread: photos of formats that are not read.
    """

    images: dict[Parts, list[Path]] = field(default_factory=dict)
    folders: dict[Parts, list[str]] = field(default_factory=dict)
    dangling: list[Path] = field(default_factory=list)
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
        unknown: a folder whose name says nothing, or that no photos are in; else empty.
    """

    split: str = ""
    is_truth: bool = False
    label: str = ""
    kind: str = ""
    word: str = ""
    key: Parts = ()
    session: Parts = ()
    unknown: str = ""


def walk(folder: Path, only_training: bool = False) -> Tree:
    """Find all files below a folder; what starts with a dot and what archives leave is skipped.

    Args:
        folder: of a class.
        only_training: look into the folders for training alone, where there are such.

    Raises:
        OSError: a folder cannot be read.
    """
    tree, top = Tree(), folder.resolve()
    waiting: list[Parts] = [()]
    while waiting:
        parts = waiting.pop()
        folders: list[str] = []
        for entry in sorted(os.scandir(folder.joinpath(*parts)), key=lambda one: one.name):
            if is_junk(entry.name):
                continue
            path = Path(entry.path)
            if path.is_dir():
                if len(parts) < MAX_DEPTH and not (entry.is_symlink() and _overlap(path, top)):
                    folders.append(entry.name)
            elif path.suffix.lower() in UNREAD_SUFFIXES:
                tree.unread.append(path)
            elif not is_image_name(entry.name):
                continue
            elif not path.is_file():
                tree.dangling.append(path)
            elif parts or entry.name != IGNORE_PICTURE:
                tree.images.setdefault(parts, []).append(path)
        tree.folders[parts] = folders
        training = [name for name in folders if meaning(name) == "train"]
        if not parts and only_training and training:
            tree.images.pop((), None)
            folders = training
        waiting += [(*parts, name) for name in reversed(folders)]
    return tree


def _overlap(link: Path, top: Path) -> bool:
    """Whether a link leads to what is walked through anyway, or to what holds it."""
    real = link.resolve()
    return real.is_relative_to(top) or top.is_relative_to(real)


def place_of(parts: Parts, folders: Mapping[Parts, list[str]]) -> Place:
    """Read the path of a folder below that of its class, from the top.

    The first name that says a split or a label says it for all below it. Beside a folder of normal
    images, and in a test folder, a name that says nothing is that of a kind of defect.

    Args:
        parts: of the path.
        folders: as of `Tree`.
    """
    split = label = kind = word = unknown = ""
    is_truth = False
    key: list[str] = []
    session: list[str] = []
    for depth, name in enumerate(parts):
        what = meaning(name)
        is_beside = any(meaning(one) == "normal" for one in folders.get(parts[:depth], ()))
        if what in ("train", "test", "held") and not split and not label:
            split = what
        elif what == "truth":
            is_truth = True
        elif what == "other":
            unknown = unknown or name
        elif label:
            if what == "":
                kind = name if meaning(kind) == "defect" else kind
                key.append(name)
            elif is_session(name):
                session.append(name)
                key.append(name)
        elif what in ("normal", "defect"):
            label, word = what, name
            kind = "good" if what == "normal" else name
            key.append(name)
        elif is_beside or (what == "" and (split == "test" or is_truth)):
            label, kind, word = "defect", name, name
            key.append(name)
        elif what == "neutral":
            session += [name] if is_session(name) else []
            key += [name] if is_session(name) else []
        else:
            unknown = unknown or name
            key.append(name)
    return Place(
        split=split, is_truth=is_truth, label=label, kind=kind, word=word,
        key=tuple(one.casefold() for one in key), session=tuple(session), unknown=unknown,
    )  # fmt: skip


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
