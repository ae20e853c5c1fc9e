"""Masks find their images whatever they are called, and never by a part of a number."""

import numpy as np
import pytest
from PIL import Image

from replaycad.data.pairing import paired, split_masks

STEMS = ["000", "001", "010"]


def photo(path, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def mask(path, level=255):
    values = np.zeros((16, 16), np.uint8)
    values[4:8, 4:8] = level
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """Pairs names of images with those of masks, which are drawn."""

    def named(images, masks, draw=mask):
        paths = [tmp_path / str(place) / f"{name}.png" for place, name in enumerate(masks)]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            draw(path)
        return paired(images, paths)

    return named


@pytest.mark.parametrize(
    "name",
    ["{}", "{}_mask", "mask_{}", "{}_label", "{}_GT", "{}.mask", "gt-{}-v2", "{}MASK", "x{}x"],
)
def test_any_affix_pairs_one_to_one(pair, name):
    masks = [name.format(stem) for stem in reversed(STEMS)]

    found, affixes = pair(STEMS, masks)

    assert found == {0: [2], 1: [1], 2: [0]}
    assert affixes == [tuple(name.casefold().split("{}"))]


def test_case_and_a_change_of_the_affix_do_not_matter(pair):
    found, affixes = pair(["IMG_1", "img_2", "img_3"], ["img_1_gt", "IMG_2_GT", "img_3"])

    assert found == {0: [0], 1: [1], 2: [2]}
    assert affixes == [("", "_gt"), ("", "")]


def test_accents_are_written_in_two_ways(pair):
    assert pair(["gru\u0308n"], ["gr\u00fcn_mask"])[0] == {0: [0]}


def test_a_number_is_never_cut(pair):
    assert pair(["1", "2"], ["11_mask", "21_mask"])[0] == {}
    assert pair(["000", "001"], ["0000_mask", "001_mask"])[0] == {1: [1]}
    assert pair(["1", "11", "111"], ["1_m", "11_m", "111_m"])[0] == {0: [0], 1: [1], 2: [2]}


def test_an_image_may_have_several_masks(pair):
    found, affixes = pair(STEMS[:2], ["000_dent", "000_scratch", "001_dent"])

    assert {image: sorted(masks) for image, masks in found.items()} == {0: [0, 1], 1: [2]}
    assert affixes == [("", "_dent"), ("", "_scratch")]


def test_photos_beside_masks_are_no_masks(pair):
    """The overlay of a tool has the shorter name; it must not hide the masks."""

    def draw(path):
        (photo if "vis" in path.name else mask)(path)

    found, affixes = pair(STEMS[:2], ["000_vis", "000_mask", "001_vis", "001_mask"], draw)

    assert (found, affixes) == ({0: [1], 1: [3]}, [("", "_mask")])
    assert pair(STEMS, STEMS, photo) == ({}, [])


def test_two_prefixes_are_exchanged(pair):
    found, affixes = pair(["photo_07", "photo_12"], ["truth_12", "truth_07"])

    assert (found, affixes) == ({0: [1], 1: [0]}, [])


def test_names_that_occur_twice_are_nobodys(pair):
    assert pair(["a", "a", "b"], ["a_mask", "b_mask"])[0] == {2: [1]}
    assert pair(["a", "b"], ["a_mask", "a_mask", "b_mask"])[0] == {1: [2]}


def test_names_without_any_relation_stay_alone(pair):
    assert pair(["left", "right"], ["0001", "0002"])[0] == {}
    assert pair([], ["a"])[0] == pair(["a"], [])[0] == {}


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
    assert found == {photo: (mask,) for photo, mask in zip(photos, masks, strict=True)}


def test_two_photos_of_one_name_stay_photos(tmp_path):
    paths = [photo(tmp_path / f"{stem}{end}", 1) for stem in "ab" for end in (".png", ".jpg")]
    paths += [photo(tmp_path / f"{stem}_small.png", 2) for stem in "ab"]

    assert split_masks(paths) == (paths, {})


def test_a_lossy_mask_is_a_mask(tmp_path):
    photos = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    masks = [mask(tmp_path / f"{i}_gt.jpg") for i in range(3)]

    assert split_masks([*photos, *masks])[1] == {
        photo: (mask,) for photo, mask in zip(photos, masks, strict=True)
    }


def test_pictures_of_two_levels_without_photos_are_photos(tmp_path):
    paths = [mask(tmp_path / f"{i}{end}.png") for i in range(3) for end in ("", "_b")]

    assert split_masks(paths) == (paths, {})


def test_rare_masks_numbered_masks_and_other_endings_are_found(tmp_path):
    photos = [photo(tmp_path / f"{i:04}.png", i) for i in range(120)]
    photos.append(photo(tmp_path / "9999.bmp", 5))
    masks = [mask(tmp_path / "0077_mask.png"), mask(tmp_path / "9999_mask.png")]
    values = np.zeros((16, 16), np.uint8)
    values[:3, :3] = [[1, 2, 3]] * 3
    Image.fromarray(values).save(masks[0])

    alone, found = split_masks(sorted([*photos, *masks]))

    assert alone == sorted(photos)
    assert found == {photos[77]: (masks[0],), photos[120]: (masks[1],)}


def test_depth_beside_masks_does_not_hide_them_and_several_masks_are_one_image_s(tmp_path):
    photos = [photo(tmp_path / f"{i}.png", i) for i in range(4)]
    depth = [photo(tmp_path / f"{i}_depth.png", 9 + i) for i in range(4)]
    masks = [(mask(tmp_path / f"{i}_mask1.png"), mask(tmp_path / f"{i}_mask2.png")) for i in (0, 1)]

    alone, found = split_masks(sorted([*photos, *depth, *masks[0], *masks[1]]))

    assert alone == sorted([*photos, *depth])
    assert found == {photos[0]: masks[0], photos[1]: masks[1]}


def test_a_broken_file_spoils_nothing(tmp_path):
    photos = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    masks = [mask(tmp_path / f"{i}_gt.png") for i in range(3)]
    masks[1].write_bytes(b"no picture")

    assert split_masks(sorted([*photos, *masks]))[1] == {
        photo: (mask,) for photo, mask in zip(photos, masks, strict=True)
    }
