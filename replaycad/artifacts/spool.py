"""Rows of an unfinished part of a replay set on disk, so that a killed run loses no image."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.atomic import cannot_write, hold, remove_leftovers
from replaycad.artifacts.reading import byte_view
from replaycad.errors import ArtifactError

SUFFIX = "rows"
BLOCK_BYTES = 8 * 2**20
CHECKSUM_BYTES = 4


def row_type(image_size: int) -> np.dtype[Any]:
    """One image with its packed mask, its seed and a checksum over these, without gaps."""
    return np.dtype(
        [
            ("images", "u1", (3, image_size, image_size)),
            ("object_masks", "u1", (image_size, -(-image_size // 8))),
            ("seeds", "<i8"),
            ("checksum", "<u4"),
        ]
    )


class Spool:
    """A hidden file beside `path` that only grows; whole rows of an earlier run are kept.

    Args:
        path: the artifact that is being made.
        tag: what the rows belong to; spools of other tags for the same artifact are removed.
        image_size: side in pixels.

    Raises:
        ArtifactError: another process works on the same artifact, or the folder cannot be written.
    """

    def __init__(self, path: Path, tag: str, image_size: int) -> None:
        self._target = path
        self._path = path.with_name(f".{path.name}.{tag}.{SUFFIX}")
        self._type = row_type(image_size)
        self._block_rows = max(1, BLOCK_BYTES // self._type.itemsize)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if remove_leftovers(path, SUFFIX, keep=self._path):
                raise _busy(path)
            self._file = self._path.open("ab+", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        if not hold(self._file):
            self._file.close()
            raise _busy(path)
        self._num_rows = os.fstat(self._file.fileno()).st_size // self._type.itemsize
        self._num_rows = self._count_sound_rows()
        self._cut()

    def __len__(self) -> int:
        return self._num_rows

    def append(self, rows: NDArray[Any]) -> None:
        """Put rows `[B]` of `row_type` on disk; their checksums are filled in.

        Raises:
            ArtifactError: the disk is full; the rows before are kept.
        """
        rows = np.ascontiguousarray(rows)
        rows["checksum"] = self._checksums(rows)
        left = byte_view(rows)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut()
            raise cannot_write(self._target, error) from error
        self._num_rows += len(rows)

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield one field of all rows, a few megabytes of rows at a time."""
        for block in self._blocks():
            yield block[name]

    def close(self) -> None:
        """Close the file and keep it."""
        self._file.close()

    def remove(self) -> None:
        """Close the file and remove it."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all rows in blocks."""
        item_bytes = self._type.itemsize
        for first in range(0, self._num_rows, self._block_rows):
            count = min(self._block_rows, self._num_rows - first)
            self._file.seek(first * item_bytes)
            block = np.empty(count, self._type)
            view = byte_view(block)
            while view:
                num_read = self._file.readinto(view)
                if not num_read:
                    raise ArtifactError(f"{self._path} became shorter", "run the command again")
                view = view[num_read:]
            yield block

    def _count_sound_rows(self) -> int:
        """Count rows up to the first whose checksum is wrong: a power cut may leave such a tail."""
        num_sound = 0
        for block in self._blocks():
            wrong = np.flatnonzero(block["checksum"] != self._checksums(block))
            if len(wrong):
                return num_sound + int(wrong[0])
            num_sound += len(block)
        return num_sound

    def _checksums(self, rows: NDArray[Any]) -> NDArray[np.uint32]:
        """crc32 of each row without its checksum."""
        octets = rows.view(np.uint8).reshape(len(rows), self._type.itemsize)[:, :-CHECKSUM_BYTES]
        return np.array([zlib.crc32(byte_view(row)) for row in octets], dtype=np.uint32)

    def _cut(self) -> None:
        """Drop what follows the last whole row."""
        with contextlib.suppress(OSError):
            self._file.truncate(self._num_rows * self._type.itemsize)


def _busy(path: Path) -> ArtifactError:
    """The error for two processes at the same artifact."""
    return ArtifactError(f"{path} is being written by another process", "wait until it is done")
