"""How a picture becomes what the networks see: squashed or padded to a square, or cut into tiles.

A view is a property of a class and travels in its artifacts, so that every later stage sees the
pictures of a class as the first one did.
"""

import base64
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replaycad.errors import ArtifactError, DatasetError

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
Fit = Literal["pad", "squash"]

OVERLAP = 8
"""Neighbouring tiles share at least this part of their side: an eighth."""
BLANK = (124, 116, 104)
"""What ignored pixels look like to the networks, in training and in use: the mean of ImageNet,
which is zero to an encoder. One constant, so nothing near them depends on what was there."""

_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a picture that becomes one image of the networks.

    Args:
        box: of the part.
        side: pixels of the picture that fill the side of the image; what the part lacks of them is
            padded. 0 to squash the part into the square.
    """

    box: Box
    side: int = 0

    def place(self, size: int) -> Box:
        """Where the part lies in its image of `size` px; the rest of that is padding."""
        if not self.side:
            return 0, 0, size, size
        left, top, right, bottom = self.box
        width, height = (
            min(size, max(1, round(size * part / self.side)))
            for part in (right - left, bottom - top)
        )
        x, y = (size - width) // 2, (size - height) // 2
        return x, y, x + width, y + height

    def pixels(self, picture: Image.Image, size: int) -> ByteArray:
        """The part of an RGB picture as `[size, size, 3]` uint8.

        Padding goes on with the pixels of the border: a plain colour would draw a contour that is
        no part of the product, and a mirror would show a defect twice.
        """
        part = picture if self.box == (0, 0, *picture.size) else picture.crop(self.box)
        x, y, right, bottom = self.place(size)
        if part.size != (right - x, bottom - y):
            part = part.resize((right - x, bottom - y), _BILINEAR)
        pixels = np.asarray(part, np.uint8)
        if pixels.shape[:2] != (size, size):
            rest = ((y, size - bottom), (x, size - right), (0, 0))
            pixels = np.pad(pixels, rest, mode="edge")
        return pixels


@dataclass(frozen=True, kw_only=True)
class View:
    """How the pictures of a class are seen.

    Args:
        tile: side of the tiles in pixels of the picture; 0 for the whole picture as one image.
        fit: what becomes of a picture that is not square: padded, or squashed into a square. Tiles
            that are larger than the picture in one direction are padded always.
        white: level that is shown as white in pictures of more than eight bits; 0 for those of
            eight.
        ignore: PNG of the pictures' size that is white where they are ignored; empty for nowhere.
        num_tiles: of a picture on average, rounded, where that was counted; else 0.
        colours: `grey` or `colours`, if all pictures of the class were such files; else empty.
    """

    tile: int = 0
    fit: Fit = "squash"
    white: float = 0.0
    ignore: bytes = b""
    num_tiles: int = field(default=0, compare=False)
    colours: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For a header: what differs from a whole picture, squashed, as JSON values."""
        values: dict[str, Any] = {"tile": self.tile} if self.tile else {}
        if self.fit != "squash":
            values["fit"] = self.fit
        if self.white:
            values["white"] = self.white
        if self.ignore:
            values["ignore"] = base64.b64encode(self.ignore).decode()
        if self.num_tiles:
            values["num_tiles"] = self.num_tiles
        if self.colours:
            values["colours"] = self.colours
        return values

    @classmethod
    def from_dict(cls, values: Any) -> "View":
        """Undo `as_dict`; None, as in a header without a view, is a whole picture, squashed.

        Raises:
            ArtifactError: if the values are not those of a view.
        """
        values = {} if values is None else values
        try:
            known = isinstance(values, Mapping) and set(values) <= set(cls.__dataclass_fields__)
            ignore = base64.b64decode(values.get("ignore", ""), validate=True)
            view = cls(**{**values, "ignore": ignore})
            known = known and view.fit in get_args(Fit)
            known = known and all(
                type(number) is int and number >= 0 for number in (view.tile, view.num_tiles)
            )
            known = known and view.colours in ("", "grey", "colours")
            known = known and type(view.white) in (int, float) and 0 <= view.white < math.inf
            if known and ignore:
                _unpacked(ignore)
        except (ValueError, TypeError, AttributeError, OSError, SyntaxError):
            known = False
        if not known:
            found = str(values)[:80]
            raise ArtifactError(f"a view of pictures is {found}", "make the artifact again")
        return view

    def __str__(self) -> str:
        """In words, such as `tiles of 256 px` or `whole, padded, some ignored (1a2b3c4d)`."""
        how = f"tiles of {self.tile} px" if self.tile else (
            "whole, padded" if self.fit == "pad" else "whole, squashed")  # fmt: skip
        how += f", {self.white:g} is white" if self.white else ""
        digest = hashlib.sha256(self.ignore).hexdigest()[:8]
        return f"{how}, some ignored ({digest})" if self.ignore else how

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that pixels are ignored in; zeros if none are."""
        height, width = _unpacked(self.ignore).shape if self.ignore else (0, 0)
        return height, width

    def is_plain(self, width: int, height: int) -> bool:
        """Whether a picture of this size becomes one image all of which counts."""
        return not (self.tile or self.ignore) and (self.fit == "squash" or width == height)

    def windows(self, width: int, height: int) -> list[Window]:
        """The parts of a picture, row by row; each of its pixels is in one at least.

        Tiles are spread evenly: the first and the last lie at the border, and neighbours share at
        least an eighth of their side.

        Raises:
            DatasetError: if the tile is larger than the picture.
        """
        if not self.tile:
            side = max(width, height) if self.fit == "pad" else 0
            return [Window(box=(0, 0, width, height), side=side)]
        if self.tile > max(width, height):
            raise DatasetError(
                f"a tile of {self.tile} px is larger than a picture of {width} x {height} px",
                f"learn its class with --tile {max(width, height)} or less (0: whole pictures), or "
                "give larger pictures",
            )
        return [
            Window(
                box=(left, top, min(left + self.tile, width), min(top + self.tile, height)),
                side=self.tile,
            )
            for top in _starts(height, self.tile)
            for left in _starts(width, self.tile)
        ]

    def ignored_whole(self, size: int) -> BoolArray | None:
        """`[size, size]` bool, true where a whole picture is ignored; None where none can be."""
        if self.tile or not self.ignore:
            return None
        height, width = self.size
        window = self.windows(width, height)[0]
        x, y, right, bottom = window.place(size)
        ignored = np.zeros((size, size), np.bool_)
        mask = self.mask_for(width, height, "the picture")
        ignored[y:bottom, x:right] = touched(mask, right - x, bottom - y)
        return ignored

    def check(self, width: int, height: int, name: str) -> None:
        """Refuse a picture that cannot be seen so.

        Raises:
            DatasetError: if a tile is larger, or what is ignored has another size.
        """
        try:
            self.windows(width, height)
        except DatasetError as error:
            raise DatasetError(f"{name}: {error.message}", error.hint) from None
        if self.ignore:
            self.mask_for(width, height, name)

    def blanked(self, picture: Image.Image, name: str) -> Image.Image:
        """The RGB picture with `BLANK` in place of what is ignored.

        Args:
            picture: in its own size.
            name: of it, for the error.

        Raises:
            DatasetError: if what is ignored was drawn for pictures of another size.
        """
        if not self.ignore:
            return picture
        mask = self.mask_for(*picture.size, name)
        blanked = picture.copy()
        blanked.paste(BLANK, mask=mask)
        return blanked

    def mask_for(self, width: int, height: int, name: str) -> Image.Image:
        """What is ignored in a picture of this size, white; the view ignores something.

        Raises:
            DatasetError: if it was drawn for pictures of another size.
        """
        mask = Image.fromarray(_unpacked(self.ignore))
        if mask.size != (width, height):
            raise DatasetError(
                f"{name} has {width} x {height} px, but what is ignored was drawn for "
                f"{mask.size[0]} x {mask.size[1]} px",
                "draw ignore.png in the size of the pictures",
            )
        return mask

    def counted_whole(self, size: int) -> BoolArray | None:
        """`counted` of a whole picture; None also where no picture's size is known."""
        if self.tile or not self.ignore:
            return None
        height, width = self.size
        return self.counted(self.windows(width, height)[0], width, height, size)

    def counted(self, window: Window, width: int, height: int, size: int) -> BoolArray | None:
        """`[size, size]` bool, true where an image shows the picture and that is not ignored.

        Args:
            window: of a picture.
            width: of the picture.
            height: likewise.
            size: of the image.

        Returns:
            None if all of it counts.
        """
        x, y, right, bottom = window.place(size)
        if not self.ignore and (x, y, right, bottom) == (0, 0, size, size):
            return None
        counted = np.zeros((size, size), np.bool_)
        counted[y:bottom, x:right] = True
        if self.ignore:
            part = self.mask_for(width, height, "the picture").crop(window.box)
            counted[y:bottom, x:right] = ~touched(part, right - x, bottom - y)
        return None if counted.all() else counted


