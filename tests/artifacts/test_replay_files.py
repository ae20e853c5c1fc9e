"""Replay sets: streamed, sharded, resumed, read by row."""

import signal
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import FACTS, rewrite, rows, run_python, write_replays
from safetensors.numpy import load_file

from replaycad.artifacts import inspection
from replaycad.artifacts.format import read_header
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter, shard_paths
from replaycad.artifacts.spool import row_type
from replaycad.errors import ArtifactError

ROW_BYTES = row_type(4).itemsize
TWO_ROWS = 2 * ROW_BYTES


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def part(first: int, last: int, of: int = 5):
    """Some rows of the example set."""
    return [values[first:last] for values in rows(of)]


def count(path: Path) -> int:
    """Number of images in a set."""
    with ReplaysReader(path) as reader:
        return len(reader)


@pytest.fixture
def path(tmp_path):
    """Where the set goes."""
    return tmp_path / "bottle.safetensors"


@pytest.mark.parametrize("shard_bytes", [10**6, TWO_ROWS, 1])
def test_rows_come_back_from_one_file_and_from_shards(path, shard_bytes):
    write_replays(path, 5, shard_bytes)
    images, object_masks, seeds = rows(5)

    with ReplaysReader(path) as reader:
        assert (len(reader), reader.image_size) == (5, 4)
        np.testing.assert_array_equal(reader.seeds, seeds)
        for indices in ([4, 0, 0, 3], [1, 2], range(5), []):
            np.testing.assert_array_equal(reader.images(indices), images[list(indices)])
            np.testing.assert_array_equal(reader.object_masks(indices), object_masks[list(indices)])
        with pytest.raises(IndexError, match="5 replayed images"):
            reader.images([5])
        assert reader.header["key"] == FACTS["key"]


def test_a_small_set_is_one_plain_file(path):
    write_replays(path)

    assert files(path.parent) == ["bottle.safetensors"]
    np.testing.assert_array_equal(load_file(path)["images"], rows(5)[0])


def test_a_large_set_is_a_main_file_with_shards(path):
    write_replays(path, 5, TWO_ROWS)

    shards = shard_paths(path)
    assert [len(load_file(shard)["images"]) for shard in shards] == [2, 2, 1]
    assert {shard.parent.name for shard in shards} == {"bottle.shards"}
    listed = [row.tobytes().hex() for row in load_file(path)["shard_digests"]]
    assert listed == [read_header(shard)["content_id"] for shard in shards]


@pytest.mark.parametrize("shard_bytes", [10**6, TWO_ROWS])
def test_the_bytes_do_not_depend_on_how_the_rows_came(tmp_path, shard_bytes):
    write_replays(tmp_path / "a" / "x.safetensors", 5, shard_bytes)
    with ReplaysWriter(tmp_path / "b" / "x.safetensors", FACTS, 5, 4, shard_bytes) as writer:
        for first in range(5):
            writer.append(*part(first, first + 1))
        writer.close()

    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("shard_bytes", [10**6, TWO_ROWS])
@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, shard_bytes, done):
    path = tmp_path / "a" / "x.safetensors"
    expected = write_replays(tmp_path / "b" / "x.safetensors", 5, shard_bytes)
    with ReplaysWriter(path, FACTS, 5, 4, shard_bytes) as writer:
        writer.append(*part(0, done))
    assert not path.exists()

    with ReplaysWriter(path, FACTS, 5, 4, shard_bytes) as writer:
        assert writer.rows_done == done
        writer.append(*part(done, 5))
        assert writer.close() == expected

    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_killed_process_loses_no_finished_row(path):
    program = (
        "import os, signal, sys\n"
        "from artifact_examples import FACTS, rows\n"
        "from replaycad.artifacts.replays import ReplaysWriter\n"
        "writer = ReplaysWriter(sys.argv[1], FACTS, 5, 4, int(sys.argv[2]))\n"
        "writer.append(*[values[:3] for values in rows(5)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    assert run_python(program, path, TWO_ROWS) == -signal.SIGKILL

    with ReplaysWriter(path, FACTS, 5, 4, TWO_ROWS) as writer:
        assert writer.rows_done == 3


def test_a_torn_or_spoiled_row_is_drawn_again(path):
    with ReplaysWriter(path, FACTS, 5, 4) as writer:
        writer.append(*part(0, 4))
    (spool,) = path.parent.glob(".*.rows")
    content = bytearray(spool.read_bytes())
    content[2 * ROW_BYTES + 7] ^= 1
    spool.write_bytes(content + b"torn")

    with ReplaysWriter(path, FACTS, 5, 4) as writer:
        assert writer.rows_done == 2
        writer.append(*part(2, 5))
        writer.close()

    with ReplaysReader(path) as reader:
        np.testing.assert_array_equal(reader.images(range(5)), rows(5)[0])


def test_a_spoiled_shard_of_a_stopped_run_is_drawn_again(path):
    with ReplaysWriter(path, FACTS, 5, 4, TWO_ROWS) as writer:
        writer.append(*part(0, 5))
    shard = sorted(path.with_suffix(".shards").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])

    with ReplaysWriter(path, FACTS, 5, 4, TWO_ROWS) as writer:
        assert writer.rows_done == 2


