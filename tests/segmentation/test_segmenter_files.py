"""Files of a segmenter are found, or the message says which one to put where."""

import json
import subprocess
import sys

import pytest

from replaycad.errors import WeightsError
from replaycad.segmentation import presets


def test_official_files_are_looked_for_in_the_weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path))
    path = tmp_path / "sam_vit_h_4b8939.pth"
    path.touch()

    files = presets.locate("vit_h")

    assert files.paths == [path]
    assert files.digest_tag == "4b8939"
    assert files.config["encoder_embed_dim"] == 1280


def test_without_the_variable_the_cache_of_the_user_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("REPLAYCAD_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert presets.weights_folder() == tmp_path / ".cache" / "replaycad"


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_missing_official_file_says_where_to_get_it_and_where_to_put_it(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path))

    with pytest.raises(WeightsError) as failure:
        presets.locate(name)

    file_name = presets.SEGMENTERS[name].file_name
    assert str(tmp_path / file_name) in failure.value.message
    assert f"run: replaycad fetch --segmenter {name};" in failure.value.hint


def test_a_folder_lists_config_and_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 64}))
    (tmp_path / "model.safetensors").touch()

    files = presets.locate(str(tmp_path))

    assert files.paths == [tmp_path / "config.json", tmp_path / "model.safetensors"]
    assert files.config == {"image_size": 64}


def test_an_incomplete_folder_names_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(WeightsError, match=r"lacks model\.safetensors"):
        presets.locate(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(WeightsError, match=r"config\.json"):
        presets.locate(str(tmp_path))


def test_a_checkpoint_of_another_name_is_refused(tmp_path):
    path = tmp_path / "my_sam.pth"
    path.touch()

    with pytest.raises(WeightsError, match="named like an official checkpoint"):
        presets.locate(str(path))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightsError, match="mini, vit_b, vit_l, vit_h"):
        presets.locate("sam9000")


def test_the_digits_in_the_name_are_those_of_sha256_or_md5(tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"abc")

    presets.check_tag(path, "ba7816")  # of the sha256 and the md5 of "abc", as RFCs give them
    presets.check_tag(path, "900150")
    with pytest.raises(WeightsError, match="should begin with 01ec64, found sha256 ba7816") as told:
        presets.check_tag(path, "01ec64")
    assert "replaycad fetch --segmenter vit_b" in told.value.hint


def test_looking_for_files_does_not_import_torch():
    code = "import sys, replaycad.segmentation.presets; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
