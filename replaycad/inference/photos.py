"""Which photos a command judges: of files, of folders, from stdin, as they arrive."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from replaycad.data.samples import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from replaycad.errors import DatasetError

STDIN = "-"
WATCH_SECONDS = 0.5  # between two looks into a folder that is being filled


@dataclass(frozen=True)
class Found:
    """An image to be judged: its file, and where its overlay goes below the output folder."""

    path: Path
    target: Path


def find_images(named: Sequence[str], watch: bool = False) -> Iterator[Found]:
    """Images of files, folders and, for `-`, paths read line by line from stdin.

    Args:
        named: as typed.
        watch: go on looking into the folders for new files, for ever. A file counts when its size
            has stood still between two looks.

    Raises:
        DatasetError: if something named is not there, or a folder holds no image and none is
            awaited.
    """
    folders = [Path(text) for text in named if text != STDIN and Path(text).is_dir()]
    for text in named:
        path = Path(text)
        if text == STDIN:
            lines = (line.rstrip("\n") for line in sys.stdin)
            yield from (Found(Path(line), Path(Path(line).name)) for line in lines if line)
        elif path.is_dir():
            images = sorted(_below(path))
            if not images and not watch:
                endings = " ".join(sorted(IMAGE_SUFFIXES))
                raise DatasetError(f"{path} holds no images", f"images end in {endings}")
            yield from (Found(one, one.relative_to(path)) for one in images if not watch)
        elif path.exists():
            yield Found(path, Path(path.name))
        else:
            raise DatasetError(f"{path} does not exist", "check the path")
    if watch:
        yield from _arriving(folders)


def _below(folder: Path) -> Iterator[Path]:
    """What is named like a photo; links to nowhere and formats that are not read are told later."""
    photos = IMAGE_SUFFIXES | UNREAD_SUFFIXES
    return (
        path for path in folder.rglob("*")
        if path.suffix.lower() in photos and not path.name.startswith(".") and not path.is_dir()
    )  # fmt: skip


def _arriving(folders: Sequence[Path]) -> Iterator[Found]:
    seen: set[Path] = set()
    sizes: dict[Path, int] = {}
    while True:
        for folder in folders:
            for path in sorted(path for path in _below(folder) if path.is_file()):
                size = path.stat().st_size
                if path not in seen and size and sizes.get(path) == size:
                    seen.add(path)
                    yield Found(path, path.relative_to(folder))
                sizes[path] = size
        time.sleep(WATCH_SECONDS)
