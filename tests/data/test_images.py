"""Every sort of image file becomes the same sort of array, or is named."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaycad.data.images import (
    evenly_spaced,
    load_anomaly_mask,
    load_image,
    load_images,
    resize_image,
)
from replaycad.data.samples import Sample
from replaycad.data.views import WHOLE, View
from replaycad.errors import DatasetError


@dataclass(frozen=True)
class Named:
    """All that `load_images` asks of a sample."""

    path: Path
    view: View = WHOLE
    window: None = None


def save(picture, path, **options):
    """Write and return the path."""
    picture.save(path, **options)
    return path


def ramp(mode="RGB", size=(8, 8)):
    """A picture whose pixels all differ."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_rgb_of_the_right_size_is_read_unchanged(tmp_path):
    picture = ramp()

    image = load_image(save(picture, tmp_path / "a.png"), 8)

    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(picture))


def test_resizing_is_bilinear_straight_to_a_square(tmp_path):
    picture = ramp(size=(20, 10))

    image = load_image(save(picture, tmp_path / "a.png"), 4)

    assert np.array_equal(image, np.asarray(picture.resize((4, 4), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    picture = ramp(mode)

    image = load_image(save(picture, tmp_path / "a.png"), 8)

    assert np.array_equal(image[..., 0], np.asarray(picture.convert("L")))
    assert np.array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257], [25700, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(values), tmp_path / f"a.{suffix}")

    assert load_image(path, 2)[..., 0].tolist() == [[0, 1], [100, 255]]


def test_thirty_two_bit_integers_are_read_as_sixteen_bits(tmp_path):
    values = np.array([[0, 257], [25700, 65535]], dtype=np.int32)

    image = load_image(save(Image.fromarray(values), tmp_path / "a.tif"), 2)

    assert image[..., 1].tolist() == [[0, 1], [100, 255]]


def test_floating_point_is_refused(tmp_path):
    path = save(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), tmp_path / "a.tif")

    with pytest.raises(DatasetError, match=r"a\.tif holds floating-point"):
        load_image(path, 2)


def test_transparency_is_laid_over_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))

    image = load_image(save(picture.resize((2, 2), 0), tmp_path / "a.png"), 2)

    assert image[0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    image = load_image(save(Image.new("LA", (2, 2), (0, 0)), tmp_path / "a.png"), 2)

    assert (image == 255).all()


def test_palette_colours_are_looked_up(tmp_path):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])

    assert load_image(save(picture, tmp_path / "a.png"), 2)[0, 0].tolist() == [200, 100, 50]


def test_transparent_palette_entry_becomes_white(tmp_path):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])

    path = save(picture, tmp_path / "a.png", transparency=1)

    assert (load_image(path, 2) == 255).all()


def test_cmyk_is_converted(tmp_path):
    path = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)

    red = load_image(path, 8)[4, 4]

    assert red[0] > 245
    assert red[1] < 10


def test_camera_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 2))  # bright at the top of the sensor
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise for viewing

    image = load_image(save(picture, tmp_path / "a.png", exif=exif), 8)

    assert (image[:, 6:] == 255).all()
    assert (image[:, :6] == 0).all()


def test_names_with_unusual_characters_are_read(tmp_path):
    path = save(ramp(), tmp_path / "Größe 5% [é]#?.png")

    assert load_image(path, 8).shape == (8, 8, 3)


def read_mask(path, size):
    """A mask of an image that it is itself, so that shapes agree."""
    sample = Sample(
        path=path, image_id="m", class_name="nut", kind="bad", is_anomalous=True, mask_paths=(path,)
    )
    return load_anomaly_mask(sample, size)


@pytest.mark.parametrize("read", [load_image, read_mask])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"GIF89a is what it claims",
        lambda _: b"hello, this is text",
        lambda content: content[: len(content) // 2],
        lambda content: content[:20],
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_damaged_files_are_named(tmp_path, read, damage, suffix):
    path = save(ramp(size=(64, 64)), tmp_path / f"part.{suffix}")
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DatasetError, match=rf"part\.{suffix}"):
        read(path, 8)


