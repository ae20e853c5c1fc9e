"""Image files to arrays of one size: RGB, eight bits, upright."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from replaycad.data.decoding import opened
from replaycad.data.levels import BLACK_IS_NORMAL, Cut, cut_of
from replaycad.data.pixels import read_picture
from replaycad.data.samples import Sample
from replaycad.data.views import WHOLE, View, Window, packed
from replaycad.errors import DatasetError

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

MAX_TILES = 4096
"""Tiles that a class is learned from, evenly spaced over all of its training pictures: decoded they
are 0.8 GB on the disk at 256 px, and a bank keeps some thousand patches anyway."""

_UPRIGHT = (None, 0, 1)  # orientations that turn nothing
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF; the latter swap width and height
_WIDTH, _HEIGHT = 256, 257  # of TIFF
_BILINEAR = Image.Resampling.BILINEAR


class HasPath(Protocol):
    """Anything that says where its image lies and how it is seen, as `Sample` does."""

    @property
    def path(self) -> Path:
        """The image file."""

    @property
    def view(self) -> View:
        """How the pictures of its class are seen."""

    @property
    def window(self) -> Window | None:
        """The part of the picture that is meant; None for the whole."""


class Reader:
    """Reads samples as the networks see them; a picture is not decoded again for each tile."""

    def __init__(self) -> None:
        self._last: tuple[Path, View] | None = None
        self._picture: Image.Image | None = None

    def picture(self, sample: HasPath) -> Image.Image:
        """The whole picture in its own size, RGB, what is ignored blanked.

        Raises:
            DatasetError: as `load_image`, or it has another size than what is ignored in it.
        """
        if self._picture is None or self._last != (sample.path, sample.view):
            self._picture = None  # gives its memory back before the next takes its own
            read = read_picture(sample.path, sample.view.white)
            self._picture = sample.view.blanked(read, str(sample.path))
            self._last = (sample.path, sample.view)
        return self._picture

    def pixels(self, sample: HasPath, size: int) -> ByteArray:
        """One image of the networks, `[size, size, 3]` uint8 RGB.

        Raises:
            DatasetError: as `picture`.
        """
        return self._window(sample).pixels(self.picture(sample), size)

    def counted(self, sample: HasPath, size: int) -> BoolArray | None:
        """`[size, size]` bool, true where `pixels` shows what counts; None if all of it does."""
        picture = self.picture(sample)
        return sample.view.counted(self._window(sample), *picture.size, size)

    def _window(self, sample: HasPath) -> Window:
        return sample.window or replace(sample.view, tile=0).windows(*self.picture(sample).size)[0]


def load_image(path: Path, size: int) -> ByteArray:
    """Read an image as `[size, size, 3]` uint8 RGB, resized bilinearly straight to a square.

    Raises:
        DatasetError: as `read_picture`.
    """
    return square_pixels(read_picture(path), size)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, upright, as the file's first bytes say before it is unpacked.

    Raises:
        DatasetError: as `load_image`.
    """
    stored, orientation = _as_stored(path)
    return stored[::-1] if orientation in _TURNED else stored


def _as_stored(path: Path) -> tuple[tuple[int, int], int | None]:
    """Width and height as they are stored, and the EXIF orientation that turns them."""
    with opened(path) as file:
        orientation = file.getexif().get(_ORIENTATION)
        # PIL turns the size of a TIFF when it opens it, in some versions; its tags are as stored.
        tags = getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
        width, height = tags.get(_WIDTH, file.size[0]), tags.get(_HEIGHT, file.size[1])
        return (int(width), int(height)), orientation


def viewed(samples: Sequence[Sample], view: View, limit: int = MAX_TILES) -> list[Sample]:
    """The samples as their class is seen: a tile is a sample of its own.

    Args:
        samples: whole pictures.
        view: of the class.
        limit: of the tiles; of more, as many are taken evenly spaced.

    Returns:
        The same with the view; or their tiles, named such as `train/good/000.png#256,512` by their
        left and upper border.

    Raises:
        DatasetError: if a picture cannot be read or is smaller than a tile.
    """
    if not view.tile:
        return [replace(sample, view=view) for sample in samples]
    tiles = []
    for sample in samples:
        width, height = picture_size(sample.path)
        view.check(width, height, str(sample.path))
        for window in view.windows(width, height):
            name = f"{sample.image_id}#{window.box[0]},{window.box[1]}"
            tiles.append(replace(sample, image_id=name, view=view, window=window))
    return [tiles[row] for row in evenly_spaced(len(tiles), limit)]


def read_ignored(path: Path) -> bytes:
    """What `View.ignore` keeps of the picture beside a class; empty if it is all black.

    Raises:
        DatasetError: if it cannot be read, or all of it is ignored.
    """
    ignored = _nonzero(path)
    if ignored.all():
        hint = "leave black what is to be judged, and paint white what is not"
        raise DatasetError(f"{path} has no black pixel, so all of a picture is ignored", hint)
    return packed(ignored)


def square_pixels(picture: Image.Image, size: int) -> ByteArray:
    """An RGB picture as `[size, size, 3]` uint8."""
    return np.asarray(_to_square(picture, size), dtype=np.uint8)


