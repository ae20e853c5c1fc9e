"""Folder layouts are found by looking, and what does not fit is named."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from replaycad.data.layouts import (
    find_classes,
    read_class,
    strangers,
    test_samples,
    train_samples,
)
from replaycad.data.samples import unmasked
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
    assert {(s.kind, s.is_anomalous, s.mask_paths) for s in train} == {("good", False, ())}
    assert [(s.image_id, s.kind, s.is_anomalous) for s in test] == [
        ("test/good/000.png", "good", False),
        ("test/scratch/000.png", "scratch", True),
        ("test/scratch/001.png", "scratch", True),
    ]
    assert test[0].mask_paths == ()
    assert test[2].mask_paths == (folder / "ground_truth/scratch/001_mask.png",)
    assert test[2].path == folder / "test/scratch/001.png"


def test_visa_reorganised_layout_pairs_masks_by_equal_stem(tmp_path):
    folder = write_mvtec(tmp_path / "1cls", "candle", mask="{}.png")

    test = test_samples(tmp_path, "candle")

    assert find_classes(tmp_path) == find_classes(tmp_path / "1cls") == ["candle"]
    assert test[1].mask_paths == (folder / "ground_truth/scratch/000.png",)
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
    assert test[0].mask_paths == (tmp_path / "candle/Data/Masks/Anomaly/000.png",)


def test_visa_row_without_mask_column_finds_the_mask_by_stem(tmp_path):
    row = ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/001.JPG", "")
    write_visa(tmp_path, [row])
    draw(tmp_path / "candle/Data/Images/Anomaly/001.JPG")
    draw(tmp_path / "candle/Data/Masks/Anomaly/001.png")

    by_id = {sample.image_id: sample for sample in test_samples(tmp_path, "candle")}

    expected = tmp_path / "candle/Data/Masks/Anomaly/001.png"
    assert by_id["Data/Images/Anomaly/001.JPG"].mask_paths == (expected,)


def test_visa_never_trains_on_anomalies(tmp_path):
    row = ("candle", "train", "anomaly", "candle/Data/Images/Anomaly/000.JPG", "")
    write_visa(tmp_path, [row])

    assert len(train_samples(tmp_path, "candle")) == 2


def test_visa_image_whose_mask_is_missing_has_none(tmp_path):
    write_visa(tmp_path)
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()

    assert [sample.image_id for sample in unmasked(test_samples(tmp_path, "candle"))] == [
        "Data/Images/Anomaly/000.JPG"
    ]


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
    assert test_samples(tmp_path, name)[0].mask_paths[0].name == f"{name}_mask.png"


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
        "from replaycad.data.layouts import train_samples\n"
        "sys.addaudithook(lambda e, a: print(e, *a) if e.startswith(('open', 'os.')) else None)\n"
        f"train_samples(Path({str(tmp_path)!r}), 'nut')\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    opened = done.stdout.splitlines()
    assert any("train/good" in line for line in opened)
    assert not any(f"nut{os.sep}test" in line or "ground_truth" in line for line in opened)


def test_a_missing_mask_is_counted_and_costs_that_image_alone(tmp_path):
    folder = write_mvtec(tmp_path)
    (folder / "ground_truth/scratch/001_mask.png").unlink()

    reading = read_class(tmp_path, "nut")

    assert ids(reading.unmasked) == ["test/scratch/001.png"]
    assert len(reading.test) == 3
    assert reading.sentences() == [
        "1 of 2 defective images has no anomaly mask: pixel figures leave it out"
    ]


def test_masks_are_paired_by_name_and_not_by_place(tmp_path):
    folder = write_mvtec(tmp_path)
    draw(folder / "ground_truth/scratch/0000_extra_mask.png")

    assert [s.mask_paths[0].name for s in test_samples(tmp_path, "nut")[1:]] == [
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


def read(data, name="nut"):
    """Ids of training images, of normal and defective tests, and the names of their masks."""
    reading = read_class(data, name)
    masks = {
        sample.image_id: [path.name for path in sample.mask_paths]
        for sample in reading.test if sample.mask_paths
    }  # fmt: skip
    test = [(sample.image_id, sample.kind) for sample in reading.test]
    return ids(reading.train), test, masks


def draw_mask(*paths, is_black=False):
    """Pictures of two levels, beside photos that have more."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("L", (8, 8))
        if not is_black:
            picture.paste(255, (2, 2, 5, 5))
        picture.save(path)


