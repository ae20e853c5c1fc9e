import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import header_of, run_python
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from replaycad.artifacts import layout
from replaycad.artifacts.atomic import replacing, write_text
from replaycad.artifacts.format import (
    RowReader,
    Schema,
    Streamed,
    TensorSpec,
    canonical_json,
    content_id,
    read,
    read_header,
    read_layout,
    verify,
    write,
)
from replaycad.errors import ArtifactError

ANY = Schema("any", 1, {"*": TensorSpec(tuple(layout.CODES), None, finite=False)}, "replaycad run")
NUMBERS = Schema("numbers", 1, {"values": TensorSpec("float32", ("N", "D"))}, "replaycad run")


def arrays():
    """Every dtype, and the shapes that are easy to get wrong."""
    found = {name: np.arange(6).reshape(2, 3).astype(name) for name in layout.CODES}
    return found | {"scalar": np.array(3.5, np.float32), "none": np.zeros((0, 7), np.float32)}


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "new folder" / "a.safetensors"

    write(path, ANY, arrays(), {"note": "ü"})
    tensors, header = read(path, ANY)

    assert header["note"] == "ü"
    for name, array in arrays().items():
        np.testing.assert_array_equal(tensors[name], array)
        assert (tensors[name].dtype, tensors[name].shape) == (array.dtype, array.shape)


def test_the_library_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, ANY, arrays(), {"note": 1})

    found = load_file(path)

    assert found.keys() == arrays().keys()
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(path, framework="np") as file:
        assert list(file.metadata()) == ["replaycad"]
        assert file.metadata()["replaycad"] == canonical_json(header_of(path))


def test_we_read_what_the_library_writes(tmp_path):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write(ours, ANY, arrays(), {})

    save_file(arrays(), theirs, metadata={"replaycad": canonical_json(header_of(ours))})

    tensors, header = read(theirs, ANY)
    assert header == header_of(ours)
    assert content_id(tensors) == verify(ours) == verify(theirs)


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path):
    forward, backward = arrays(), dict(reversed(arrays().items()))

    write(tmp_path / "a", ANY, forward, {"x": 1, "y": [2, {"b": 3, "a": 4}]})
    write(tmp_path / "b", ANY, backward, {"y": [2, {"a": 4, "b": 3}], "x": 1})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strides_and_byte_order_do_not_matter():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)

    assert content_id({"a": array.T.copy()}) == content_id({"a": array.T})
    assert content_id({"a": array.astype(">i4")}) == content_id({"a": array})


def test_content_id_depends_on_name_dtype_shape_and_bytes():
    array = np.arange(4, dtype=np.int32)
    variants = [
        {"a": array},
        {"b": array},
        {"a": array.view(np.float32)},
        {"a": array.reshape(2, 2)},
        {"a": array[::-1]},
        {"a": array, "b": array[:0]},
    ]

    assert len({content_id(variant) for variant in variants}) == len(variants)


def test_content_id_is_pinned():
    digest = content_id({"a": np.arange(4, dtype=np.float32)})

    assert digest == "3f7b2405accc7878e500ba47123c578f8a40a8ad7d25f821464d077e5f8a0efc"


def test_the_header_may_hold_numpy_numbers_and_nan(tmp_path):
    header = {"loss": float("nan"), "count": np.int64(3), "sizes": (1, np.float32(0.5))}

    write(tmp_path / "a", ANY, {}, header)

    found = read_header(tmp_path / "a")
    assert (found["loss"], found["count"], found["sizes"]) == (None, 3, [1, 0.5])


