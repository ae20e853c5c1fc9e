"""Folder layouts are found by looking, and what does not fit is named."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from replaycad.data.samples import find_classes, test_samples, train_samples
from replaycad.errors import DatasetError

COLUMNS = ("object", "split", "label", "image", "mask")


def draw(*paths):
    """Write a small grey picture to every path."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)


def write_mvtec(data, class_name="nut", mask="{}_mask.png"):
    """Three training images, one good and two scratched test images."""
    folder = data / class_name
    draw(*(folder / "train/good" / f"{i:03}.png" for i in range(3)))
    draw(folder / "test/good/000.png")
    draw(*(folder / "test/scratch" / f"{i:03}.png" for i in (0, 1)))
    draw(*(folder / "ground_truth/scratch" / mask.format(f"{i:03}") for i in (0, 1)))
    return folder


def write_visa(data, rows=()):
    """The raw form: pictures named by a table."""
    draw(*(data / "candle/Data/Images/Normal" / f"{i:04}.JPG" for i in range(3)))
    draw(data / "candle/Data/Images/Anomaly/000.JPG", data / "candle/Data/Masks/Anomaly/000.png")
    normal, mask = "candle/Data/Images/Normal", "candle/Data/Masks/Anomaly/000.png"
    table = [
        ("candle", "train", "normal", f"{normal}/0002.JPG", ""),
        ("candle", "train", "normal", f"{normal}/0000.JPG", ""),
        ("candle", "test", "normal", f"{normal}/0001.JPG", ""),
        ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/000.JPG", mask),
        *rows,
    ]
    (data / "split_csv").mkdir()
    with (data / "split_csv/1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *table])


def ids(samples):
    return [sample.image_id for sample in samples]


def test_mvtec_layout(tmp_path):
    folder = write_mvtec(tmp_path)

    train, test = train_samples(tmp_path, "nut"), test_samples(tmp_path, "nut")

    assert find_classes(tmp_path) == ["nut"]
    assert ids(train) == ["train/good/000.png", "train/good/001.png", "train/good/002.png"]
    assert {(s.kind, s.is_anomalous, s.mask_path) for s in train} == {("good", False, None)}
    assert [(s.image_id, s.kind, s.is_anomalous) for s in test] == [
        ("test/good/000.png", "good", False),
        ("test/scratch/000.png", "scratch", True),
        ("test/scratch/001.png", "scratch", True),
    ]
    assert test[0].mask_path is None
    assert test[2].mask_path == folder / "ground_truth/scratch/001_mask.png"
    assert test[2].path == folder / "test/scratch/001.png"


def test_visa_reorganised_layout_pairs_masks_by_equal_stem(tmp_path):
    folder = write_mvtec(tmp_path / "1cls", "candle", mask="{}.png")

    test = test_samples(tmp_path, "candle")

    assert find_classes(tmp_path) == find_classes(tmp_path / "1cls") == ["candle"]
    assert test[1].mask_path == folder / "ground_truth/scratch/000.png"
    assert len(train_samples(tmp_path, "candle")) == 3


def test_visa_raw_layout(tmp_path):
    write_visa(tmp_path)

    train, test = train_samples(tmp_path, "candle"), test_samples(tmp_path, "candle")

    assert find_classes(tmp_path) == ["candle"]
    assert ids(train) == ["Data/Images/Normal/0000.JPG", "Data/Images/Normal/0002.JPG"]
    assert [(s.image_id, s.kind, s.is_anomalous) for s in test] == [
        ("Data/Images/Anomaly/000.JPG", "bad", True),
        ("Data/Images/Normal/0001.JPG", "good", False),
    ]
    assert test[0].mask_path == tmp_path / "candle/Data/Masks/Anomaly/000.png"


def test_visa_row_without_mask_column_finds_the_mask_by_stem(tmp_path):
    row = ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/001.JPG", "")
    write_visa(tmp_path, [row])
    draw(tmp_path / "candle/Data/Images/Anomaly/001.JPG")
    draw(tmp_path / "candle/Data/Masks/Anomaly/001.png")

    by_id = {sample.image_id: sample for sample in test_samples(tmp_path, "candle")}

    expected = tmp_path / "candle/Data/Masks/Anomaly/001.png"
    assert by_id["Data/Images/Anomaly/001.JPG"].mask_path == expected


def test_visa_never_trains_on_anomalies(tmp_path):
    row = ("candle", "train", "anomaly", "candle/Data/Images/Anomaly/000.JPG", "")
    write_visa(tmp_path, [row])

    assert len(train_samples(tmp_path, "candle")) == 2


def test_visa_missing_mask_names_the_image(tmp_path):
    write_visa(tmp_path)
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()

    with pytest.raises(DatasetError, match=r"Anomaly/000\.JPG has no anomaly mask"):
        test_samples(tmp_path, "candle")


def test_visa_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("object,image\ncandle,a.png\n")

    with pytest.raises(DatasetError, match="lacks the columns label, mask, split"):
        find_classes(tmp_path)


def test_visa_row_with_an_unknown_label_is_refused(tmp_path):
    write_visa(tmp_path, [("candle", "test", "perhaps", "a.png", "")])

    with pytest.raises(DatasetError, match="perhaps"):
        test_samples(tmp_path, "candle")


@pytest.mark.parametrize(
    "row",
    [
        ("candle", "train", "normal", "/etc/passwd.png", ""),
        ("candle", "train", "normal", "../other/a.png", ""),
        ("candle", "test", "anomaly", "candle/a.png", "../../m.png"),
        ("../candle", "train", "normal", "candle/a.png", ""),
        ("candle", "train", "normal", "a\0.png", ""),
    ],
)
def test_visa_row_that_leaves_the_folder_is_refused(tmp_path, row):
    write_visa(tmp_path, [row])

    with pytest.raises(DatasetError, match="leaves its folder"):
        train_samples(tmp_path, "candle")


def test_visa_table_that_is_no_csv_is_refused(tmp_path):
    write_visa(tmp_path)
    table = tmp_path / "split_csv" / "1cls.csv"
    table.write_text(table.read_text() + "a," + "x" * 200_000 + ",normal,b,c\n")

    with pytest.raises(DatasetError, match="cannot be read as CSV: field larger"):
        find_classes(tmp_path)


def test_visa_unknown_class_lists_the_known_ones(tmp_path):
    write_visa(tmp_path)

    with pytest.raises(DatasetError, match="candle"):
        train_samples(tmp_path, "candel")


def test_plain_folder_is_all_normal_training_images(tmp_path):
    draw(tmp_path / "cup/b.png", tmp_path / "cup/a.JPEG", tmp_path / "cup/c.tiff")
    (tmp_path / "cup/notes.txt").write_text("not an image")
    draw(tmp_path / "cup/.hidden.png")

    assert find_classes(tmp_path) == ["cup"]
    assert ids(train_samples(tmp_path, "cup")) == ["a.JPEG", "b.png", "c.tiff"]
    with pytest.raises(DatasetError, match=r"'cup'.* has no test image"):
        test_samples(tmp_path, "cup")


def test_classes_are_in_alphabetical_order_and_other_folders_are_left_out(tmp_path):
    for name in ("screw", "bottle", "grid"):
        write_mvtec(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").touch()

    assert find_classes(tmp_path) == ["bottle", "grid", "screw"]


@pytest.mark.parametrize(
    "name", ["mit Leerzeichen", "部品", "a'b\"c;$(x)", "100%", "-dash", "[x]*"]
)
def test_names_with_unusual_characters(tmp_path, name):
    folder = tmp_path / name
    draw(folder / "train/good" / f"{name}.png", folder / "test" / name / f"{name}.png")
    draw(folder / "ground_truth" / name / f"{name}_mask.png")

    assert find_classes(tmp_path) == [name]
    assert ids(train_samples(tmp_path, name)) == [f"train/good/{name}.png"]
    assert test_samples(tmp_path, name)[0].mask_path.name == f"{name}_mask.png"


def test_names_that_are_no_utf8_have_an_id_that_is(tmp_path):
    draw(tmp_path / "cup" / os.fsdecode(b"x\xff.png"))

    assert ids(train_samples(tmp_path, "cup")) == ["x\\xff.png"]


def test_training_samples_do_not_need_the_test_folder(tmp_path):
    folder = write_mvtec(tmp_path)
    before = train_samples(tmp_path, "nut")

    shutil.rmtree(folder / "test")
    shutil.rmtree(folder / "ground_truth")

    assert train_samples(tmp_path, "nut") == before
    assert find_classes(tmp_path) == ["nut"]


def test_training_samples_never_open_the_test_folder(tmp_path):
    write_mvtec(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from replaycad.data.samples import train_samples\n"
        "sys.addaudithook(lambda e, a: print(e, *a) if e.startswith(('open', 'os.')) else None)\n"
        f"train_samples(Path({str(tmp_path)!r}), 'nut')\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    opened = done.stdout.splitlines()
    assert any("train/good" in line for line in opened)
    assert not any(f"nut{os.sep}test" in line or "ground_truth" in line for line in opened)


def test_a_missing_mask_names_the_defective_image(tmp_path):
    folder = write_mvtec(tmp_path)
    (folder / "ground_truth/scratch/001_mask.png").unlink()

    with pytest.raises(DatasetError) as failure:
        test_samples(tmp_path, "nut")

    assert str(folder / "test/scratch/001.png") in failure.value.message
    assert "001_mask.png" in failure.value.hint


def test_a_missing_ground_truth_folder_names_the_first_defective_image(tmp_path):
    folder = write_mvtec(tmp_path)
    shutil.rmtree(folder / "ground_truth")

    with pytest.raises(DatasetError, match=r"scratch/000\.png has no anomaly mask"):
        test_samples(tmp_path, "nut")


def test_masks_are_paired_by_name_and_not_by_place(tmp_path):
    folder = write_mvtec(tmp_path)
    draw(folder / "ground_truth/scratch/0000_extra_mask.png")

    assert [s.mask_path.name for s in test_samples(tmp_path, "nut")[1:]] == [
        "000_mask.png",
        "001_mask.png",
    ]


def test_an_unknown_class_suggests_the_nearest(tmp_path):
    for name in ("bottle", "screw"):
        write_mvtec(tmp_path, name)

    with pytest.raises(DatasetError) as failure:
        train_samples(tmp_path, "botle")

    assert "no class 'botle'" in failure.value.message
    assert failure.value.hint == "did you mean: bottle"


def test_an_unknown_class_far_from_all_lists_all(tmp_path):
    for name in ("bottle", "screw"):
        write_mvtec(tmp_path, name)

    with pytest.raises(DatasetError, match="bottle, screw"):
        test_samples(tmp_path, "zzz")


@pytest.mark.parametrize("name", ["", ".", "..", "../nut", "a/b", "nut/train", "/", "a\0b"])
def test_class_names_are_not_paths(tmp_path, name):
    write_mvtec(tmp_path)

    with pytest.raises(DatasetError, match="there is no class"):
        train_samples(tmp_path, name)


def test_a_class_without_training_images_is_named(tmp_path):
    (write_mvtec(tmp_path) / "train/good").rename(tmp_path / "nut/train/bad")

    with pytest.raises(DatasetError, match=r"class 'nut' .* has no training image"):
        train_samples(tmp_path, "nut")


def test_a_class_with_an_empty_test_folder_is_named(tmp_path):
    folder = write_mvtec(tmp_path)
    shutil.rmtree(folder / "test")
    (folder / "test/good").mkdir(parents=True)
    (folder / "test/readme.txt").touch()

    with pytest.raises(DatasetError, match="has no test image"):
        test_samples(tmp_path, "nut")


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not there"):
        find_classes(tmp_path / "nowhere")


def test_a_data_folder_without_classes_explains_the_layouts(tmp_path):
    with pytest.raises(DatasetError) as failure:
        find_classes(tmp_path)

    assert "train/good" in failure.value.hint
    assert "1cls.csv" in failure.value.hint


def test_the_folder_of_one_class_is_recognised_as_such(tmp_path):
    (write_mvtec(tmp_path) / "test").rename(tmp_path / "nut/later")
    shutil.rmtree(tmp_path / "nut/ground_truth")

    with pytest.raises(DatasetError, match=r"is itself the folder of a class.*--class nut"):
        find_classes(tmp_path / "nut")


def test_a_name_that_no_file_system_takes_is_a_sentence(tmp_path):
    write_mvtec(tmp_path)

    with pytest.raises(DatasetError):
        train_samples(tmp_path, "y" * 300)


def test_finding_samples_does_not_import_torch():
    code = "import sys, replaycad.data.samples; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
