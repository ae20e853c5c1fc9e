"""Fragments of a class as they are stored: squares of many images, side by side in one picture."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replaycad.artifacts.schema import TensorSpec

SHEET, CELLS, OWNERS = "fragments", "fragment_cells", "fragment_images"
COLOURS = "fragment_colours"
FIELD = "fragments"  # of the header: how large they are, and what they are put together to
MAX_OWNERS = 256  # images that fragments are of: one byte of each says which
MAX_PIXELS = 2**26  # that a sheet may claim to hold

FRAGMENT_TENSORS = {
    SHEET: TensorSpec(
        "uint8", ("A'",), "squares of many images as one AVIF; absent if none are kept",
        optional=True,
    ),
    CELLS: TensorSpec(
        "uint8", ("Q",), "where in the class's frame each belongs; absent with them", optional=True
    ),
    OWNERS: TensorSpec(
        "uint8", ("Q",), "which image each is of, a row of `poses` if there are; absent too",
        optional=True,
    ),
    COLOURS: TensorSpec(
        "uint8", ("L", 3), "mean colours of some images; absent where images turn", optional=True
    ),
}  # fmt: skip
FRAGMENTS_TOGETHER = ((SHEET, CELLS), (SHEET, OWNERS))


@dataclass(frozen=True)
class Fragments:
    """Squares of Q fragments, all of one size.

    Attributes:
        sheet: AVIF of all squares, row by row, as many in a row as `per_row` says.
        cells: `[Q]` uint8, place of each in the lattice of the frame, row by row.
        owners: `[Q]` uint8, number of the image that it was cut from.
        size: side of a square in pixels.
        overlap: pixels that neighbours in the lattice share, at least.
        canvas: side in pixels of the frame that they are put together to.
        colours: `[L, 3]` uint8, mean colours of some images, of which a replay takes one; None
            where squares keep their own.
    """

    sheet: bytes
    cells: NDArray[np.uint8]
    owners: NDArray[np.uint8]
    size: int
    overlap: int
    canvas: int
    colours: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def squares(self) -> NDArray[np.uint8]:
        """Read them: `[Q, 3, P, P]` uint8.

        Raises:
            ValueError: if the sheet is no picture, or not one of so many squares.
        """
        size, across = self.size, per_row(len(self))
        with io.BytesIO(self.sheet) as file:
            try:
                picture = Image.open(file, formats=["AVIF"])
                wanted = (across * size, -(-len(self) // across) * size)
                if picture.size != wanted:
                    raise ValueError(f"it has {picture.size} px, not {wanted}")
                sheet = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            except (OSError, RuntimeError, Image.DecompressionBombError) as error:
                raise ValueError(str(error)) from None
        rows = sheet.reshape(3, -1, size, across, size).transpose(1, 3, 0, 2, 4)
        return rows.reshape(-1, 3, size, size)[: len(self)]

    def largest_share(self, side: int) -> float:
        """The largest part, 0..1, that squares of one image are of its area, of `side` pixels."""
        most = int(np.bincount(self.owners).max(initial=0))
        return most * (self.size / side) ** 2

    def tensors(self) -> dict[str, NDArray[Any]]:
        """By name, as they are written."""
        colours = {} if self.colours is None else {COLOURS: self.colours}
        return {
            SHEET: np.frombuffer(self.sheet, np.uint8), CELLS: self.cells, OWNERS: self.owners,
            **colours,
        }  # fmt: skip

    def record(self) -> dict[str, int]:
        """What the header says of them."""
        return {"size": self.size, "overlap": self.overlap, "canvas": self.canvas}

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], record: Any) -> "Fragments":
        """From a file.

        Raises:
            ValueError: if the header does not say how large they are.
        """
        match record:
            case {"size": int(size), "overlap": int(overlap), "canvas": int(canvas)}:
                pass
            case _:
                raise ValueError(f"the header's `{FIELD}` is {record!r:.60}")
        largest = max(canvas**2, len(tensors[CELLS]) * size**2)
        if not 0 < overlap < size <= canvas or largest > MAX_PIXELS or not len(tensors[CELLS]):
            raise ValueError(f"squares of {size} px cannot be put together to {canvas} px")
        sheet, cells, owners = (tensors[name] for name in (SHEET, CELLS, OWNERS))
        colours = tensors.get(COLOURS)
        if colours is not None and not len(colours):
            raise ValueError("they have mean colours of no image")
        return cls(sheet.tobytes(), cells, owners, size, overlap, canvas, colours)


def per_row(count: int) -> int:
    """Squares in a row of the sheet, about as many as there are rows."""
    return int(np.ceil(np.sqrt(count)))


def encode_squares(squares: NDArray[np.uint8], quality: int) -> bytes:
    """Squares `[Q, 3, P, P]` uint8 as one AVIF, whose bytes depend on nothing but the arguments.

    Places of the last row that no square takes repeat the last.
    """
    count, _, size, _ = squares.shape
    across = per_row(count)
    down = -(-count // across)
    filled = np.concatenate([squares, np.repeat(squares[-1:], across * down - count, axis=0)])
    sheet = filled.reshape(down, across, 3, size, size).transpose(0, 3, 1, 4, 2)
    with io.BytesIO() as file:
        picture = Image.fromarray(sheet.reshape(down * size, across * size, 3))
        picture.save(file, "AVIF", quality=quality, speed=6, max_threads=1)
        return file.getvalue()
