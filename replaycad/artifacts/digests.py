"""sha256 of the files that are read, remembered by what the file system says of them."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.format import canonical_json
from replaycad.errors import ArtifactError

FILE_NAME = ".digests.json"
# A file written again within the resolution of the clock looks unchanged: what is that young, on
# any file system, is read again next time.
YOUNG_NS = 2_000_000_000

Stamp = list[int]


class ImageFile(Protocol):
    """What a digest over images needs to know of each; `data.samples.Sample` has it."""

    @property
    def image_id(self) -> str:
        """Name that does not depend on where the data set lies."""

    @property
    def path(self) -> Path:
        """The image."""

    @property
    def is_anomalous(self) -> bool:
        """The label."""

    @property
    def mask_paths(self) -> Sequence[Path]:
        """The pictures of its defect."""


class DigestCache:
    """Digests by path, size, times of change and inode, kept in one file: checksum, then JSON.

    A file that cannot be read is an empty cache, one that cannot be written is no failure: only
    time is lost. Use it as a context manager, or call `save`.

    Args:
        folder: the store; the file is its `.digests.json`.
        now_ns: the clock.
    """

    def __init__(self, folder: str | Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = Path(folder) / FILE_NAME
        self._now_ns = now_ns
        self._entries = _load(self._path)
        self._new: dict[str, tuple[Stamp, str]] = {}

    def get(self, path: Path, stat: os.stat_result) -> str | None:
        """The digest of an unchanged file, or None."""
        entry = self._entries.get(os.path.abspath(path))  # noqa: PTH100 - resolve() asks the disk
        return entry[1] if entry and entry[0] == _stamp(stat) else None

    def put(self, path: Path, stat: os.stat_result, digest: str) -> None:
        """Remember a digest, unless the file is so young that it may still change unseen."""
        if self._now_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < YOUNG_NS:
            return
        place = os.path.abspath(path)  # noqa: PTH100
        self._entries[place] = self._new[place] = (_stamp(stat), digest)

    def save(self) -> None:
        """Write what is new, together with what other runs wrote meanwhile."""
        if not self._new:
            return
        entries = {**_load(self._path), **self._new}
        try:
            text = canonical_json(entries)
            write_text(self._path, f"{_checksum(text)}\n{text}\n")
        except ArtifactError:  # a store that may only be read
            return
        self._new = {}

    def __enter__(self) -> "DigestCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.save()


def file_digest(path: str | Path, cache: DigestCache | None = None) -> str:
    """sha256 of a file's bytes, from the cache if the file has not changed.

    Raises:
        ArtifactError: the file cannot be read.
    """
    path = Path(path)
    try:
        before = path.stat()
        known = cache.get(path, before) if cache is not None else None
        if known:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"cannot read {path}: {reason}", "check that it is there") from error
    if cache is not None and _stamp(before) == _stamp(after):
        cache.put(path, after, digest)
    return digest


def images_digest(samples: Iterable[ImageFile], cache: DigestCache | None = None) -> str:
    """One sha256 over ids, bytes, labels and defect masks of images, in their order.

    Where the data set lies does not matter.

    Raises:
        ArtifactError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for sample in samples:
        defects = [file_digest(path, cache) for path in sample.mask_paths]
        # one mask, as nearly all have, is written as it always was
        defect = defects if len(defects) > 1 else next(iter(defects), None)
        image = file_digest(sample.path, cache)
        facts = [sample.image_id, image, bool(sample.is_anomalous), defect]
        digest.update(canonical_json(facts).encode())
    return digest.hexdigest()


def _stamp(stat: os.stat_result) -> Stamp:
    """What changes with a file; the change time betrays an edit that restored the other."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _load(path: Path) -> dict[str, tuple[Stamp, str]]:
    """Read the entries that are sound; none if a bit of the file is not as it was written."""
    try:
        checksum, _, text = path.read_text().partition("\n")
        found = json.loads(text) if checksum == _checksum(text.rstrip("\n")) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {place: (entry[0], entry[1]) for place, entry in found.items() if _is_entry(entry)}


def _checksum(text: str) -> str:
    """A flipped bit in a digest would have artifacts made of images that nobody has."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_entry(entry: Any) -> bool:
    """Whether a JSON value is a stamp with a sha256."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    stamp, digest = entry
    return (
        isinstance(stamp, list)
        and len(stamp) == 4
        and all(type(number) is int for number in stamp)
        and isinstance(digest, str)
        and len(digest) == 64
        and set(digest) <= set("0123456789abcdef")
    )
