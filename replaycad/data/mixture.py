"""Real images of the new class and replays of the old ones as one set, flat in memory."""

import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replaycad.data.images import Reader, resize_image
from replaycad.data.samples import Sample
from replaycad.data.views import WHOLE, BoolArray, View
from replaycad.errors import ConfigError, DatasetError
from replaycad.progress import Report, silent

ByteArray = NDArray[np.uint8]
IndexArray = NDArray[np.int64]


class Replays(Protocol):
    """Stored replays that are read by slice, as `artifacts.replays.ReplaysReader` does."""

    @property
    def image_size(self) -> int:
        """Side of the stored images in pixels."""

    def __len__(self) -> int:
        """Number of stored images."""

    def images(self, indices: Sequence[int]) -> ByteArray:
        """Images `[B, 3, H, W]` uint8 at the given places."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of one class: real ones or replays, never both.

    Args:
        class_index: place of the class in the class order.
        samples: real images.
        replays: stored replays.
        limit: replays that are used, from the first; 0 for all.
        view: of the class, for replays; samples have their own.
    """

    class_index: int
    samples: Sequence[Sample] = ()
    replays: Replays | None = None
    limit: int = 0
    view: View = WHOLE

    def __post_init__(self) -> None:
        """Refuse a source of two kinds."""
        if self.samples and self.replays is not None:
            raise ConfigError("a source has both real images and replays", "make two sources")

    def __len__(self) -> int:
        """Number of images."""
        if self.replays is None:
            return len(self.samples)
        return min(self.limit or len(self.replays), len(self.replays))

    @property
    def num_tiles(self) -> int:
        """How many of its images make one picture."""
        return (self.samples[0].view if self.samples else self.view).num_tiles or 1