def load_images(samples: Sequence[HasPath], size: int) -> ByteArray:
    """Read the images of all samples as `[N, 3, size, size]` uint8 RGB; see `load_image`."""
    images = np.empty((len(samples), 3, size, size), dtype=np.uint8)
    reader = Reader()
    for image, sample in zip(images, samples, strict=True):
        image[:] = reader.pixels(sample, size).transpose(2, 0, 1)
    return images


def load_counted(samples: Sequence[HasPath], size: int) -> BoolArray | None:
    """Where the images of `load_images` count, `[N, size, size]` bool; None if they do everywhere.

    Raises:
        DatasetError: as `load_images`.
    """
    found = [_counted(sample, size) for sample in samples]
    if all(one is None for one in found):
        return None
    whole = np.ones((size, size), np.bool_)
    return np.stack([whole if one is None else one for one in found])


def _counted(sample: HasPath, size: int) -> BoolArray | None:
    """Where one image counts, from the first bytes of its file."""
    if sample.view == WHOLE:
        return None
    width, height = picture_size(sample.path)
    window = sample.window or sample.view.windows(width, height)[0]
    return sample.view.counted(window, width, height, size)


def evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    """Which images stand for all: at most `count` of 0..total-1, evenly spaced, rising, `[n]`."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))


def load_anomaly_mask(
    sample: Sample, size: int | tuple[int, int], cut: Cut = BLACK_IS_NORMAL
) -> BoolArray:
    """Read what is defective in an image as `[size, size]` bool, all of its masks together.

    Which levels are defective is decided at full size; then each 0/255 mask is resized bilinearly
    (antialiased) and cut at one half. A mask that fits the image only as the camera stored it, and
    not as it is shown, is turned like the image.

    Args:
        sample: an image with masks.
        size: side of the square in pixels, or height and width.
        cut: which levels are defective, the same for all masks of a class; see `cut_of`.

    Raises:
        DatasetError: if a file is missing, truncated or no image, or has another shape than the
            image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    defects = np.zeros((height, width), np.bool_)
    for path in sample.mask_paths:
        own = _as_shown(cut.defects(path), path, sample.path, cut.as_stored)
        full = Image.fromarray(own.astype(np.uint8) * np.uint8(255))
        if full.size != (width, height):
            full = full.resize((width, height), _BILINEAR)
        defects |= np.asarray(full) > 127.5
    return defects


def masks_cut(samples: Sequence[Sample]) -> Cut:
    """How the anomaly masks of a class are read: their levels, and which way up they lie.

    If one mask fits its photo only as the camera stored that, all were drawn so.

    Raises:
        DatasetError: a file cannot be read.
    """
    cut = cut_of(sample.mask_paths for sample in samples)
    num_turned, as_stored = 0, False
    for sample in samples:
        stored, orientation = _as_stored(sample.path) if sample.mask_paths else ((0, 0), None)
        if orientation in _UPRIGHT:
            continue
        num_turned += 1
        shown = stored[::-1] if orientation in _TURNED else stored
        for path in sample.mask_paths:
            size = picture_size(path)
            as_stored |= _same_shape(size, stored) and not _same_shape(size, shown)
    if not num_turned:
        return cut
    told = "turned with their photos" if as_stored else "read as photos are shown, turned upright"
    reason = f"{cut.reason}; they are {told}" if cut.reason else f"to be {told}"
    return replace(cut, as_stored=as_stored, reason=reason)


def _as_shown(defects: BoolArray, path: Path, image: Path, as_stored: bool) -> BoolArray:
    """A mask `[H, W]` turned as its image is shown, where it fits it so alone or all do."""
    stored, orientation = _as_stored(image)
    shown = stored[::-1] if orientation in _TURNED else stored
    size = defects.shape[::-1]
    is_turned = orientation not in _UPRIGHT
    if _same_shape(size, shown) and not (as_stored and is_turned and _same_shape(size, stored)):
        return defects
    if is_turned and _same_shape(size, stored):
        mask = Image.fromarray(defects)
        mask.getexif()[_ORIENTATION] = orientation
        return np.asarray(ImageOps.exif_transpose(mask))
    raise DatasetError(
        f"the anomaly mask {path} has {size[0]} x {size[1]} px, its image {image} has "
        f"{shown[0]} x {shown[1]}",
        "draw the mask in the image's shape, or take it away: then pixel figures leave the image "
        "out",
    )


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are of one shape, but for a pixel that rounding costs the smaller."""
    small, large = sorted((one, other))
    scale = small[0] / large[0]
    return abs(small[1] - large[1] * scale) <= 1.0 + scale


def _nonzero(path: Path) -> BoolArray:
    """`[H, W]` bool, true where a picture is not black."""
    return BLACK_IS_NORMAL.defects(path)


def resize_image(image: ByteArray, size: int) -> ByteArray:
    """Resize `[3, H, W]` uint8 to `[3, size, size]` uint8, bilinearly as files are."""
    if image.shape[-2:] == (size, size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(_to_square(picture, size)).transpose(2, 0, 1)


def _to_square(picture: Image.Image, size: int) -> Image.Image:
    return picture if picture.size == (size, size) else picture.resize((size, size), _BILINEAR)
