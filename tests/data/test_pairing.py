"""Masks find their images whatever they are called, and never by a part of a number."""

import numpy as np
import pytest
from PIL import Image

from replaycad.data.pairing import paired, split_masks

STEMS = ["000", "001", "010"]


@pytest.mark.parametrize(
    "mask",
    ["{}", "{}_mask", "mask_{}", "{}_label", "{}_GT", "{}.mask", "gt-{}-v2", "{}MASK", "x{}x"],
)
def test_any_affix_pairs_one_to_one(mask):
    masks = [mask.format(stem) for stem in reversed(STEMS)]

    found, affixes = paired(STEMS, masks)

    assert found == {0: 2, 1: 1, 2: 0}
    assert affixes == [tuple(mask.casefold().split("{}"))]


def test_case_and_a_change_of_the_affix_do_not_matter():
    found, affixes = paired(["IMG_1", "img_2", "img_3"], ["img_1_gt", "IMG_2_GT", "img_3"])

    assert found == {0: 0, 1: 1, 2: 2}
    assert affixes == [("", "_gt"), ("", "")]


def test_a_number_is_never_cut():
    assert paired(["1", "2"], ["11_mask", "21_mask"])[0] == {}
    assert paired(["000", "001"], ["0000_mask", "001_mask"])[0] == {1: 1}
    assert paired(["1", "11", "111"], ["1_m", "11_m", "111_m"])[0] == {0: 0, 1: 1, 2: 2}


def test_two_prefixes_are_exchanged():
    found, affixes = paired(["photo_07", "photo_12"], ["truth_12", "truth_07"])

    assert (found, affixes) == ({0: 1, 1: 0}, [])


def test_names_that_occur_twice_are_nobodys():
    assert paired(["a", "a", "b"], ["a_mask", "b_mask"])[0] == {2: 1}
    assert paired(["a", "b"], ["a_mask", "a_mask", "b_mask"])[0] == {1: 2}


def test_names_without_any_relation_stay_alone():
    assert paired(["left", "right"], ["0001", "0002"])[0] == {}
    assert paired([], ["a"])[0] == paired(["a"], [])[0] == {}


def photo(path, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def mask(path, level=255):
    values = np.zeros((16, 16), np.uint8)
    values[4:8, 4:8] = level
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("image_name", "mask_name"),
    [("{}.jpg", "{}.png"), ("{}.png", "{}_mask.png"), ("{}.jpg", "{}_label.bmp"),
     ("{}.png", "gt_{}.png")],
)  # fmt: skip
def test_photos_and_masks_of_one_folder_are_told_apart(tmp_path, image_name, mask_name):
    photos = [photo(tmp_path / image_name.format(f"exp1_num_{i}"), i) for i in (7, 70, 71)]
    masks = [mask(tmp_path / mask_name.format(f"exp1_num_{i}")) for i in (7, 70, 71)]

    alone, found = split_masks(sorted([*photos, *masks]))

    assert alone == sorted(photos)
    assert found == dict(zip(photos, masks, strict=True))


def test_two_photos_of_one_name_stay_photos(tmp_path):
    paths = [photo(tmp_path / f"{stem}{end}", 1) for stem in "ab" for end in (".png", ".jpg")]
    paths += [photo(tmp_path / f"{stem}_small.png", 2) for stem in "ab"]

    assert split_masks(paths) == (paths, {})


def test_a_lossy_mask_is_a_mask(tmp_path):
    photos = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    masks = [mask(tmp_path / f"{i}_gt.jpg") for i in range(3)]

    assert split_masks([*photos, *masks])[1] == dict(zip(photos, masks, strict=True))


def test_pictures_of_two_levels_without_photos_are_photos(tmp_path):
    paths = [mask(tmp_path / f"{i}{end}.png") for i in range(3) for end in ("", "_b")]

    assert split_masks(paths) == (paths, {})
