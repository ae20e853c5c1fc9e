"""The header of a safetensors file, written and checked before a single tensor is touched.

The safetensors library writes from whole arrays and maps what it reads. Replays are gigabytes that
are streamed in and read by row, so the header is handled here, in the same bytes whatever the
version of the library. The tests hold both against each other.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from replaycad.artifacts.schema import Shape

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 * 2**20
MAX_TENSOR_BYTES = 2**48
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
ITEM_BYTES = {
    name: 1 if code == "BOOL" else int(code[1:]) // 8 for code, name in NUMPY_NAMES.items()
}
CODES = {name: code for code, name in NUMPY_NAMES.items()}


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies: numpy dtype name, shape, first byte from the start of the file."""

    dtype: str
    shape: Shape
    offset: int
    num_bytes: int


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


def strict_json(text: str) -> Any:
    """Parse JSON and refuse repeated keys, NaN and nesting without end.

    Raises:
        ValueError: any of these, or not JSON at all.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(
    tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """Write the length and the header of a safetensors file.

    Args:
        tensors: numpy dtype name and shape by tensor name.
        metadata: strings by key.

    Returns:
        the bytes before the first tensor, and the names in the order in which the tensors follow:
        wide numbers first, as the library does, so that every tensor lies aligned.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        dtype, shape = tensors[name]
        end = begin + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {
            "dtype": CODES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, order


def header_length(first_bytes: bytes, file_bytes: int) -> int:
    """Read the length of the header and hold it against the length of the file.

    Args:
        first_bytes: the first 8 bytes of the file, or fewer if it has fewer.
        file_bytes: length of the whole file in bytes.

    Raises:
        ValueError: no safetensors file starts like this.
    """
    if file_bytes == 0:
        raise ValueError("an empty file")
    if len(first_bytes) < LENGTH_BYTES:
        raise ValueError(f"a file of {file_bytes} bytes")
    length = int.from_bytes(first_bytes, "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a file that starts with {first_bytes!r}")
    if LENGTH_BYTES + length > file_bytes:
        wanted = LENGTH_BYTES + length
        raise ValueError(f"a file cut off inside its header ({file_bytes} bytes of {wanted})")
    return length


def decode(text: bytes, data_bytes: int) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """Parse a header and check every promise it makes about the bytes after it.

    Args:
        text: the header without its length.
        data_bytes: how many bytes follow it.

    Returns:
        the places of the tensors by name, and the metadata.

    Raises:
        ValueError: says what was found instead of a sound header.
    """
    try:
        entries = strict_json(text.decode())
    except ValueError as error:
        raise ValueError(f"a header that is not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise ValueError("a header that is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata that are not strings")
    first = LENGTH_BYTES + len(text)
    places = {name: _place(name, entry, first) for name, entry in entries.items()}
    _check_coverage(places, first, data_bytes)
    return places, metadata


def _place(name: str, entry: Any, first: int) -> TensorPlace:
    """Check the header entry of one tensor by itself."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"no dtype, shape and offsets for tensor `{name}`")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_NAMES:
        raise ValueError(f"dtype {dtype!r:.20} of tensor `{name}`")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"sizes that are not whole numbers for tensor `{name}`")
    item_bytes = ITEM_BYTES[NUMPY_NAMES[dtype]]
    # numpy multiplies the sizes that are not zero even where another one is
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) * item_bytes > MAX_TENSOR_BYTES:
        raise ValueError(f"a shape beyond all measure for tensor `{name}`")
    begin, end = offsets
    if end - begin != math.prod(shape) * item_bytes:
        raise ValueError(f"{end - begin} bytes for tensor `{name}` of shape {shape} in {dtype}")
    return TensorPlace(NUMPY_NAMES[dtype], tuple(shape), first + begin, end - begin)


def _check_coverage(places: Mapping[str, TensorPlace], first: int, data_bytes: int) -> None:
    """Check that the tensors fill the rest of the file, one after another."""
    cursor = first
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if place.offset != cursor:
            raise ValueError(f"a gap or an overlap before tensor `{name}`")
        cursor += place.num_bytes
    promised = cursor - first
    if promised > data_bytes:
        raise ValueError(f"a file cut off inside its tensors ({data_bytes} bytes of {promised})")
    if promised < data_bytes:
        raise ValueError(f"{data_bytes - promised} bytes after the last tensor")


def _is_sizes(value: Any) -> bool:
    """Whether a JSON value is a list of whole numbers from zero."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and refuse a key that comes twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key comes twice")
    return entries


def _no_constant(name: str) -> Any:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is not JSON")
