"""Pictures of more than eight bits: one range per class, and nothing dark in silence."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from replaycad.data.pixels import range_of, read_picture, strange, tint_of, white_of
from replaycad.errors import DatasetError


@pytest.fixture(autouse=True, params=[2**22, 5], ids=["whole", "in bands"])
def _pixels_at_once(request, monkeypatch):
    monkeypatch.setattr("replaycad.data.pixels.BAND", request.param)

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def save(values, path):
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY.astype(np.uint16), 255),
        (GREY.astype(np.uint16) * 4, 1023),
        (GREY.astype(np.uint16) * 16, 4095),
        (GREY.astype(np.uint16) * 64, 16383),
        (GREY.astype(np.uint16) * 257, 65535),
        (GREY.astype(np.int32) * 1024, 2.0**18),
        (GREY.astype(np.float32) / 255, 1),
        (GREY.astype(np.float32), 255),
        (GREY.astype(np.float32) * 16, 4095),
    ],
)
def test_the_range_of_a_class_ends_where_its_bits_do(tmp_path, values, expected):
    dark = save((values // 8).astype(values.dtype), tmp_path / "dark.tif")
    paths = [dark, save(values, tmp_path / "bright.tif")]

    white = white_of(paths)

    assert white == expected
    shown = np.asarray(read_picture(paths[1], white)).astype(int)
    assert shown.shape == (16, 16, 3)
    assert abs(shown[..., 0] - GREY).max() <= 1, "what one sees is that of eight bits"
    assert np.asarray(read_picture(dark, white)).max() <= 32, "a dark picture stays dark"


def test_eight_bits_have_no_range(tmp_path):
    assert white_of([save(GREY, tmp_path / "a.png")]) == 0.0


def test_one_class_has_one_range(tmp_path):
    paths = [save(GREY, tmp_path / "a.png"), save(GREY.astype(np.uint16), tmp_path / "b.png")]

    with pytest.raises(DatasetError, match=r"b\.png has more than 8 bits, but .*a\.png .* has 8"):
        white_of(paths)


def test_another_range_than_that_of_the_class_is_refused(tmp_path):
    deep = save(GREY.astype(np.uint16) * 257, tmp_path / "deep.png")

    with pytest.raises(DatasetError, match="learned from pictures of 8 bits"):
        read_picture(deep, 0.0)
    with pytest.raises(DatasetError, match=r"levels up to 65535, but .* end at 4095"):
        read_picture(deep, 4095.0)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_levels_without_a_range_are_refused(tmp_path, value):
    values = GREY.astype(np.float32)
    values[3, 3] = value

    with pytest.raises(DatasetError, match="range is unknown"):
        white_of([save(values, tmp_path / "a.tif")])


def test_black_pictures_have_some_range(tmp_path):
    path = save(np.zeros((4, 4), np.float32), tmp_path / "a.tif")

    assert white_of([path]) == 1.0
    assert not np.asarray(read_picture(path, 1.0)).any()


def write_deep_colours(path, grey, factor):
    """A PNG of 16 bits a colour, which PIL cannot write."""

    def chunk(name, data):
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    colours = np.stack([grey.astype(">u2") * factor] * 3, -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    height, width = grey.shape
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip
    return path


def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path):
    """PIL reads the upper eight bits of colours alone, so sixteen levels would be left."""
    part = write_deep_colours(tmp_path / "part.png", GREY, 16)
    whole = write_deep_colours(tmp_path / "whole.png", GREY, 257)

    with pytest.raises(DatasetError, match=r"part\.png and others .* fill a part of their range"):
        white_of([part])
    assert white_of([whole]) == 0.0
    assert np.array_equal(np.asarray(read_picture(whole, 0.0))[..., 0], GREY)


def test_eight_bits_in_a_class_of_more_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="has 8 bits, but its class was learned from"):
        read_picture(save(GREY, tmp_path / "a.png"), 4095.0)


def test_other_channels_than_those_of_the_class_are_told(tmp_path):
    grey = save(GREY, tmp_path / "grey.png")
    deep = save(GREY.astype(np.uint16), tmp_path / "deep.png")
    same = save(np.stack([GREY] * 3, -1), tmp_path / "same.png")
    red = save(np.stack([GREY, GREY // 2, GREY // 2], -1), tmp_path / "red.png")

    def told(path, expected):
        return strange(path, read_picture(path), expected)

    assert range_of([grey]).colours == range_of([deep]).colours == "grey"
    assert range_of([same, red]).colours == "colours"
    assert range_of([grey, red]).colours == ""
    assert told(grey, "colours") == "it is grey, and its class was learned in colours"
    assert told(red, "grey") == "it has colours, and its class was learned from grey photos"
    assert told(same, "grey") == told(red, "colours") == told(red, "") == told(deep, "grey") == ""


def test_a_glint_is_read_and_told_and_another_range_is_refused(tmp_path):
    values = np.full((10, 10), 1000, np.uint16)
    values[0, 0] = 4095
    path = save(values, tmp_path / "a.png")

    picture = read_picture(path, 1023.0)

    assert np.asarray(picture)[0, :2, 0].tolist() == [255, 249]
    assert strange(path, picture, "") == "its levels reach 4095, and what is above 1023 is white"
    assert strange(path, read_picture(path, 4095.0), "") == ""
    assert strange(path, read_picture(path, 65535.0), "") == (
        "its levels end at 4095, far below 65535, which is white"
    )
    values[:1] = 4095
    with pytest.raises(DatasetError, match="end at 1023"):
        read_picture(save(values, tmp_path / "b.png"), 1023.0)


def test_broken_numbers_up_to_one_are_no_whole_ones(tmp_path):
    path = save(GREY.astype(np.float32) / 255, tmp_path / "a.tif")

    with pytest.raises(DatasetError, match=r"broken numbers up to 1, but .* whole ones up to 4095"):
        read_picture(path, 4095.0)


def test_hot_pixels_do_not_stretch_the_range_and_two_ranges_are_told(tmp_path):
    dark = GREY.astype(np.uint16).repeat(8, 0).repeat(8, 1) * 16
    hot = dark.copy()
    hot[0, 0] = 65535
    paths = [save(dark, tmp_path / f"{i}.png") for i in range(5)]
    paths.append(save(hot, tmp_path / "hot.png"))

    found = range_of(paths)
    mixed = range_of([*paths[:3], *(save(dark * 15, tmp_path / f"x{i}.png") for i in range(3))])

    assert found.white == 4095
    assert found.note.endswith("level 4095 is shown as white; 1 of 6 have pixels above it")
    assert mixed.white == 65535
    assert mixed.note.endswith("3 of 6 end below 8191.88: is that one range?")


def test_the_brightest_colour_of_each_pixel_and_the_largest_difference():
    colours = np.array([[[9, 2, 5], [7, 7, 7]], [[0, 0, 0], [1, 3, 2]], [[4, 4, 5], [8, 9, 9]]])

    tint, bright = tint_of(Image.fromarray(colours.astype(np.uint8)))

    assert tint == 9 - 2
    assert bright.tolist() == [[9, 7], [0, 3], [5, 9]]


def test_what_is_transparent_is_white_in_all_rows(tmp_path):
    pixels = np.zeros((6, 3, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 100, np.arange(6)[:, None] * 51  # opaque in the last row
    Image.fromarray(pixels).save(tmp_path / "a.png")

    found = np.asarray(read_picture(tmp_path / "a.png"))

    share = np.arange(6) / 5
    for channel, colour in enumerate((100, 0, 0)):
        expected = 255 + (colour - 255) * share
        assert np.abs(found[:, 1, channel] - expected).max() <= 1
    assert found[-1].tolist() == [[100, 0, 0]] * 3


def test_sixteen_bits_become_eight_in_all_rows(tmp_path):
    levels = np.arange(42, dtype=np.uint16).reshape(7, 6) * 97
    Image.fromarray(levels).save(tmp_path / "a.png")

    found = np.asarray(read_picture(tmp_path / "a.png", white=4095.0))

    expected = np.floor(levels.astype(float) * 255 / 4095 + 0.5)
    assert (found == expected[..., None]).all()