def draw_photo(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (8, 8), bytes(range(0, 256, 4))).save(path)


def test_btad(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "train/ok/0000.bmp", nut / "test/ok/0001.bmp", nut / "test/ko/0000.bmp")
    draw(nut / "ground_truth/ko/0000.png")

    assert find_classes(tmp_path) == ["nut"]
    assert read(tmp_path) == (
        ["train/ok/0000.bmp"],
        [("test/ko/0000.bmp", "ko"), ("test/ok/0001.bmp", "good")],
        {"test/ko/0000.bmp": ["0000.png"]},
    )
    assert read_class(tmp_path, "nut").guesses == ["ok is taken as normal"]


def write_real_iad(data):
    nut = data / "nut"
    draw_photo(*(nut / "OK" / s / f"nut_{s}_{i}.jpg"
                 for s, n in (("S0001", 5), ("S0002", 4)) for i in range(n)))  # fmt: skip
    draw_photo(nut / "OK/S0003/nut_S0003_0.jpg", *(nut / f"NG/AK/S0004/n_{i}.jpg" for i in (1, 2)))
    draw_mask(*(nut / f"NG/AK/S0004/n_{i}.png" for i in (1, 2)))
    return nut


def test_real_iad_without_its_list_keeps_whole_recordings_for_tests(tmp_path):
    write_real_iad(tmp_path)

    train, test, masks = read(tmp_path)

    assert train == [f"OK/S0001/nut_S0001_{i}.jpg" for i in range(5)]
    assert test == [
        ("NG/AK/S0004/n_1.jpg", "AK"), ("NG/AK/S0004/n_2.jpg", "AK"),
        *((f"OK/S0002/nut_S0002_{i}.jpg", "good") for i in range(4)),
        ("OK/S0003/nut_S0003_0.jpg", "good"),
    ]  # fmt: skip
    assert masks == {"NG/AK/S0004/n_1.jpg": ["n_1.png"], "NG/AK/S0004/n_2.jpg": ["n_2.png"]}
    assert any("5 of 10 normal images are kept for tests" in one
               for one in read_class(tmp_path, "nut").guesses)  # fmt: skip
    assert ids(train_samples(tmp_path, "nut")) == train, "the same whoever asks"


@pytest.mark.parametrize("place", ["nut.json", "realiad_jsons/nut.json", "nut/nut.json"])
def test_real_iad_goes_by_its_list(tmp_path, place):
    write_real_iad(tmp_path)
    row = {"category": "nut", "anomaly_class": "OK", "mask_path": None}
    document = {
        "meta": {"prefix": "nut/", "normal_class": "OK"},
        "train": [{**row, "image_path": "OK/S0002/nut_S0002_0.jpg"}],
        "test": [
            {**row, "image_path": "OK/S0001/nut_S0001_3.jpg"},
            {"category": "nut", "anomaly_class": "AK", "image_path": "NG/AK/S0004/n_1.jpg",
             "mask_path": "NG/AK/S0004/n_1.png"},
        ],
    }  # fmt: skip
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps(document))

    assert find_classes(tmp_path) == ["nut"]
    assert read(tmp_path) == (
        ["OK/S0002/nut_S0002_0.jpg"],
        [("NG/AK/S0004/n_1.jpg", "AK"), ("OK/S0001/nut_S0001_3.jpg", "good")],
        {"NG/AK/S0004/n_1.jpg": ["n_1.png"]},
    )
    document["test"][0]["image_path"] = "../secret.jpg"
    (tmp_path / place).write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="leaves its folder"):
        read_class(tmp_path, "nut")


