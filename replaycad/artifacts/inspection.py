"""What an artifact is, where it came from, and whether it is as it was written."""

from pathlib import Path
from typing import Any

from replaycad.artifacts import format as files
from replaycad.artifacts.checkpoints import CHECKPOINT
from replaycad.artifacts.conditions import CONDITIONS
from replaycad.artifacts.detector import DETECTOR
from replaycad.artifacts.masks import MASKS
from replaycad.artifacts.replays import REPLAYS, SHARD, shard_paths
from replaycad.artifacts.schema import Schema, bracketed
from replaycad.artifacts.scores import SCORES
from replaycad.errors import ArtifactError

ARTIFACTS = (MASKS, CONDITIONS, REPLAYS, SHARD, DETECTOR, SCORES)
SCHEMAS = {schema.format: schema for schema in (*ARTIFACTS, CHECKPOINT)}

# Lists with one entry per image are told by their length.
LONG_FIELDS = ("image_ids",)


def schema_of(path: str | Path) -> Schema:
    """Find what a file claims to be.

    Raises:
        ArtifactError: it is missing, damaged, foreign, or of an unknown format.
    """
    found = files.read_header(path)["format"]
    if found not in SCHEMAS:
        known = ", ".join(SCHEMAS)
        raise ArtifactError(f"{path}: expected one of the formats {known}, found `{found}`")
    return SCHEMAS[found]


def describe(path: str | Path) -> dict[str, Any]:
    """Tell what an artifact is and where it came from, from headers alone.

    Returns:
        `path`, `format`, `format_version`, `num_bytes` (with shards), `made_with` (the command),
        `tensors` (a list of name, dtype, shape, num_bytes), `shards` (of replays: file, num_bytes,
        content_id and tensors of each), `num_bytes_without_masks` (conditions only), and the
        header's own fields: class, config, seed, inputs, weights, versions, key, content_id and so
        on. JSON throughout.

    Raises:
        ArtifactError: it is missing, damaged, foreign or newer, or a shard is not the listed one.
    """
    path = Path(path)
    schema = schema_of(path)
    found = files.read_layout(path, schema)
    header = {name: value for name, value in found.header.items() if name not in LONG_FIELDS}
    lengths = {
        f"num_{name}": len(found.header[name]) for name in LONG_FIELDS if name in found.header
    }
    facts: dict[str, Any] = {
        **header,
        **lengths,
        "path": str(path),
        "num_bytes": found.file_bytes,
        "made_with": schema.command.format(name=path.stem, folder=path.parent.stem),
        "tensors": _tensors(found),
    }
    if schema is CONDITIONS:
        stored = {entry["name"]: entry["num_bytes"] for entry in facts["tensors"]}
        facts["num_bytes_of_tensors"] = sum(stored.values())
        facts["num_bytes_without_masks"] = sum(stored.values()) - stored["object_masks"]
    if schema is REPLAYS:
        facts["shards"] = [_shard(shard) for shard in shard_paths(path)]
        facts["num_bytes"] += sum(shard["num_bytes"] for shard in facts["shards"])
    return facts


def verify(path: str | Path) -> dict[str, str]:
    """Read every byte of an artifact, shards included, and recompute all digests.

    Returns:
        content id by file.

    Raises:
        ArtifactError: a bit is not as it was written, or anything that `describe` finds.
    """
    path = Path(path)
    schema = schema_of(path)
    parts = {path: schema, **dict.fromkeys(shard_paths(path) if schema is REPLAYS else (), SHARD)}
    return {str(part): files.read(part, kind)[1]["content_id"] for part, kind in parts.items()}


def artifact_rows() -> list[dict[str, str]]:
    """The tensors of every format as declared: format, tensor, dtype, shape, meaning."""
    return [
        {
            "format": schema.format,
            "tensor": name,
            "dtype": "any" if spec.shape is None else " or ".join(spec.dtypes),
            "shape": "any" if spec.shape is None else bracketed(spec.shape),
            "meaning": spec.meaning,
        }
        for schema in ARTIFACTS
        for name, spec in schema.tensors.items()
    ]


def artifact_table() -> str:
    """The same as a Markdown table for the README, with the command that makes each format."""
    lines = [
        "| format | made with | tensor | dtype | shape | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    before = ""
    for row in artifact_rows():
        schema = SCHEMAS[row["format"]]
        is_first, before = row["format"] != before, row["format"]
        command = schema.command.format(name="NAME", folder="NAME")
        start = f"| `{schema.format}` | `{command}` " if is_first else "| | "
        lines.append(
            f"{start}| `{row['tensor']}` | {row['dtype']} | {row['shape']} | {row['meaning']} |"
        )
    return "\n".join(lines)


def _tensors(found: files.Layout) -> list[dict[str, Any]]:
    """Name, dtype, shape and bytes of each tensor, in name order."""
    return [
        {"name": name, "dtype": dtype, "shape": list(shape), "num_bytes": found.num_bytes(name)}
        for name, (dtype, shape) in sorted(found.tensors.items())
    ]


def _shard(path: Path) -> dict[str, Any]:
    """File, bytes, content id and tensors of one shard."""
    found = files.read_layout(path, SHARD)
    return {
        "file": path.name,
        "num_bytes": found.file_bytes,
        "content_id": found.header["content_id"],
        "tensors": _tensors(found),
    }
