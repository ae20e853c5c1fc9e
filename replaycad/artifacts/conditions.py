"""What is kept of a class: some vectors, one linear layer, a few masks; or a few real images."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.coded_features import (
    BASIS,
    CODES,
    FEATURE_TENSORS,
    MEAN,
    SCALES,
    CodedFeatures,
)
from replaycad.artifacts.format import damaged, file_bytes, read, write
from replaycad.artifacts.fragments import (
    FIELD,
    FRAGMENT_TENSORS,
    FRAGMENTS_TOGETHER,
    SHEET,
    Fragments,
)
from replaycad.artifacts.masks import check_width
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.artifacts.token_coding import (
    inverse_transform,
    is_transformed,
    pack,
    transform,
    unpack,
)
from replaycad.errors import ArtifactError
from replaycad.mask_ops import pack_bits, unpack_bits

FLOATS = ("float32", "float16")
MAX_PACKED = 2**24  # numbers that a file may claim to hold packed; classes of ours have 10^5
WEIGHT, BIAS, POSES = "spatial_encoder.weight", "spatial_encoder.bias", "poses"
VARIATIONS, STEPS, COEFFICIENTS = "semantic_variations", "variation_steps", "coefficients"
PACKED, STEP = "packed_tokens", "packed_step"
TOKENS, FREQUENCIES = "tokens", "frequencies"  # packed as they are, or transformed
EXEMPLARS, ENDS, PLACES = "exemplars", "exemplar_ends", "exemplar_poses"
TOGETHER = ((WEIGHT, BIAS), (VARIATIONS, STEPS), (PACKED, STEP), (EXEMPLARS, ENDS),
            (EXEMPLARS, PLACES), (CODES, BASIS), (CODES, SCALES), (CODES, MEAN),
            *FRAGMENTS_TOGETHER)  # fmt: skip

CONDITIONS = Schema(
    format="conditions",
    version=1,
    tensors={
        "semantic_embedding": TensorSpec(FLOATS, ("K", "D"), "the learned tokens of the class"),
        WEIGHT: TensorSpec(
            FLOATS, ("O", "I"), "mask latents to spatial tokens; absent without them", optional=True
        ),
        BIAS: TensorSpec(FLOATS, ("O",), "its bias; absent with it", optional=True),
        POSES: TensorSpec(
            FLOATS,
            ("P", 3),
            "degrees and shift of training images; absent if not looked for",
            optional=True,
        ),
        VARIATIONS: TensorSpec(
            "int8", ("R", "K", "D"), "directions in which the tokens vary; absent if none are kept",
            optional=True,
        ),
        STEPS: TensorSpec(
            FLOATS, ("R",), "what 1 of their integers is worth; absent with them", optional=True
        ),
        PACKED: TensorSpec(
            "uint8", ("P'",), "tokens and directions as LZMA2 where bytes are counted, else absent",
            optional=True,
        ),
        STEP: TensorSpec(
            FLOATS, (1,), "what 1 of their integers is worth; absent with them", optional=True
        ),
        COEFFICIENTS: TensorSpec(
            FLOATS, ("V", "R'"), "of training images along directions; absent with these",
            optional=True,
        ),
        EXEMPLARS: TensorSpec(
            "uint8", ("B",), "real images as AVIF, one behind the other; absent if none are kept",
            optional=True,
        ),
        ENDS: TensorSpec(
            "int64", ("E",), "where each of them ends; absent with them", optional=True
        ),
        PLACES: TensorSpec(
            FLOATS, ("E", 3), "how each of them lies, as in `poses`; absent too", optional=True
        ),
        **FEATURE_TENSORS,
        **FRAGMENT_TENSORS,
        "object_masks": TensorSpec(
            "uint8", ("M", "H'", "ceil(W'/8)"), "masks to draw from, one bit per pixel"
        ),
    },
    command="replaycad compress --class {name}",
    fields={"class_name": str, "policy": dict, "mask_width": int},
)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ConditionsArtifact:
    """The conditions of one class (paper section 4.2).

    Attributes:
        class_name: the class.
        semantic_embedding: [K, D] float32; K is 0 where only masks guide.
        spatial_weight: [O, I] float32, or None where no mask guides.
        spatial_bias: [O] float32, or None likewise.
        object_masks: [M, H', W'] bool, true on the object; M may be 0.
        policy: the class's row of the policy table.
        header: further header fields; after loading, all of them.
        half: whether the floats are stored in 16 bits.
        poses: [P, 3] float32, how training images lie (`diffusion.alignment`); then tokens and
            masks are those of the common frame. None where the images were taken as they lie.
        semantic_variations: [R, K, D] float32, what one step along each direction in which the
            class varies adds to the embedding; None where every image has the same.
        coefficients: [V, R] float32, how many steps training images lie along them; None likewise.
        step: tokens and variations are stored as whole multiples of this, compressed, as
            `token_coding` does; it fits into 16 bits. 0 for floats.
        exemplars: real images as AVIF, [3, S, S] each; empty where none are kept.
        exemplar_poses: [E, 3] float32, how they lie, zeros where poses were not looked for; None
            likewise.
        features: patches of a memory bank, which no image is drawn from; None where none are kept.
            The header's `features` says what they serve.
        fragments: squares of many images, of which replays are put together; None where none are
            kept. `poses` are then those of these images where they turn, else None; a mask is the
            shape of a part that turns alone, upright, on a ground that lies still.
    """

    class_name: str
    semantic_embedding: FloatArray
    spatial_weight: FloatArray | None
    spatial_bias: FloatArray | None
    object_masks: NDArray[np.bool_]
    policy: dict[str, Any]
    header: dict[str, Any] = field(default_factory=dict)
    half: bool = False
    poses: FloatArray | None = None
    semantic_variations: FloatArray | None = None
    coefficients: FloatArray | None = None
    step: float = 0.0
    exemplars: tuple[bytes, ...] = ()
    exemplar_poses: FloatArray | None = None
    features: CodedFeatures | None = None
    fragments: Fragments | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether a diffusion model has something to draw from, and not real images alone."""
        return bool(len(self.semantic_embedding)) or self.spatial_weight is not None

    @property
    def exemplar_size(self) -> int:
        """Side in pixels of the exemplars as they are replayed; they may be stored smaller."""
        return int(self.header.get("exemplar_size") or self.object_masks.shape[-1])

    @property
    def _floats(self) -> dict[str, FloatArray]:
        """By tensor name, all that is stored as floats except the variations' steps."""
        optional = {
            WEIGHT: self.spatial_weight,
            BIAS: self.spatial_bias,
            POSES: self.poses,
            COEFFICIENTS: self.coefficients,
            PLACES: self.exemplar_poses,
        }
        present = {name: values for name, values in optional.items() if values is not None}
        tokens = self.semantic_embedding
        if self.step:
            present[STEP], tokens = np.array([self.step], np.float32), tokens[:0]
        if self.features is not None:
            present |= self.features.floats()
        return {"semantic_embedding": tokens, **present}

    @property
    def levels(self) -> NDArray[np.floating[Any]]:
        """Tokens and variations as they are packed, before they are rounded to steps."""
        variations = self.semantic_variations
        parts = [self.semantic_embedding[None], *([] if variations is None else [variations])]
        return transform(np.concatenate(parts))

    @property
    def _packed(self) -> bytes:
        return pack(self.levels, self.step)

    @property
    def num_bytes_without_masks(self) -> int:
        """Stored bytes of all tensors but the masks."""
        num_floats: int = sum(values.size for values in self._floats.values())
        num_integers = 0
        if self.step:
            num_integers = len(self._packed)
        elif self.semantic_variations is not None:
            num_floats += len(self.semantic_variations)
            num_integers = self.semantic_variations.size
        num_integers += sum(map(len, self.exemplars)) + 8 * len(self.exemplars)
        if self.fragments is not None:
            num_integers += sum(part.nbytes for part in self.fragments.tensors().values())
        return num_floats * (2 if self.half else 4) + num_integers

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all tensors, packed masks included."""
        num_masks, height, width = self.object_masks.shape
        return self.num_bytes_without_masks + int(num_masks * height * -(-width // 8))

    def save(self, path: str | Path, half: bool | None = None) -> str:
        """Write the file and return its content id.

        Args:
            path: the file to replace.
            half: store float16 instead of float32; None keeps `self.half`.

        Raises:
            ArtifactError: it cannot be written, or a number does not fit into 16 bits.
        """
        return write(path, CONDITIONS, self._tensors(path, half), self._own_header())

    def file_bytes(self) -> int:
        """Bytes of the whole file that `save` writes, header included."""
        return file_bytes(CONDITIONS, self._tensors("the file", None), self._own_header())

    def _own_header(self) -> dict[str, Any]:
        own = {
            "class_name": self.class_name,
            "policy": self.policy,
            "mask_width": int(self.object_masks.shape[-1]),
        }
        if self.step:
            variations = self.semantic_variations
            count = 1 if variations is None else 1 + len(variations)
            own["packed_shape"] = [count, *self.semantic_embedding.shape]
            own["packed_as"] = _form(self.semantic_embedding.shape)
        if self.features is not None:
            own["num_patches"] = len(self.features.codes)
        if self.fragments is not None:
            own[FIELD] = self.fragments.record()
        return {**self.header, **own}

    def _tensors(self, path: str | Path, half: bool | None) -> dict[str, NDArray[Any]]:
        half = self.half if half is None else half
        floats = self._floats
        tensors: dict[str, NDArray[Any]] = {}
        if self.step:
            tensors[PACKED] = np.frombuffer(self._packed, np.uint8)
        elif self.semantic_variations is not None:
            tensors[VARIATIONS], floats[STEPS] = _to_integers(self.semantic_variations)
        for name, values in floats.items():
            largest = float(np.abs(values).max(initial=0.0))
            if half and np.isfinite(largest) and largest > float(np.finfo(np.float16).max):
                finding = f"`{name}` holds {largest:.3g}, float16 ends at 65504"
                raise ArtifactError(f"cannot write {path}: {finding}", "store it without half")
            tensors[name] = np.asarray(values, dtype=np.float16 if half else np.float32)
        if self.exemplars:
            tensors[EXEMPLARS] = np.frombuffer(b"".join(self.exemplars), np.uint8)
            tensors[ENDS] = np.cumsum([len(one) for one in self.exemplars], dtype=np.int64)
        if self.features is not None:
            tensors |= self.features.integers()
        if self.fragments is not None:
            tensors |= self.fragments.tensors()
        tensors["object_masks"] = pack_bits(self.object_masks)
        return tensors

    @classmethod
    def load(cls, path: str | Path) -> "ConditionsArtifact":
        """Read and check the file; float16 comes back as float32.

        Raises:
            ArtifactError: it is missing, damaged, foreign or newer.
        """
        tensors, header = read(path, CONDITIONS)
        check_width(Path(path), CONDITIONS, tensors["object_masks"], header["mask_width"])
        for one, other in TOGETHER:
            if (one in tensors) != (other in tensors):
                found = one if one in tensors else other
                expected = f"expected `{one}` with `{other}`, found `{found}` alone"
                damaged(Path(path), CONDITIONS, expected)
        dtypes = {values.dtype.name for values in tensors.values() if values.dtype.kind == "f"}
        if len(dtypes) > 1:
            found = " and ".join(sorted(dtypes))
            damaged(Path(path), CONDITIONS, f"expected one dtype for all floats, found {found}")
        floats = {
            name: values.astype(np.float32)
            for name, values in tensors.items()
            if values.dtype.kind == "f"
        }
        tokens, variations, step = floats["semantic_embedding"], None, 0.0
        if VARIATIONS in tensors:
            variations = tensors[VARIATIONS] * floats[STEPS][:, None, None]
        if PACKED in tensors:
            step = float(floats[STEP][0])
            tokens, variations = _unpacked(Path(path), tensors, header, step)
        _check_coefficients(Path(path), floats, variations)
        return cls(
            class_name=header["class_name"],
            semantic_embedding=tokens,
            spatial_weight=floats.get(WEIGHT),
            spatial_bias=floats.get(BIAS),
            object_masks=unpack_bits(tensors["object_masks"], header["mask_width"]),
            policy=header["policy"],
            header=header,
            half=dtypes == {"float16"},
            poses=floats.get(POSES),
            semantic_variations=variations,
            coefficients=floats.get(COEFFICIENTS),
            step=step,
            exemplars=_cut(Path(path), tensors) if EXEMPLARS in tensors else (),
            exemplar_poses=floats.get(PLACES),
            features=_features(Path(path), tensors, header) if CODES in tensors else None,
            fragments=_fragments(Path(path), tensors, header) if SHEET in tensors else None,
        )


def _fragments(path: Path, tensors: dict[str, NDArray[Any]], header: dict[str, Any]) -> Fragments:
    """The squares of many images."""
    try:
        return Fragments.of(tensors, header.get(FIELD))
    except ValueError as error:
        damaged(path, CONDITIONS, f"expected `{FIELD}` of some size: {error}")


def _features(
    path: Path, tensors: dict[str, NDArray[Any]], header: dict[str, Any]
) -> CodedFeatures:
    """The patches of a memory bank."""
    count = header.get("num_patches")
    if not isinstance(count, int) or not 0 < count * len(tensors[BASIS]) <= MAX_PACKED:
        damaged(path, CONDITIONS, f"expected `{CODES}` of some patches, found {count!r:.40}")
    try:
        return CodedFeatures.of(tensors, count)
    except ValueError as error:
        damaged(path, CONDITIONS, f"expected `{CODES}` of {count} patches: {error}")


def _cut(path: Path, tensors: dict[str, NDArray[Any]]) -> tuple[bytes, ...]:
    """The exemplars one by one."""
    ends = [0, *tensors[ENDS].tolist()]
    stored = tensors[EXEMPLARS].tobytes()
    if ends != sorted(set(ends)) or ends[-1] != len(stored):
        damaged(path, CONDITIONS, f"expected rising `{ENDS}` up to {len(stored)}")
    return tuple(stored[start:end] for start, end in pairwise(ends))


def _unpacked(
    path: Path, tensors: dict[str, NDArray[Any]], header: dict[str, Any], step: float
) -> tuple[FloatArray, FloatArray | None]:
    """Tokens [K, D] and variations [R, K, D], or None where there are none."""
    shape, form = header.get("packed_shape"), header.get("packed_as")
    if not _is_shape(shape) or step <= 0:
        damaged(path, CONDITIONS, f"expected shape and step of `{PACKED}`, found {shape}, {step}")
    if form != _form(tuple(shape)):
        expected = f"expected `{PACKED}` of shape {shape} packed as {_form(tuple(shape))}"
        damaged(path, CONDITIONS, f"{expected}, found {form!r:.40}")
    try:
        packed = unpack(tensors[PACKED].tobytes(), math.prod(shape), step)
    except ValueError as error:
        damaged(path, CONDITIONS, f"expected `{PACKED}` of shape {shape}: {error}")
    found = inverse_transform(packed, tuple(shape))
    return found[0], found[1:] if len(found) > 1 else None


def _form(shape: tuple[int, ...]) -> str:
    """How tokens `[..., K, D]` are packed."""
    return FREQUENCIES if is_transformed(shape) else TOKENS


def _is_shape(found: Any) -> TypeGuard[list[int]]:
    if not isinstance(found, list) or len(found) != 3:
        return False
    return all(isinstance(n, int) and n > 0 for n in found) and math.prod(found) <= MAX_PACKED


def _check_coefficients(
    path: Path, floats: dict[str, FloatArray], variations: FloatArray | None
) -> None:
    """Refuse coefficients without the directions that they belong to, and the reverse."""
    found = floats[COEFFICIENTS].shape[1] if COEFFICIENTS in floats else 0
    expected = 0 if variations is None else len(variations)
    if found != expected:
        damaged(path, CONDITIONS, f"expected `{COEFFICIENTS}` along {expected} directions, "
                                  f"found {found}")  # fmt: skip


def _to_integers(values: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Round each of `[R, K, D]` to -127..127 steps; the steps `[R]`, which fit into 16 bits.

    So 127 steps are exact in 32 bits, and rounding what was read again changes nothing.
    """
    largest = np.abs(values).max((1, 2), initial=0.0)
    steps = (largest / 127).astype(np.float16).astype(np.float32)
    scaled = values / np.maximum(steps, 1e-30)[:, None, None]
    return np.clip(np.rint(scaled), -127, 127).astype(np.int8), steps