WHOLE = View()
"""The whole picture, squashed into a square: how all classes were seen before they had views."""


def view_of(header: Mapping[str, Any], class_name: str) -> View:
    """How a detector sees a class, from its header; a class it does not know, as all the others.

    Raises:
        ArtifactError: if the header says something else.
    """
    views = header.get("views") or {}
    if class_name in views:
        return View.from_dict(views[class_name])
    return shared_view(header) or WHOLE


def shared_view(header: Mapping[str, Any]) -> View | None:
    """How a detector sees all of its classes; None where it sees them differently.

    Raises:
        ArtifactError: as `view_of`.
    """
    views = header.get("views") or {}
    known = [View.from_dict(views.get(name)) for name in header.get("class_order", views)]
    if len(set(known)) != 1:
        return None
    colours = {view.colours for view in known}
    return replace(known[0], colours=colours.pop() if len(colours) == 1 else "")


def packed(ignored: BoolArray) -> bytes:
    """What `View.ignore` keeps of `[H, W]` bool; empty where nothing is ignored."""
    if not ignored.any():
        return b""
    with io.BytesIO() as file:
        Image.fromarray(ignored).save(file, "PNG", optimize=True)
        return file.getvalue()


@lru_cache(maxsize=4)
def _unpacked(ignore: bytes) -> BoolArray:
    with Image.open(io.BytesIO(ignore), formats=["PNG"]) as file:
        found = np.array(file.convert("1"), np.bool_)
    found.flags.writeable = False
    return found


def touched(mask: Image.Image, width: int, height: int) -> BoolArray:
    """`[height, width]` bool, true where any part of a pixel is in the mask."""
    grey = mask.convert("L")
    if grey.size != (width, height):
        exact = grey.convert("F").resize((width, height), Image.Resampling.BOX)
        return cast(BoolArray, np.asarray(exact) > 0)
    return cast(BoolArray, np.asarray(grey) > 0)


def _starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles along one side."""
    room = length - tile
    if room <= 0:
        return [0]
    count = 1 + -(-room // (tile - -(-tile // OVERLAP)))
    return [round(number * room / (count - 1)) for number in range(count)]
