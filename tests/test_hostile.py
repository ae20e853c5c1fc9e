"""Names and files that mean harm: nothing leaves its folder, and nothing of them runs."""

import json
import shutil

import pytest
from PIL import Image

from replaycad.data.layouts import find_classes
from replaycad.errors import DatasetError
from tests.conftest import invoke

MARKUP = "<img src=x onerror=alert(1)>"
LINES = "two\nlines [red]"


def test_names_of_several_lines_are_one_line_of_json(chain, models, data, tmp_path):
    name = f"{LINES} {MARKUP}.png"
    shutil.copyfile(data / "disc/test/good/000.png", tmp_path / name)

    result = invoke(["predict", tmp_path / name, "--name", "plate", "--store", chain, "--device",
                     "cpu", "--json", "--encoder", models.encoder])  # fmt: skip

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 1
    assert name in json.loads(lines[0])["image"]


def test_a_loop_of_links_is_no_loop_of_ours(data, models, tmp_path):
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    (mine / "disc" / "train" / "good" / "again").symlink_to(mine)
    (mine / "disc" / "train" / "good" / "self.png").symlink_to("self.png")
    (mine / "loop").symlink_to("loop")

    assert find_classes(mine) == ["disc", "plate"]
    result = invoke(["mask", "--class", "disc", "--data", mine, "--store", tmp_path / "store",
                     *models.settings("mask")])  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", "nul\0byte", "a\nb", ".hidden"])
def test_no_class_name_leaves_the_store(name, data, tmp_path):
    for command in (["mask", "--data", data], ["replay"], ["compress", "--data", data]):
        result = invoke([*command, "--class", name, "--store", tmp_path / "store"])

        assert result.exit_code == 1
        assert "Traceback" not in result.output
    assert not (tmp_path / "store").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (10_000, 10_000)])
def test_pictures_of_any_size_are_read_or_refused(size, tmp_path):
    from replaycad.data.images import load_image

    path = tmp_path / "a.png"
    Image.new("L", size).save(path)

    assert load_image(path, 8).shape == (8, 8, 3)


def test_a_file_of_several_pictures_is_refused_with_their_number(tmp_path):
    from replaycad.data.images import load_image

    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (250, 0, 0)]
    for name in ("a.gif", "a.tif", "a.webp"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:])
        with pytest.raises(DatasetError, match=r"a\.\w+ holds [23] pages or frames"):
            load_image(path, 8)


def test_what_is_no_exif_is_no_failure(tmp_path):
    from replaycad.data.images import load_image

    path = tmp_path / "a.jpg"
    for spoilt in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\x7f" * 40):
        Image.new("RGB", (8, 8)).save(path, exif=spoilt)
        assert load_image(path, 8).shape == (8, 8, 3)


def test_a_folder_that_nobody_may_enter_is_one_line(data, tmp_path, monkeypatch):
    from replaycad.engine.builder import Builder

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/store/masks/disc.safetensors")

    monkeypatch.setattr(Builder, "build", refuse)

    result = invoke(["mask", "--class", "disc", "--data", data, "--store", tmp_path])

    assert result.exit_code == 1
    assert result.stderr.startswith("error: permission denied: /store/masks/disc.safetensors")