def test_loco_has_a_folder_of_masks_per_image(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "train/good/000.png", nut / "validation/good/000.png", nut / "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        draw(nut / f"test/{kind}/000.png", nut / f"test/{kind}/001.png")
        draw(nut / f"ground_truth/{kind}/000/000.png", nut / f"ground_truth/{kind}/000/001.png")
        draw(nut / f"ground_truth/{kind}/001/000.png")

    train, test, masks = read(tmp_path)

    assert train == ["train/good/000.png"]
    assert {kind for _, kind in test} == {"good", "logical_anomalies", "structural_anomalies"}
    assert masks == {
        f"test/{kind}_anomalies/{image}.png": names
        for kind in ("logical", "structural")
        for image, names in (("000", ["000.png", "001.png"]), ("001", ["000.png"]))
    }
    assert read_class(tmp_path, "nut").left_out == {
        "neither for training nor for tests": ["validation/good/000.png"]
    }


def test_dagm_labels_by_its_masks(tmp_path):
    for split in ("Train", "Test"):
        draw_photo(*(tmp_path / "Class1" / split / f"{i:04}.PNG" for i in (575, 576, 577)))
        draw_mask(tmp_path / "Class1" / split / "Label/0576_label.PNG")

    assert find_classes(tmp_path) == ["Class1"]
    assert read(tmp_path, "Class1") == (
        ["Train/0575.PNG", "Train/0577.PNG"],
        [("Test/0575.PNG", "good"), ("Test/0576.PNG", "bad"), ("Test/0577.PNG", "good")],
        {"Test/0576.PNG": ["0576_label.PNG"]},
    )
    assert read_class(tmp_path, "Class1").left_out == {
        "defects are not learned from": ["Train/0576.PNG"]
    }


def test_kolektor_labels_by_masks_beside_the_photos(tmp_path):
    nut = tmp_path / "nut"
    for split in ("train", "test"):
        draw_photo(*(nut / split / f"1000{i}.png" for i in range(3)))
        draw_mask(*(nut / split / f"1000{i}_GT.png" for i in (0, 2)), is_black=True)
        draw_mask(nut / split / "10001_GT.png")

    assert read(tmp_path) == (
        ["train/10000.png", "train/10002.png"],
        [("test/10000.png", "good"), ("test/10001.png", "bad"), ("test/10002.png", "good")],
        {"test/10001.png": ["10001_GT.png"]},
    )


def test_first_kolektor_has_a_folder_per_part(tmp_path):
    for part in range(1, 6):
        folder = tmp_path / "nut" / f"kos{part:02}"
        draw_photo(*(folder / f"Part{i}.jpg" for i in range(3)))
        draw_mask(folder / "Part0_label.bmp", folder / "Part2_label.bmp", is_black=True)
        draw_mask(folder / "Part1_label.bmp")

    train, test, masks = read(tmp_path)

    assert find_classes(tmp_path) == ["nut"]
    assert train == [f"kos{p:02}/Part{i}.jpg" for p in range(1, 5) for i in (0, 2)]
    assert [name for name, kind in test if kind == "bad"] == list(masks) == [
        f"kos{part:02}/Part1.jpg" for part in range(1, 6)
    ]  # fmt: skip


def test_magnetic_tile_as_published(tmp_path):
    tile = tmp_path / "tile"
    for kind in ("MT_Free", "MT_Blowhole", "MT_Crack"):
        photos = [tile / kind / "Imgs" / f"exp1_num_{i}" for i in (7, 70, 71, 72, 73)]
        draw_photo(*(path.with_suffix(".jpg") for path in photos))
        draw_mask(*(path.with_suffix(".png") for path in photos), is_black=kind == "MT_Free")

    train, test, masks = read(tmp_path, "tile")

    assert find_classes(tmp_path) == ["tile"]
    assert train == [f"MT_Free/Imgs/exp1_num_{i}.jpg" for i in (7, 70, 71, 72)]
    assert [name for name, kind in test if kind == "good"] == ["MT_Free/Imgs/exp1_num_73.jpg"]
    assert {kind for _, kind in test} == {"good", "MT_Blowhole", "MT_Crack"}
    assert masks["MT_Crack/Imgs/exp1_num_70.jpg"] == ["exp1_num_70.png"]
    assert len(masks) == 10
    with pytest.raises(DatasetError, match=r"is itself the folder of a class.*--class tile"):
        find_classes(tile)


def test_mvtec_ad_2(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "train/good/000_regular.png", nut / "validation/good/000_regular.png")
    draw(nut / "test_public/good/000_regular.png", nut / "test_public/bad/000_regular.png")
    draw(nut / "test_public/ground_truth/bad/000_regular_mask.png")
    draw(nut / "test_private/000_regular.png", nut / "test_private_mixed/000_mixed.png")

    assert read(tmp_path) == (
        ["train/good/000_regular.png"],
        [("test_public/bad/000_regular.png", "bad"), ("test_public/good/000_regular.png", "good")],
        {"test_public/bad/000_regular.png": ["000_regular_mask.png"]},
    )


def test_visa_without_its_table(tmp_path):
    candle = tmp_path / "candle"
    draw(*(candle / f"Data/Images/Normal/{i:04}.JPG" for i in range(10)))
    draw(candle / "Data/Images/Anomaly/000.JPG", candle / "Data/Masks/Anomaly/000.png")

    train, test, masks = read(tmp_path, "candle")

    assert find_classes(tmp_path) == ["candle"]
    assert len(train) == 8
    assert [name for name, _ in test] == [
        "Data/Images/Anomaly/000.JPG", "Data/Images/Normal/0004.JPG", "Data/Images/Normal/0009.JPG",
    ]  # fmt: skip
    assert masks == {"Data/Images/Anomaly/000.JPG": ["000.png"]}


def test_nested_recordings_of_a_plain_folder(tmp_path):
    draw(tmp_path / "nut/2026-01-05/a.png", tmp_path / "nut/2026-01-06/a.png")

    assert find_classes(tmp_path) == ["nut"]
    assert read(tmp_path) == (["2026-01-05/a.png", "2026-01-06/a.png"], [], {})


def test_a_plain_folder_leaves_out_what_it_does_not_understand(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "a.png", nut / "old/b.png", nut / "._a.png", nut / "__MACOSX/a.png")
    draw(nut / ".thumbs/a.png")

    assert read(tmp_path) == (["a.png"], [], {})
    assert read_class(tmp_path, "nut").left_out == {
        "the folder 'old' is not understood there": ["old/b.png"]
    }


def test_images_and_masks_in_two_folders_of_one_class(tmp_path):
    nut = tmp_path / "nut"
    draw_photo(*(nut / f"images/{i}.png" for i in range(10)))
    draw_mask(nut / "masks/3.png", nut / "masks/7.png")

    train, test, masks = read(tmp_path)

    assert len(train) == 7, "every fifth of eight normal images is kept for tests"
    assert [name for name, kind in test if kind == "bad"] == ["images/3.png", "images/7.png"]
    assert list(masks) == ["images/3.png", "images/7.png"]


def test_defects_among_training_images_are_left_out(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "train/ok_front/a.png", nut / "train/def_front/b.png")
    draw(nut / "test/ok_front/c.png", nut / "test/def_front/d.png")

    assert read(tmp_path) == (
        ["train/ok_front/a.png"],
        [("test/def_front/d.png", "def_front"), ("test/ok_front/c.png", "good")],
        {},
    )


def test_kinds_of_defects_may_be_called_anything(tmp_path):
    nut = tmp_path / "nut"
    draw(nut / "train/good/a.png", nut / "test/good/b.png")
    for kind in ("color", "01", "flip"):
        draw(nut / f"test/{kind}/000.png", nut / f"ground_truth/{kind}/000_mask.png")

    _, test, masks = read(tmp_path)

    assert [kind for _, kind in test] == ["01", "color", "flip", "good"]
    assert len(masks) == 3


def test_links_to_nowhere_and_unreadable_formats_are_counted(tmp_path):
    folder = write_mvtec(tmp_path)
    (folder / "test/good/gone.png").symlink_to("nowhere.png")
    (folder / "train/good/raw.CR2").write_bytes(b"raw")
    (folder / "train/good/phone.heic").write_bytes(b"heic")

    assert read_class(tmp_path, "nut").left_out == {
        "links to nowhere": ["test/good/gone.png"],
        "such files cannot be read, save them as PNG or TIFF": [
            "train/good/phone.heic", "train/good/raw.CR2"],
    }  # fmt: skip


def test_a_folder_of_folders_of_classes_says_where_they_are(tmp_path):
    write_mvtec(tmp_path / "line1")
    write_mvtec(tmp_path / "line2", "cup")

    with pytest.raises(DatasetError, match=r"nothing in line1, line2 says what is normal"):
        find_classes(tmp_path)
    with pytest.raises(DatasetError, match=r"--data .*/line1 "):
        find_classes(tmp_path)


def test_words_of_people_do_not_hide_classes(tmp_path):
    write_mvtec(tmp_path, "good_nut")
    write_mvtec(tmp_path, "test")
    draw(tmp_path / "ok_cap/a.png")

    assert find_classes(tmp_path) == ["good_nut", "ok_cap", "test"]


def test_a_folder_of_one_class_called_by_labels_alone(tmp_path):
    draw(tmp_path / "nut/good/a.png", tmp_path / "nut/scratch/b.png")

    assert find_classes(tmp_path) == ["nut"]
    with pytest.raises(DatasetError, match="is itself the folder of a class"):
        find_classes(tmp_path / "nut")


def tree(data, *folders, masks=(), num=2, name="nut"):
    """A class with so many photos in each folder, and masks in others."""
    for folder in folders:
        draw_photo(*(data / name / folder / f"{i:03}.png" for i in range(num)))
    for folder in masks:
        draw_mask(*(data / name / folder / f"{i:03}.png" for i in range(num)))


def kinds(data, name="nut"):
    """How many images are learned from, and how many of each kind are tested; how many masks."""
    reading = read_class(data, name)
    assert ids(reading.train) == ids(read_class(data, name, only_training=True).train)
    tested = [sample.kind for sample in reading.test]
    counts = {kind: tested.count(kind) for kind in tested}
    return len(reading.train), counts, sum(bool(sample.mask_paths) for sample in reading.test)


@pytest.mark.parametrize(
    ("folders", "masks", "expected"),
    [
        (
            ["train/top/good", "train/side/good", "test/top/good", "test/side/good",
             "test/top/scratch"],
            ["ground_truth/top/scratch"], (4, {"good": 4, "scratch": 2}, 2),
        ),
        (["train/good", "test/good", "test/cam2/good", "test/cam2/bad"], [],
         (2, {"good": 4, "bad": 2}, 0)),
        (["good", "2024-01-02/good", "2024-01-02/bad"], [], (2, {"bad": 2, "good": 2}, 0)),
        (["OK1", "OK2", "OK3", "NG1"], [], (5, {"NG1": 2, "good": 1}, 0)),
        (["train/good", "test/good", "test/scratch"], ["test/scratch_mask"],
         (2, {"good": 2, "scratch": 2}, 2)),
        (["OK", "NG"], ["NG_mask"], (2, {"NG": 2}, 2)),
        (["train/good", "test/good", "test/label", "test/dent"],
         ["ground_truth/label", "ground_truth/dent"],
         (2, {"dent": 2, "good": 2, "label": 2}, 4)),
        (["train/good", "test/good", "test/bad", "annotations/bad"], [],
         (2, {"bad": 2, "good": 2}, 0)),
        (["good/train", "good/test", "bad/test"], [], (2, {"bad": 2, "good": 2}, 0)),
        (["train/good", "test/good", "test/bad", ".", "images", "2024-05-05"], [],
         (2, {"bad": 2, "good": 2}, 0)),
        (["train/good/rgb", "train/good/xyz", "test/cut/rgb", "test/cut/xyz"], ["test/cut/gt"],
         (2, {"cut": 2}, 2)),
        (["train/good", "test/good", "backup/train/good", "augmented/test/bad"], [],
         (2, {"good": 2}, 0)),
        (["train/good", "train/good/NG", "test/good"], [], (2, {"good": 2}, 0)),
        (["train/good", "test/good", "test/bad"], ["masks/bad", "ground_truth/bad"],
         (2, {"bad": 2, "good": 2}, 2)),
        (["train", "test"], ["masks/train", "masks/test"], (0, {"bad": 2}, 2)),
        (["Train Images/Good", "test_images/Good", "test_images/Scratch"], [],
         (2, {"good": 2, "Scratch": 2}, 0)),
    ],
)  # fmt: skip
def test_folders_as_people_make_them(tmp_path, folders, masks, expected):
    tree(tmp_path, *folders, masks=masks)

    assert kinds(tmp_path) == expected


def test_classes_that_are_left_out_are_named(tmp_path):
    tree(tmp_path, "train/good")
    tree(tmp_path, "cable/train/good", name="cable")

    assert find_classes(tmp_path) == ["nut"]
    assert strangers(tmp_path) == ["cable"]


def test_images_and_masks_in_the_data_folder_are_one_class(tmp_path):
    tree(tmp_path, "images", masks=["masks"])

    with pytest.raises(DatasetError, match=r"is itself the folder of a class.*--class nut"):
        find_classes(tmp_path / "nut")


def test_links_are_followed_once(tmp_path):
    tree(tmp_path / "elsewhere", ".", name="shared")
    (tmp_path / "elsewhere/shared/loop").symlink_to(tmp_path / "elsewhere/shared")
    (tmp_path / "data/nut/train").mkdir(parents=True)
    (tmp_path / "data/nut/train/good").symlink_to(tmp_path / "elsewhere/shared")
    (tmp_path / "data/nut/test").symlink_to(tmp_path / "nowhere")

    reading = read_class(tmp_path / "data", "nut")

    assert ids(reading.train) == ["train/good/000.png", "train/good/001.png"]
    assert reading.left_out == {
        "links to nowhere": ["test"], "links to what is read anyway": ["train/good/loop"],
    }  # fmt: skip


def test_later_recordings_are_counted_and_not_spelled(tmp_path):
    tree(tmp_path, *(f"OK/S{number}" for number in range(1, 11)), "NG/cut")

    reading = read_class(tmp_path, "nut")

    assert {Path(one).parts[1] for one in ids(reading.test) if one.startswith("OK")} == {
        "S9", "S10",
    }  # fmt: skip


def test_a_list_that_names_what_is_not_there_says_so(tmp_path):
    tree(tmp_path, "OK", "NG")
    row = {"anomaly_class": "OK", "image_path": "nut/OK/000.png"}
    document = {"train": [row, {**row, "image_path": "OK/gone.png"}], "test": [
        {"anomaly_class": "AK", "image_path": "nut/NG/000.png", "mask_path": "nut/NG/gone.png"}]}
    (tmp_path / "nut.json").write_text(json.dumps(document))

    reading = read_class(tmp_path, "nut")

    assert (ids(reading.train), ids(reading.test)) == (["OK/000.png"], ["NG/000.png"])
    assert reading.sentences() == [
        "1 of 1 defective image has no anomaly mask: pixel figures leave it out",
        "1 file left out: in the list and not there (OK/gone.png)",
    ]
