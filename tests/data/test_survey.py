"""What `doctor --data` finds in a folder, and that it says what to do."""

import json
import shutil

import pytest
from PIL import Image

from replaycad.data.survey import survey
from replaycad.errors import DatasetError
from tests.conftest import invoke
from tests.toy import draw_object, write_toy


@pytest.fixture
def folder(tmp_path):
    return write_toy(tmp_path / "data")


def problems(folder, name="disc") -> str:
    return " | ".join(
        next(one for one in survey(folder)["classes"] if one["name"] == name)["problems"]
    )


def test_a_sound_folder_is_counted(folder):
    found = survey(folder)

    assert found["layout"] == "folders for training and tests"
    disc = found["classes"][0]
    assert (disc["name"], disc["train"], disc["test_normal"], disc["test_defective"]) == (
        "disc", 6, 2, 2,
    )  # fmt: skip
    assert (disc["kinds"], disc["sizes"]) == (["spot"], {"32x32": 10})


def test_what_is_wrong_is_named_with_what_to_do(folder):
    good = folder / "disc" / "train" / "good"
    shutil.copy(good / "000.png", folder / "disc" / "test" / "good" / "again.png")
    shutil.copy(good / "001.png", good / "scratch_01.png")
    (good / "broken-file.png").write_bytes(b"no image")
    draw_object("disc", 3).resize((40, 20)).save(good / "wide.png")

    found = problems(folder)

    assert "test images are also training images (test/good/" in found
    assert "3 test images are also" in found, "the toy's own two, and the copy"
    assert "2 training images are named like defects" in found
    assert "train/good/scratch_01.png" in found
    assert "1 file cannot be read (train/good/broken-file.png): replace or remove" in found
    quick = survey(folder, quick=True)["classes"][0]["problems"]
    assert "1 file is not an image (train/good/broken-file.png): replace or remove" in quick
    assert "squashed" not in found, "they are padded, which is no problem"
    assert "only 9 training images" in found


def test_what_a_small_defect_becomes_is_told_with_the_tile_that_keeps_it(folder):
    good = folder / "disc" / "train" / "good"
    large = survey(folder)["classes"][0]
    assert (large["defect_px"], large["tile"]) == (20.0, 0), "32 px are not enlarged in words"

    draw_object("disc", 3).resize((1024, 1024)).save(good / "large.png")
    found = survey(folder)["classes"][0]
    assert (found["defect_px"], found["tile"]) == (5.0, 0)

    draw_object("disc", 3).resize((2048, 2000)).save(good / "larger.png")
    found = survey(folder)["classes"][0]
    assert (found["defect_px"], found["tile"]) == (2.5, 256)
    assert "a defect of 20 px becomes 2.5 px at 256 px: use --tile 256" in problems(folder)
    assert survey(folder, 512)["classes"][0]["tile"] == 0


def test_the_command_suggests_the_tile_as_it_is_typed(folder, monkeypatch):
    monkeypatch.setenv("REPLAYCAD_RECIPE", "standard")
    draw_object("disc", 3).resize((2048, 2048)).save(folder / "disc/train/good/large.png")

    told = invoke(["doctor", "--data", folder]).stdout

    assert "use --tile 256" in told
    assert told.rstrip().endswith("--class disc --tile 256")


def test_pictures_that_are_not_square_are_padded_or_squashed(folder):
    draw_object("disc", 3).resize((64, 32)).save(folder / "disc/train/good/wide.png")

    notes = survey(folder)["classes"][0]["notes"]
    assert notes == ["pictures of 64x32 are padded to squares"]
    squashed = survey(folder, fit="squash")["classes"][0]
    assert squashed["notes"] == []
    assert any("squashed into squares" in one for one in squashed["problems"])


def test_what_is_ignored_is_told_and_a_wrong_picture_is_a_problem(folder):
    path = folder / "disc" / "ignore.png"

    Image.new("L", (32, 32)).save(path)
    assert survey(folder)["classes"][0]["notes"] == ["ignore.png is all black: nothing is ignored"]
    Image.new("L", (32, 32), 255).save(path)
    assert "all of a picture is ignored" in problems(folder)
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 16, 32))
    half.save(path)
    assert survey(folder)["classes"][0]["notes"] == ["what is white in ignore.png is ignored"]
    half.resize((64, 32)).save(path)
    assert "ignore.png has 64x32 px, pictures have 32x32: draw it in their size" in problems(folder)


def test_missing_masks_and_missing_tests_are_told(folder, tmp_path):
    (folder / "disc" / "ground_truth" / "spot" / "000_mask.png").unlink()
    plain = tmp_path / "plain"
    (plain / "Schräube 1").mkdir(parents=True)
    draw_object("disc", 0).save(plain / "Schräube 1" / "bild 1.jpg")

    disc = survey(folder)["classes"][0]
    assert (disc["test_defective"], disc["with_masks"]) == (2, 1)
    assert disc["notes"] == [
        "1 of 2 defective images have no anomaly mask: pixel figures leave them out"
    ]
    assert survey(plain)["layout"] == "a plain folder of normal images"
    assert "`predict` can be used" in problems(plain, "Schräube 1")


@pytest.mark.parametrize(
    ("name", "is_suspicious"),
    [("ring_badge", False), ("spring", False), ("part_NG", True), ("bad-3", True),
     ("Scratched", True)],
)  # fmt: skip
def test_words_inside_words_are_no_defects(folder, name, is_suspicious):
    good = folder / "disc" / "train" / "good"
    shutil.copy(good / "001.png", good / f"{name}.png")

    assert ("named like defects" in problems(folder)) == is_suspicious


def test_the_command_prints_a_table_or_one_document(folder, tmp_path):
    table = invoke(["doctor", "--data", folder])
    document = json.loads(invoke(["doctor", "--data", folder, "--json"]).stdout)

    assert table.exit_code == 0
    assert "next: replaycad compress" in table.stdout
    assert document == survey(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no class found"):
        survey(tmp_path / "empty")
