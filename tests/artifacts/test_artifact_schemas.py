"""Every way in which the file of every artifact can be wrong."""

import numpy as np
import pytest
from artifact_examples import LOADERS, WRITERS, conditions, rewrite
from safetensors.numpy import load_file, save_file

from replaycad.artifacts import inspection
from replaycad.artifacts.conditions import CONDITIONS, ConditionsArtifact
from replaycad.artifacts.format import read_header
from replaycad.errors import ArtifactError

FORMATS = sorted(WRITERS)
COMMANDS = {
    "masks": "replaycad mask --class bottle",
    "conditions": "replaycad compress --class bottle",
    "replays": "replaycad replay --class bottle",
    "detector": "replaycad train",
    "scores": "replaycad eval",
}


@pytest.fixture(params=FORMATS)
def example(request, tmp_path):
    """The name of a format and a sound file of it."""
    path = tmp_path / "bottle.safetensors"
    WRITERS[request.param](path)
    return request.param, path


def refusal(example) -> ArtifactError:
    """The error of the reader, which always names the file and the command."""
    name, path = example
    with pytest.raises(ArtifactError) as caught:
        LOADERS[name](path)
    assert str(path) in caught.value.message
    assert COMMANDS[name] in caught.value.hint
    return caught.value


def test_a_missing_file_is_refused(example):
    example[1].unlink()

    assert "found no such file" in refusal(example).message


def test_an_empty_file_is_refused(example):
    example[1].write_bytes(b"")

    assert "found an empty file" in refusal(example).message


def test_a_truncated_file_is_refused(example):
    content = example[1].read_bytes()
    for length in (5, 100, len(content) - 1):
        example[1].write_bytes(content[:length])

        refusal(example)


def test_a_plain_safetensors_file_is_refused(example):
    save_file(load_file(example[1]), example[1])

    assert "found a safetensors file of another program" in refusal(example).message


def test_another_file_is_refused(example):
    example[1].write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)

    assert "found a file that starts with" in refusal(example).message


def test_another_format_is_refused(example):
    rewrite(example[1], lambda _, header: header.update(format="else"))

    assert "found format `else`" in refusal(example).message


def test_a_newer_version_says_so(example):
    name, path = example
    rewrite(path, lambda _, header: header.update(format_version=9, classes=None))

    with pytest.raises(
        ArtifactError, match=r"from a newer replaycad: expected .* \d at most, found version 9"
    ) as caught:
        LOADERS[name](path)

    assert caught.value.hint == "update replaycad"


def test_an_older_version_is_refused(example):
    rewrite(example[1], lambda _, header: header.update(format_version=0))

    expected = inspection.SCHEMAS[example[0]].version
    assert f"expected version {expected}, found version 0" in refusal(example).message


@pytest.mark.parametrize("version", ["1", None, True, 1.0])
def test_a_version_that_is_no_number_is_refused(example, version):
    rewrite(example[1], lambda _, header: header.update(format_version=version))

    assert "expected a whole number as format_version" in refusal(example).message


def test_a_missing_tensor_is_refused(example):
    def remove(tensors, _):
        for name in list(tensors):
            if name != "object_masks":
                del tensors[name]

    rewrite(example[1], remove)

    assert "found none" in refusal(example).message


def test_an_extra_tensor_is_refused(example):
    rewrite(example[1], lambda tensors, _: tensors.update(extra=np.zeros(1, np.float32)))

    assert "found `extra` as well" in refusal(example).message


def test_another_dtype_is_refused(example):
    def change(tensors, _):
        for name in tensors:
            tensors[name] = tensors[name].astype(np.uint32)

    rewrite(example[1], change)

    assert "found uint32" in refusal(example).message


def test_another_number_of_axes_is_refused(example):
    name, path = example
    if name == "detector":  # parameters have any shape
        return

    def change(tensors, _):
        for key in tensors:
            tensors[key] = tensors[key][None]

    rewrite(path, change)

    assert "expected tensor" in refusal(example).message


