"""Scores of a detector whose maps are the pictures themselves, against figures worked by hand."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.config.stages import EvalConfig
from replaycad.data.views import View, packed
from replaycad.inference.predict import DetectorGraph
from replaycad.stages.eval import evaluate
from tests.stages.stubs import SIDE, Mirror, Plain, dots, mirror_artifact, write_sample


@pytest.fixture(autouse=True)
def mirror(monkeypatch):
    """The detector that every artifact is rebuilt as."""
    built = Mirror()
    monkeypatch.setattr("replaycad.stages.eval.build_detector", lambda *_: built)
    return built


def bolts(folder):
    """Two good images (10 and 30 at most) and two defective ones (20 and 40), good ones second."""
    return [
        write_sample(
            folder / "bolt", "cut", dots((1, 1, 20), (1, 2, 20)), dots((1, 1, 255), (1, 2, 255))
        ),
        write_sample(folder / "bolt", "dark", dots((0, 3, 10))),
        write_sample(folder / "bolt", "dull", dots((2, 0, 30))),
        write_sample(folder / "bolt", "hole", dots((3, 3, 40)), dots((3, 3, 255))),
    ]


def nuts(folder):
    """One good and one defective image, told apart without fault."""
    return [
        write_sample(folder / "nut", "bent", dots((0, 0, 9)), dots((0, 0, 255))),
        write_sample(folder / "nut", "fine", dots((0, 0, 5))),
    ]


def scored(samples, config=EvalConfig(batch_size=3), trained=None):  # noqa: B008
    return evaluate(samples, trained or mirror_artifact(), Plain(), config, {})


def test_a_defect_that_nobody_drew_counts_for_image_figures_alone(tmp_path):
    """The hole has no mask: its pixels are neither defective nor normal."""
    samples = bolts(tmp_path)
    samples[3] = replace(samples[3], mask_paths=())

    found = scored({"bolt": samples}).metrics["classes"]["bolt"]

    assert found["image_auroc"] == 0.75
    # The two pixels of the cut (20) come behind one normal pixel of 30; the hole's 40 is in no
    # figure, and would make a half of the two thirds.
    assert found["pixel_ap"] == pytest.approx(2 / 3)
    assert found["pixel_auroc"] == pytest.approx(45 / 46)
    none = scored({"bolt": [replace(one, mask_paths=()) for one in samples]})
    figures = none.metrics["classes"]["bolt"]
    assert figures["image_auroc"] == 0.75
    assert math.isnan(figures["pixel_ap"])


def test_implausible_masks_are_told(tmp_path):
    samples = bolts(tmp_path)
    Image.new("L", (SIDE, SIDE)).save(samples[0].mask_paths[0])
    heard = Heard()

    evaluate({"bolt": samples}, mirror_artifact(), Plain(), EvalConfig(), {}, heard)

    assert heard.notes == ["bolt: 1 anomaly mask is empty (cut)"]


def test_masks_of_levels_one_and_two_are_cut_between(tmp_path):
    samples = bolts(tmp_path)
    for sample in samples:
        for path in sample.mask_paths:
            with Image.open(path) as mask:
                drawn = (np.asarray(mask) > 0).astype(np.uint8) + 1
            Image.fromarray(drawn).save(path)

    found = scored({"bolt": samples}).metrics["classes"]["bolt"]

    assert found["pixel_ap"] == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 4)


class Heard:
    """A report that remembers the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def step(self, *_):
        """Progress is of no interest."""


def test_figures_of_a_class_are_those_worked_by_hand(tmp_path):
    found = scored({"bolt": bolts(tmp_path)}).metrics["classes"]["bolt"]

    # Of four pairs one is lost: the cut of 20 against the dull one of 30.
    assert found["image_auroc"] == 0.75
    # The hole's pixel comes first; the two of the cut come behind one normal pixel of 30.
    assert found["pixel_ap"] == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 4)
    # 61 normal pixels: the hole is above all of them, each pixel of the cut above all but one.
    assert found["pixel_auroc"] == pytest.approx((61 + 60 + 60) / (3 * 61))
    # At 20 four pixels are called defective and three are.
    assert found["f1_max"] == pytest.approx(2 * 3 / (4 + 3))
    # Half of the overlap (the hole) is there at once, the other half from 1/61 on.
    assert found["aupro30"] == pytest.approx(1 - 0.5 / 61 / 0.3)