@pytest.mark.filterwarnings("ignore")  # PIL warns about some damage that it can read past
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif", "webp", "ppm"])
def test_changed_bytes_are_read_or_named_but_never_crash(tmp_path, suffix):
    path = save(ramp(size=(16, 16)), tmp_path / f"part.{suffix}")
    content = path.read_bytes()
    outcomes = set()

    for seed in range(60):
        rng = np.random.default_rng(seed)
        changed = bytearray(content)
        for position in rng.integers(2, min(len(content), 400), size=4):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        try:
            outcomes.add(load_image(path, 8).shape)
        except DatasetError as failure:
            outcomes.add(str(path) in failure.message)

    assert outcomes <= {(8, 8, 3), True}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.png is not there"):
        load_image(tmp_path / "gone.png", 8)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read as an image"):
        load_image(tmp_path, 8)


def test_a_decompression_bomb_is_refused(tmp_path):
    def chunk(name, data):
        return (
            len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        )

    header = (40_000).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )

    with pytest.raises(DatasetError, match=r"bomb\.png has too many pixels"):
        load_image(path, 8)


def test_images_are_stacked_in_order_with_channels_first(tmp_path):
    pictures = [Image.new("RGB", (4, 4), (value, 0, 255 - value)) for value in (10, 20)]
    samples = [Named(save(p, tmp_path / f"{i}.png")) for i, p in enumerate(pictures)]

    images = load_images(samples, 4)

    assert images.shape == (2, 3, 4, 4)
    assert images[:, :, 0, 0].tolist() == [[10, 0, 245], [20, 0, 235]]


def test_no_samples_make_an_empty_stack():
    assert load_images([], 4).shape == (0, 3, 4, 4)


def test_mask_numbers_of_any_size_mean_defective(tmp_path):
    values = np.zeros((4, 4), dtype=np.uint8)
    values[1, 2] = 1  # VisA writes the number of the defect
    values[2, 2] = 255

    mask = read_mask(save(Image.fromarray(values), tmp_path / "m.png"), 4)

    assert mask.dtype == np.bool_
    assert np.array_equal(mask, values > 0)


def test_mask_is_cut_at_one_half_after_resizing(tmp_path):
    values = np.zeros((8, 8), dtype=np.uint8)
    values[:, :3] = 7
    path = save(Image.fromarray(values), tmp_path / "m.png")
    full = Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8))
    expected = np.asarray(full.resize((4, 4), Image.Resampling.BILINEAR)) / 255 > 0.5

    mask = read_mask(path, 4)

    assert np.array_equal(mask, expected)
    assert mask[:, 0].all()
    assert not mask[:, 2:].any()


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGBA", (4, 4), (0, 0, 0, 255)),
        Image.new("LA", (4, 4), (0, 255)),
        Image.new("I;16", (4, 4), 0),
        Image.new("1", (4, 4), 0),
    ],
)
def test_empty_masks_of_every_mode_are_empty(tmp_path, picture):
    assert not read_mask(save(picture, tmp_path / "m.png"), 4).any()


def test_a_palette_mask_goes_by_its_colours(tmp_path):
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    picture.putpixel((0, 0), 1)

    mask = read_mask(save(picture, tmp_path / "m.png"), 2)

    assert mask.tolist() == [[False, True], [True, True]]


def test_arrays_are_resized_like_files(tmp_path):
    picture = ramp(size=(16, 16))
    path = save(picture, tmp_path / "a.png")

    resized = resize_image(np.asarray(picture).transpose(2, 0, 1), 8)

    assert np.array_equal(resized.transpose(1, 2, 0), load_image(path, 8))


def test_images_that_stand_for_all_are_spread_evenly():
    assert evenly_spaced(9, 3).tolist() == [0, 4, 8]
    assert evenly_spaced(3, 9).tolist() == [0, 1, 2]
    assert evenly_spaced(5, 1).tolist() == [0]
    assert evenly_spaced(0, 4).tolist() == []
