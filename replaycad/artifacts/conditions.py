"""What is kept of a class: some vectors, one linear layer, a few masks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.format import Schema, TensorSpec, damaged, read, write
from replaycad.artifacts.masks import check_width
from replaycad.errors import ArtifactError
from replaycad.mask_ops import pack_bits, unpack_bits

FLOATS = ("float32", "float16")
WEIGHT, BIAS, POSES = "spatial_encoder.weight", "spatial_encoder.bias", "poses"

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
    """The conditions of one class (paper section 3.2).

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

    @property
    def num_bytes_without_masks(self) -> int:
        """Stored bytes of what the search learns."""
        parts = (self.semantic_embedding, self.spatial_weight, self.spatial_bias)
        num_floats: int = sum(part.size for part in parts if part is not None)
        return num_floats * (2 if self.half else 4)

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all tensors, packed masks included."""
        num_masks, height, width = self.object_masks.shape
        poses = 0 if self.poses is None else self.poses.size * (2 if self.half else 4)
        return self.num_bytes_without_masks + int(num_masks * height * -(-width // 8)) + poses

    def save(self, path: str | Path, half: bool | None = None) -> str:
        """Write the file and return its content id.

        Args:
            path: the file to replace.
            half: store float16 instead of float32; None keeps `self.half`.

        Raises:
            ArtifactError: it cannot be written, or a number does not fit into 16 bits.
        """
        half = self.half if half is None else half
        floats = {"semantic_embedding": self.semantic_embedding}
        if self.spatial_weight is not None:
            floats[WEIGHT] = self.spatial_weight
        if self.spatial_bias is not None:
            floats[BIAS] = self.spatial_bias
        if self.poses is not None:
            floats[POSES] = self.poses
        tensors: dict[str, NDArray[Any]] = {}
        for name, values in floats.items():
            largest = float(np.abs(values).max(initial=0.0))
            if half and np.isfinite(largest) and largest > float(np.finfo(np.float16).max):
                finding = f"`{name}` holds {largest:.3g}, float16 ends at 65504"
                raise ArtifactError(f"cannot write {path}: {finding}", "store it without half")
            tensors[name] = np.asarray(values, dtype=np.float16 if half else np.float32)
        tensors["object_masks"] = pack_bits(self.object_masks)
        own = {
            "class_name": self.class_name,
            "policy": self.policy,
            "mask_width": int(self.object_masks.shape[-1]),
        }
        return write(path, CONDITIONS, tensors, {**self.header, **own})

    @classmethod
    def load(cls, path: str | Path) -> "ConditionsArtifact":
        """Read and check the file; float16 comes back as float32.

        Raises:
            ArtifactError: it is missing, damaged, foreign or newer.
        """
        tensors, header = read(path, CONDITIONS)
        check_width(Path(path), CONDITIONS, tensors["object_masks"], header["mask_width"])
        if (WEIGHT in tensors) != (BIAS in tensors):
            found = WEIGHT if WEIGHT in tensors else BIAS
            damaged(
                Path(path), CONDITIONS, f"expected `{WEIGHT}` with `{BIAS}`, found `{found}` alone"
            )
        dtypes = {values.dtype.name for values in tensors.values() if values.dtype.kind == "f"}
        if len(dtypes) > 1:
            found = " and ".join(sorted(dtypes))
            damaged(Path(path), CONDITIONS, f"expected one dtype for all floats, found {found}")
        floats = {
            name: values.astype(np.float32)
            for name, values in tensors.items()
            if name != "object_masks"
        }
        return cls(
            class_name=header["class_name"],
            semantic_embedding=floats["semantic_embedding"],
            spatial_weight=floats.get(WEIGHT),
            spatial_bias=floats.get(BIAS),
            object_masks=unpack_bits(tensors["object_masks"], header["mask_width"]),
            policy=header["policy"],
            header=header,
            half=dtypes == {"float16"},
            poses=floats.get(POSES),
        )