def test_streamed_rows_give_the_same_file_as_an_array(tmp_path):
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    streamed = Streamed("float32", (10, 2), lambda: iter(np.split(array, [3, 4])))

    write(tmp_path / "a", NUMBERS, {"values": array}, {})
    write(tmp_path / "b", NUMBERS, {"values": streamed}, {})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_stream_with_too_few_rows_leaves_no_file(tmp_path):
    streamed = Streamed("float32", (10, 2), lambda: iter([np.zeros((3, 2), np.float32)]))

    with pytest.raises(ValueError, match="3 rows streamed"):
        write(tmp_path / "a", NUMBERS, {"values": streamed}, {})

    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*found 1 NaN or infinite"):
        write(tmp_path / "a", NUMBERS, {"values": np.array([[np.nan]], np.float32)}, {})
    with pytest.raises(ArtifactError, match=r"expected tensor `values`"):
        write(tmp_path / "a", NUMBERS, {"values": np.zeros(3, np.float32)}, {})

    assert list(tmp_path.iterdir()) == []


def test_a_header_is_read_without_the_tensors(tmp_path):
    path = tmp_path / "large.safetensors"
    write(path, ANY, {"a": np.zeros(4, np.uint8)}, {"note": 1})
    start, _ = layout.encode(
        {"a": ("uint8", (3 * 2**30,))}, {"replaycad": canonical_json(header_of(path))}
    )
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 3 * 2**30)  # a hole: three gigabytes without a disk for them

    assert read_header(path)["note"] == 1
    assert read_layout(path, ANY).tensors["a"].shape == (3 * 2**30,)


def test_a_flipped_bit_is_found_in_every_byte(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, NUMBERS, {"values": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"seed": 7})
    sound = path.read_bytes()

    for place in range(len(sound)):
        broken = bytearray(sound)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(ArtifactError):
            verify(path, NUMBERS)


def test_a_truncation_anywhere_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, NUMBERS, {"values": np.arange(6, dtype=np.float32).reshape(2, 3)}, {})
    sound = path.read_bytes()

    for length in [*range(12), *range(12, len(sound) - 1, 9), len(sound) - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(ArtifactError, match=r"a\.safetensors") as caught:
            read(path, NUMBERS)
        assert "replaycad run" in caught.value.hint


def test_no_header_does_more_than_raise_value_error():
    numbers = np.random.default_rng(0)
    start, _ = layout.encode({"a": ("uint8", (2, 3)), "b": ("float32", (4,))}, {"k": "v"})
    num_sound = 0

    for _ in range(2000):
        text = bytearray(start[layout.LENGTH_BYTES :])
        for place in numbers.integers(0, len(text), numbers.integers(0, 4)):
            text[place] = numbers.choice(list(b'0123456789"[]{},:-.eAU\x00\xff \\'))
        try:
            places, _ = layout.decode(bytes(text), 22)
        except ValueError:
            continue
        num_sound += 1
        assert sum(place.num_bytes for place in places.values()) == 22

    assert 0 < num_sound < 2000


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("entries", "finding"),
    [
        ([], "not a JSON object"),
        ({"__metadata__": {"a": 1}}, "metadata that are not strings"),
        ({"__metadata__": []}, "metadata that are not strings"),
        ({"a": 3}, "no dtype, shape and offsets"),
        ({"a": {**entry(), "more": 1}}, "no dtype, shape and offsets"),
        ({"a": entry(dtype="BF16")}, "dtype 'BF16'"),
        ({"a": entry(dtype=["U8"])}, "dtype"),
        ({"a": entry(shape=(-2,))}, "not whole numbers"),
        ({"a": entry(shape=(2.0,))}, "not whole numbers"),
        ({"a": entry(shape=(True, 2))}, "not whole numbers"),
        ({"a": entry(offsets=(0, 1, 2))}, "not whole numbers"),
        ({"a": entry(shape=(0, 10**30), offsets=(0, 0))}, "beyond all measure"),
        ({"a": entry(shape=(1,) * 40, offsets=(0, 1))}, "beyond all measure"),
        ({"a": entry(shape=(3,))}, "2 bytes for tensor `a`"),
        ({"a": entry(offsets=(2, 0))}, "-2 bytes for tensor `a`"),
        ({"a": entry(offsets=(1, 3))}, "a gap or an overlap"),
        ({"a": entry(), "b": entry()}, "a gap or an overlap"),
        ({"a": entry(), "b": entry(offsets=(2, 4))}, "cut off inside its tensors"),
        ({}, "2 bytes after the last tensor"),
    ],
)
def test_a_header_with_false_promises_is_refused(entries, finding):
    with pytest.raises(ValueError, match=finding):
        layout.decode(json.dumps(entries).encode(), 2)