def test_sizes_that_disagree_between_tensors_are_refused(example):
    name, path = example
    if name in ("detector", "replays"):  # of replays, the header says how many they are
        return
    shortened = {
        "masks": "area_fraction",
        "conditions": "spatial_encoder.bias",
        "scores": "image_labels",
    }[name]
    rewrite(path, lambda tensors, _: tensors.update({shortened: tensors[shortened][:-1]}))

    assert " as in `" in refusal(example).message


def test_a_number_that_is_not_finite_is_refused(example):
    name, path = example
    if name == "replays":  # whole numbers only
        return

    def change(tensors, _):
        floats = sorted(key for key in tensors if tensors[key].dtype.kind == "f")
        tensors[floats[0]].flat[0] = np.inf

    rewrite(path, change)

    assert "found 1 NaN or infinite" in refusal(example).message


def test_each_missing_header_field_is_refused(example):
    name, path = example
    content = path.read_bytes()
    for field in inspection.SCHEMAS[name].fields:
        path.write_bytes(content)
        rewrite(path, lambda _, header, field=field: header.pop(field))

        assert f"expected header field `{field}`" in refusal(example).message


def test_each_header_field_of_another_type_is_refused(example):
    name, path = example
    content = path.read_bytes()
    for field in inspection.SCHEMAS[name].fields:
        path.write_bytes(content)
        rewrite(path, lambda _, header, field=field: header.update({field: True}))

        assert "found True" in refusal(example).message


@pytest.mark.parametrize("header", ["[]", "3", "{}", '{"format":1}', "not JSON", '{"a":NaN}'])
def test_a_header_without_a_format_is_refused(example, header):
    save_file(load_file(example[1]), example[1], metadata={"replaycad": header})

    refusal(example)


def test_a_flipped_bit_in_a_tensor_is_found(example):
    name, path = example
    inspection.verify(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match="expected content_id") as caught:
        inspection.verify(path)

    # By its header it is up to date, and so no command would make it again by itself.
    assert "remove it" in caught.value.hint
    assert COMMANDS[name] in caught.value.hint
    assert "expected content_id" in refusal(example).message


def test_a_flipped_bit_in_a_header_is_found_by_every_reader(example):
    _, path = example
    content = bytearray(path.read_bytes())
    place = content.index(b"seed") + len(b'seed\\":')
    assert content[place : place + 1].isdigit()
    content[place] ^= 1
    path.write_bytes(content)

    for read in (inspection.verify, read_header):
        with pytest.raises(ArtifactError, match="expected header_id"):
            read(path)
    assert "expected header_id" in refusal(example).message


