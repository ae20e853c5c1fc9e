"""Writes and reads every artifact: safetensors with one JSON header, checked against a schema."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from replaycad.artifacts.atomic import replacing
from replaycad.artifacts.schema import Schema, Shape
from replaycad.errors import ArtifactError

# One key only: with several, the library writes them in random order.
METADATA_KEY = "replaycad"
OWN_FIELDS = ("format", "format_version", "content_id", "header_id")
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # as the library has it
NUMPY_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The dtypes of safetensors that an artifact may hold, and what numpy calls them."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What the first bytes of an artifact say.

    Attributes:
        header: our JSON.
        tensors: numpy dtype name and shape by tensor name.
        file_bytes: length of the file.
    """

    header: dict[str, Any]
    tensors: dict[str, tuple[str, Shape]]
    file_bytes: int

    def num_bytes(self, name: str) -> int:
        """Bytes of one tensor."""
        dtype, shape = self.tensors[name]
        return math.prod(shape) * np.dtype(dtype).itemsize


def canonical_json(value: Any) -> str:
    """Write JSON that is the same for the same value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: something is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: Any) -> Any:
    """Make a value fit for JSON: numpy numbers become Python's, NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def header_id(header: Mapping[str, Any]) -> str:
    """sha256 over a header itself, which its content id leaves out."""
    fields = {name: value for name, value in header.items() if name != "header_id"}
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


def content_id(tensors: Mapping[str, Array]) -> str:
    """sha256 over tensor names, dtypes, shapes and bytes in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = _little_endian(tensors[name])
        digest.update(canonical_json([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write(
    path: str | Path, schema: Schema, tensors: Mapping[str, Array], header: dict[str, Any]
) -> str:
    """Write one artifact in one step; the same arguments give the same bytes.

    Args:
        path: the file to replace; its folder is made.
        schema: what the tensors and the header must look like.
        tensors: arrays by name.
        header: fields for JSON, NaN becomes null; format, version and digests are added.

    Returns:
        the content id.

    Raises:
        ArtifactError: tensors or header do not fit the schema, or the file cannot be written.
    """
    path = Path(path)
    kinds = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    difference = schema.mismatch(kinds) or schema.wrong_field(plain(header))
    difference = difference or _not_finite(schema, tensors)
    if difference:
        raise ArtifactError(f"cannot write {path}: {difference}")
    full = _full_header(schema, tensors, header)
    content = _serialized(tensors, full)
    with replacing(path) as file:
        file.write(content)
    return str(full["content_id"])


def file_bytes(schema: Schema, tensors: Mapping[str, Array], header: dict[str, Any]) -> int:
    """How many bytes `write` would write of these."""
    return len(_serialized(tensors, _full_header(schema, tensors, header)))


def read_header(path: str | Path, schema: Schema | None = None) -> dict[str, Any]:
    """Read the header alone: as fast for three gigabytes as for three bytes.

    Args:
        path: the artifact.
        schema: if given, format, version, fields, names, dtypes and shapes are checked as well,
            and that the further files of the artifact are there.

    Raises:
        ArtifactError: the file is missing, damaged, foreign, newer or does not fit the schema.
    """
    header = read_layout(path, schema).header
    if schema is not None and schema.check_parts is not None:
        schema.check_parts(Path(path))
    return header


def read_layout(path: str | Path, schema: Schema | None = None) -> Layout:
    """Read header, names, dtypes and shapes of one file, without a byte of a tensor.

    Raises:
        ArtifactError: as `read_header`.
    """
    with _opened(Path(path), schema) as (_, layout):
        return layout


def read(path: str | Path, schema: Schema) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a whole file and check it against its schema and its digests.

    Returns:
        the arrays by name, and the header.

    Raises:
        ArtifactError: as `read_header`, or a bit is not as it was written, or a tensor holds a
            number that is not finite.
    """
    path = Path(path)
    with _opened(path, schema) as (file, layout):
        tensors = {name: file.get_tensor(name) for name in layout.tensors}
    expected, actual = layout.header["content_id"], content_id(tensors)
    if expected != actual:
        # Such a file still says how it was made, and so no stage would make it again by itself.
        found = f"expected content_id {expected:.16}..., found {actual:.16}..."
        hint = f"it was damaged: remove it and {schema.remedy(path)}"
        raise ArtifactError(f"{path}: {found}", hint)
    difference = _not_finite(schema, tensors)
    if difference:
        damaged(path, schema, difference)
    return tensors, layout.header


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


