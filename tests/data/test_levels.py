"""Which grey levels of a mask are the defect, whatever tool drew it."""

import numpy as np
import pytest
from PIL import Image

from replaycad.data.images import load_anomaly_mask, masks_cut
from replaycad.data.levels import Cut, cut_of, is_black, is_mask, num_levels
from replaycad.data.samples import Sample
from replaycad.errors import DatasetError


@pytest.fixture(autouse=True, params=[2**22, 5], ids=["whole", "in bands"])
def _pixels_at_once(request, monkeypatch):
    monkeypatch.setattr("replaycad.data.pixels.BAND", request.param)

TRUTH = np.zeros((16, 24), np.bool_)
TRUTH[5:11, 7:13] = True


def levels(low, high):
    return np.where(TRUTH, high, low).astype(np.uint8)


def palette():
    picture = Image.fromarray(np.where(TRUTH, 0, 1).astype(np.uint8), "P")
    picture.putpalette([200, 30, 30, 0, 0, 0])
    return picture


def transparent(level):
    rgba = np.full((*TRUTH.shape, 4), level, np.uint8)
    rgba[..., 3] = levels(0, 255)
    return Image.fromarray(rgba)


DRAWN = {
    "0/255": (lambda: Image.fromarray(levels(0, 255)), "png"),
    "0/1": (lambda: Image.fromarray(levels(0, 1)), "png"),
    "1/2": (lambda: Image.fromarray(levels(1, 2)), "png"),
    "236/255": (lambda: Image.fromarray(levels(236, 255)), "png"),
    "one bit": (lambda: Image.fromarray(TRUTH), "png"),
    "16 bits": (lambda: Image.fromarray(levels(0, 255).astype(np.uint16) * 257), "png"),
    "red": (lambda: Image.fromarray(np.stack([levels(0, 255), *[levels(0, 0)] * 2], -1)), "png"),
    "palette": (palette, "png"),
    "transparent white": (lambda: transparent(255), "png"),
    "transparent black": (lambda: transparent(0), "png"),
    "opaque": (lambda: Image.fromarray(levels(0, 255)).convert("RGBA"), "png"),
    "lossy": (lambda: Image.fromarray(levels(0, 255)), "jpg"),
}


def sample(tmp_path, *masks, picture=None, size=TRUTH.shape[::-1], **options):
    """An image with masks."""
    path = tmp_path / "photo.png"
    (picture or Image.new("RGB", size)).save(path, **options)
    return Sample(path=path, image_id="photo", class_name="nut", kind="bad", is_anomalous=True,
                  mask_paths=masks)  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_every_way_to_draw_a_mask_means_the_same(tmp_path, name):
    draw, ending = DRAWN[name]
    path = tmp_path / f"mask.{ending}"
    draw().save(path)

    cut = cut_of([[path]])
    found = load_anomaly_mask(sample(tmp_path, path), TRUTH.shape, cut)

    assert np.array_equal(found, TRUTH)
    assert not is_black([path], cut)
    assert is_mask(path)
    assert num_levels(path) == 2
    assert bool(cut.reason) == (name in ("1/2", "236/255", "lossy"))


def test_the_cut_is_that_of_the_class(tmp_path):
    """A mask of level 1 alone shows nothing where others have 1 and 2."""
    empty, drawn = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(levels(1, 1)).save(empty)
    Image.fromarray(levels(1, 2)).save(drawn)

    cut = cut_of([[empty], [drawn]])

    assert cut == Cut(above=1, reason="levels 1, 2, of which 1 is taken as normal")
    assert is_black([empty], cut)
    assert cut_of([[empty]]) == Cut(), "alone it is a defect that fills the picture"
    assert cut_of([]) == Cut()


def test_numbered_defects_are_all_defective(tmp_path):
    values = np.zeros((16, 24), np.uint8)
    values[0, :6] = (1, 2, 3, 4, 5, 9)
    path = tmp_path / "m.png"
    Image.fromarray(values).save(path)

    cut = cut_of([[path]])

    assert cut == Cut()
    assert load_anomaly_mask(sample(tmp_path, path), TRUTH.shape, cut).sum() == 6


def test_blurred_masks_are_cut_in_the_middle(tmp_path):
    path = tmp_path / "m.png"
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
    ramp[:, -4:] = (241, 243, 247, 250)
    noise = np.add.outer(np.arange(16), np.zeros(24)).astype(np.uint8)
    Image.fromarray(np.minimum(ramp + noise % 5, 250).astype(np.uint8)).save(path)

    cut = cut_of([[path]])

    assert cut.middle == 125.0
    assert "cut at 125" in cut.reason


