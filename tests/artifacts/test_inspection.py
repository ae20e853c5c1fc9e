import json

import pytest
from artifact_examples import FACTS, WRITERS, conditions, write_replays
from safetensors.numpy import load_file, save_file

from replaycad.artifacts import inspection
from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.replays import shard_paths
from replaycad.errors import ArtifactError


@pytest.mark.parametrize("name", WRITERS)
def test_an_artifact_says_what_it_is_and_where_it_came_from(tmp_path, name):
    path = tmp_path / "bottle.safetensors"
    digest = WRITERS[name](path)
    parts = list(tmp_path.rglob("*.safetensors"))

    facts = inspection.describe(path)

    version = inspection.SCHEMAS[name].version
    assert (facts["format"], facts["format_version"]) == (name, version)
    assert facts["content_id"] == digest
    assert facts["num_bytes"] == sum(part.stat().st_size for part in parts)
    assert facts["made_with"].startswith("replaycad ")
    assert {fact: facts[fact] for fact in FACTS} == FACTS
    assert [entry["name"] for entry in facts["tensors"]] == sorted(load_file(path))
    assert "image_ids" not in facts
    assert json.loads(json.dumps(facts)) == facts
    checked = inspection.verify(path)
    assert checked[str(path)] == digest
    assert sorted(checked) == sorted(map(str, parts))


def test_sizes_count_the_stored_masks(tmp_path):
    conditions().save(tmp_path / "a")

    facts = inspection.describe(tmp_path / "a")

    assert facts["num_bytes_without_masks"] == conditions().num_bytes_without_masks
    assert facts["num_bytes_of_tensors"] == conditions().num_bytes


def test_sizes_count_the_shards(tmp_path):
    path = tmp_path / "a.safetensors"
    write_replays(path, 5, 2)

    facts = inspection.describe(path)

    shards = shard_paths(path)
    assert [shard["file"] for shard in facts["shards"]] == [shard.name for shard in shards]
    assert facts["num_bytes"] == sum(file.stat().st_size for file in [path, *shards])


def test_a_checkpoint_can_be_inspected(tmp_path):
    Checkpoint(tmp_path / "a").save(3, {})

    assert inspection.describe(tmp_path / "a")["step"] == 3


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    path = tmp_path / "a"
    save_file({}, path, metadata={
        "replaycad": '{"format":"wish","format_version":1,"content_id":"0"}'
    })  # fmt: skip

    with pytest.raises(ArtifactError, match=r"formats masks, conditions, .*, found `wish`"):
        inspection.describe(path)


def test_the_table_has_a_row_for_every_declared_tensor():
    table = inspection.artifact_table().splitlines()

    rows = inspection.artifact_rows()
    assert len(table) == 2 + len(rows)
    assert all(row["meaning"] for row in rows)
    assert {line.count("|") for line in table} == {7}
    assert "| `conditions` | `replaycad compress --class NAME` | `semantic_embedding`" in table[4]
