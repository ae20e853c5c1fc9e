"""Opens an artifact, checks what its first bytes say, and reads bytes at a place."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts import layout
from replaycad.artifacts.layout import TensorPlace
from replaycad.artifacts.schema import Schema
from replaycad.errors import ArtifactError

# One key only: with several, the library writes them in an order of its own.
METADATA_KEY = "replaycad"

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What the first bytes of an artifact say: its header, its tensors, its length in bytes."""

    header: dict[str, Any]
    tensors: dict[str, TensorPlace]
    file_bytes: int


def read_header(path: str | Path, schema: Schema | None = None) -> dict[str, Any]:
    """Read the header alone: as fast for three gigabytes as for three bytes.

    Args:
        path: the artifact.
        schema: if given, format, version, fields, names, dtypes and shapes are checked as well.

    Raises:
        ArtifactError: the file is missing, damaged, foreign, newer or does not fit the schema.
    """
    return read_layout(path, schema).header


def read_layout(path: str | Path, schema: Schema | None = None) -> Layout:
    """Read header, names, dtypes, shapes and places, without a byte of a tensor.

    Raises:
        ArtifactError: as `read_header`.
    """
    path = Path(path)
    with open_artifact(path, schema) as file:
        return open_layout(file, path, schema)


def damaged(path: Path, schema: Schema | None, difference: str) -> NoReturn:
    """Raise the error for a file that is not what it should be.

    Args:
        path: the file.
        schema: what it should be, if that is known; its command becomes the hint.
        difference: "expected ..., found ...".

    Raises:
        ArtifactError: always.
    """
    hint = schema.remedy(path) if schema else "give a file that replaycad wrote"
    raise ArtifactError(f"{path}: {difference}", hint)


def byte_view(array: Array) -> memoryview:
    """The bytes of an array, little-endian in C order; a view where it already lies so."""
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return array.reshape(-1).view(np.uint8).data


def open_artifact(path: Path, schema: Schema | None) -> BinaryIO:
    """Open a file for reading at places."""
    try:
        return cast(BinaryIO, path.open("rb", buffering=0))
    except FileNotFoundError:
        damaged(path, schema, f"expected {_wanted(schema)}, found no such file")
    except OSError as error:
        damaged(path, schema, f"expected {_wanted(schema)}, cannot open it: {error.strerror}")


def open_layout(file: BinaryIO, path: Path, schema: Schema | None) -> Layout:
    """Parse and check the first bytes of an open artifact."""
    file_bytes = os.fstat(file.fileno()).st_size
    start = bytearray(min(layout.LENGTH_BYTES, file_bytes))
    read_into(file, start, 0, path)
    try:
        text = bytearray(layout.header_length(bytes(start), file_bytes))
        read_into(file, text, layout.LENGTH_BYTES, path)
        tensors, metadata = layout.decode(bytes(text), file_bytes - layout.LENGTH_BYTES - len(text))
        if METADATA_KEY not in metadata:
            raise ValueError("a safetensors file of another program")
        header = layout.strict_json(metadata[METADATA_KEY])
    except ValueError as error:
        damaged(path, schema, f"expected {_wanted(schema)}, found {error}")
    _check_header(header, path, schema)
    if schema is not None:
        difference = schema.mismatch({n: (p.dtype, p.shape) for n, p in tensors.items()})
        if difference:
            damaged(path, schema, difference)
    return Layout(header, tensors, file_bytes)


def _check_header(header: Any, path: Path, schema: Schema | None) -> None:
    """Check format, version and fields in this order: a newer version may have other fields."""
    for name in ("format", "content_id"):
        if not isinstance(header, dict) or not isinstance(header.get(name), str):
            damaged(path, schema, f"expected {_wanted(schema)}, found a header without {name}")
    version = header.get("format_version")
    if type(version) is not int:
        damaged(path, schema, f"expected a whole number as format_version, found {version!r:.40}")
    if schema is None:
        if "header_id" in header:  # a stranger's format may have none
            _check_digest(header, path, schema)
        return
    if header["format"] != schema.format:
        damaged(path, schema, f"expected {_wanted(schema)}, found format `{header['format']}`")
    if version > schema.version:
        raise ArtifactError(
            f"{path} is from a newer replaycad: expected {schema.format} version {schema.version}"
            f" at most, found version {version}",
            "update replaycad",
        )
    if version < schema.version:
        damaged(path, schema, f"expected version {schema.version}, found version {version}")
    _check_digest(header, path, schema)
    wrong = schema.wrong_field(header)
    if wrong:
        damaged(path, schema, wrong)


def _check_digest(header: dict[str, Any], path: Path, schema: Schema | None) -> None:
    """A flipped bit in a number of the header is found here, wherever the header is read."""
    expected, actual = header.get("header_id"), layout.header_id(header)
    if expected != actual:
        damaged(path, schema, f"expected header_id {expected!s:.16}..., found {actual:.16}...")


def _wanted(schema: Schema | None) -> str:
    """What a reader hoped to find."""
    return f"a replaycad artifact of format `{schema.format}`" if schema else "a replaycad artifact"


def read_into(file: BinaryIO, view: bytearray | memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from a place in the file, without moving the file's position where possible."""
    view, done = memoryview(view), 0
    while done < len(view):
        try:
            if hasattr(os, "preadv"):
                num_read = os.preadv(file.fileno(), [view[done:]], offset + done)
            else:  # Windows
                file.seek(offset + done)
                num_read = cast(io.FileIO, file).readinto(view[done:]) or 0
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
        if num_read == 0:
            raise ArtifactError(f"{path} became shorter while it was read", "run the command again")
        done += num_read
