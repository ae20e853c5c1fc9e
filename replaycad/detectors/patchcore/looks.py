"""How images of a class look as a whole, in few bytes: what tells others from a replayed class.

Patches of a replayed class lie far from those of its real images, so a bank of them lets in images
of products that it was never shown. The statistics of real images say more: they are taken at
compress and carried with the class, and no image can be drawn from them.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SHARES = (0.25, 0.5, 0.75)
"""Quantiles of each feature over the patches of an image; defects on less than a quarter of it move
them little."""
WIDTH = 64  # numbers of an image
DIRECTIONS = 8  # in which images of a class differ, the foremost
FLOOR = 0.1  # of the variance of patches within an image, added to that between images
EVERY, MANY = 4, 500  # every fourth patch of an image tells it apart, where there are many
FOLDS = 4  # of the images, each judged by the others
LEAST_IMAGES = 3 * FOLDS
MARGIN = 2.5
"""Times the distance that 1 % of held-out images of the class exceed. On twelve held-out procedural
classes the farthest image of a class, a defective one, came to 1.5 times, the nearest image of
another class to 4.0; on six real ones 2.5 lost 3 of 472 images, all of defects, and told 99.4 % of
the others. Together with the patches 5 of 464 were lost and 100 % told, where patches alone told
49 % from conditions and 93 % from images in 50 kB."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """A normal distribution of what images of a class look like.

    Attributes:
        rows: `[1 + DIRECTIONS, WIDTH]` float32: the mean, then the directions in which images
            differ, each as long as its standard deviation.
        rest: variance in every other direction.
        limit: distance, in standard deviations, beyond which an image is of another product.
    """

    rows: FloatArray
    rest: float
    limit: float

    def whitening(self) -> FloatArray:
        """`[WIDTH, WIDTH]`: the lengths of its products with differences from the mean are in
        standard deviations."""
        directions = self.rows[1:].astype(np.float64)
        covariance = self.rest * np.eye(WIDTH) + directions.T @ directions
        return np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float32)

    def distances(self, looks: FloatArray) -> FloatArray:
        """Of images `[N, WIDTH]`, in standard deviations, `[N]`."""
        differences = looks - self.rows[0]
        return np.linalg.norm(differences @ self.whitening().T, axis=1).astype(np.float32)

    def widened(self, looks: FloatArray) -> "Look":
        """The same with a limit that takes in more images of the class, `[N, WIDTH]`."""
        usual = float(np.quantile(self.distances(looks), 0.99))
        return replace(self, limit=max(self.limit, MARGIN * usual))

    def record(self) -> dict[str, Any]:
        """For a header: a byte a number."""
        scales = np.maximum(np.abs(self.rows).max(axis=1), 1e-12) / 127
        scales = np.array([float(f"{scale:.4e}") for scale in scales])
        coded = np.rint(self.rows / scales[:, None]).clip(-127, 127).astype(np.int8)
        return {
            "rows": base64.b64encode(coded.tobytes()).decode(),
            "scales": [f"{scale:.4e}" for scale in scales],
            "rest": f"{self.rest:.4e}",
            "limit": f"{self.limit:.4e}",
        }

    @classmethod
    def of(cls, record: object) -> "Look | None":
        """Read what `record` wrote; None where it is none."""
        if not isinstance(record, dict):
            return None
        try:
            coded = np.frombuffer(base64.b64decode(record["rows"], validate=True), np.int8)
            scales = np.array(record["scales"], np.float64).reshape(1 + DIRECTIONS, 1)
            rows = coded.reshape(1 + DIRECTIONS, WIDTH) * scales
            rest, limit = float(record["rest"]), float(record["limit"])
        except (KeyError, TypeError, ValueError):
            return None
        if not (np.isfinite(rows).all() and 0 < rest < np.inf and 0 < limit < np.inf):
            return None
        return cls(rows.astype(np.float32), rest, limit)


PLACEHOLDER = Look(np.ones((1 + DIRECTIONS, WIDTH), np.float32), 1.0, 1.0).record()
"""A record of as many bytes as any."""


class Looks(nn.Module):
    """What real images of some classes of a memory bank look like.

    Args:
        width: of its patches.

    Attributes:
        rows: `[L, 1 + WIDTH, WIDTH]` float32 of the L classes: their mean, and a matrix that takes
            differences from it to the square roots of distances.
        class_index: `[L]` int64.
    """

    rows: torch.Tensor
    class_index: torch.Tensor
    _projection: torch.Tensor
    _side_by_side: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        none = torch.zeros(0, 1 + WIDTH, WIDTH)
        self.register_buffer("rows", none)
        self.register_buffer("class_index", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("_projection", projection(width), persistent=False)
        self.register_buffer("_side_by_side", none.clone(), persistent=False)
        self._classes: Sequence[int] = ()

    def set(self, class_index: int, look: Look | None, limit: float) -> None:
        """Say what a class looks like, in place of what was said before.

        Args:
            class_index: which class this is.
            look: None if nobody knows.
            limit: distance that stands for that of the look.
        """
        others = self.class_index != class_index
        rows, index = self.rows[others], self.class_index[others]
        if look is not None:
            to_roots = limit**0.5 / look.limit * look.whitening()
            own = torch.from_numpy(np.concatenate([look.rows[:1], to_roots]).astype(np.float32))
            rows = torch.cat([rows, own.to(rows)[None]])
            index = torch.cat([index, index.new_tensor([class_index])])
        self.rows, self.class_index = rows, index
        self.arrange(self._classes)

    def arrange(self, classes: Sequence[int]) -> None:
        """Put them in the order of these classes; those without a look are at no distance."""
        self._classes = classes
        self._side_by_side = self.rows.new_zeros(len(classes), *self.rows.shape[1:])
        for rows, index in zip(self.rows, self.class_index.tolist(), strict=True):
            if index in classes:
                self._side_by_side[classes.index(index)] = rows

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """How far images with patches `[B, P, D]` look from each class, `[B, K]`, squared."""
        differences = self.of(patches)[:, None] - self._side_by_side[:, 0]
        roots = torch.einsum("bkw,kvw->bkv", differences, self._side_by_side[:, 1:])
        return roots.square().sum(dim=2)

    def of(self, patches: torch.Tensor) -> torch.Tensor:
        """What images with patches `[B, P, D]` look like, `[B, WIDTH]`."""
        ordered = patches.sort(dim=1).values
        quantiles = [ordered[:, int(share * patches.shape[1])] for share in SHARES]
        return torch.cat(quantiles, dim=1) @ self._projection

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take as many as were saved; detectors of before have none."""
        for name in ("rows", "class_index"):
            own = getattr(self, name)
            saved = state_dict.setdefault(prefix + name, own[:0])
            setattr(self, name, own.new_empty(saved.shape[:1] + own.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.arrange(self._classes)  # which the bank around it has loaded before


def some(patches: torch.Tensor) -> torch.Tensor:
    """Patches `[B, P, D]` of images that these are told apart by."""
    return patches[:, :: EVERY if patches.shape[1] > MANY else 1]


def projection(width: int) -> torch.Tensor:
    """`[3 * width, WIDTH]` float32, signs that are the same on every machine."""
    count = len(SHARES) * width * WIDTH
    digest = hashlib.shake_256(b"looks").digest(-(-count // 8))
    signs = 2.0 * np.unpackbits(np.frombuffer(digest, np.uint8), count=count) - 1
    signs /= np.sqrt(len(SHARES) * width)
    return torch.from_numpy(signs.astype(np.float32).reshape(-1, WIDTH))


def fit_look(looks: FloatArray, variances: FloatArray) -> Look | None:
    """What images of a class look like; None where they are fewer than `LEAST_IMAGES`.

    Args:
        looks: `[N, WIDTH]` of real images.
        variances: `[N]`, mean variance of features over the patches of each.
    """
    if len(looks) < LEAST_IMAGES:
        return None
    within = float(variances.mean())
    held = [
        _fitted(np.delete(looks, fold, axis=0), within).distances(looks[fold])
        for fold in (np.arange(start, len(looks), FOLDS) for start in range(FOLDS))
    ]
    limit = MARGIN * float(np.quantile(np.concatenate(held), 0.99))
    found = _fitted(looks, within)
    return Look(found.rows, found.rest, limit)


def _fitted(looks: FloatArray, within: float) -> Look:
    mean = looks.mean(axis=0)
    _, spreads, directions = np.linalg.svd(looks - mean, full_matrices=False)
    count = min(DIRECTIONS, len(looks) - 1)
    variances = spreads.astype(np.float64) ** 2 / len(looks)
    rest = variances[count:].sum() / (WIDTH - count) + FLOOR * within + 1e-12
    rows = np.zeros((1 + DIRECTIONS, WIDTH), np.float32)
    rows[0], rows[1 : 1 + count] = mean, np.sqrt(variances[:count])[:, None] * directions[:count]
    return Look(rows, float(rest), np.inf)
