"""Writes and reads every artifact: safetensors with one JSON header, checked against a schema."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.atomic import replacing
from replaycad.artifacts.layout import TensorPlace, canonical_json, encode, header_id, plain
from replaycad.artifacts.reading import (
    METADATA_KEY,
    Layout,
    byte_view,
    damaged,
    open_artifact,
    open_layout,
    read_header,
    read_into,
    read_layout,
)
from replaycad.artifacts.rows import RowReader
from replaycad.artifacts.schema import Schema, Shape, TensorSpec, bracketed
from replaycad.errors import ArtifactError

__all__ = [
    "Layout",
    "RowReader",
    "Schema",
    "Streamed",
    "TensorPlace",
    "TensorSpec",
    "canonical_json",
    "content_id",
    "damaged",
    "read",
    "read_header",
    "read_layout",
    "verify",
    "write",
]

OWN_FIELDS = ("format", "format_version", "content_id", "header_id")
CHUNK_BYTES = 8 * 2**20

Array = NDArray[Any]


@dataclass(frozen=True)
class Streamed:
    """A tensor that is never held whole; `chunks()` yields its rows in order, each time anew."""

    dtype: str
    shape: Shape
    chunks: Callable[[], Iterable[Array]]


def write(
    path: str | Path,
    schema: Schema,
    tensors: Mapping[str, Array] | Mapping[str, Streamed],
    header: dict[str, Any],
) -> str:
    """Write one artifact in one step; the same arguments give the same bytes.

    Args:
        path: the file to replace; its folder is made.
        schema: what the tensors and the header must look like.
        tensors: arrays by name, or `Streamed` for those too large to hold.
        header: fields for JSON, NaN becomes null; format, version and digests are added.

    Returns:
        the content id.

    Raises:
        ArtifactError: tensors or header do not fit the schema, or the file cannot be written.
    """
    path = Path(path)
    kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
    difference = schema.mismatch(kinds) or schema.wrong_field(plain(header))
    difference = difference or _not_finite(schema, tensors)
    if difference:
        raise ArtifactError(f"cannot write {path}: {difference}")
    full = _full_header(schema, tensors, header)
    start, order = encode(kinds, {METADATA_KEY: canonical_json(full)})
    with replacing(path) as file:
        file.write(start)
        for name in order:
            for chunk in _chunks(tensors[name]):
                file.write(byte_view(chunk))
    return str(full["content_id"])


def file_bytes(
    schema: Schema, tensors: Mapping[str, Array] | Mapping[str, Streamed], header: dict[str, Any]
) -> int:
    """How many bytes `write` would write of these."""
    kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
    start, _ = encode(kinds, {METADATA_KEY: canonical_json(_full_header(schema, tensors, header))})
    return len(start) + sum(math.prod(s) * np.dtype(dtype).itemsize for dtype, s in kinds.values())


def _full_header(
    schema: Schema, tensors: Mapping[str, Array] | Mapping[str, Streamed], header: dict[str, Any]
) -> dict[str, Any]:
    """The header as it is written: plain values with format, version and digests."""
    full = {name: value for name, value in plain(header).items() if name not in OWN_FIELDS}
    full |= {"format": schema.format, "format_version": schema.version}
    full["content_id"] = content_id(tensors)
    full["header_id"] = header_id(full)
    return full


def content_id(tensors: Mapping[str, Array] | Mapping[str, Streamed]) -> str:
    """sha256 over tensor names, dtypes, shapes and bytes in name order."""
    return _content_id(
        {
            name: (*_kind(tensor), map(byte_view, _chunks(tensor)))
            for name, tensor in tensors.items()
        }
    )


def read(path: str | Path, schema: Schema) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a whole artifact and check it against its schema and its digests.

    Returns:
        the arrays by name, and the header.

    Raises:
        ArtifactError: as `read_header`, or a bit is not as it was written, or a tensor holds a
            number that is not finite.
    """
    path = Path(path)
    with open_artifact(path, schema) as file:
        found = open_layout(file, path, schema)
        tensors: dict[str, Array] = {}
        for name, place in found.tensors.items():
            tensors[name] = np.empty(place.shape, place.dtype)
            read_into(file, byte_view(tensors[name]), place.offset, path)
    _check_content(path, schema, found.header, content_id(tensors))
    difference = _not_finite(schema, tensors)
    if difference:
        damaged(path, schema, difference)
    return tensors, found.header


def verify(path: str | Path, schema: Schema | None = None) -> str:
    """Recompute the digests of one file in flat memory.

    Returns:
        the content id.

    Raises:
        ArtifactError: a bit is not as it was written, or anything that `read_header` finds.
    """
    path = Path(path)
    with open_artifact(path, schema) as file:
        found = open_layout(file, path, schema)
        digest = _content_id(
            {
                name: (place.dtype, place.shape, _stored(file, place, path))
                for name, place in found.tensors.items()
            }
        )
    _check_content(path, schema, found.header, digest)
    return digest


def _kind(tensor: Array | Streamed) -> tuple[str, Shape]:
    """Numpy dtype name and shape."""
    dtype = tensor.dtype if isinstance(tensor, Streamed) else tensor.dtype.name
    return dtype, tuple(tensor.shape)


def _chunks(tensor: Array | Streamed) -> Iterable[Array]:
    """The rows of a tensor in one piece or in several, and never fewer than its shape says."""
    if not isinstance(tensor, Streamed):
        yield tensor
        return
    num_rows = 0
    for chunk in tensor.chunks():
        num_rows += len(chunk)
        yield chunk
    if num_rows != tensor.shape[0]:
        raise ValueError(f"{num_rows} rows streamed for shape {bracketed(tensor.shape)}")


def _content_id(tensors: Mapping[str, tuple[str, Shape, Iterable[memoryview]]]) -> str:
    """sha256 over (dtype, shape, bytes) by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, chunks = tensors[name]
        digest.update(canonical_json([name, dtype, shape]).encode())
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _check_content(
    path: Path, schema: Schema | None, header: Mapping[str, Any], digest: str
) -> None:
    """Raise the error for tensors that are not what was written.

    Such a file still says how it was made, and so no stage would make it again by itself.
    """
    expected = header["content_id"]
    if expected != digest:
        remedy = schema.remedy(path) if schema else "take the file from where it was made"
        found = f"expected content_id {expected:.16}..., found {digest:.16}..."
        raise ArtifactError(f"{path}: {found}", f"it was damaged: remove it and {remedy}")


def _not_finite(schema: Schema, tensors: Mapping[str, Array] | Mapping[str, Streamed]) -> str:
    """Name the first tensor with NaN or infinity where the schema forbids them."""
    for name in sorted(tensors):
        tensor, spec = tensors[name], schema.spec(name)
        if spec is None or not spec.finite or np.dtype(tensor.dtype).kind != "f":
            continue
        num_bad = sum(int(np.size(chunk) - np.isfinite(chunk).sum()) for chunk in _chunks(tensor))
        if num_bad:
            return f"expected finite numbers in `{name}`, found {num_bad} NaN or infinite"
    return ""


def _stored(file: BinaryIO, place: TensorPlace, path: Path) -> Iterator[memoryview]:
    """The bytes of a stored tensor, a few megabytes at a time."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, place.num_bytes)))
    for done in range(0, place.num_bytes, CHUNK_BYTES):
        chunk = buffer[: min(CHUNK_BYTES, place.num_bytes - done)]
        read_into(file, chunk, place.offset + done, path)
        yield chunk
