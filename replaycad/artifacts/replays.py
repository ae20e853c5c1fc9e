"""Replayed images of one class: a main file and small shards beside it.

`NAME.safetensors` holds the seeds of all images and the content ids of the shards, which are
`NAME.shards/SET-00000.safetensors` and so on. A shard is written as soon as its images are drawn,
the main file last, so a killed run goes on from the first shard that is missing or damaged. SET is
a digest of the key: a new set grows beside the old one and takes its place in one step.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from replaycad.artifacts.atomic import cannot_write
from replaycad.artifacts.format import canonical_json, damaged, read, read_layout, write
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.errors import ArtifactError
from replaycad.mask_ops import pack_bits, unpack_bits

SHARD_IMAGES = 16  # as many as are drawn at once: a killed run loses little more than that
SHARD_BYTES = 8 * 2**20  # of the images of one shard; there are fewer where these are large
SET_LENGTH = 16

REPLAYS = Schema(
    format="replays",
    version=2,
    tensors={
        "seeds": TensorSpec("int64", ("N",), "image i depends on seed i alone"),
        "shard_digests": TensorSpec("uint8", ("P", 32), "content ids of the shards, in order"),
    },
    command="replaycad replay --class {name}",
    fields={"key": str, "image_size": int, "num_images": int, "shard_images": int},
    check_parts=lambda path: _stored(path)[0].check_there(),
)
SHARD = Schema(
    format="replays_shard",
    version=2,
    tensors={
        "images": TensorSpec("uint8", ("N", 3, "H", "H"), "RGB, lossless"),
        "object_masks": TensorSpec(
            "uint8", ("N", "H", "ceil(H/8)"), "one bit per pixel, set on the object"
        ),
        "seeds": TensorSpec("int64", ("N",), "these images' part of the main file's"),
    },
    command="replaycad replay --class {folder}",
    fields={"set": str, "first_image": int},
)

ByteArray = NDArray[np.uint8]


@dataclass(frozen=True)
class _Set:
    """Where the images of a set lie."""

    path: Path
    key: str
    num_images: int
    image_size: int
    shard_images: int
    digests: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Under which its shards lie beside those of an older set."""
        identity = [self.key, self.num_images, self.image_size, self.shard_images]
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:SET_LENGTH]

    @property
    def folder(self) -> Path:
        """Of the shards."""
        return self.path.with_suffix(".shards")

    @property
    def shards(self) -> list[Path]:
        """All shards in order, there or not."""
        name, count = self.name, -(-self.num_images // self.shard_images)
        return [self.folder / f"{name}-{number:05d}.safetensors" for number in range(count)]

    def check_there(self) -> None:
        """Check that no shard is missing, without opening them."""
        for shard in self.shards:
            if not shard.is_file():
                damaged(shard, SHARD, f"expected a shard of {self.path.name}, found no such file")

    def check(self) -> None:
        """Check from headers alone that every shard is the one that was written."""
        self.check_there()
        for number, (shard, digest) in enumerate(zip(self.shards, self.digests, strict=True)):
            try:
                found = self.check_shard(number, shard)
                if found != digest:
                    difference = f"expected content id {digest:.12}..., found {found:.12}..."
                    damaged(shard, SHARD, difference)
            except ArtifactError as error:
                # While all shards are there, the set counts as up to date.
                raise ArtifactError(error.message, f"remove it and {SHARD.remedy(shard)}") from None

    def check_shard(self, number: int, shard: Path) -> str:
        """Check that a shard holds the images that its place is for; its content id."""
        layout, first = read_layout(shard, SHARD), number * self.shard_images
        count = min(self.shard_images, self.num_images - first)
        expected = (self.name, first, (count, 3, self.image_size, self.image_size))
        header, shape = layout.header, layout.tensors["images"][1]
        found = (header["set"], header["first_image"], shape)
        if found != expected:
            damaged(shard, SHARD, f"expected set, first image and shape {expected}, found {found}")
        return str(header["content_id"])


def shard_paths(path: str | Path) -> list[Path]:
    """Find the shards of a set, in order, and check from headers alone that they are its own.

    Raises:
        ArtifactError: the main file cannot be used, or a shard is not the one that was written.
    """
    stored, _, _ = _stored(Path(path))
    stored.check()
    return stored.shards


class ReplaysWriter:
    """Writes N images as they come, and goes on where a killed run with the same key stopped.

    A set that is whole is not gone on with: with the same key, too, it is made anew.

    Args:
        path: the main file.
        header: further header fields; its `key` says which unfinished set is the same one.
        num_images: N.
        image_size: side in pixels.
        shard_images: of one shard, but for the last; 0 for 16, or what fits into 8 MiB.

    Raises:
        ArtifactError: the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        num_images: int,
        image_size: int,
        shard_images: int = 0,
    ) -> None:
        if num_images < 1 or image_size < 1:
            raise ValueError(f"{num_images} images of {image_size} px make no set")
        shard_images = shard_images or min(SHARD_IMAGES, SHARD_BYTES // (3 * image_size**2)) or 1
        self._header = {
            **header,
            "num_images": num_images,
            "image_size": image_size,
            "shard_images": shard_images,
        }
        self.image_size = image_size
        self._set = _Set(Path(path), header["key"], num_images, image_size, shard_images)
        self._seeds: list[NDArray[np.int64]] = []
        self._digests: list[bytes] = []
        self._waiting: list[dict[str, NDArray[Any]]] = []  # single images
        self._remove_strangers()
        self._resume()

    @property
    def rows_done(self) -> int:
        """Images on disk and those that wait for their shard to be full; the next is this one."""
        return sum(map(len, self._seeds)) + len(self._waiting)

    def append(
        self, images: ByteArray, object_masks: NDArray[np.bool_], seeds: NDArray[np.int64]
    ) -> None:
        """Take the next images; a shard goes to the disk as soon as it is full.

        Args:
            images: [B, 3, H, W] uint8 RGB.
            object_masks: [B, H, W] bool, true on the object.
            seeds: [B] int64.

        Raises:
            ArtifactError: the disk is full; the shards before are kept.
        """
        size, count, total = self._set.image_size, len(images), self._set.num_images
        shapes = (images.shape, object_masks.shape, np.shape(seeds))
        if shapes != ((count, 3, size, size), (count, size, size), (count,)):
            raise ValueError(f"expected images, masks and seeds of {size} px, found {shapes}")
        if images.dtype != np.uint8 or self.rows_done + count > total:
            done = f"{self.rows_done} + {count} of {total}"
            raise ValueError(f"{done} images in {images.dtype} do not fit into the set")
        rows = zip(images, pack_bits(object_masks), np.asarray(seeds, np.int64), strict=True)
        for row in rows:
            self._waiting.append(dict(zip(SHARD.tensors, row, strict=True)))
            if len(self._waiting) == self._set.shard_images or self.rows_done == total:
                self._write_shard()

    def close(self) -> str:
        """Write the main file, remove what is no longer needed, and return the content id.

        Raises:
            ArtifactError: it cannot be written.
        """
        if self.rows_done != self._set.num_images:
            raise ValueError(f"{self.rows_done} of {self._set.num_images} images were appended")
        digests = [np.frombuffer(digest, np.uint8) for digest in self._digests]
        seeds = np.concatenate(self._seeds)
        tensors: dict[str, NDArray[Any]] = {"seeds": seeds, "shard_digests": np.stack(digests)}
        content_id = write(self._set.path, REPLAYS, tensors, self._header)
        self._remove_strangers()
        return content_id

    def _write_shard(self) -> None:
        """Put the waiting images on disk."""
        number = len(self._seeds)
        shard: dict[str, NDArray[Any]] = {
            name: np.stack([row[name] for row in self._waiting]) for name in SHARD.tensors
        }
        header = {"set": self._set.name, "first_image": number * self._set.shard_images}
        digest = write(self._set.shards[number], SHARD, shard, header)
        self._note_shard(shard["seeds"], digest)
        self._waiting = []

    def _note_shard(self, seeds: NDArray[np.int64], digest: str) -> None:
        self._seeds.append(seeds)
        self._digests.append(bytes.fromhex(digest))

    def _resume(self) -> None:
        """Find the sound shards that a killed run left; none where it left no work to do."""
        with contextlib.suppress(ArtifactError):
            there, _, _ = _stored(self._set.path)
            there.check()
            if there.name == self._set.name:
                return
        with contextlib.suppress(ArtifactError):
            for number, shard in enumerate(self._set.shards):
                digest = self._set.check_shard(number, shard)
                self._note_shard(read(shard, SHARD)[0]["seeds"], digest)

    def _remove_strangers(self) -> None:
        """Remove shards that neither this set nor the main file that is there now needs."""
        needed = {self._set.name}
        with contextlib.suppress(ArtifactError):  # no main file yet, or one that nobody can read
            needed.add(_stored(self._set.path)[0].name)
        try:
            folder = self._set.folder
            for found in [*folder.glob("*.safetensors"), *folder.glob(".*.tmp")]:
                if found.name.removeprefix(".")[:SET_LENGTH] not in needed:
                    found.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._set.folder, error) from error


class ReplaysReader:
    """Reads N images by row; no more than the rows asked for are in memory, and no file stays open.

    Args:
        path: the main file.

    Attributes:
        header: of the main file.
        image_size: side in pixels.
        seeds: [N] int64.

    Raises:
        ArtifactError: it is missing, damaged, foreign or newer, or a shard is not the one written.
    """

    def __init__(self, path: str | Path) -> None:
        self._set, self.header, self.seeds = _stored(Path(path))
        self._set.check()
        self._shards = self._set.shards
        self.image_size = self._set.image_size

    def __len__(self) -> int:
        return len(self.seeds)

    def verify(self) -> None:
        """Read every byte of the shards.

        Raises:
            ArtifactError: a bit is not as it was written.
        """
        for shard in self._shards:
            read(shard, SHARD)

    def images(self, indices: Sequence[int] | NDArray[Any]) -> ByteArray:
        """Read images.

        Args:
            indices: [B], each from 0 to N - 1, in any order.

        Returns:
            [B, 3, H, W] uint8 RGB.

        Raises:
            IndexError: there is no such image.
            ArtifactError: a shard has gone or changed meanwhile.
        """
        return self._rows("images", (3, self.image_size, self.image_size), indices)

    def object_masks(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
        """Read the masks [B, H, W] bool that guided these images, true on the object.

        Raises:
            IndexError: there is no such mask.
            ArtifactError: as `images`.
        """
        row = (self.image_size, -(-self.image_size // 8))
        return unpack_bits(self._rows("object_masks", row, indices), self.image_size)

    def _rows(
        self, name: str, shape: tuple[int, ...], indices: Sequence[int] | NDArray[Any]
    ) -> ByteArray:
        """Gather rows from the shards that hold them, each of which is opened once."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"there are {len(self)} replayed images; asked for {wanted.tolist()}")
        out = np.empty((len(wanted), *shape), np.uint8)
        numbers, rows = np.divmod(wanted, min(self._set.shard_images, len(self)))
        for number in np.unique(numbers):
            shard = self._shards[number]
            try:
                with safe_open(shard, "numpy") as file:
                    stored = file.get_slice(name)
                    for place in np.flatnonzero(numbers == number):
                        out[place] = stored[int(rows[place])]
            except (OSError, SafetensorError, ValueError) as error:
                message = f"{shard} changed while it was read: {error}"
                raise ArtifactError(message, "run the command again") from None
        return out


def _stored(path: Path) -> tuple[_Set, dict[str, Any], NDArray[np.int64]]:
    """The set that a main file describes, its header, and the seeds [N]."""
    tensors, header = read(path, REPLAYS)
    seeds, digests = tensors["seeds"], tensors["shard_digests"]
    num_images, size, shard_images = (
        header[name] for name in ("num_images", "image_size", "shard_images")
    )
    num_shards = -(-num_images // max(shard_images, 1))
    are_sizes = min(num_images, size, shard_images) > 0
    if not are_sizes or (num_images, num_shards) != (len(seeds), len(digests)):
        said = f"{num_images} images of {size} px, {shard_images} to a shard"
        found = f"{len(seeds)} seeds and {len(digests)} shards"
        damaged(path, REPLAYS, f"expected {said}, found {found}")
    described = _Set(
        path, header["key"], num_images, size, shard_images,
        tuple(row.tobytes().hex() for row in digests),
    )  # fmt: skip
    return described, header, seeds
