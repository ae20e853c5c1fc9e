"""Declares what an artifact must hold: its tensors with symbolic sizes, its header fields."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor, or with a name such as `model.*` any number of them.

    Attributes:
        dtype: numpy name, or the names that are allowed.
        shape: a number is that size; a word is a size that must be the same wherever the word
            stands in the schema; None leaves the shape open.
        meaning: half a sentence for the README.
        finite: whether NaN or infinity is refused.
        optional: whether a file may lack it.
    """

    dtype: str | tuple[str, ...]
    shape: tuple[int | str, ...] | None
    meaning: str = ""
    finite: bool = True
    optional: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The allowed numpy dtype names."""
        return (self.dtype,) if isinstance(self.dtype, str) else self.dtype

    def __str__(self) -> str:
        dtypes = " or ".join(self.dtypes)
        return dtypes if self.shape is None else f"{dtypes} {bracketed(self.shape)}"


@dataclass(frozen=True)
class Schema:
    """Everything a reader checks before it believes a file.

    Attributes:
        format: the name in the header.
        version: the newest version this code reads, and the one it writes.
        tensors: by name; a trailing `*` stands for any ending, and for none at all.
        command: what makes such a file; `{name}` becomes the file's stem, `{folder}` its folder's.
        fields: header fields that must be there, with their JSON type.
        check_parts: given the file, raises `ArtifactError` if another file that belongs to it is
            missing or not the right one.
    """

    format: str
    version: int
    tensors: Mapping[str, TensorSpec]
    command: str
    fields: Mapping[str, type] = field(default_factory=dict)
    check_parts: Callable[[Path], None] | None = None

    def spec(self, name: str) -> TensorSpec | None:
        """Find the declaration of a tensor, by its name or by a `prefix*`."""
        if name in self.tensors and not name.endswith("*"):
            return self.tensors[name]
        for pattern, spec in self.tensors.items():
            if pattern.endswith("*") and name.startswith(pattern[:-1]):
                return spec
        return None

    def mismatch(self, tensors: Mapping[str, tuple[str, Shape]]) -> str:
        """Compare the names, dtypes and shapes of a file with the declaration.

        Args:
            tensors: numpy dtype name and shape by tensor name.

        Returns:
            the first difference as "expected ..., found ...", or an empty string.
        """
        for name, spec in self.tensors.items():
            if not spec.optional and not name.endswith("*") and name not in tensors:
                return f"expected tensor `{name}` ({spec}), found none of that name"
        sizes: dict[str, tuple[int, str]] = {}
        for name in sorted(tensors):
            declared = self.spec(name)
            if declared is None:
                known = ", ".join(self.tensors)
                return f"expected only the tensors {known}, found `{name}` as well"
            difference = _tensor_mismatch(name, declared, *tensors[name], sizes)
            if difference:
                return difference
        return ""

    def wrong_field(self, header: Mapping[str, Any]) -> str:
        """Name the first header field that is absent or of another type, or return nothing."""
        for name, kind in self.fields.items():
            value = header.get(name)
            # bool is an int to Python, not to the reader of a header
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                found = "none" if name not in header else f"{value!r:.60}"
                return f"expected header field `{name}` of type {kind.__name__}, found {found}"
        return ""

    def remedy(self, path: Path) -> str:
        """The command that makes the file again."""
        name, folder = shlex.quote(path.stem), shlex.quote(path.parent.stem)
        return f"make it again with `{self.command.format(name=name, folder=folder)}`"


def bracketed(shape: tuple[int | str, ...]) -> str:
    """Write a shape as `[N, 3, H, W]`."""
    return f"[{', '.join(map(str, shape))}]"


def _tensor_mismatch(
    name: str, spec: TensorSpec, dtype: str, shape: Shape, sizes: dict[str, tuple[int, str]]
) -> str:
    """Check one tensor and remember in `sizes` what its symbols stand for, and who said so."""
    found = f"found {dtype} {bracketed(shape)}"
    if dtype not in spec.dtypes:
        return f"expected tensor `{name}` to be {spec}, {found}"
    if spec.shape is None:
        return ""
    if len(shape) != len(spec.shape):
        return f"expected tensor `{name}` to be {spec}, {found}"
    for size, expected in zip(shape, spec.shape, strict=True):
        if isinstance(expected, int):
            if size != expected:
                return f"expected tensor `{name}` to be {spec}, {found}"
            continue
        bound, teller = sizes.setdefault(expected, (size, name))
        if size != bound:
            reason = f"with {expected} = {bound} as in `{teller}`"
            return f"expected tensor `{name}` to be {spec} {reason}, {found}"
    return ""
