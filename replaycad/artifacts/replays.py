"""Replayed images of one class, read by row: never more than asked for is in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.format import RowReader, damaged
from replaycad.artifacts.replay_set import REPLAYS, SHARD, shard_paths
from replaycad.artifacts.replay_writer import SHARD_BYTES, ReplaysWriter
from replaycad.mask_ops import unpack_bits

__all__ = ["REPLAYS", "SHARD", "SHARD_BYTES", "ReplaysReader", "ReplaysWriter", "shard_paths"]

ByteArray = NDArray[np.uint8]


class ReplaysReader:
    """Reads N images by row; of the set no more than the rows asked for is in memory.

    Args:
        path: the main file.

    Attributes:
        header: of the main file.
        image_size: side in pixels.
        seeds: [N] int64.

    Raises:
        ArtifactError: it is missing, damaged, foreign or newer, or a shard is not the listed one.
    """

    def __init__(self, path: str | Path) -> None:
        with ExitStack() as files:
            self._open(Path(path), files)
            self._files = files.pop_all()

    def _open(self, path: Path, files: ExitStack) -> None:
        """Open all parts and hold them against each other."""
        shards = shard_paths(path)
        schema = SHARD if shards else REPLAYS
        with RowReader(path, "seeds", REPLAYS) as reader:
            self.header = reader.header
            self.seeds: NDArray[np.int64] = reader.rows(range(len(reader)))
        self.image_size: int = self.header["image_size"]
        self._images, self._masks = (
            [files.enter_context(RowReader(part, name, schema)) for part in shards or [path]]
            for name in ("images", "object_masks")
        )
        self._ends = np.cumsum([len(reader) for reader in self._images])
        expected = (3, self.image_size, self.image_size)
        shapes = {reader.shape[1:] for reader in self._images}
        if shapes != {expected} or self._ends[-1] != len(self):
            found = f"found {self._ends[-1]} of {sorted(shapes)}"
            damaged(path, REPLAYS, f"expected {len(self)} images of {expected}, {found}")

    def __len__(self) -> int:
        return len(self.seeds)

    def images(self, indices: Sequence[int] | NDArray[Any]) -> ByteArray:
        """Read images.

        Args:
            indices: [B], each from 0 to N - 1, in any order.

        Returns:
            [B, 3, H, W] uint8 RGB.

        Raises:
            IndexError: there is no such image.
        """
        return self._rows(self._images, indices)

    def object_masks(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
        """Read the masks [B, H, W] bool that guided these images, true on the object.

        Raises:
            IndexError: there is no such mask.
        """
        return unpack_bits(self._rows(self._masks, indices), self.image_size)

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def __enter__(self) -> "ReplaysReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self, readers: list[RowReader], indices: Sequence[int] | NDArray[Any]) -> ByteArray:
        """Gather rows from the parts that hold them."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"there are {len(self)} replayed images; asked for {wanted.tolist()}")
        out = np.empty((len(wanted), *readers[0].shape[1:]), np.uint8)
        part_of = np.searchsorted(self._ends, wanted, side="right")
        for part in np.unique(part_of):
            places = np.flatnonzero(part_of == part)
            first = self._ends[part] - len(readers[part])
            out[places] = readers[part].rows(wanted[places] - first)
        return out
