"""Replay sets: written shard by shard, resumed, read by row."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import FACTS, rewrite, rows, run_python, write_replays
from safetensors.numpy import load_file

from replaycad.artifacts import inspection
from replaycad.artifacts.format import read_header
from replaycad.artifacts.replays import REPLAYS, ReplaysReader, ReplaysWriter, shard_paths
from replaycad.errors import ArtifactError

OTHER = {**FACTS, "key": "other"}


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def writer(path: Path, header=FACTS, num_images: int = 5) -> ReplaysWriter:
    """Of the example set in shards of two."""
    return ReplaysWriter(path, header, num_images, 4, 2)


def part(first: int, last: int, of: int = 5):
    """Some rows of the example set."""
    return [values[first:last] for values in rows(of)]


def assert_whole(path: Path) -> None:
    """The set holds the five rows of the example, each once and in its place."""
    replays = ReplaysReader(path)
    images, object_masks, seeds = rows(5)
    np.testing.assert_array_equal(replays.images(range(5)), images)
    np.testing.assert_array_equal(replays.object_masks(range(5)), object_masks)
    np.testing.assert_array_equal(replays.seeds, seeds)


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path):
    """Where the set goes."""
    return tmp_path / "bottle.safetensors"


@pytest.mark.parametrize("shard_images", [0, 1, 2, 5])
def test_rows_come_back_in_the_order_asked_for(path, shard_images):
    write_replays(path, 5, shard_images)
    images, object_masks, seeds = rows(5)

    replays = ReplaysReader(path)

    assert (len(replays), replays.image_size) == (5, 4)
    assert replays.header["key"] == FACTS["key"]
    np.testing.assert_array_equal(replays.seeds, seeds)
    for indices in ([4, 0, 0, 3], [1, 2], range(5), np.array([2, 2]), []):
        np.testing.assert_array_equal(replays.images(indices), images[list(indices)])
        np.testing.assert_array_equal(replays.object_masks(indices), object_masks[list(indices)])
    for index in (-1, 5):
        with pytest.raises(IndexError, match="5 replayed images"):
            replays.images([0, index])


def test_a_set_is_a_main_file_with_shards_in_a_folder(path):
    write_replays(path, 5, 2)

    shards = shard_paths(path)
    assert [len(load_file(shard)["images"]) for shard in shards] == [2, 2, 1]
    assert {shard.parent.name for shard in shards} == {"bottle.shards"}
    assert len(files(path.parent)) == 4
    listed = [row.tobytes().hex() for row in load_file(path)["shard_digests"]]
    assert listed == [read_header(shard)["content_id"] for shard in shards]


@pytest.mark.parametrize(
    ("image_size", "expected"), [(4, 16), (256, 16), (512, 10), (2048, 1)]
)
def test_a_shard_has_16_images_or_what_fits_into_8_mebibytes(path, image_size, expected):
    writer = ReplaysWriter(path, FACTS, 1, image_size)
    writer.append(
        np.zeros((1, 3, image_size, image_size), np.uint8),
        np.ones((1, image_size, image_size), bool), np.zeros(1, np.int64),
    )  # fmt: skip
    writer.close()

    assert read_header(path, REPLAYS)["shard_images"] == expected


def test_the_bytes_do_not_depend_on_how_the_rows_came(tmp_path):
    write_replays(tmp_path / "a" / "x.safetensors", 5, 2)
    drawing = writer(tmp_path / "b" / "x.safetensors")
    for first in range(5):
        drawing.append(*part(first, first + 1))
    drawing.close()

    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4, 5])
def test_a_stopped_run_goes_on_with_the_first_missing_shard(tmp_path, done):
    path = tmp_path / "a" / "x.safetensors"
    expected = write_replays(tmp_path / "b" / "x.safetensors", 5, 2)
    writer(path).append(*part(0, done))
    assert not path.exists()

    resumed = writer(path)
    kept = 5 if done == 5 else done // 2 * 2
    assert resumed.rows_done == kept
    resumed.append(*part(kept, 5))

    assert resumed.close() == expected
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_killed_process_loses_no_finished_shard(path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from artifact_examples import FACTS, rows\n"
        "from replaycad.artifacts.atomic import replacing\n"
        "from replaycad.artifacts.replays import ReplaysWriter\n"
        "writer = ReplaysWriter(sys.argv[1], FACTS, 5, 4, 2)\n"
        "writer.append(*[values[:3] for values in rows(5)])\n"
        "with replacing(writer._set.shards[1]) as file:\n"
        "    file.write(b'half a shard')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    assert run_python(program, path) == -signal.SIGKILL

    assert len(list(path.with_suffix(".shards").glob(".*.tmp"))) == 1
    resumed = writer(path)
    assert resumed.rows_done == 2
    resumed.append(*part(2, 5))
    resumed.close()
    assert len(files(path.parent)) == 4
    assert_whole(path)


@pytest.mark.parametrize("spoil", [
    lambda shard: shard.write_bytes(shard.read_bytes()[:-1]),
    lambda shard: shard.write_bytes(b""),
    lambda shard: flip(shard),
    lambda shard: flip(shard, 40),
    lambda shard: shard.unlink(),
    lambda shard: shutil.copyfile(shard.with_name(shard.name.replace("-00001", "-00000")), shard),
    lambda shard: rewrite(shard, lambda _, header: header.update(set="0" * 16)),
])  # fmt: skip
def test_what_follows_a_spoiled_shard_is_drawn_again(path, spoil):
    writer(path).append(*part(0, 5))
    spoil(sorted(path.with_suffix(".shards").iterdir())[1])

    resumed = writer(path)

    assert resumed.rows_done == 2
    resumed.append(*part(2, 5))
    resumed.close()
    assert_whole(path)


def test_leftovers_of_another_key_are_removed(path):
    writer(path, OTHER).append(*part(0, 4))
    (path.with_suffix(".shards") / f".{'0' * 16}-00000.safetensors.1.tmp").touch()
    assert len(files(path.parent)) == 3

    assert writer(path).rows_done == 0

    assert not files(path.parent)


def test_a_whole_set_of_the_same_key_is_drawn_again(path):
    write_replays(path, 5, 2)
    before = files(path.parent)

    again = writer(path)

    assert again.rows_done == 0
    assert_whole(path)
    again.append(*rows(5))
    again.close()
    assert files(path.parent) == before


def test_a_whole_set_that_lost_a_shard_is_only_mended(path):
    write_replays(path, 5, 2)
    before = files(path.parent)
    shard_paths(path)[1].unlink()

    mending = writer(path)

    assert mending.rows_done == 2
    mending.append(*part(2, 5))
    mending.close()
    assert files(path.parent) == before


def test_the_old_set_stays_whole_until_the_new_one_is(path):
    write_replays(path, 5, 2)
    old = shard_paths(path)

    drawing = writer(path, OTHER, num_images=4)
    drawing.append(*part(0, 4, 4))
    assert_whole(path)
    assert len(inspection.verify(path)) == 4
    drawing.close()

    assert len(ReplaysReader(path)) == 4
    assert not any(shard.exists() for shard in old)
    assert len(files(path.parent)) == 3


def test_two_writers_of_the_same_set_write_the_same(path):
    first, second = writer(path), writer(path)
    first.append(*part(0, 3))
    second.append(*part(0, 5))
    second.close()
    first.append(*part(3, 5))
    first.close()

    assert_whole(path)
    assert len(files(path.parent)) == 4


def header_of_set(path: Path):
    """What decides whether a set is up to date."""
    return read_header(path, REPLAYS)


READERS = (ReplaysReader, inspection.describe, inspection.verify)


def refusals(path: Path, readers=(*READERS, header_of_set)) -> list[ArtifactError]:
    """What readers say of a set that is not whole."""
    found = []
    for read in readers:
        with pytest.raises(ArtifactError) as caught:
            read(path)
        assert "replaycad replay --class bottle" in caught.value.hint
        found.append(caught.value)
    return found


def test_a_missing_shard_is_told(path):
    write_replays(path, 5, 2)
    shard = shard_paths(path)[1]
    shard.unlink()

    for error in refusals(path):
        assert error.message.startswith(f"{shard}: ")
        assert "no such file" in error.message


def test_a_shortened_shard_is_told(path):
    write_replays(path, 5, 2)
    shard = shard_paths(path)[2]
    os.truncate(shard, 300)

    for error in refusals(path, READERS):
        assert "found a damaged file" in error.message
        assert error.hint.startswith("remove it and make it again")
    shard.unlink()  # as it says: to the header alone, the set was up to date before
    assert refusals(path, [header_of_set])


def test_a_shard_of_another_place_is_told(path):
    write_replays(path, 5, 2)
    first, second, _ = shard_paths(path)
    first.write_bytes(second.read_bytes())

    for error in refusals(path, READERS):
        assert error.message.startswith(f"{first}: ")
        assert "expected set, first image and shape" in error.message


def test_a_shard_of_another_drawing_is_told(path):
    write_replays(path, 5, 2)
    shard = shard_paths(path)[0]

    def change(tensors, _):
        tensors["images"] = 255 - tensors["images"]

    rewrite(shard, change)

    assert all("expected content id" in error.message for error in refusals(path, READERS))


def test_a_flipped_bit_in_a_shard_is_found_by_verify(path):
    write_replays(path, 5, 2)
    assert len(inspection.verify(path)) == 4
    flip(shard_paths(path)[2])

    with pytest.raises(ArtifactError, match="expected content_id") as caught:
        inspection.verify(path)

    assert "remove it and make it again with `replaycad replay --class bottle`" in str(caught.value)


def test_a_shard_that_goes_or_shrinks_while_it_is_read_is_told(path):
    write_replays(path, 5, 2)
    replays = ReplaysReader(path)
    first, second, _ = shard_paths(path)
    first.unlink()
    os.truncate(second, 300)

    for row in (0, 2):
        with pytest.raises(ArtifactError, match="changed while it was read"):
            replays.images([row])


def test_the_content_id_of_a_set_covers_its_images(tmp_path):
    ids = set()
    for change in (0, 1):
        images, object_masks, seeds = rows(5)
        images[0, 0, 0, 0] = change
        drawing = writer(tmp_path / f"{change}.safetensors")
        drawing.append(images, object_masks, seeds)
        ids.add(drawing.close())

    assert len(ids) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 6}, {"num_images": 0}, {"num_images": -1}, {"num_images": 10**30},
        {"shard_images": 3}, {"shard_images": 0}, {"shard_images": -2}, {"shard_images": 10**30},
        {"image_size": 0}, {"image_size": -4},
    ],
)  # fmt: skip
def test_a_main_file_at_odds_with_itself_is_refused(path, changes):
    write_replays(path, 5, 2)
    rewrite(path, lambda _, header: header.update(changes))

    for error in refusals(path):
        assert "images of" in error.message or "no such file" in error.message


def test_a_main_file_cannot_point_elsewhere(path):
    write_replays(path, 5, 2)
    rewrite(path, lambda _, header: header.update(key="../../elsewhere"))

    for error in refusals(path):
        assert error.message.startswith(f"{path.with_suffix('.shards')}/")
        assert "elsewhere" not in error.message


def test_a_set_of_an_older_version_is_refused_and_made_anew(path):
    write_replays(path, 5, 2)
    rewrite(path, lambda _, header: header.update(format_version=1))

    assert all("expected version 2, found version 1" in one.message for one in refusals(path))

    drawing = writer(path)
    drawing.append(*part(drawing.rows_done, 5))
    drawing.close()
    assert_whole(path)


def test_rows_that_do_not_fit_the_set_are_refused(path):
    images, object_masks, seeds = rows(6)
    drawing = writer(path)
    with pytest.raises(ValueError, match="0 \\+ 6 of 5"):
        drawing.append(images, object_masks, seeds)
    with pytest.raises(ValueError, match="expected images, masks and seeds of 4 px"):
        drawing.append(images[:2], object_masks[:1], seeds[:2])
    with pytest.raises(ValueError, match="float32"):
        drawing.append(images[:1].astype(np.float32), object_masks[:1], seeds[:1])
    with pytest.raises(ValueError, match="0 of 5"):
        drawing.close()
    with pytest.raises(ValueError, match="make no set"):
        ReplaysWriter(path, FACTS, 0, 4)