def test_rows_come_class_by_class_in_the_order_given(tmp_path):
    found = scored({"nut": nuts(tmp_path), "bolt": bolts(tmp_path)})

    assert found.classes == ["nut", "bolt"]
    assert found.class_index.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.image_ids == ["bent", "fine", "cut", "dark", "dull", "hole"]
    assert found.image_labels.tolist() == [1, 0, 1, 0, 0, 1]
    assert found.image_scores.tolist() == [9, 5, 20, 10, 30, 40]


def test_the_mean_counts_each_class_once_however_many_images_it_has(tmp_path):
    found = scored({"nut": nuts(tmp_path), "bolt": bolts(tmp_path)}).metrics

    assert found["classes"]["nut"]["image_auroc"] == found["classes"]["nut"]["pixel_ap"] == 1.0
    assert found["mean"]["image_auroc"] == (1.0 + 0.75) / 2
    assert found["mean"]["pixel_ap"] == pytest.approx((1.0 + 5 / 6) / 2)


def test_the_maps_that_are_kept_are_those_of_their_images(tmp_path):
    maps = scored({"bolt": bolts(tmp_path)}, EvalConfig(batch_size=1, keep_maps=True)).anomaly_maps

    assert maps.dtype == np.float16
    assert maps[0].tolist() == dots((1, 1, 20), (1, 2, 20)).tolist()
    assert maps[2].tolist() == dots((2, 0, 30)).tolist()
    assert scored({"bolt": bolts(tmp_path)}).anomaly_maps is None


def test_the_stored_parameters_are_those_that_score(tmp_path):
    found = scored({"nut": nuts(tmp_path)}, trained=mirror_artifact(gain=2.0))

    assert found.image_scores.tolist() == [18, 10]


def test_a_detector_says_itself_what_the_score_of_a_map_is(mirror, tmp_path):
    mirror.image_scores = lambda maps: maps.sum((1, 2))

    assert scored({"bolt": bolts(tmp_path)}).image_scores.tolist() == [40, 10, 30, 40]


def test_pixels_of_a_detector_that_does_not_localize_are_not_judged(mirror, tmp_path):
    mirror.localizes = False

    found = scored({"nut": nuts(tmp_path)}).metrics

    assert found["classes"]["nut"]["image_auroc"] == 1.0
    assert math.isnan(found["classes"]["nut"]["pixel_ap"])


def test_what_a_class_does_not_define_is_left_out_of_the_mean_and_told(tmp_path):
    told = []

    class Notes:
        def note(self, text):
            told.append(text)

        def step(self, *_args, **_values):
            pass

    good = [write_sample(tmp_path / "cap", "fine", dots((0, 0, 5)))]
    samples = {"cap": good, "nut": nuts(tmp_path)}
    found = evaluate(samples, mirror_artifact(), Plain(), EvalConfig(), {}, Notes())

    assert found.metrics["mean"]["image_auroc"] == 1.0
    assert "image_auroc is not defined for cap; the mean leaves them out" in told


def test_an_image_is_defective_because_its_folder_says_so_even_without_a_mask(tmp_path):
    images = [
        write_sample(tmp_path / "nut", "bent", dots((0, 0, 9)), is_anomalous=True),
        write_sample(tmp_path / "nut", "empty", dots((0, 0, 8)), dots()),
        write_sample(tmp_path / "nut", "fine", dots((0, 0, 5))),
    ]

    found = scored({"nut": images})

    assert found.image_labels.tolist() == [1, 1, 0]
    assert found.metrics["classes"]["nut"]["image_auroc"] == 1.0
    assert math.isnan(found.metrics["classes"]["nut"]["pixel_ap"])


def test_a_mask_twice_as_large_is_halved_and_every_number_in_it_is_a_defect(tmp_path):
    # Four pixels (VisA numbers its defects) become one; a lone one, where a halving that only
    # picks pixels would look, none.
    mask = dots((4, 2, 1), (4, 3, 1), (5, 2, 3), (5, 3, 3), (1, 7, 1), side=2 * SIDE)
    image = write_sample(tmp_path / "nut", "bent", dots((2, 1, 9)), mask)

    found = scored({"nut": [image]}).metrics["classes"]["nut"]

    assert found["pixel_ap"] == found["pixel_auroc"] == found["f1_max"] == 1.0