@pytest.mark.parametrize("text", [b"\xff", b"[" * 10**5, b'{"a":1,"a":2}', b'{"a":NaN}', b""])
def test_a_header_that_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match="not JSON"):
        layout.decode(text, 0)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "an empty file"),
        (b"abc", "a file of 3 bytes"),
        (b"PK\x03\x04 a zip file of somebody", "a file that starts with b'PK"),
        (b"\xff" * 100, "a file that starts with"),
        ((50).to_bytes(8, "little") + b"{}", "cut off inside its header"),
        ((2).to_bytes(8, "little") + b"{}", "a safetensors file of another program"),
    ],
)
def test_a_foreign_file_is_named_as_such(tmp_path, content, finding):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with pytest.raises(ArtifactError) as caught:
        read_header(path)

    assert finding in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_header(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="cannot open it"):
        read_header(tmp_path)


def test_rows_are_read_in_the_order_asked_for(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (9, 2, 3), dtype=np.uint8)
    write(tmp_path / "a", ANY, {"rows": array, "other": np.zeros(3, np.int64)}, {})

    with RowReader(tmp_path / "a", "rows") as reader:
        assert (len(reader), reader.shape) == (9, (9, 2, 3))
        for indices in ([3], [0, 1, 2, 8], [5, 4, 5, 6, 7, 0], range(9), np.array([2, 2]), []):
            np.testing.assert_array_equal(reader.rows(indices), array[list(indices)])


def test_rows_that_do_not_exist_are_refused(tmp_path):
    write(tmp_path / "a", ANY, {"rows": np.zeros((3, 2), np.uint8)}, {})

    with RowReader(tmp_path / "a", "rows") as reader:
        for index in (-1, 3):
            with pytest.raises(IndexError, match="has 3 rows"):
                reader.rows([0, index])
    with pytest.raises(ArtifactError, match="expected rows of `columns`, found rows"):
        RowReader(tmp_path / "a", "columns")


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    write(tmp_path / "a", ANY, {"rows": np.zeros((300, 20), np.uint8)}, {})

    with RowReader(tmp_path / "a", "rows") as reader:
        os.truncate(tmp_path / "a", 1000)
        with pytest.raises(ArtifactError, match="became shorter"):
            reader.rows([299])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, ANY, {"a": np.zeros(10, np.uint8)}, {})
    before = path.read_bytes()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*untouched") as caught:
            write(path, ANY, {"a": np.zeros(1_000_000, np.uint8)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert "free some space" in caught.value.hint
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ArtifactError, match="cannot write") as caught:
        write(tmp_path / "file" / "a", ANY, {}, {})

    assert "a folder you may write to" in caught.value.hint


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write_half():
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert list(tmp_path.iterdir()) == []


def test_the_next_write_removes_what_a_killed_run_left(tmp_path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from replaycad.artifacts.atomic import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'x' * 100_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "a[1].json"
    write_text(tmp_path / "other", "kept")
    status = run_python(program, path)
    leftovers = [found.name for found in tmp_path.iterdir() if found.suffix == ".tmp"]

    write_text(path, "new")

    assert status == -signal.SIGKILL
    assert [name[:11] for name in leftovers] == [".a[1].json."]
    assert sorted(found.name for found in tmp_path.iterdir()) == [path.name, "other"]
    assert path.read_text() == "new"


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    path = tmp_path / "a"

    with replacing(path) as file:
        file.write(b"first")
        write_text(path, "second")
        assert path.read_text() == "second"

    assert path.read_text() == "first"


def test_no_artifact_code_imports_torch():
    modules = [
        f"replaycad.artifacts.{path.stem}" for path in Path(layout.__file__).parent.glob("*.py")
    ]
    program = f"import sys, {', '.join(modules)}\nsys.exit('torch' in sys.modules)"

    assert run_python(program) == 0
