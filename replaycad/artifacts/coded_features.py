"""Patches of a memory bank in few bytes: coordinates along some directions, as whole numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.schema import TensorSpec
from replaycad.artifacts.token_coding import LARGEST, pack, unpack

CODES, BASIS = "feature_codes", "feature_basis"
SCALES, MEAN = "feature_scales", "feature_mean"
FLOATS = ("float32", "float16")  # 16 bits might not hold them; the file's other floats decide

FEATURE_TENSORS = {
    CODES: TensorSpec(
        "uint8", ("F'",), "patches along the basis as LZMA2; absent unless features are kept",
        optional=True,
    ),
    BASIS: TensorSpec(
        "int8", ("C", "F"), "directions in which patches differ; absent with them", optional=True
    ),
    SCALES: TensorSpec(
        FLOATS, ("C",), "what 1 of a direction's integers is worth; absent too", optional=True
    ),
    MEAN: TensorSpec(FLOATS, ("F",), "mean patch; absent too", optional=True),
}

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class CodedFeatures:
    """Some patches of a class, the most telling ones first.

    Attributes:
        codes: `[N, C]` int32, steps along each direction, at most `token_coding.LARGEST`.
        basis: `[C, F]` int8, directions.
        scales: `[C]` float32, the length of one step per unit of the basis.
        mean: `[F]` float32, the mean patch.
    """

    codes: NDArray[np.int32]
    basis: NDArray[np.int8]
    scales: FloatArray
    mean: FloatArray

    def decoded(self) -> FloatArray:
        """The patches `[N, F]` float32, but for what rounding lost."""
        return self.mean + self.codes.astype(np.float32) @ self._steps

    def first(self, count: int) -> "CodedFeatures":
        """The first `count` patches alone."""
        return CodedFeatures(self.codes[:count], self.basis, self.scales, self.mean)

    def floats(self) -> dict[str, FloatArray]:
        """What is stored as floats, by tensor name."""
        return {SCALES: self.scales, MEAN: self.mean}

    def integers(self) -> dict[str, NDArray[Any]]:
        """What is stored as integers, by tensor name; coordinates direction by direction."""
        packed = pack(self.codes.T.astype(np.float32), 1.0)
        return {CODES: np.frombuffer(packed, np.uint8), BASIS: self.basis}

    @classmethod
    def of(cls, tensors: dict[str, NDArray[Any]], count: int) -> "CodedFeatures":
        """From tensors as `floats` and `integers` give them, of `count` patches.

        Raises:
            ValueError: if the codes are damaged or of another count.
        """
        basis = tensors[BASIS]
        codes = unpack(tensors[CODES].tobytes(), count * len(basis), 1.0)
        return cls(
            codes.reshape(len(basis), count).T.astype(np.int32), basis,
            tensors[SCALES].astype(np.float32), tensors[MEAN].astype(np.float32),
        )  # fmt: skip

    @property
    def _steps(self) -> FloatArray:
        """What one step of each direction adds: `[C, F]`."""
        return self.basis.astype(np.float32) * self.scales[:, None]


def coded(
    patches: FloatArray, mean: FloatArray, directions: FloatArray, step: float
) -> CodedFeatures:
    """Round patches to whole steps along directions.

    Args:
        patches: `[N, F]`.
        mean: `[F]`, of such patches.
        directions: `[C, F]` of length 1, orthogonal to each other.
        step: length of one step, above 0.

    Returns:
        each patch within about half a step of where it lies along every direction; those farther
        than `token_coding.LARGEST` steps from the mean are brought back to there.
    """
    largest = np.abs(directions).max(1, keepdims=True).clip(1e-12)
    basis = np.rint(directions / largest * 127).astype(np.int8)
    scales = (step * largest[:, 0] / 127).astype(np.float32)
    steps = basis.astype(np.float64) * scales[:, None]
    along = (patches - mean).astype(np.float64) @ np.linalg.pinv(steps)
    codes = np.rint(along).clip(-LARGEST, LARGEST).astype(np.int32)
    return CodedFeatures(codes, basis, scales, mean)