def test_a_verdict_is_by_the_thresholds_of_the_class_that_is_named():
    def limits(start):
        return {"typical_image": start, "image": start + 10, "typical_pixel": 0, "pixel": start}

    thresholds = {**limits(10), "by_class": {"bolt": limits(20), "nut": limits(30)}}
    graph = DetectorGraph(mirror_artifact(thresholds=thresholds), Plain())
    image = torch.full((1, 3, SIDE, SIDE), 30, dtype=torch.uint8)

    judged = {"": graph, "bolt": graph.of_class("bolt"), "nut": graph.of_class("nut")}
    found = {name: [float(part.max()) for part in one(image)] for name, one in judged.items()}

    # Score and map value of 30: how far from the typical (10, 20, 30; 0) to the threshold.
    assert found == {"": [2.0, 3.0], "bolt": [1.0, 1.5], "nut": [0.0, 1.0]}


def test_what_is_scored_are_the_test_images_and_nothing_else(run, chain, tmp_path, monkeypatch):
    shutil.copytree(chain / "detectors", tmp_path / "store" / "detectors")
    taken = {}

    def keep(samples, *_others):
        taken.update(samples)
        raise KeyboardInterrupt

    monkeypatch.setattr("replaycad.stages.eval.evaluate", keep)

    run("eval", "--class", "plate,disc", "--name", "plate", "--force")

    assert list(taken) == ["plate", "disc"]
    wanted = ["test/good/000.png", "test/good/001.png", "test/spot/000.png", "test/spot/001.png"]
    for name, samples in taken.items():
        assert [sample.image_id for sample in samples] == wanted
        assert {sample.class_name for sample in samples} == {name}
        masks = [[path.name for path in sample.mask_paths] for sample in samples]
        assert masks == [[], [], ["000_mask.png"], ["001_mask.png"]]


def seen_as(**view):
    """A detector that sees bolts so."""
    return mirror_artifact(header={"class_order": ["bolt"], "views": {"bolt": view}})


def wide(pixels):
    """Pixels `[H, W]` on a picture of two tiles, 4 x 7 px: the tiles share a column."""
    drawn = np.zeros((SIDE, 2 * SIDE - 1), np.uint8)
    for row, column, value in pixels:
        drawn[row, column] = value
    return drawn


def test_a_tiled_class_is_measured_on_one_map_of_each_picture(tmp_path):
    """Two defects in one picture, one in each tile; a normal picture whose second tile is higher
    than one of them."""
    samples = [
        write_sample(tmp_path / "bolt", "cut", wide([(1, 0, 40), (2, 6, 20)]),
                     wide([(1, 0, 255), (2, 6, 255)])),
        write_sample(tmp_path / "bolt", "fine", wide([(0, 5, 30)])),
    ]  # fmt: skip

    found = scored({"bolt": samples}, EvalConfig(batch_size=3), seen_as(tile=SIDE))

    assert found.image_scores.tolist() == [40, 30]
    figures = found.metrics["classes"]["bolt"]
    assert figures["image_auroc"] == 1
    assert figures["pixel_ap"] == pytest.approx((1 + 2 / 3) / 2)
    # 56 pixels, 2 of them defective: the lower one loses to one of 54
    assert figures["pixel_auroc"] == pytest.approx((54 + 53) / (2 * 54))


def test_kept_maps_of_tiled_pictures_are_squares_of_what_the_detector_sees(tmp_path):
    samples = [write_sample(tmp_path / "bolt", "cut", wide([(1, 0, 40)]), wide([(1, 0, 255)])),
               write_sample(tmp_path / "bolt", "fine", wide([]))]  # fmt: skip
    config = EvalConfig(batch_size=2, keep_maps=True)

    maps = scored({"bolt": samples}, config, seen_as(tile=SIDE)).anomaly_maps

    assert maps.shape == (2, SIDE, SIDE)
    assert maps[0].max() > 0


