"""Object masks of the training images of one class."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.format import damaged, read, write
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.mask_ops import pack_bits, unpack_bits

MASKS = Schema(
    format="masks",
    version=1,
    tensors={
        "object_masks": TensorSpec(
            "uint8", ("N", "H", "ceil(W/8)"), "one bit per pixel, set on the object"
        ),
        "area_fraction": TensorSpec("float32", ("N",), "object area over image area, 0 to 1"),
    },
    command="replaycad mask --class {name}",
    fields={"class_name": str, "image_ids": list, "rule": str, "mask_width": int},
)


@dataclass(frozen=True)
class MasksArtifact:
    """Masks of N images.

    Attributes:
        class_name: the class.
        image_ids: N ids, in the order of the masks.
        object_masks: [N, H, W] bool, true on the object.
        area_fraction: [N] float32, 0 to 1.
        rule: how the object was chosen.
        header: further header fields; after loading, all of them.
    """

    class_name: str
    image_ids: list[str]
    object_masks: NDArray[np.bool_]
    area_fraction: NDArray[np.float32]
    rule: str
    header: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> str:
        """Write the file and return its content id.

        Raises:
            ArtifactError: it cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {
            "object_masks": pack_bits(self.object_masks),
            "area_fraction": np.asarray(self.area_fraction, dtype=np.float32),
        }
        own = {
            "class_name": self.class_name,
            "image_ids": list(self.image_ids),
            "rule": self.rule,
            "mask_width": int(self.object_masks.shape[-1]),
        }
        return write(path, MASKS, tensors, {**self.header, **own})

    @classmethod
    def load(cls, path: str | Path) -> "MasksArtifact":
        """Read and check the file.

        Raises:
            ArtifactError: it is missing, damaged, foreign or newer.
        """
        tensors, header = read(path, MASKS)
        packed, image_ids = tensors["object_masks"], header["image_ids"]
        check_width(Path(path), MASKS, packed, header["mask_width"])
        if len(image_ids) != len(packed):
            found = f"found {len(image_ids)}"
            damaged(Path(path), MASKS, f"expected image ids of {len(packed)} masks, {found}")
        return cls(
            class_name=header["class_name"],
            image_ids=image_ids,
            object_masks=unpack_bits(packed, header["mask_width"]),
            area_fraction=tensors["area_fraction"],
            rule=header["rule"],
            header=header,
        )


def check_width(path: Path, schema: Schema, packed: NDArray[Any], width: int) -> None:
    """Hold the width in a header against packed masks [N, H, ceil(W/8)].

    Raises:
        ArtifactError: they do not fit.
    """
    if packed.shape[-1] != -(-width // 8):
        row = f"found {packed.shape[-1]} bytes"
        damaged(path, schema, f"expected {-(-width // 8)} bytes per row for {width} pixels, {row}")
