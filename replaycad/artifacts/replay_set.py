"""The files of a replay set: one schema for the main file, one for its shards.

A set that fits into one shard is one file. A larger one is a main file, written last, that lists
the content ids of its shards, which lie beside it in `<name>.shards/`. Their names hold a digest of
the key, so a new set grows beside the old one and takes its place in one step.
"""

from pathlib import Path
from typing import Any

from replaycad.artifacts.format import (
    RowReader,
    Schema,
    TensorSpec,
    damaged,
    read_header,
    read_layout,
)
from replaycad.errors import ArtifactError

_ROWS = {
    "images": TensorSpec("uint8", ("N", 3, "H", "H"), "RGB, lossless"),
    "object_masks": TensorSpec("uint8", ("N", "H", "ceil(H/8)"), "one bit per pixel"),
    "seeds": TensorSpec("int64", ("N",), "image i depends on seed i alone"),
}
REPLAYS = Schema(
    format="replays",
    version=1,
    tensors={
        "images": TensorSpec("uint8", ("N", 3, "H", "H"), "RGB, lossless", optional=True),
        "object_masks": TensorSpec(
            "uint8", ("N", "H", "ceil(H/8)"), "one bit per pixel, set on the object", optional=True
        ),
        "seeds": _ROWS["seeds"],
        "shard_digests": TensorSpec(
            "uint8", ("P", 32), "content ids of the shards that hold the rest", optional=True
        ),
    },
    command="replaycad replay --class {name}",
    fields={"image_size": int, "num_images": int, "shards": list},
)
SHARD = Schema(
    format="replays_shard",
    version=1,
    tensors=_ROWS,
    command="replaycad replay",
    fields={"image_size": int, "first_row": int},
)


def shard_folder(path: Path) -> Path:
    """Where the shards of a set lie."""
    return path.with_suffix(".shards")


def shard_paths(path: str | Path) -> list[Path]:
    """Find the shards of a set from headers alone, and check that they are the listed ones.

    Returns:
        the shards in order; none if the main file holds all.

    Raises:
        ArtifactError: the main file cannot be used, or a shard is not the listed one.
    """
    path = Path(path)
    found = read_layout(path, REPLAYS)
    listed = listed_shards(path, found.header)
    whole = {"images", "object_masks"}
    if not listed:
        if not whole <= set(found.tensors) or "shard_digests" in found.tensors:
            damaged(path, REPLAYS, "expected images in the file or in shards, found neither")
        return []
    if "shard_digests" not in found.tensors or whole & set(found.tensors):
        damaged(path, REPLAYS, "expected images in the file or in shards, found signs of both")
    with RowReader(path, "shard_digests", REPLAYS) as reader:
        digests = [row.tobytes().hex() for row in reader.rows(range(len(reader)))]
    if len(digests) != len(listed):
        damaged(path, REPLAYS, f"expected {len(digests)} listed shards, found {len(listed)}")
    shards = [shard_folder(path) / name for name, _ in listed]
    for shard, digest in zip(shards, digests, strict=True):
        try:
            actual = read_header(shard, SHARD)["content_id"]
        except ArtifactError as error:
            raise ArtifactError(error.message, REPLAYS.remedy(path)) from error
        if actual != digest:
            difference = f"expected content id {digest:.12}..., found {actual:.12}..."
            raise ArtifactError(f"{shard}: {difference}", REPLAYS.remedy(path))
    return shards


def listed_shards(path: Path, header: dict[str, Any]) -> list[tuple[str, int]]:
    """File name and number of images of each shard that a main file lists."""
    listed = []
    for entry in header["shards"]:
        fields = entry if isinstance(entry, dict) else {}
        name, rows = fields.get("file"), fields.get("num_images")
        # Only names: a foreign file must not make this one read or remove anything elsewhere.
        if not isinstance(name, str) or Path(name).name != name or not isinstance(rows, int):
            found = f"found {entry!r:.60}"
            damaged(path, REPLAYS, f"expected file names of shards with counts, {found}")
        listed.append((name, rows))
    return listed