@pytest.mark.parametrize(
    ("name", "field", "value", "finding"),
    [
        ("masks", "mask_width", 99, "expected 13 bytes per row for 99 pixels, found 2 bytes"),
        ("masks", "image_ids", ["a"], "expected image ids of 3 masks, found 1"),
        ("conditions", "mask_width", 1, "expected 1 bytes per row"),
        ("replays", "num_images", 9, "expected 9 images of 4 px"),
        ("scores", "image_ids", [], "expected image ids of 4 scores, found 0"),
        ("scores", "classes", ["a"], "expected `class_index` below 1, found 0 to 1"),
        ("detector", "class_order", {}, "expected header field `class_order`"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(tmp_path, name, field, value, finding):
    path = tmp_path / "bottle.safetensors"
    WRITERS[name](path)
    rewrite(path, lambda _, header: header.update({field: value}))

    assert finding in refusal((name, path)).message


def test_a_spatial_layer_without_its_bias_is_refused(tmp_path):
    path = tmp_path / "bottle.safetensors"
    conditions().save(path)
    rewrite(path, lambda tensors, _: tensors.pop("spatial_encoder.bias"))

    assert "found `spatial_encoder.weight` alone" in refusal(("conditions", path)).message


def packed(path):
    """Conditions whose tokens are stored in steps."""
    rng = np.random.default_rng(0)
    kept = conditions(
        semantic_embedding=rng.normal(size=(6, 8)).astype(np.float32),
        spatial_weight=None, spatial_bias=None,
        semantic_variations=rng.normal(size=(2, 6, 8)).astype(np.float32),
        coefficients=rng.normal(size=(4, 2)).astype(np.float32), step=0.125,
    )  # fmt: skip
    kept.save(path)
    return kept


def test_packed_tokens_come_back_to_half_a_step_and_stay_as_they_are(tmp_path):
    path, again = tmp_path / "bottle.safetensors", tmp_path / "again.safetensors"
    kept = packed(path)

    found = ConditionsArtifact.load(path)

    assert path.stat().st_size == kept.file_bytes()
    for name in ("semantic_embedding", "semantic_variations"):
        assert np.abs(getattr(found, name) - getattr(kept, name)).max() <= 0.0625 + 1e-6
    assert found.step == 0.125
    found.save(again)
    assert path.read_bytes() == again.read_bytes()
    assert inspection.describe(path)["num_bytes"] == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        ("tensor", lambda stored: stored[:-9], "expected `packed_tokens` of shape"),
        ("tensor", lambda _: np.zeros(40, np.uint8), "expected `packed_tokens` of shape"),
        ("shape", lambda _: [3, 6, 4], "it holds more than"),
        ("shape", lambda _: [5, 6, 8], "it holds less than"),
        ("shape", lambda _: [2**20, 2**20, 2**20], "expected shape and step"),
        ("shape", lambda _: None, "expected shape and step"),
        ("step", lambda _: np.zeros(1, np.float32), "expected shape and step"),
        ("form", lambda _: "frequencies", "packed as tokens, found 'frequencies'"),
        ("form", lambda _: None, "packed as tokens, found None"),
        ("coefficients", lambda rows: rows[:, :1], "along 2 directions, found 1"),
    ],
)
def test_packed_tokens_that_are_not_what_the_header_says_are_refused(
    tmp_path, name, change, finding
):
    path = tmp_path / "bottle.safetensors"
    packed(path)

    def spoil(tensors, header):
        if name in ("shape", "form"):
            key = {"shape": "packed_shape", "form": "packed_as"}[name]
            header[key] = change(header[key])
        else:
            key = {"tensor": "packed_tokens", "step": "packed_step"}.get(name, name)
            tensors[key] = np.ascontiguousarray(change(tensors[key]))

    rewrite(path, spoil)

    with pytest.raises(ArtifactError) as caught:
        ConditionsArtifact.load(path)
    assert finding in caught.value.message


def test_tokens_of_the_bundled_network_are_packed_as_frequencies(tmp_path):
    path, again = tmp_path / "bottle.safetensors", tmp_path / "again.safetensors"
    rng = np.random.default_rng(0)
    kept = conditions(
        semantic_embedding=rng.normal(size=(64, 192)).astype(np.float32),
        spatial_weight=None, spatial_bias=None, step=0.125,
    )  # fmt: skip
    kept.save(path)

    found = ConditionsArtifact.load(path)

    assert found.header["packed_as"] == "frequencies"
    assert np.abs(found.levels - kept.levels).max() <= 0.0625 + 1e-6
    found.save(again)
    assert path.read_bytes() == again.read_bytes()


def test_conditions_of_mixed_precision_are_refused(tmp_path):
    path = tmp_path / "bottle.safetensors"
    conditions().save(path)
    name = "semantic_embedding"
    rewrite(path, lambda tensors, _: tensors.update({name: tensors[name].astype(np.float16)}))

    with pytest.raises(ArtifactError, match="found float16 and float32"):
        ConditionsArtifact.load(path)


def test_a_name_in_the_hint_can_be_pasted_into_a_shell(tmp_path):
    hint = CONDITIONS.remedy(tmp_path / "my class; rm.safetensors")

    assert hint == "make it again with `replaycad compress --class 'my class; rm'`"
