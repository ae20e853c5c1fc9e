"""Reads single rows of a tensor that is too large to hold."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.reading import (
    byte_view,
    damaged,
    open_artifact,
    open_layout,
    read_into,
)
from replaycad.artifacts.schema import Schema
from replaycad.errors import ArtifactError

Array = NDArray[Any]


class RowReader:
    """Reads rows of one tensor at any place, in memory that grows with the rows asked for only.

    Args:
        path: the artifact.
        tensor_name: which tensor; its first size counts the rows.
        schema: if given, the file is checked against it.

    Raises:
        ArtifactError: as `read_header`, or the file has no such tensor.
    """

    def __init__(self, path: str | Path, tensor_name: str, schema: Schema | None = None) -> None:
        self._path = Path(path)
        self._file = open_artifact(self._path, schema)
        try:
            found = open_layout(self._file, self._path, schema)
            place = found.tensors.get(tensor_name)
            if place is None or not place.shape:
                names = ", ".join(found.tensors)
                damaged(self._path, schema, f"expected rows of `{tensor_name}`, found {names}")
        except ArtifactError:
            self._file.close()
            raise
        self._place = place
        self.header = found.header
        self.shape = place.shape

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Sequence[int] | Array) -> Array:
        """Read some rows, in the order asked for; neighbours are read together.

        Args:
            indices: [B], each from 0 to len - 1.

        Returns:
            [B, ...] in the dtype of the file.

        Raises:
            IndexError: there is no such row.
            ArtifactError: the file became shorter meanwhile.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self._path} has {len(self)} rows; asked for {wanted.tolist()}")
        out = np.empty((len(wanted), *self.shape[1:]), self._place.dtype)
        row_bytes = self._place.num_bytes // max(len(self), 1)
        bounds = [*np.flatnonzero(np.diff(wanted, prepend=-2) != 1), len(wanted)]
        for start, stop in pairwise(bounds):
            offset = self._place.offset + int(wanted[start]) * row_bytes
            read_into(self._file, byte_view(out[start:stop]), offset, self._path)
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