def test_leftovers_of_another_key_are_removed(path):
    with ReplaysWriter(path, {**FACTS, "key": "old"}, 5, 4, TWO_ROWS) as writer:
        writer.append(*part(0, 3))
    assert len(files(path.parent)) == 2

    with ReplaysWriter(path, FACTS, 5, 4, TWO_ROWS) as writer:
        assert writer.rows_done == 0

    assert len(files(path.parent)) == 1


def test_a_run_that_shall_not_resume_starts_at_zero(path):
    for shard_bytes in (10**6, TWO_ROWS):
        with ReplaysWriter(path, FACTS, 5, 4, shard_bytes) as writer:
            writer.append(*part(0, 3))
        with ReplaysWriter(path, FACTS, 5, 4, shard_bytes, resume=False) as writer:
            assert writer.rows_done == 0


@pytest.mark.parametrize("shard_bytes", [10**6, TWO_ROWS])
def test_the_old_set_stays_whole_until_the_new_one_is(path, shard_bytes):
    write_replays(path, 5, TWO_ROWS)
    old = shard_paths(path)

    with ReplaysWriter(path, {**FACTS, "key": "new"}, 4, 4, shard_bytes) as writer:
        writer.append(*part(0, 4, 4))
        assert count(path) == 5
        writer.close()

    assert count(path) == 4
    assert not any(shard.exists() for shard in old)
    assert len(files(path.parent)) == (1 if shard_bytes > TWO_ROWS else 3)


def test_two_writers_of_the_same_set_do_not_mix(path):
    with ReplaysWriter(path, FACTS, 5, 4) as writer:
        for header in (FACTS, {**FACTS, "key": "other"}):
            with pytest.raises(ArtifactError, match="being written by another process"):
                ReplaysWriter(path, header, 5, 4)
        writer.append(*rows(5))
        writer.close()

    assert files(path.parent) == ["bottle.safetensors"]


def test_a_missing_shard_is_told(path):
    write_replays(path, 5, TWO_ROWS)
    shard = shard_paths(path)[1]
    shard.unlink()

    for read in (ReplaysReader, inspection.describe, inspection.verify):
        with pytest.raises(ArtifactError, match="no such file") as caught:
            read(path)
        assert shard.name in caught.value.message
        assert "replaycad replay --class bottle" in caught.value.hint


def test_a_shard_of_another_set_is_told(path):
    write_replays(path, 5, TWO_ROWS)
    first, second, _ = shard_paths(path)
    first.write_bytes(second.read_bytes())

    with pytest.raises(ArtifactError, match=r"expected content id .* found") as caught:
        ReplaysReader(path)

    assert first.name in caught.value.message


def test_a_flipped_bit_in_a_shard_is_found_by_verify(path):
    write_replays(path, 5, TWO_ROWS)
    assert len(inspection.verify(path)) == 4
    shard = shard_paths(path)[2]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    with pytest.raises(ArtifactError, match="expected content_id"):
        inspection.verify(path)


def test_the_content_id_of_a_sharded_set_covers_its_images(tmp_path):
    ids = set()
    for change in (0, 1):
        images, object_masks, seeds = rows(5)
        images[0, 0, 0, 0] = change
        with ReplaysWriter(tmp_path / f"{change}.safetensors", FACTS, 5, 4, TWO_ROWS) as writer:
            writer.append(images, object_masks, seeds)
            ids.add(writer.close())

    assert len(ids) == 2


@pytest.mark.parametrize("name", ["../../bottle.safetensors", "/etc/passwd", 3, None])
def test_a_main_file_cannot_point_elsewhere(path, name):
    write_replays(path, 5, TWO_ROWS)
    rewrite(path, lambda _, header: header["shards"][0].update(file=name))

    with pytest.raises(ArtifactError, match="expected file names of shards"):
        ReplaysReader(path)


def test_a_main_file_at_odds_with_itself_is_refused(path):
    write_replays(path, 5, TWO_ROWS)
    content = path.read_bytes()
    changes = {
        "found neither": lambda _, header: header.update(shards=[]),
        "signs of both": lambda tensors, _: tensors.pop("shard_digests"),
        "expected 3 listed shards, found 2": lambda _, header: header["shards"].pop(),
    }
    for finding, change in changes.items():
        path.write_bytes(content)
        rewrite(path, change)
        with pytest.raises(ArtifactError, match=finding):
            ReplaysReader(path)


def test_rows_that_do_not_fit_the_set_are_refused(path):
    images, object_masks, seeds = rows(6)
    with ReplaysWriter(path, FACTS, 5, 4) as writer:
        with pytest.raises(ValueError, match="0 \\+ 6 of 5"):
            writer.append(images, object_masks, seeds)
        with pytest.raises(ValueError, match="expected images, masks and seeds of 4 px"):
            writer.append(images[:2], object_masks[:1], seeds[:2])
        with pytest.raises(ValueError, match="float32"):
            writer.append(images[:1].astype(np.float32), object_masks[:1], seeds[:1])
        with pytest.raises(ValueError, match="0 of 5"):
            writer.close()
    with pytest.raises(ValueError, match="make no set"):
        ReplaysWriter(path, FACTS, 0, 4)