def test_a_lossy_mask_does_not_cut_drawn_ones(tmp_path):
    drawn, lossy = tmp_path / "a.png", tmp_path / "b.jpg"
    Image.fromarray(levels(0, 1)).save(drawn)
    Image.fromarray(levels(0, 255)).save(lossy)

    cut = cut_of([[drawn], [lossy]])

    for path in (drawn, lossy):
        assert np.array_equal(load_anomaly_mask(sample(tmp_path, path), TRUTH.shape, cut), TRUTH)


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 255), (250, 250, 0)])
def test_where_no_colour_is_black_the_most_frequent_is_normal(tmp_path, ground):
    path = tmp_path / "m.png"
    values = np.where(TRUTH[..., None], (255, 0, 0), ground).astype(np.uint8)
    Image.fromarray(values).save(path)

    cut = cut_of([[path]])

    assert np.array_equal(load_anomaly_mask(sample(tmp_path, path), TRUTH.shape, cut), TRUTH)


def test_masks_of_several_pages_are_refused(tmp_path):
    page = Image.fromarray(levels(0, 255))
    page.save(tmp_path / "m.tif", save_all=True, append_images=[page])

    with pytest.raises(DatasetError, match="holds several pages"):
        cut_of([[tmp_path / "m.tif"]])


def test_several_masks_of_an_image_are_one(tmp_path):
    left, right = np.zeros((2, 16, 24), np.uint8)
    left[:, :3], right[:, -3:] = 255, 255
    paths = (tmp_path / "l.png", tmp_path / "r.png")
    for values, path in zip((left, right), paths, strict=True):
        Image.fromarray(values).save(path)

    found = load_anomaly_mask(sample(tmp_path, *paths), TRUTH.shape)

    assert np.array_equal(found, (left | right) > 0)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_as_stored_is_turned_with_its_image(tmp_path, orientation):
    """A mask that fits the turned image alone is turned; one that fits the shown is not."""
    stored, shown = tmp_path / "stored.png", tmp_path / "shown.png"
    Image.fromarray(levels(0, 255)).save(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.stack([levels(0, 255)] * 3, -1))
    one = sample(tmp_path, stored, picture=picture, exif=exif)
    turns = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
             7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}  # fmt: skip
    expected = Image.fromarray(levels(0, 255)).transpose(turns[orientation])
    expected.save(shown)

    wanted = np.asarray(expected) > 0
    assert np.array_equal(load_anomaly_mask(one, (24, 16)), wanted)
    other = sample(tmp_path, shown, picture=picture, exif=exif)
    assert np.array_equal(load_anomaly_mask(other, (24, 16)), wanted)


@pytest.mark.parametrize("orientation", [3, 6])
def test_one_mask_that_fits_as_stored_alone_tells_of_all(tmp_path, orientation):
    """A square photo, or one upside down, does not say how its mask was drawn."""
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    samples = []
    for name, size, own in (("a", (24, 16), 6), ("b", (16, 16), orientation)):
        drawn = Image.new("L", size)
        drawn.paste(255, (1, 2, 6, 5))
        exif[0x0112] = own
        Image.new("RGB", size).save(tmp_path / f"{name}.png", exif=exif)
        drawn.save(tmp_path / f"{name}_mask.png")
        samples.append(Sample(
            path=tmp_path / f"{name}.png", image_id=name, class_name="nut", kind="bad",
            is_anomalous=True, mask_paths=(tmp_path / f"{name}_mask.png",),
        ))  # fmt: skip

    cut = masks_cut(samples)
    alone = masks_cut(samples[1:])

    with Image.open(samples[1].mask_paths[0]) as mask:
        expected = np.asarray(mask.transpose(turned[orientation])) > 0
        shown = np.asarray(mask) > 0
    assert np.array_equal(load_anomaly_mask(samples[1], 16, cut), expected)
    assert cut.reason == "to be turned with their photos"
    assert np.array_equal(load_anomaly_mask(samples[1], 16, alone), shown)
    assert alone.reason == "to be read as photos are shown, turned upright"


@pytest.mark.parametrize("size", [(24, 8), (12, 16), (16, 24), (24, 13)])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(tmp_path, size):
    path = tmp_path / "m.png"
    Image.new("L", size).save(path)

    with pytest.raises(DatasetError, match=rf"m\.png has {size[0]} x {size[1]} px.* 24 x 16"):
        load_anomaly_mask(sample(tmp_path, path), 16)


@pytest.mark.parametrize("size", [(12, 8), (48, 32), (7, 5), (25, 16), (1000, 667)])
def test_a_mask_of_another_size_and_the_same_shape_is_resized(tmp_path, size):
    path = tmp_path / "m.png"
    Image.new("L", size, 255).save(path)

    assert load_anomaly_mask(sample(tmp_path, path), (16, 24)).all()


def test_photos_are_no_masks(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values // 64 * 64).save(tmp_path / "b.png")

    assert not is_mask(tmp_path / "a.png")
    assert num_levels(tmp_path / "b.png") == 4


def test_of_many_levels_the_lowest_and_the_highest_count(tmp_path):
    levels = np.arange(200, dtype=np.uint8).reshape(20, 10) + 20
    Image.fromarray(levels[::-1]).save(tmp_path / "a.png")

    assert cut_of([[tmp_path / "a.png"]]).middle == (20 + 219) / 2
