"""The procedural world: pure in its seeds, exact in its labels, closed in its words."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaycad.errors import ConfigError
from replaycad.mini.world import pictures
from replaycad.mini.world.fields import Dice, spline_noise, voronoi
from replaycad.mini.world.shapes import box, circle, segment

SEEDS = range(14)


def first_class(wanted_surface: bool) -> pictures.ClassSpec:
    """Return the first class that is, or is not, a surface."""
    specs = map(pictures.draw_class, SEEDS)
    return next(spec for spec in specs if spec.is_surface == wanted_surface)


def test_same_seeds_give_the_same_picture() -> None:
    first = pictures.draw(pictures.draw_class(7), 3, 48)
    second = pictures.draw(pictures.draw_class(7), 3, 48)

    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.object_mask, second.object_mask)


def test_other_seeds_give_other_pictures() -> None:
    spec = pictures.draw_class(7)

    assert not np.array_equal(pictures.draw(spec, 0, 48).image, pictures.draw(spec, 1, 48).image)
    assert not np.array_equal(
        pictures.draw(spec, 0, 48).image, pictures.draw(pictures.draw_class(8), 0, 48).image
    )


def test_drawing_order_does_not_matter() -> None:
    spec = pictures.draw_class(11)
    alone = pictures.draw(spec, 5, 48).image
    pictures.draw(pictures.draw_class(12), 0, 48, "any")

    assert np.array_equal(pictures.draw(spec, 5, 48).image, alone)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_class_has_sound_labels(seed: int) -> None:
    spec = pictures.draw_class(seed)
    picture = pictures.draw(spec, 1, 48)

    assert picture.image.shape == (48, 48, 3)
    assert picture.image.dtype == np.uint8
    assert picture.object_mask.dtype == bool
    assert picture.object_mask.any()
    assert not picture.anomaly_mask.any()
    assert picture.defect is None
    assert set(picture.caption.split()) <= set(pictures.VOCABULARY)
    assert len(picture.caption.split()) <= 12
    assert spec.defects


@pytest.mark.parametrize("seed", SEEDS)
def test_a_defect_changes_only_its_surroundings(seed: int) -> None:
    spec = pictures.draw_class(seed)
    good = pictures.draw(spec, 2, 64)
    bad = pictures.draw(spec, 2, 64, "any")
    change = np.abs(good.image.astype(int) - bad.image.astype(int)).max(axis=2)
    rows, columns = np.nonzero(bad.anomaly_mask)
    far = np.ones((64, 64), dtype=bool)
    for row, column in zip(rows, columns, strict=True):
        far[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5] = False

    assert bad.defect in spec.defects
    assert bad.anomaly_mask.any()
    assert change[bad.anomaly_mask].mean() > 8
    assert not change[far].any()
    assert np.array_equal(good.object_mask, bad.object_mask)


def test_every_named_defect_can_be_drawn() -> None:
    specs = {spec.family: spec for spec in map(pictures.draw_class, SEEDS)}

    for spec in specs.values():
        for defect in spec.defects:
            picture = pictures.draw(spec, 0, 32, defect)
            assert picture.defect == defect
            assert picture.anomaly_mask.any()


def test_a_surface_fills_the_frame_and_a_part_does_not() -> None:
    assert pictures.draw(first_class(True), 0, 32).object_mask.all()
    assert not pictures.draw(first_class(False), 0, 32).object_mask.all()


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 8, 13])
def test_a_larger_picture_shows_the_same_thing(seed: int) -> None:
    spec = pictures.draw_class(seed)
    small = pictures.draw(spec, 4, 64)
    large = pictures.draw(spec, 4, 128)
    shrunk = np.asarray(Image.fromarray(large.image).resize((64, 64), Image.Resampling.BOX))
    mask = np.asarray(Image.fromarray(large.object_mask).resize((64, 64), Image.Resampling.NEAREST))

    assert np.abs(shrunk.astype(int) - small.image.astype(int)).mean() < 25
    assert (mask == small.object_mask).mean() > 0.95


def test_about_a_third_of_the_classes_are_grey_and_families_are_many() -> None:
    specs = [pictures.draw_class(seed) for seed in range(250)]
    grey = np.mean([spec.light.is_grey for spec in specs])

    assert 0.25 < grey < 0.45
    assert len({spec.family for spec in specs}) >= 25


def test_a_grey_class_has_equal_channels() -> None:
    spec = next(spec for spec in map(pictures.draw_class, SEEDS) if spec.light.is_grey)
    image = pictures.draw(spec, 0, 32).image

    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])


def test_wrong_requests_are_refused() -> None:
    spec = pictures.draw_class(0)

    with pytest.raises(ConfigError, match="does not fit"):
        pictures.draw(spec, 0, 32, "melancholy")
    with pytest.raises(ConfigError, match="class_seed"):
        pictures.draw_class(-1)
    with pytest.raises(ConfigError, match="image_seed"):
        pictures.draw(spec, -1)
    with pytest.raises(ConfigError, match="size"):
        pictures.draw(spec, 0, 4)


def test_the_data_set_has_the_mvtec_layout(tmp_path: Path) -> None:
    seed = pictures.HELD_OUT_SEED + 3

    pictures.write_dataset(tmp_path, {"widget": seed}, 3, 2, 4, seed=0, size=32)

    root = tmp_path / "widget"
    names = [f"{number:03d}.png" for number in range(3)]
    assert sorted(path.name for path in (root / "train" / "good").iterdir()) == names
    assert len(list((root / "test" / "good").iterdir())) == 2
    defective = [path for path in root.glob("test/*/*.png") if path.parent.name != "good"]
    assert len(defective) == 4
    for path in defective:
        label = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        pixels = np.asarray(Image.open(label))
        assert set(np.unique(pixels)) == {0, 255}
        assert Image.open(path).size == (32, 32)


def test_signed_distances_match_hand_worked_values() -> None:
    u = np.array([[0.0, 2.0, 0.0]], dtype=np.float32)
    v = np.array([[0.0, 0.0, 3.0]], dtype=np.float32)

    assert circle(u, v, 1.0).tolist() == [[-1.0, 1.0, 2.0]]
    assert box(u, v, 1.0, 0.5).tolist() == [[-0.5, 1.0, 2.5]]
    assert segment(u, v, (0, 0), (2, 0), 0.5).tolist() == [[-0.5, -0.5, 2.5]]


def test_noise_is_unit_and_a_window_cuts_the_same_field() -> None:
    whole = slice(0, 64)
    full = spline_noise(Dice(1, 2), 64, 20, 20, whole, whole)
    part = spline_noise(Dice(1, 2), 64, 20, 20, slice(8, 24), slice(4, 9))

    assert 0.8 < full.std() < 1.2
    assert full.dtype == np.float32
    assert np.allclose(full[8:24, 4:9], part, atol=1e-5)


def test_cells_without_jitter_form_the_square_lattice() -> None:
    u = np.array([[0.5, 1.0]], dtype=np.float32)
    v = np.array([[0.5, 0.5]], dtype=np.float32)

    first, second, _ = voronoi(u, v, Dice(0, 1).uniforms(4, 4, 2), 0.0)

    assert np.allclose(first, [[0.0, 0.5]])
    assert np.allclose(second, [[1.0, 0.5]])