def _little_endian(array: Array) -> Array:
    """The array in C order and little-endian; itself where it already lies so."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _serialized(tensors: Mapping[str, Array], header: Mapping[str, Any]) -> bytes:
    """The bytes of a file. The library reads memory from its start on, whatever the strides."""
    arrays = {name: _little_endian(array) for name, array in tensors.items()}
    return save(arrays, {METADATA_KEY: canonical_json(header)})


def _full_header(
    schema: Schema, tensors: Mapping[str, Array], header: dict[str, Any]
) -> dict[str, Any]:
    """The header as it is written: plain values with format, version and digests."""
    full = {name: value for name, value in plain(header).items() if name not in OWN_FIELDS}
    full |= {"format": schema.format, "format_version": schema.version}
    full["content_id"] = content_id(tensors)
    full["header_id"] = header_id(full)
    return full


@contextmanager
def _opened(path: Path, schema: Schema | None) -> Iterator[tuple[Any, Layout]]:
    """Open a file with the library and check all that stands before its tensors.

    It is read by `pread`: a mapped file that somebody cuts meanwhile would kill the process.
    """
    wanted = "a replaycad artifact" + (f" of format `{schema.format}`" if schema else "")
    try:
        with path.open("rb") as raw, safe_open(path, "numpy", backend="pread") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise ValueError("a safetensors file of another program")
            # Of two tensors with one name, the library keeps the last.
            length = int.from_bytes(raw.read(LENGTH_BYTES), "little")
            _strict_json(raw.read(min(length, MAX_HEADER_BYTES)))
            header = _strict_json(metadata[METADATA_KEY])
            _check_header(header, path, schema, wanted)
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: part.get_dtype() for name, part in parts.items()}
            kinds = {
                name: (NUMPY_NAMES.get(dtypes[name], dtypes[name]), tuple(part.get_shape()))
                for name, part in parts.items()
            }
            difference = schema.mismatch(kinds) if schema else ""
            if difference:
                damaged(path, schema, difference)
            yield file, Layout(header, kinds, raw.seek(0, 2))
    except FileNotFoundError:
        damaged(path, schema, f"expected {wanted}, found no such file")
    except OSError as error:
        reason = error.strerror or str(error)
        damaged(path, schema, f"expected {wanted}, cannot open it: {reason}")
    except SafetensorError as error:
        damaged(path, schema, f"expected {wanted}, found {_described(path, error)}")
    except ValueError as error:  # also of numpy, which cannot make an array of every shape
        damaged(path, schema, f"expected {wanted}, found {error}")


def _described(path: Path, error: SafetensorError) -> str:
    """What a file is that the library refuses."""
    with path.open("rb") as file:
        content = file.read(LENGTH_BYTES)
    if not content:
        return "an empty file"
    if "header too large" in str(error):
        return f"a file that starts with {content!r}"
    return f"a damaged file ({str(error).rpartition('header: ')[2]})"


def _check_header(header: Any, path: Path, schema: Schema | None, wanted: str) -> None:
    """Check format, version and fields in this order: a newer version may have other fields."""
    for name in ("format", "content_id"):
        if not isinstance(header, dict) or not isinstance(header.get(name), str):
            damaged(path, schema, f"expected {wanted}, found a header without {name}")
    version = header.get("format_version")
    if type(version) is not int:
        damaged(path, schema, f"expected a whole number as format_version, found {version!r:.40}")
    if schema is None:
        if "header_id" in header:  # a stranger's format may have none
            _check_header_id(header, path, schema)
        return
    if header["format"] != schema.format:
        damaged(path, schema, f"expected {wanted}, found format `{header['format']}`")
    if version > schema.version:
        raise ArtifactError(
            f"{path} is from a newer replaycad: expected {schema.format} version {schema.version}"
            f" at most, found version {version}",
            "update replaycad",
        )
    if version < schema.version:
        found = f"expected version {schema.version}, found version {version}"
        damaged(path, schema, f"written by an older replaycad: {found}")
    _check_header_id(header, path, schema)
    wrong = schema.wrong_field(header)
    if wrong:
        damaged(path, schema, wrong)


def _check_header_id(header: dict[str, Any], path: Path, schema: Schema | None) -> None:
    """A flipped bit in a number of the header is found here, wherever the header is read."""
    expected, actual = header.get("header_id"), header_id(header)
    if expected != actual:
        damaged(path, schema, f"expected header_id {expected!s:.16}..., found {actual:.16}...")


def _not_finite(schema: Schema, tensors: Mapping[str, Array]) -> str:
    """Name the first tensor with NaN or infinity where the schema forbids them."""
    for name in sorted(tensors):
        array, spec = tensors[name], schema.spec(name)
        if spec is None or not spec.finite or array.dtype.kind != "f":
            continue
        num_bad = int(array.size - np.isfinite(array).sum())
        if num_bad:
            return f"expected finite numbers in `{name}`, found {num_bad} NaN or infinite"
    return ""


def _strict_json(text: str | bytes) -> Any:
    """Parse JSON and refuse repeated keys, NaN and nesting without end.

    Raises:
        ValueError: any of these, or not JSON at all.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("a header that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"a header that is not JSON ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and refuse a key that comes twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key comes twice")
    return entries


def _no_constant(name: str) -> Any:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")
