import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from artifact_examples import header_of, masks, run_python
from safetensors import safe_open
from safetensors.numpy import load_file

from replaycad.artifacts import format as files
from replaycad.artifacts.atomic import replacing, write_text
from replaycad.artifacts.format import (
    NUMPY_NAMES,
    canonical_json,
    content_id,
    file_bytes,
    read,
    read_header,
    read_layout,
    write,
)
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.errors import ArtifactError

DTYPES = tuple(NUMPY_NAMES.values())
CODES = {name: code for code, name in NUMPY_NAMES.items()}
ANY = Schema("any", 1, {"*": TensorSpec(DTYPES, None, finite=False)}, "replaycad run")
NUMBERS = Schema("numbers", 1, {"values": TensorSpec("float32", ("N", "D"))}, "replaycad run")


def arrays():
    """Every dtype, and the shapes that are easy to get wrong."""
    found = {name: np.arange(6).reshape(2, 3).astype(name) for name in DTYPES}
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


def by_hand(entries, data=b""):
    """A file with this header, made from nothing but the definition of the format."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_may_lie_in_any_order(tmp_path):
    written, other = tmp_path / "written.safetensors", tmp_path / "other.safetensors"
    masks().save(written)
    entries = {"__metadata__": {"replaycad": canonical_json(header_of(written))}}
    data = b""
    for name, array in sorted(load_file(written).items()):
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = entry(CODES[array.dtype.name], array.shape, offsets)
        data += array.tobytes()
    other.write_bytes(by_hand(entries, data))

    assert other.read_bytes() != written.read_bytes()
    found = MasksArtifact.load(other)
    np.testing.assert_array_equal(found.object_masks, masks().object_masks)
    np.testing.assert_array_equal(found.area_fraction, masks().area_fraction)


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path):
    forward, backward = arrays(), dict(reversed(arrays().items()))

    write(tmp_path / "a", ANY, forward, {"x": 1, "y": [2, {"b": 3, "a": 4}]})
    write(tmp_path / "b", ANY, backward, {"y": [2, {"a": 4, "b": 3}], "x": 1})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strides_and_byte_order_do_not_matter(tmp_path):
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    whole = np.arange(24, dtype=np.int32).reshape(3, 8)
    whole[:, ::2] = array

    assert content_id({"a": array.T.copy()}) == content_id({"a": array.T})
    assert content_id({"a": array.astype(">i4")}) == content_id({"a": array})
    for same in (array, np.asfortranarray(array), array.astype(">i4"), whole[:, ::2]):
        write(tmp_path / "a", ANY, {"a": same}, {})
        np.testing.assert_array_equal(read(tmp_path / "a", ANY)[0]["a"], array)


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


def test_the_length_of_a_file_is_known_before_it_is_written(tmp_path):
    write(tmp_path / "a", ANY, arrays(), {"note": "ü"})

    assert file_bytes(ANY, arrays(), {"note": "ü"}) == (tmp_path / "a").stat().st_size


def test_a_tensor_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*found 1 NaN or infinite"):
        write(tmp_path / "a", NUMBERS, {"values": np.array([[np.nan]], np.float32)}, {})
    with pytest.raises(ArtifactError, match=r"expected tensor `values`"):
        write(tmp_path / "a", NUMBERS, {"values": np.zeros(3, np.float32)}, {})

    assert list(tmp_path.iterdir()) == []


def test_a_header_is_read_without_the_tensors(tmp_path):
    path = tmp_path / "large.safetensors"
    write(path, ANY, {"a": np.zeros(4, np.uint8)}, {"note": 1})
    length = 3 * 2**30
    entries = {"a": entry("U8", (length,), (0, length))}
    start = by_hand({"__metadata__": {"replaycad": canonical_json(header_of(path))}, **entries})
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + length)  # a hole: three gigabytes without a disk for them

    assert read_header(path)["note"] == 1
    found = read_layout(path, ANY)
    assert found.tensors == {"a": ("uint8", (length,))}
    assert (found.num_bytes("a"), found.file_bytes) == (length, len(start) + length)


def test_a_flipped_bit_is_found_in_every_byte(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, NUMBERS, {"values": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"seed": 7})
    sound = path.read_bytes()

    for place in range(len(sound)):
        broken = bytearray(sound)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(ArtifactError):
            read(path, NUMBERS)


def test_a_truncation_anywhere_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, NUMBERS, {"values": np.arange(6, dtype=np.float32).reshape(2, 3)}, {})
    sound = path.read_bytes()

    for length in [*range(12), *range(12, len(sound) - 1, 9), len(sound) - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(ArtifactError, match=r"a\.safetensors") as caught:
            read(path, NUMBERS)
        assert "replaycad run" in caught.value.hint


def test_a_changed_header_is_refused_or_read_as_before(tmp_path):
    path, numbers = tmp_path / "a.safetensors", np.random.default_rng(0)
    tensors = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.ones(4, np.float32)}
    write(path, ANY, tensors, {"note": "n"})
    sound = path.read_bytes()
    length = int.from_bytes(sound[:8], "little")
    num_refused = 0

    for _ in range(2000):
        text = bytearray(sound[8 : 8 + length])
        for place in numbers.integers(0, length, numbers.integers(0, 4)):
            text[place] = numbers.choice(list(b'0123456789"[]{},:-.eAU\x00\xff \\'))
        path.write_bytes(sound[:8] + text + sound[8 + length :])
        try:
            found, _ = read(path, ANY)
        except ArtifactError:
            num_refused += 1
            continue
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[name], array)

    assert 1000 < num_refused < 2000


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def sealed(tensors, path):
    """A file of two bytes of tensors with a header of ours that fits."""
    header = {"format": "any", "format_version": 1, "content_id": ""}
    header["header_id"] = files.header_id(header)
    metadata = {"replaycad": canonical_json(header)}
    path.write_bytes(by_hand({"__metadata__": metadata, **tensors}, b"xx"))


@pytest.mark.parametrize(
    "tensors",
    [
        {"__metadata__": {"a": 1}},
        {"__metadata__": []},
        {"a": 3},
        {"a": entry(dtype=["U8"])},
        {"a": entry(dtype="U9")},
        {"a": entry(shape=(-2,))},
        {"a": entry(shape=(2.0,))},
        {"a": entry(shape=(True, 2))},
        {"a": entry(offsets=(0, 1, 2))},
        {"a": entry(shape=(0, 10**30), offsets=(0, 0)), "b": entry()},
        {"a": entry(shape=(0, 2**60, 2**60), offsets=(0, 0)), "b": entry()},
        {"a": entry(shape=(0, 2**63), offsets=(0, 0)), "b": entry()},
        {"a": entry(shape=(1,) * 80 + (2,))},
        {"a": entry(shape=(3,))},
        {"a": entry(offsets=(2, 0))},
        {"a": entry(offsets=(1, 3))},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(offsets=(2, 4))},
        {"a": entry(shape=(1,), offsets=(0, 1))},
        {"a": entry(dtype="BF16", shape=(1,))},
        {"a": entry(dtype="F8_E4M3")},
        {},
    ],
)
def test_a_header_with_false_promises_is_refused(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    sealed({"a": entry()}, path)
    with pytest.raises(ArtifactError, match="expected content_id"):
        read(path, ANY)  # the frame is sound; what follows is refused for its header
    sealed(tensors, path)

    with pytest.raises(ArtifactError, match="expected ") as caught:
        read(path, ANY)

    assert "content_id" not in caught.value.message
    assert "\n" not in caught.value.message


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    sealed({"a": entry(), "b": entry(dtype="I8")}, path)
    content = path.read_bytes().replace(b'"b":', b'"a":')
    path.write_bytes(content)
    with safe_open(path, "numpy") as file:
        assert list(file.keys()) == ["a"]  # to the library one of them is enough

    with pytest.raises(ArtifactError, match="a key comes twice"):
        read_header(path)


@pytest.mark.parametrize("text", [b"\xff", b"[" * 10**5, b'{"a":1,"a":2}', b'{"a":NaN}', b""])
def test_a_header_that_is_not_json_is_refused(tmp_path, text):
    for content in (by_hand(text), by_hand({"__metadata__": {"replaycad": text.decode("latin1")}})):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"found a (damaged file|header that is)"):
            read_header(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "an empty file"),
        (b"abc", "a damaged file (header too small)"),
        (b"PK\x03\x04 a zip file of somebody", "a file that starts with b'PK"),
        (b"\xff" * 100, "a file that starts with"),
        ((50).to_bytes(8, "little") + b"{}", "a damaged file (invalid header length)"),
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
    with pytest.raises(ArtifactError, match="cannot open it: Is a directory"):
        read_header(tmp_path)


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
        f"replaycad.artifacts.{path.stem}" for path in Path(files.__file__).parent.glob("*.py")
    ]
    program = f"import sys, {', '.join(modules)}\nsys.exit('torch' in sys.modules)"

    assert run_python(program) == 0