def test_ignored_pixels_raise_no_score_and_are_in_no_figure(tmp_path):
    """The brightest pixel of the normal picture, and a defect, lie where pictures are ignored."""
    ignored = np.zeros((SIDE, SIDE), bool)
    ignored[0] = True
    view = View(ignore=packed(ignored)).as_dict()
    samples = [
        write_sample(tmp_path / "bolt", "cut", dots((0, 0, 250), (2, 2, 160)),
                     dots((0, 0, 255), (2, 2, 255))),
        write_sample(tmp_path / "bolt", "fine", dots((0, 3, 255), (3, 3, 150))),
    ]  # fmt: skip

    found = scored({"bolt": samples}, trained=seen_as(**view))

    assert found.image_scores.tolist() == [160, 150]
    figures = found.metrics["classes"]["bolt"]
    assert (figures["pixel_ap"], figures["pixel_auroc"], figures["f1_max"]) == (1, 1, 1)
    assert scored({"bolt": samples}).metrics["classes"]["bolt"]["image_auroc"] == 0


def test_padding_is_neither_scored_nor_measured(tmp_path):
    """Half as high as wide: what is above and below the picture repeats its border."""
    half = np.full((SIDE // 2, SIDE), 10, np.uint8)
    half[0, 0] = 90
    truth = np.zeros_like(half)
    truth[0, 0] = 255
    samples = [write_sample(tmp_path / "bolt", "cut", half, truth),
               write_sample(tmp_path / "bolt", "fine", np.full_like(half, 10))]  # fmt: skip

    found = scored({"bolt": samples}, trained=seen_as(fit="pad"))

    figures = found.metrics["classes"]["bolt"]
    # The padding above the defect is as bright, and no pixel of the picture.
    assert (figures["pixel_ap"], figures["pixel_auroc"]) == (1, 1)
    assert found.image_scores.tolist() == [90, 10]


def test_a_square_class_is_measured_the_same_whether_padded_or_not(tmp_path):
    padded = scored({"bolt": bolts(tmp_path)}, trained=seen_as(fit="pad"))

    assert padded.metrics == scored({"bolt": bolts(tmp_path)}).metrics


class Shelf:
    """Tells classes apart by how bright an image is: 10, 40 or 90 in the mean.

    What most of an image stays below is taken for twice the mean distance.
    """

    def known_classes(self):
        return [0, 2, 3]

    def patches(self, features):
        return features[0].flatten(1)

    def class_distances(self, patches):
        usual = patches.mean(1)
        means = (usual[:, None] - torch.tensor([10.0, 40.0, 90.0])).abs()
        return means, 2 * means


@pytest.fixture
def shelf(monkeypatch):
    """A detector that knows four classes, of which a router beside it has banks of three."""
    monkeypatch.setattr("replaycad.stages.eval.rebuild_router", lambda *_: Shelf())
    return mirror_artifact(class_order=["cap", "pin", "bolt", "nut"])


def flat(value, width=SIDE):
    return np.full((SIDE, width), value, np.uint8)


def test_which_class_every_image_is_most_like_is_kept_with_how_far_it_is(shelf, tmp_path):
    nuts = [write_sample(tmp_path / "nut", str(v), flat(v)) for v in (80, 20, 91, 38)]
    caps = [write_sample(tmp_path / "cap", "fine", flat(13))]

    found = scored({"nut": nuts, "cap": caps}, trained=shelf)  # batches of three

    assert found.told_classes == ["cap", "bolt", "nut"]
    assert found.told_index.tolist() == [2, 0, 2, 1, 0]
    assert found.product_distances.tolist() == [20, 20, 2, 4, 6]


def test_a_picture_of_tiles_is_told_by_all_of_them(shelf, tmp_path):
    views = {"class_order": ["bolt"], "views": {"bolt": {"tile": SIDE}}}
    odd = np.concatenate([flat(85), flat(12, 2 * SIDE)], axis=1)
    samples = [write_sample(tmp_path / "bolt", "odd", odd),
               write_sample(tmp_path / "bolt", "nut", flat(89, 2 * SIDE))]  # fmt: skip

    found = scored({"bolt": samples}, trained=replace(shelf, header=views))

    # Four tiles, of 85, 30.25 (a column of 85 beside three of 12), 12 and 12 in the mean: in the
    # mean of them nearest to 10, whatever the first says; 75, 20.25, 2 and 2 from it.
    assert found.told_index.tolist() == [0, 2]
    assert found.product_distances.tolist() == [2 * (20.25 + 2) / 2, 2]


def test_nothing_is_told_where_nothing_tells_classes_apart(tmp_path):
    found = scored({"nut": nuts(tmp_path)})

    assert (found.told_classes, found.told_index, found.product_distances) == ([], None, None)