class Mixture:
    """Images of several sources under one numbering, in the order of the sources.

    Real images are decoded once, into a temporary file without a name that vanishes with the
    process; replays stay where they are. So memory does not grow with the number of images.

    Args:
        sources: the classes.
        image_size: side of the images handed out, in pixels.
        report: is told about the decoding.

    Attributes:
        image_size: as above.
        class_index: `[N]` int64, place of each image's class in the class order.
        num_tiles: class index -> how many images make one picture of that class.
        replayed: indices of the classes whose images are replays.

    Raises:
        DatasetError: if an image cannot be read or there is no image at all.
    """

    def __init__(self, sources: Sequence[Source], image_size: int, report: Report = silent) -> None:
        self.image_size = image_size
        self._sources = list(sources)
        self._starts = np.cumsum([0, *(len(source) for source in self._sources)]).tolist()
        self._image_bytes = 3 * image_size * image_size
        if not len(self):
            raise DatasetError("there is no image to train on", "name a class with images")
        self.class_index: IndexArray = np.repeat(
            [source.class_index for source in self._sources],
            [len(source) for source in self._sources],
        ).astype(np.int64)
        self.num_tiles: dict[int, int] = {
            source.class_index: source.num_tiles for source in self._sources
        }
        self.replayed = frozenset(
            source.class_index for source in self._sources if source.replays is not None
        )
        self._file = tempfile.TemporaryFile(prefix="replaycad-")  # noqa: SIM115 (lives as long as self)
        self._file_starts: list[int] = []
        self._counted: dict[int, BoolArray] = {}  # of real images some of which does not count
        self._decode(report)

    def __len__(self) -> int:
        """Number of images of all sources."""
        return int(self._starts[-1])

    def images(self, indices: Sequence[int] | IndexArray) -> ByteArray:
        """Images `[B, 3, S, S]` uint8 RGB at the given places, in the order asked for.

        Raises:
            IndexError: if a place is outside 0..len-1.
        """
        batch = np.empty((len(indices), 3, self.image_size, self.image_size), dtype=np.uint8)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(int(index) for index in indices):
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            number = bisect_right(self._starts, index) - 1
            wanted.setdefault(number, []).append((place, index - self._starts[number]))
        for number, pairs in wanted.items():
            places, within = zip(*pairs, strict=True)
            replays = self._sources[number].replays
            if replays is None:
                batch[list(places)] = self._read(number, within)
            else:
                stored = replays.images(list(within))
                batch[list(places)] = [resize_image(image, self.image_size) for image in stored]
        return batch

    def counted(self, indices: Sequence[int] | IndexArray) -> BoolArray | None:
        """Where images count, `[B, S, S]` bool; None if all of them do everywhere.

        Neither padding nor what is ignored counts. Of replays, only whole pictures of a class with
        ignored pixels are known to have any.
        """
        rows = [int(index) for index in indices]
        found = [self._counted.get(row) for row in rows]
        if all(one is None for one in found):
            return None
        whole = np.ones((self.image_size, self.image_size), np.bool_)
        return np.stack([whole if one is None else one for one in found])

    def close(self) -> None:
        """Give the temporary file back; done by itself when the mixture is no longer used."""
        self._file.close()

    def _decode(self, report: Report) -> None:
        total = sum(len(source.samples) for source in self._sources)
        done, reader = 0, Reader()
        known: dict[bytes, BoolArray] = {}  # many images of a class share one
        for start, source in zip(self._starts, self._sources, strict=False):
            self._file_starts.append(done)
            for row, sample in enumerate(source.samples, start=start):
                image = reader.pixels(sample, self.image_size).transpose(2, 0, 1)
                self._write(np.ascontiguousarray(image))
                counted = reader.counted(sample, self.image_size)
                if counted is not None:
                    key = np.packbits(counted).tobytes()
                    self._counted[row] = known.setdefault(key, counted)
                done += 1
                report.step("decoding images", done, total)
            counted = source.view.counted_whole(self.image_size) if source.replays else None
            if counted is not None:
                self._counted |= dict.fromkeys(range(start, start + len(source)), counted)

    def _write(self, image: ByteArray) -> None:
        try:
            self._file.write(image.tobytes())
            self._file.flush()
        except OSError as error:
            raise DatasetError(
                f"cannot keep decoded images in {Path(tempfile.gettempdir())}: {error.strerror}",
                "set TMPDIR to a folder with more room",
            ) from None

    def _read(self, number: int, within: Sequence[int]) -> ByteArray:
        parts = []
        for index in within:
            self._file.seek((self._file_starts[number] + index) * self._image_bytes)
            parts.append(self._file.read(self._image_bytes))
        side = self.image_size
        return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, 3, side, side)


def batches(
    num_images: int,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    class_index: IndexArray | None = None,
) -> Iterator[IndexArray]:
    """Places of the images in the order of one epoch, `[B]` int64 at a time.

    Args:
        num_images: length of the mixture.
        batch_size: B; the last batch is shorter unless dropped.
        seed: of the run; with the epoch it determines the order, so a resumed run needs no state.
        epoch: from 0.
        drop_last: leave a shorter last batch out, unless it is the only one.
        class_index: `[num_images]`, to show each class equally often: an epoch then leaves images
            of large classes out and repeats those of small ones. None to show each image once.
    """
    rng = np.random.default_rng((seed, epoch))
    if class_index is None:
        order = rng.permutation(num_images).astype(np.int64)
    else:
        order = _balanced(class_index, rng)
    for start in range(0, num_images, batch_size):
        batch = order[start : start + batch_size]
        if drop_last and start > 0 and len(batch) < batch_size:
            return
        yield batch


def _balanced(class_index: IndexArray, rng: np.random.Generator) -> IndexArray:
    """As many places as there are images, of each class as many as of any other, but for one."""
    classes = rng.permutation(np.unique(class_index))  # whose turn the remainder is
    parts = []
    for number, one in enumerate(classes):
        share = len(class_index) // len(classes) + (number < len(class_index) % len(classes))
        rows = np.flatnonzero(class_index == one)
        rounds = [rng.permutation(rows) for _ in range(-(-share // len(rows)))]
        parts.append(np.concatenate(rounds)[:share])
    return rng.permutation(np.concatenate(parts)).astype(np.int64)
