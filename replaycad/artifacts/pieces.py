"""Takes pieces of the bytes of a class, and looks for all of them at once in files."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from replaycad.errors import ArtifactError

PIECE_BYTES = 64
LEAST_BYTES = 12  # of a piece: fewer stand anywhere by chance
LEAST_VALUES = 4  # different bytes in a piece, likewise
MAX_PIECES = 256
BLOCK_BYTES = 2**24  # of a file, searched at once
KEY_BYTES = 8  # of a piece, compared first

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Piece:
    """Some bytes of what was kept of a class.

    Attributes:
        origin: the artifact, and what of it.
        content: the bytes, `LEAST_BYTES` to `PIECE_BYTES`.
    """

    origin: str
    content: bytes

    @property
    def key(self) -> tuple[int, int]:
        """Where the most telling bytes lie in it, and what they are as a number."""
        starts = range(len(self.content) - KEY_BYTES + 1)
        start = max(starts, key=lambda at: len(set(self.content[at : at + KEY_BYTES])))
        return start, int.from_bytes(self.content[start : start + KEY_BYTES], "little")


@dataclass(frozen=True)
class Search:
    """What a search of files came to.

    Attributes:
        num_files: that were read.
        num_bytes: of them.
        found: file and the piece in it.
    """

    num_files: int = 0
    num_bytes: int = 0
    found: list[tuple[Path, Piece]] = field(default_factory=list)


def pieces_of(path: Path, origin: str) -> list[Piece]:
    """Pieces of every tensor of an artifact, of as many as can be read of a damaged one."""
    found = []
    with (
        contextlib.suppress(OSError, ValueError, SafetensorError),
        safe_open(path, "numpy", backend="pread") as file,
    ):
        for name in file.keys():  # noqa: SIM118
            raw = file.get_tensor(name).tobytes()
            found += [Piece(f"{origin} {name}", one) for one in telling(raw)]
    return found


def telling(raw: bytes, count: int = 4) -> list[bytes]:
    """At most `count` pieces of some bytes, evenly spaced, none of which is all but constant."""
    size = min(PIECE_BYTES, len(raw))
    found = []
    for part in range(count if size >= LEAST_BYTES else 0):
        start, stop = (len(raw) * place // count for place in (part, part + 1))
        for begin in range(start, max(start + 1, stop - size), max(1, (stop - start) // 16)):
            piece = raw[begin : begin + size]
            if len(set(piece)) >= LEAST_VALUES and len(piece) >= LEAST_BYTES:
                found.append(piece)
                break
    return list(dict.fromkeys(found))


def number_pieces(limits: Mapping[str, Any], origin: str) -> list[Piece]:
    """The numbers of a class as JSON has them, but for round ones."""
    texts = {name: repr(value) for name, value in limits.items() if isinstance(value, float)}
    return [
        Piece(f"{origin} {name}", text.encode())
        for name, text in texts.items() if len(text) >= LEAST_BYTES
    ]  # fmt: skip


def few(entries: Sequence[Entry], limit: int = MAX_PIECES) -> list[Entry]:
    """At most `limit` of them, evenly spaced."""
    count = min(len(entries), limit)
    return [entries[number * len(entries) // count] for number in range(count)]


def search(paths: Iterable[Path], pieces: Sequence[Piece]) -> Search:
    """Look for pieces in every byte of some files; how many there are hardly matters for the time.

    Raises:
        ArtifactError: a file cannot be read.
    """
    wanted = _Wanted(pieces)
    num_files, num_bytes, found = 0, 0, []
    for path in paths:
        here: dict[Piece, None] = {}
        num_files += 1
        try:
            for block, num_new in _blocks(path):
                num_bytes += num_new
                here |= dict.fromkeys(wanted.within(block))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be searched: {error}") from None
        found += [(path, piece) for piece in here]
    return Search(num_files, num_bytes, found)


class _Wanted:
    """Pieces by their keys: a table of two bytes leaves few places at which to compare more."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._by_key: dict[int, list[tuple[int, Piece]]] = {}
        self._starts = np.zeros(2**16, np.bool_)
        for piece in pieces:
            start, key = piece.key
            self._by_key.setdefault(key, []).append((start, piece))
            self._starts[key % 2**16] = True
        self._keys = np.array(sorted(self._by_key), "<u8")

    def within(self, block: bytes) -> Iterator[Piece]:
        """The pieces in a block of bytes, some of them several times."""
        values = np.frombuffer(block, np.uint8)
        if not self._by_key or len(values) < KEY_BYTES:
            return
        windows = np.lib.stride_tricks.sliding_window_view(values, KEY_BYTES)
        for shift in (0, 1):
            pairs = values[shift : shift + (len(values) - shift) // 2 * 2].view("<u2")
            places = np.flatnonzero(self._starts[pairs]) * 2 + shift
            places = places[places < len(windows)]
            heads = windows[places].view("<u8")[:, 0]
            is_key = np.isin(heads, self._keys)
            for place, head in zip(places[is_key].tolist(), heads[is_key].tolist(), strict=True):
                for start, piece in self._by_key[head]:
                    begin = place - start
                    if begin >= 0 and block.startswith(piece.content, begin):
                        yield piece


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """A file in blocks, each begun by the end of the one before, and how many bytes are new."""
    before = b""
    with path.open("rb") as file:
        while new := file.read(BLOCK_BYTES):
            yield before + new, len(new)
            before = (before + new)[-PIECE_BYTES:]
