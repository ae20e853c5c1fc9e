"""Features of training images, computed once: a frozen encoder says the same of an image always."""

import math
import tempfile
from collections.abc import Callable, Sequence
from io import BufferedRandom

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.detectors.encoders import Encoder
from replaycad.progress import Report, silent

LIMIT_BYTES = 4 * 2**30  # of the temporary file; more is encoded anew each time
_NUMBER = np.dtype(np.float32)


class FeatureCache:
    """Feature pyramids of images by their places.

    On a CPU, where encoding takes a third to a half of a training step, they are kept in a
    temporary file without a name that vanishes with the process; memory stays flat. They are not
    where an image is asked for about once, where they take more than `LIMIT_BYTES` or the disk is
    full, and on a GPU, which encodes faster than features can be brought to it.

    Args:
        encoder: frozen.
        images: places -> `[B, 3, S, S]` uint8.
        count: number of images.
        chunk: images encoded at once.
        uses: how often each image will be asked for, about.
        report: is told about the encoding.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Callable[[Sequence[int] | NDArray[np.int64]], NDArray[np.uint8]],
        count: int,
        chunk: int,
        uses: float,
        report: Report = silent,
    ) -> None:
        self._encoder, self._images = encoder, images
        self._shapes: list[torch.Size] = []
        self._file: BufferedRandom | None = None
        if uses >= 2 and next(encoder.buffers()).device.type == "cpu":
            self._shapes = [level.shape[1:] for level in self._encode([0])]
            self._numbers = sum(math.prod(shape) for shape in self._shapes)
            if count * self._numbers * _NUMBER.itemsize <= LIMIT_BYTES:
                self._fill(count, chunk, report)

    def __call__(self, rows: Sequence[int] | NDArray[np.int64]) -> list[torch.Tensor]:
        """Levels from fine to coarse, each `[B, C, H, W]` float, as `Encoder.encode_images`."""
        if self._file is None:
            return self._encode(rows)
        size = self._numbers * _NUMBER.itemsize
        stored = np.empty((len(rows), self._numbers), _NUMBER)
        for row, index in zip(stored, rows, strict=True):
            self._file.seek(int(index) * size)
            self._file.readinto(row.data)
        parts = torch.from_numpy(stored).split([math.prod(one) for one in self._shapes], dim=1)
        return [
            part.reshape(len(rows), *height_width, channels).permute(0, 3, 1, 2)
            for part, (channels, *height_width) in zip(parts, self._shapes, strict=True)
        ]

    def close(self) -> None:
        """Give the temporary file back; done by itself when the cache is no longer used."""
        if self._file is not None:
            self._file.close()

    def _encode(self, rows: Sequence[int] | NDArray[np.int64]) -> list[torch.Tensor]:
        return self._encoder.encode_images(torch.from_numpy(self._images(rows)))

    def _fill(self, count: int, chunk: int, report: Report) -> None:
        file = tempfile.TemporaryFile(prefix="replaycad-")  # noqa: SIM115 (lives as long as self)
        try:
            for start in range(0, count, chunk):
                stop = min(start + chunk, count)
                levels = self._encode(range(start, stop))
                # Channels last, as convolutions on a CPU like it best.
                flat = [level.float().permute(0, 2, 3, 1).flatten(1) for level in levels]
                rows = torch.cat(flat, dim=1)
                file.write(rows.numpy().tobytes())
                report.step("encoding images", stop, count)
            file.flush()
        except OSError:  # no room: encode each time, as before there was a cache
            report.note("no room for a cache of features in the temporary folder")
            file.close()
            return
        self._file = file
