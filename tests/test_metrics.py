"""Metrics against scikit-learn and against figures worked out by hand."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as reference

from replaycad import metrics


def tied_scores(seed, shape=(4, 16, 16), levels=12):
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, dtype=bool)
    masks[0, 2:6, 3:9] = True
    masks[2, 10:12, 1:3] = True
    maps = (rng.random(shape) + 0.4 * masks) * levels
    return np.floor(maps).astype(np.float32) / levels, masks


@pytest.mark.parametrize("levels", [3, 12, 100_000])
def test_pixel_figures_equal_scikit_learn_with_and_without_ties(levels):
    maps, masks = tied_scores(levels, levels=levels)

    figures = metrics.pixel_metrics(maps, masks)

    flat, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = reference.precision_recall_curve(truth, flat)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert figures["pixel_auroc"] == pytest.approx(reference.roc_auc_score(truth, flat), abs=1e-12)
    assert figures["pixel_ap"] == pytest.approx(
        reference.average_precision_score(truth, flat), abs=1e-12
    )
    assert figures["f1_max"] == pytest.approx(f1.max(), abs=1e-12)


def test_single_figure_functions_agree_with_the_table():
    maps, masks = tied_scores(0)

    table = metrics.pixel_metrics(maps, masks)

    assert metrics.pixel_ap(maps, masks) == table["pixel_ap"]
    assert metrics.pixel_auroc(maps, masks) == table["pixel_auroc"]
    assert metrics.f1_max(maps, masks) == table["f1_max"]
    assert metrics.aupro30(maps, masks) == table["aupro30"]


def test_image_auroc_equals_scikit_learn_with_ties():
    scores = np.array([0.1, 0.5, 0.5, 0.5, 0.9, 0.2])
    labels = np.array([0, 0, 1, 1, 1, 1])

    expected = reference.roc_auc_score(labels, scores)
    assert metrics.image_auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_give_the_figures_of_a_guess():
    masks = tied_scores(0)[1]
    maps, share = np.full(masks.shape, 0.25, np.float32), masks.mean()

    figures = metrics.pixel_metrics(maps, masks)

    truth = masks.ravel()
    expected = reference.average_precision_score(truth, maps.ravel())
    assert figures["pixel_auroc"] == 0.5
    assert figures["pixel_ap"] == pytest.approx(expected, abs=1e-12)
    assert figures["f1_max"] == pytest.approx(2 * share / (1 + share), abs=1e-12)
    assert figures["aupro30"] == pytest.approx(0.15, abs=1e-12)
    assert metrics.image_auroc([0.5] * 4, [0, 1, 0, 1]) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_images_of_one_kind_alone_have_no_auroc(label):
    assert np.isnan(metrics.image_auroc([0.1, 0.2, 0.3], [label] * 3))


def test_masks_that_are_full_leave_only_what_needs_no_normal_pixel():
    maps, masks = np.random.default_rng(0).random((2, 4, 4)), np.ones((2, 4, 4), bool)

    figures = metrics.pixel_metrics(maps, masks)

    assert np.isnan(figures["pixel_auroc"])
    assert np.isnan(figures["aupro30"])
    assert figures["pixel_ap"] == figures["f1_max"] == 1.0


def test_all_pixel_figures_come_from_the_same_two_sorts(monkeypatch):
    calls = []
    ranked = metrics.rank
    monkeypatch.setattr(metrics, "rank", lambda *given: calls.append(1) or ranked(*given))

    metrics.pixel_metrics(*tied_scores(1))

    assert len(calls) == 1


@pytest.mark.parametrize("part", [1, 7, 100])
def test_parts_sorted_side_by_side_give_the_figures_of_one_sort(part, monkeypatch):
    for levels in (3, 100_000):
        maps, masks = tied_scores(7, levels=levels)
        whole = metrics.pixel_metrics(maps, masks)
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "PART", part)
            assert metrics.pixel_metrics(maps, masks) == whole


def test_half_precision_maps_give_the_figures_of_their_values():
    maps, masks = tied_scores(5)
    half = maps.astype(np.float16)

    assert metrics.pixel_metrics(half, masks) == metrics.pixel_metrics(
        half.astype(np.float64), masks
    )


def aupro_by_thresholds(maps, masks, limit=0.3):
    """Sweep every distinct score, one curve point each, and integrate by trapezoids."""
    regions = []
    for index, mask in enumerate(masks):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [maps[index][labels == number] for number in range(1, found + 1)]
    normal = maps[~masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((np.mean(normal >= threshold), overlap))
    rates, overlaps = np.array(points).T
    kept = rates < limit
    end = np.interp(limit, rates, overlaps)  # fine: the curve is single-valued where it is cut
    rates = np.append(rates[kept], limit)
    overlaps = np.append(overlaps[kept], end)
    return np.trapezoid(overlaps, rates) / limit


@pytest.mark.parametrize("levels", [3, 7, 40])
def test_aupro_equals_a_sweep_over_all_thresholds(levels):
    maps, masks = tied_scores(levels + 1, levels=levels)

    expected = aupro_by_thresholds(maps, masks)
    assert metrics.aupro30(maps, masks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_aupro_equals_the_sweep_on_small_random_cases_with_ties(seed):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 5, (2, 5, 5)) / 4
    masks = rng.random((2, 5, 5)) < 0.3
    masks[0, 0, 0], masks[1, 4, 4] = True, False

    expected = aupro_by_thresholds(maps, masks)
    assert metrics.aupro30(maps, masks) == pytest.approx(expected, abs=1e-12)


def test_aupro_of_a_case_worked_by_hand():
    # Ten normal pixels 0.0 ... 0.9 and two regions, A of one and B of two pixels.
    # A scores 1.0 and the first pixel of B 0.95: found before any false positive.
    # The second pixel of B scores 0.75: found after two false positives, at a rate of 0.2.
    # The overlap is (1 + 1/2)/2 = 0.75 from rate 0 to 0.2 and 1 from 0.2 to 0.3.
    maps = np.array([[[1.0, 0.0, 0.1, 0.2, 0.95], [0.3, 0.4, 0.5, 0.6, 0.75]]])
    masks = maps > 0.7
    maps = np.concatenate([maps, [[[0.7, 0.8, 0.9, 0.0, 0.0], [0.0] * 5]]])
    masks = np.concatenate([masks, np.zeros_like(masks)])
    counted = np.ones(20, dtype=bool)
    counted[13:] = False  # the padding of the second image is no pixel of this case

    ranks = metrics.rank(maps.ravel()[counted], masks.ravel()[counted])
    area = metrics.aupro(ranks, metrics.region_weights(masks))

    assert ranks.num_negatives == 10
    assert area == pytest.approx((0.75 * 0.2 + 1.0 * 0.1) / 0.3)


def test_aupro_interpolates_the_end_point_inside_a_tie():
    # One defect pixel ties with all four normal ones: overlap rises linearly with the rate.
    maps = np.full((1, 1, 5), 0.5, dtype=np.float32)
    masks = np.array([[[True, False, False, False, False]]])

    assert metrics.aupro30(maps, masks) == pytest.approx(0.3 / 2)


def test_diagonal_neighbours_are_one_region():
    touching = np.array([[[True, False, False], [False, True, False], [False, False, False]]])

    assert metrics.region_weights(touching) == pytest.approx([0.5, 0.5])


def test_regions_weigh_the_same_whatever_their_size():
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, 0, 0] = True
    masks[1] = True

    assert metrics.region_weights(masks) == pytest.approx([1 / 2, *[1 / 18] * 9])


def test_counts_stay_exact_beyond_the_reach_of_float32():
    negatives = 2**24 + 3
    ranks = metrics.Ranks(
        below=np.array([negatives - 1]),
        not_above=np.array([negatives]),
        true_positives=np.array([1]),
        order=np.array([0]),
        num_negatives=negatives,
    )

    assert metrics.auroc(ranks) == (2 * negatives - 1) / (2 * negatives)
    assert metrics.average_precision(ranks) == 0.5


def test_a_class_without_anomalies_is_nan_and_left_out_by_name():
    maps = np.zeros((2, 4, 4), dtype=np.float32)
    masks = np.zeros((2, 4, 4), dtype=bool)
    normal_only = metrics.class_metrics([0.1, 0.2], [0, 0], maps, masks)
    usual = dict.fromkeys(metrics.METRICS, 0.8)

    means, left_out = metrics.mean_over_classes({"plain": normal_only, "usual": usual})

    assert all(np.isnan(value) for value in normal_only.values())
    assert means == pytest.approx(usual)
    assert left_out == {metric: ["plain"] for metric in metrics.METRICS}


def test_nothing_left_out_says_nothing_and_no_class_is_nan():
    means, left_out = metrics.mean_over_classes({"a": {"x": 0.5}, "b": {"x": 0.7}})
    nothing, who = metrics.mean_over_classes({"a": {"x": float("nan")}})

    assert means == pytest.approx({"x": 0.6})
    assert left_out == {}
    assert np.isnan(nothing["x"])
    assert who == {"x": ["a"]}


def test_class_metrics_without_maps_judges_images_only():
    figures = metrics.class_metrics([0.1, 0.9], [0, 1])

    assert figures["image_auroc"] == 1.0
    assert np.isnan(figures["pixel_ap"])


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="scores are"):
        metrics.rank(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        metrics.image_auroc([np.nan, 1.0], [0, 1])
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        metrics.pixel_metrics(np.zeros((4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="together"):
        metrics.class_metrics([0.1], [0], np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"\[N, N\]"):
        metrics.forgetting([[0.5, 0.5]])
    with pytest.raises(ValueError, match="joint row"):
        metrics.joint_gap([0.5], [[0.5, 0.1], [0.5, 0.1]])


TABLE = [
    [0.90, None, None],
    [0.95, 0.80, None],
    [0.60, 0.85, 0.70],
]  # class 0 falls from its best 0.95 to 0.60, class 1 gains 0.05, class 2 is the last


def test_forgetting_of_a_table_worked_by_hand():
    assert metrics.forgetting(TABLE) == pytest.approx((0.35 - 0.05) / 2)
    assert metrics.mean_final(TABLE) == pytest.approx((0.60 + 0.85 + 0.70) / 3)
    assert metrics.mean_past(TABLE) == pytest.approx((0.60 + 0.85) / 2)
    assert metrics.joint_gap([0.9, 0.9, 0.9], TABLE) == pytest.approx(0.9 - 2.15 / 3)


def test_scores_on_classes_still_to_come_do_not_count_as_a_best():
    zero_shot = np.array([[0.9, 0.99], [0.8, 0.5]])
    later = np.array([[0.9, 0.99, 0.9], [0.9, 0.6, 0.9], [0.9, 0.5, 0.9]])

    assert metrics.forgetting(zero_shot) == pytest.approx(0.1)
    assert metrics.forgetting(later) == pytest.approx(0.05)


def test_undefined_classes_are_left_out_of_forgetting_and_one_class_has_none():
    nan = float("nan")
    table = [[nan, nan, nan], [nan, 0.8, nan], [nan, 0.6, 0.7]]

    assert metrics.forgetting(table) == pytest.approx(0.2)
    assert metrics.mean_final(table) == pytest.approx(0.65)
    assert np.isnan(metrics.forgetting([[0.9]]))
    assert np.isnan(metrics.mean_past([[0.9]]))


def test_pictures_of_many_sizes_have_the_figures_of_their_pixels():
    """What two sorts of one array say, one sort of parts says too."""
    maps, masks = tied_scores(3)
    ragged = [maps[0], maps[1][:, :10], maps[1][:, 10:], maps[2], maps[3]]
    parts = [masks[0], masks[1][:, :10], masks[1][:, 10:], masks[2], masks[3]]

    found = metrics.pixel_metrics(ragged, parts)

    assert found == pytest.approx(metrics.pixel_metrics(maps, masks), abs=1e-12)


def test_ignored_pixels_are_in_no_figure():
    """By hand: defects 5 and 2, normal pixels 3 and 1; 9 (normal) and 7 (defect) are ignored."""
    maps = [np.array([[5, 9, 3]], np.float32), np.array([[2], [1], [7]], np.float32)]
    masks = [np.array([[True, False, False]]), np.array([[True], [False], [True]])]
    counted = [np.array([[True, False, True]]), np.array([[True], [True], [False]])]

    found = metrics.pixel_metrics(maps, masks, counted)

    assert found["pixel_auroc"] == pytest.approx(3 / 4)  # of four pairs, 2 against 3 is lost
    assert found["pixel_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["f1_max"] == pytest.approx(4 / 5)  # at 2: two right, one wrong
    # two regions of a pixel: half of the overlap at once, half from a rate of 1/2 on
    assert found["aupro30"] == pytest.approx(0.5)
    everything = metrics.pixel_metrics(maps, masks)
    assert everything["pixel_auroc"] != found["pixel_auroc"]


def test_a_region_that_is_partly_ignored_counts_as_what_is_left_of_it():
    masks = [np.array([[True, True, True, False]])]
    counted = [np.array([[True, False, True, True]])]

    left = [mask & own for mask, own in zip(masks, counted, strict=True)]

    assert metrics.region_weights(left).tolist() == [0.5, 0.5], "two regions of one pixel"


def test_pictures_are_refused_as_arrays_are():
    with pytest.raises(ValueError, match="labels are"):
        metrics.pixel_metrics([np.zeros((2, 2))], [np.zeros((2, 3), bool)], [None])
    with pytest.raises(ValueError, match="NaN"):
        metrics.pixel_metrics([np.full((2, 2), np.nan)], [np.zeros((2, 2), bool)], [None])
