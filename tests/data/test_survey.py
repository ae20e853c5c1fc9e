"""What `doctor --data` finds in a folder, and that it says what to do."""

import json
import shutil

import numpy as np
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
    assert "train/good/broken-file.png is no image of a known format (save it as PNG" in found
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
        "1 of 2 defective images has no anomaly mask: pixel figures leave it out"
    ]
    assert survey(plain)["layout"] == "plain folders of normal images"
    assert "`predict` can be used" in " ".join(survey(plain)["classes"][0]["notes"])


@pytest.mark.parametrize(
    ("name", "is_suspicious"),
    [("ring_badge", False), ("spring", False), ("part_NG", True), ("bad-3", True),
     ("Scratched", True)],
)  # fmt: skip
def test_words_inside_words_are_no_defects(folder, name, is_suspicious):
    good = folder / "disc" / "train" / "good"
    shutil.copy(good / "001.png", good / f"{name}.png")

    assert ("named like defects" in problems(folder)) == is_suspicious


def draw_many(folder, name, count, level=60, texture=0):
    """Normal images of one look: a disc on a ground, and a little noise."""
    rng = np.random.default_rng(len(name))
    good = folder / name / "train" / "good"
    good.mkdir(parents=True, exist_ok=True)
    inside = np.add.outer(*[(np.arange(64) - 32) ** 2] * 2) < 400
    for number in range(count):
        values = np.where(inside, level, 200) + rng.normal(0, 4, (64, 64)) + texture
        picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        picture.save(good / f"{number:03}.png")
    return good


def test_a_defect_among_the_normal_images_stands_out(tmp_path):
    good = draw_many(tmp_path, "nut", 30)
    values = np.asarray(Image.open(good / "017.png")).copy()
    values[25:40, 25:40] = 250
    Image.fromarray(values).save(good / "017.png")

    found = survey(tmp_path)["classes"][0]
    result = invoke(["doctor", "--data", tmp_path, "--sheet", tmp_path / "odd.png"])

    assert found["odd"] == [str(good / "017.png")]
    assert any("1 training image is unlike the others (train/good/017.png)" in one
               for one in found["problems"])  # fmt: skip
    assert result.exit_code == 0
    with Image.open(tmp_path / "odd.png") as sheet:
        assert np.asarray(sheet)[22:182, 6:166].std() > 20, "the picture is drawn"
    assert not survey(tmp_path, quick=True)["classes"][0]["odd"]


@pytest.mark.parametrize("change", [lambda v: v * 0.2, lambda v: v * 0.6, lambda v: 255.0 - v])
def test_what_is_far_away_is_not_its_own_neighbour(tmp_path, change):
    good = draw_many(tmp_path, "nut", 24)
    values = np.asarray(Image.open(good / "004.png")).astype(float)
    Image.fromarray(change(values).astype(np.uint8)).save(good / "004.png")

    assert survey(tmp_path)["classes"][0]["odd"] == [str(good / "004.png")]


def test_copies_do_not_hide_what_is_unlike_and_are_counted(tmp_path):
    good = draw_many(tmp_path, "nut", 20)
    for number in range(12):
        shutil.copy(good / f"{number:03}.png", good / f"copy_{number:03}.png")

    found = survey(tmp_path)["classes"][0]

    assert found["odd"] == []
    assert any(one.startswith("12 training images are there under another name too (train/good/")
               for one in found["problems"])  # fmt: skip


def test_classes_that_look_the_same_are_told_and_others_are_not(tmp_path):
    draw_many(tmp_path, "nut", 20)
    draw_many(tmp_path, "bolt", 20)
    draw_many(tmp_path, "cap", 20, level=90)

    found = {one["name"]: " ".join(one["problems"]) for one in survey(tmp_path)["classes"]}

    assert "its images look like those of nut" in found["bolt"]
    assert "look like" not in found["cap"]


def test_names_that_some_systems_refuse_are_told(tmp_path):
    for name in ("Nut", "nut", "con", "x" * 181, "end."):
        draw_many(tmp_path, name, 1)

    found = {one["name"]: " ".join(one["problems"]) for one in survey(tmp_path)["classes"]}

    assert "its name differs from nut in case alone" in found["Nut"]
    assert "is that of a device on Windows: rename the folder" in found["con"]
    assert "is longer than 180 bytes: rename the folder" in found["x" * 181]
    assert "ends with a dot: rename the folder" in found["end."]
    assert "name" not in found["nut"]


def test_masks_are_looked_at(folder):
    truth = folder / "disc" / "ground_truth" / "spot"
    (truth / "000_mask.png").write_bytes(b"no image")
    Image.new("L", (32, 32), 0).save(truth / "001_mask.png")

    found = problems(folder)
    Image.new("L", (32, 20), 0).save(truth / "000_mask.png")
    again = problems(folder)

    assert "1 anomaly mask is of no use: " in found
    assert "1 anomaly mask is empty (test/spot/001.png)" in found
    assert "000_mask.png has 32 x 20 px" in again


def test_a_speck_is_not_called_empty(tmp_path):
    draw_many(tmp_path, "nut", 9)
    for name, side in (("speck", 8), ("spot", 20)):  # of 2048 px: one and 2.5 px of 256
        image = tmp_path / "nut" / "test" / name / "0.png"
        mask = tmp_path / "nut" / "ground_truth" / name / "0_mask.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True)
        Image.new("L", (2048, 2048), 90).save(image)
        marked = Image.new("L", (2048, 2048))
        marked.paste(255, (1004, 1004, 1004 + side, 1004 + side))
        marked.save(mask)

    found = problems(tmp_path, "nut")

    assert "1 anomaly mask marks less than a pixel at 256 px (test/speck/0.png)" in found
    assert "empty" not in found


def test_inverted_masks_are_told(folder):
    for path in (folder / "disc" / "ground_truth" / "spot").iterdir():
        with Image.open(path) as mask:
            drawn = np.asarray(mask)
        Image.fromarray(255 - drawn).save(path)

    told = "2 anomaly masks cover more than half of the image: are black and white exchanged?"
    assert told in problems(folder)


def test_blank_images_are_told(tmp_path):
    good = draw_many(tmp_path, "nut", 9)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(good / "black.png")

    told = "1 image shows one colour only (train/good/black.png): remove"
    assert told in problems(tmp_path, "nut")


def test_a_fine_texture_is_not_blank(tmp_path):
    good = draw_many(tmp_path, "nut", 9)
    # A pixel of the small copy is the mean of 100 x 100 of 108 or 148: it deviates by 0.2 levels.
    noise = np.random.default_rng(0).choice([108, 148], (2400, 2400)).astype(np.uint8)
    Image.fromarray(noise).save(good / "steel.png")

    assert "one colour" not in problems(tmp_path, "nut")


def test_the_command_prints_a_table_or_one_document(folder, tmp_path):
    table = invoke(["doctor", "--data", folder])
    document = json.loads(invoke(["doctor", "--data", folder, "--json"]).stdout)

    assert table.exit_code == 0
    assert "next: replaycad compress" in table.stdout
    assert document == survey(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no class found"):
        survey(tmp_path / "empty")
