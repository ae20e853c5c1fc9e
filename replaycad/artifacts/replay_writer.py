"""Writes replayed images as they are drawn, so that a killed run loses none."""

import contextlib
import hashlib
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.atomic import cannot_write
from replaycad.artifacts.format import (
    RowReader,
    Streamed,
    canonical_json,
    read_header,
    read_layout,
    verify,
    write,
)
from replaycad.artifacts.layout import plain
from replaycad.artifacts.replay_set import REPLAYS, SHARD, listed_shards, shard_folder
from replaycad.artifacts.spool import Spool, row_type
from replaycad.errors import ArtifactError
from replaycad.mask_ops import pack_bits

SHARD_BYTES = 256 * 2**20
TAG_LENGTH = 16

ByteArray = NDArray[np.uint8]


class ReplaysWriter:
    """Writes N images as they come, and goes on where a killed run with the same key stopped.

    Args:
        path: the main file.
        header: further header fields; its `key` says which unfinished set is the same one.
        num_images: N.
        image_size: side in pixels.
        shard_bytes: a set with more bytes of images, masks and seeds than this is sharded.
        resume: False throws away what a killed run left.

    Attributes:
        rows_done: images that are safely on disk; the next one appended is this one.

    Raises:
        ArtifactError: the folder cannot be written, or another process writes the same set.
    """

    def __init__(
        self,
        path: str | Path,
        header: dict[str, Any],
        num_images: int,
        image_size: int,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = True,
    ) -> None:
        if num_images < 1 or image_size < 1:
            raise ValueError(f"{num_images} images of {image_size} px make no set")
        self._path = Path(path)
        self._header = {**header, "image_size": image_size, "num_images": num_images}
        self._num_images, self._image_size = num_images, image_size
        row_bytes = row_type(image_size).itemsize
        self._is_sharded = num_images * row_bytes > shard_bytes
        self._shard_rows = max(1, shard_bytes // row_bytes) if self._is_sharded else num_images
        identity = [header.get("key") or plain(header), num_images, image_size, self._shard_rows]
        self._tag = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:TAG_LENGTH]
        self._shards = self._finished_shards() if resume else []
        self._spool = self._open_spool()
        if not resume:
            self._spool.remove()
            self._spool = self._open_spool()
        self._remove_strangers()
        self._finish_shard_if_full()

    @property
    def rows_done(self) -> int:
        """Images on disk."""
        return min(len(self._shards) * self._shard_rows, self._num_images) + len(self._spool)

    def append(
        self, images: ByteArray, object_masks: NDArray[np.bool_], seeds: NDArray[np.int64]
    ) -> None:
        """Put the next images on disk.

        Args:
            images: [B, 3, H, W] uint8 RGB.
            object_masks: [B, H, W] bool, true on the object.
            seeds: [B] int64.

        Raises:
            ArtifactError: the disk is full; what was appended before is kept.
        """
        size, count = self._image_size, len(images)
        shapes = (images.shape, object_masks.shape, np.shape(seeds))
        if shapes != ((count, 3, size, size), (count, size, size), (count,)):
            raise ValueError(f"expected images, masks and seeds of {size} px, found {shapes}")
        if images.dtype != np.uint8 or self.rows_done + count > self._num_images:
            done = f"{self.rows_done} + {count} of {self._num_images}"
            raise ValueError(f"{done} images in {images.dtype} do not fit into the set")
        rows = np.zeros(count, row_type(size))
        rows["images"], rows["seeds"] = images, seeds
        rows["object_masks"] = pack_bits(object_masks)
        while len(rows):
            room = self._shard_rows - len(self._spool)
            self._spool.append(rows[:room])
            rows = rows[room:]
            self._finish_shard_if_full()

    def close(self) -> str:
        """Write the main file, remove what is no longer needed, and return the content id.

        Raises:
            ArtifactError: it cannot be written.
        """
        if self.rows_done != self._num_images:
            raise ValueError(f"{self.rows_done} of {self._num_images} images were appended")
        if self._is_sharded:
            content_id = self._write_index()
        else:
            tensors = self._spooled()
            content_id = write(self._path, REPLAYS, tensors, {**self._header, "shards": []})
        self._spool.remove()
        self._remove_strangers()
        return content_id

    def release(self) -> None:
        """Close the files and keep the unfinished set for a later run."""
        self._spool.close()

    def __enter__(self) -> "ReplaysWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _write_index(self) -> str:
        """Write the main file of a sharded set."""
        names, digests, seeds = [], [], []
        for shard in self._shards:
            with RowReader(shard, "seeds", SHARD) as reader:
                names.append({"file": shard.name, "num_images": len(reader)})
                digests.append(np.frombuffer(bytes.fromhex(reader.header["content_id"]), np.uint8))
                seeds.append(reader.rows(range(len(reader))))
        tensors = {"seeds": np.concatenate(seeds), "shard_digests": np.stack(digests)}
        return write(self._path, REPLAYS, tensors, {**self._header, "shards": names})

    def _finish_shard_if_full(self) -> None:
        """Turn the spooled rows into a shard once there are enough of them."""
        first = len(self._shards) * self._shard_rows
        wanted = min(self._shard_rows, self._num_images - first)
        if not self._is_sharded or wanted <= 0 or len(self._spool) < wanted:
            return
        shard = self._shard_path(len(self._shards))
        write(shard, SHARD, self._spooled(), {"image_size": self._image_size, "first_row": first})
        self._shards.append(shard)
        self._spool.remove()
        self._spool = self._open_spool()

    def _spooled(self) -> dict[str, Streamed]:
        """The rows in the spool as tensors that are read when they are written."""
        kinds, spool = row_type(self._image_size), self._spool
        return {
            name: Streamed(
                kinds[name].base.name, (len(spool), *kinds[name].shape), partial(spool.column, name)
            )
            for name in SHARD.tensors
        }

    def _open_spool(self) -> Spool:
        """The spool of the next shard, or of the whole set."""
        return Spool(self._path, f"{self._tag}-{len(self._shards):05d}", self._image_size)

    def _shard_path(self, index: int) -> Path:
        return shard_folder(self._path) / f"{self._tag}-{index:05d}.safetensors"

    def _finished_shards(self) -> list[Path]:
        """The shards of the same set that a killed run finished."""
        shards: list[Path] = []
        for first in range(0, self._num_images if self._is_sharded else 0, self._shard_rows):
            shard = self._shard_path(len(shards))
            expected = min(self._shard_rows, self._num_images - first)
            try:
                verify(shard, SHARD)
                found = read_layout(shard, SHARD)
            except ArtifactError:
                break
            if (found.tensors["seeds"].shape[0], found.header["first_row"]) != (expected, first):
                break
            shards.append(shard)
        return shards

    def _remove_strangers(self) -> None:
        """Remove shards that neither this set nor the main file that is there now needs."""
        folder, needed = shard_folder(self._path), {shard.name for shard in self._shards}
        with contextlib.suppress(ArtifactError):  # no main file yet, or one that nobody can read
            header = read_header(self._path, REPLAYS)
            needed |= {name for name, _ in listed_shards(self._path, header)}
        try:
            for found in [*folder.glob("*.safetensors"), *folder.glob(".*.tmp")]:
                if found.name not in needed:
                    found.unlink(missing_ok=True)
            if not needed and folder.is_dir():
                folder.rmdir()
        except OSError as error:
            raise cannot_write(folder, error) from error
