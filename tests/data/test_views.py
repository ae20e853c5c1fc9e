"""How a picture becomes what the networks see, and how their maps become one map again."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from replaycad.data.images import Reader, load_counted, load_images, read_ignored, viewed
from replaycad.data.layouts import train_samples
from replaycad.data.stitching import MapFile, Stitched, stitched_maps
from replaycad.data.views import BLANK, View, packed, shared_view, view_of
from replaycad.errors import ArtifactError, DatasetError


def picture(width, height, seed=0):
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ignoring(width, height, left, top, right, bottom):
    """What `View.ignore` keeps of one white rectangle."""
    ignored = np.zeros((height, width), np.bool_)
    ignored[top:bottom, left:right] = True
    return packed(ignored)


def boxes(view, width, height):
    return [window.box for window in view.windows(width, height)]


def test_a_square_picture_is_seen_as_ever():
    square = picture(40, 40)

    for fit in ("pad", "squash"):
        (window,) = View(fit=fit).windows(40, 40)
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR))
        assert np.array_equal(window.pixels(square, 16), expected)
        assert View(fit=fit).counted(window, 40, 40, 16) is None


def test_tiles_reach_both_borders_and_share_an_eighth_at_least():
    # 7 steps of at most 224 px fit into the 1,792 px beside one tile: 8, so 9 tiles a side
    found = boxes(View(tile=256), 2048, 2048)
    assert len(found) == 81
    assert found[0] == (0, 0, 256, 256)
    assert found[1] == (224, 0, 480, 256)
    assert found[-1] == (1792, 1792, 2048, 2048)

    assert boxes(View(tile=64), 64, 64) == [(0, 0, 64, 64)]
    assert boxes(View(tile=64), 65, 64) == [(0, 0, 64, 64), (1, 0, 65, 64)]
    for length in range(64, 400):
        lefts = [box[0] for box in boxes(View(tile=64), length, 64)]
        assert lefts[0] == 0
        assert lefts[-1] + 64 == length
        assert all(0 < b - a <= 56 for a, b in pairwise(lefts))


def test_a_tile_is_cut_at_native_resolution():
    whole = picture(100, 90)

    window = View(tile=32).windows(100, 90)[1]

    left, top, right, bottom = window.box
    assert np.array_equal(window.pixels(whole, 32), np.asarray(whole)[top:bottom, left:right])


def test_a_tile_larger_than_the_picture_is_refused_in_one_line():
    with pytest.raises(DatasetError, match="128 px is larger than a picture of 100 x 90 px") as got:
        View(tile=128).windows(100, 90)
    assert "--tile 100" in got.value.hint
    assert boxes(View(tile=100), 100, 90) == [(0, 0, 100, 90)], "padded where it is smaller"


def test_padding_goes_on_with_the_border_and_does_not_count():
    wide = Image.fromarray(np.repeat(np.arange(10, 30, dtype=np.uint8)[:, None, None], 40, 1)
                           .repeat(3, 2))  # fmt: skip
    (window,) = View(fit="pad").windows(40, 20)

    pixels = window.pixels(wide, 40)

    assert window.place(40) == (0, 10, 40, 30)
    assert (pixels[10:30] == np.asarray(wide)).all(), "the picture keeps its shape"
    assert (pixels[:10] == 10).all()
    assert (pixels[30:] == 29).all()
    counted = View(fit="pad").counted(window, 40, 20, 40)
    assert counted.sum() == 800
    assert counted[10:30].all()
    (squashed,) = View().windows(40, 20)
    expected = np.asarray(wide.resize((40, 40), Image.Resampling.BILINEAR))
    assert np.array_equal(squashed.pixels(wide, 40), expected)


def test_ignored_pixels_are_blank_whatever_they_show():
    view = View(fit="pad", ignore=ignoring(40, 40, 4, 8, 12, 16))
    pictures = [picture(40, 40), picture(40, 40)]
    pictures[1].paste((255, 0, 255), (4, 8, 12, 16))

    one, other = (np.asarray(view.blanked(each, "a.png")) for each in pictures)

    assert np.array_equal(one, other)
    assert (one[8:16, 4:12] == BLANK).all()
    assert np.array_equal(one[16:], np.asarray(pictures[0])[16:])
    (window,) = view.windows(40, 40)
    counted = view.counted(window, 40, 40, 20)
    assert counted.sum() == 400 - 16
    assert not counted[4:8, 2:6].any()
    # 8 cells of 5 px: 4..12 touches three of them, 8..16 three more; a touched one does not count
    assert view.counted(window, 40, 40, 8).sum() == 64 - 9
    with pytest.raises(DatasetError, match=r"a\.png has 50 x 40 px"):
        view.blanked(picture(50, 40), "a.png")


def test_tiles_know_what_is_ignored_in_them():
    view = View(tile=32, ignore=ignoring(60, 32, 0, 0, 30, 32))
    left, right = view.windows(60, 32)

    assert left.box[0] == 0
    assert right.box[0] == 28
    assert view.counted(left, 60, 32, 32).sum() == 32 * 2
    assert view.counted(right, 60, 32, 32).sum() == 32 * 30


def test_maps_that_agree_are_stitched_without_a_seam():
    """A map that is a function of the place in the picture comes back as that function."""
    view, size = View(tile=64), 64
    height, width = 150, 230
    truth = np.add.outer(np.arange(height), 2 * np.arange(width)).astype(np.float32)
    stitched = Stitched(view, width, height, size)

    for window in stitched.windows:
        left, top, right, bottom = window.box
        stitched.add(window, truth[top:bottom, left:right])

    assert stitched.shape == (height, width)
    np.testing.assert_allclose(stitched.whole(), truth, rtol=1e-5)


def test_where_tiles_disagree_one_fades_into_the_other():
    """By hand: a left tile of ones and a right one of threes, 16 px shared of 64 + 64."""
    view = View(tile=64)
    stitched = Stitched(view, 112, 64, 64)
    left, right = stitched.windows
    stitched.add(left, np.ones((64, 64), np.float32))
    stitched.add(right, np.full((64, 64), 3, np.float32))

    row = stitched.whole()[30]

    assert (row[:48] == 1).all()
    assert (row[64:] == 3).all()
    # n-th shared pixel: weights (15.5 - n) / 16 and (n + 0.5) / 16
    expected = 1 + 2 * (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(row[48:64], expected, rtol=1e-5)
    assert np.abs(np.diff(row)).max() < 0.13, "no step is a seam"


def test_a_defect_across_a_tile_border_is_whole_in_the_map():
    view, size = View(tile=64), 64
    shown = np.full((64, 112, 3), 100, np.uint8)
    shown[28:36, 50:62] = 255  # begins in both tiles, ends in both

    def brightness(images):
        return images[..., 0].astype(np.float32)

    ((_, stitched),) = stitched_maps([("a", Image.fromarray(shown))], view, size, 8, brightness)

    assert np.array_equal(stitched.whole() > 200, shown[..., 0] == 255)


def test_a_large_picture_has_a_bounded_map_in_its_shape():
    stitched = Stitched(View(tile=256), 4096, 2048, 256)
    assert stitched.shape == (512, 1024)
    stitched = Stitched(View(tile=512), 1000, 900, 256)
    assert stitched.shape == (450, 500), "no finer than the detector's own maps"
    assert Stitched(View(fit="pad"), 640, 120, 256).shape == (48, 256)
    assert Stitched(View(), 640, 120, 256).shape == (256, 256)


def test_a_map_at_half_the_size_keeps_its_places():
    view, side = View(tile=256), 2048
    stitched = Stitched(view, side, side, 256)
    spots = np.zeros((side, side), np.float32)
    spots[1000:1020, 300:320] = 1
    for window in stitched.windows:
        left, top, right, bottom = window.box
        stitched.add(window, spots[top:bottom, left:right])

    found = stitched.whole() > 0.5

    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (500, 509, 150, 159)


def test_neither_padding_nor_ignored_pixels_can_be_the_highest():
    view = View(fit="pad", ignore=ignoring(40, 20, 0, 0, 10, 20))
    stitched = Stitched(view, 40, 20, 40)
    one_map = np.zeros((40, 40), np.float32)
    one_map[0, 0] = 9  # padding
    one_map[15, 5] = 8  # ignored
    one_map[15, 25] = 3
    one_map += 1
    stitched.add(stitched.windows[0], one_map)

    (part,) = stitched.parts(stitched.whole())

    assert part.shape == (40, 40)
    assert part.max() == 4
    assert part.min() == 1


def test_pictures_are_done_one_after_another_in_batches_of_windows():
    sizes = []

    def count(images):
        sizes.append(len(images))
        return images[..., 0].astype(np.float32)

    shown = [(number, picture(112, 64, number)) for number in range(5)]
    found = list(stitched_maps(shown, View(tile=64), 64, 4, count))

    assert [key for key, _ in found] == [0, 1, 2, 3, 4]
    assert sizes == [4, 4, 2]
    for (_, stitched), (_, one) in zip(found, shown, strict=True):
        expected = np.asarray(one)[..., 0].astype(np.float32)
        np.testing.assert_allclose(stitched.whole(), expected, rtol=1e-4)


def test_no_more_than_a_picture_waits_for_its_windows():
    """A picture is asked for only when the windows of those before are on their way."""
    asked = []

    def pictures():
        for number in range(6):
            asked.append(number)
            yield number, picture(64, 64, number)

    maps = stitched_maps(pictures(), View(tile=64), 64, 2, lambda images: images[..., 0] / 1.0)

    assert next(maps)[0] == 0
    assert asked == [0, 1]


def test_tiles_are_samples_and_a_picture_is_decoded_once(tmp_path, monkeypatch):
    folder = tmp_path / "plate" / "train" / "good"
    folder.mkdir(parents=True)
    for number in range(2):
        picture(112, 64, number).save(folder / f"{number}.png")
    samples = train_samples(tmp_path, "plate")
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or original(*a, **k))

    tiles = viewed(samples, View(tile=64))
    opened.clear()
    images = load_images(tiles, 64)

    assert [tile.image_id for tile in tiles] == [
        "train/good/0.png#0,0", "train/good/0.png#48,0",
        "train/good/1.png#0,0", "train/good/1.png#48,0",
    ]  # fmt: skip
    assert len(opened) == 2
    expected = np.asarray(picture(112, 64, 1))[:, 48:].transpose(2, 0, 1)
    assert np.array_equal(images[3], expected)
    assert load_counted(tiles, 64) is None


def test_of_very_many_tiles_as_many_are_taken_evenly(tmp_path):
    folder = tmp_path / "plate"
    folder.mkdir()
    for number in range(4):
        picture(64, 64, number).save(folder / f"{number}.png")
    samples = train_samples(tmp_path, "plate")

    tiles = viewed(samples, View(tile=32), limit=8)

    assert len(tiles) == 8
    assert len({tile.path for tile in tiles}) == 4


def test_a_picture_that_a_camera_laid_on_its_side_is_tiled_upright(tmp_path):
    folder = tmp_path / "plate"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(112, 64).save(folder / "a.jpg", exif=exif)

    tiles = viewed(train_samples(tmp_path, "plate"), View(tile=64))

    assert [tile.window.box for tile in tiles] == [(0, 0, 64, 64), (0, 48, 64, 112)]
    assert Reader().picture(tiles[0]).size == (64, 112)


def test_the_picture_of_what_is_ignored_is_no_training_image(tmp_path):
    folder = tmp_path / "plate"
    folder.mkdir()
    picture(32, 32).save(folder / "a.png")
    Image.new("L", (32, 32)).save(folder / "ignore.png")

    assert [one.image_id for one in train_samples(tmp_path, "plate")] == ["a.png"]


def test_all_ignored_is_refused_and_nothing_is_nothing(tmp_path):
    Image.new("L", (32, 32), 255).save(tmp_path / "white.png")
    Image.new("L", (32, 32)).save(tmp_path / "black.png")
    shown = Image.new("L", (32, 32))
    shown.putpixel((3, 4), 1)
    shown.save(tmp_path / "dim.png")

    with pytest.raises(DatasetError, match="all of a picture is ignored"):
        read_ignored(tmp_path / "white.png")
    assert read_ignored(tmp_path / "black.png") == b""
    found = View(ignore=read_ignored(tmp_path / "dim.png"))
    assert found.size == (32, 32)
    assert np.argwhere(np.asarray(found.mask_for(32, 32, "a"))).tolist() == [[4, 3]]


@pytest.mark.parametrize(
    "view",
    [View(), View(tile=256, num_tiles=81), View(fit="pad"),
     View(tile=32, fit="pad", ignore=ignoring(40, 20, 1, 2, 3, 4))],
)  # fmt: skip
def test_a_view_survives_a_header(view):
    found = View.from_dict(view.as_dict())

    assert found == view
    assert found.num_tiles == view.num_tiles


def test_a_header_without_a_view_means_a_whole_picture_squashed():
    assert View.from_dict(None) == View(tile=0, fit="squash")
    assert View().as_dict() == {}
    assert view_of({"class_order": ["a"]}, "a") == View()


@pytest.mark.parametrize(
    "values",
    [{"tile": -1}, {"tile": "256"}, {"fit": "stretch"}, {"other": 1}, [], 7, {"ignore": "???"},
     {"ignore": "aGVsbG8="}, {"tile": True}],
)  # fmt: skip
def test_a_damaged_view_is_refused(values):
    with pytest.raises(ArtifactError, match="a view of pictures is"):
        View.from_dict(values)


def test_a_detector_shares_a_view_or_does_not():
    header = {"class_order": ["a", "b"], "views": {"a": {"tile": 64}, "b": {"tile": 64}}}
    assert shared_view(header) == View(tile=64)
    header["views"]["b"] = {}
    assert shared_view(header) is None
    assert view_of(header, "a") == View(tile=64)
    assert view_of(header, "new") == View()


def test_maps_of_any_shape_wait_in_a_file():
    kept = MapFile()
    first, second = np.arange(6.0).reshape(2, 3), np.ones((4, 1), np.bool_)
    kept.append(first)
    kept.append(second)

    assert len(kept) == 2
    assert np.array_equal(kept[0], first)
    assert np.array_equal(kept[1], second)
    assert kept[1].dtype == np.bool_
    assert [one.shape for one in kept] == [(2, 3), (4, 1)]
