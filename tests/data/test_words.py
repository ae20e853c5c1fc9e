"""What folders are called in public data sets, and by people."""

import pytest

from replaycad.data.words import is_junk, is_label_of, is_session, meaning


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "Train", "TRAINING", "train_images", "Train Images", "train1"), "train"),
        (("test", "Test", "test_public"), "test"),
        (("validation", "val", "test_private_mixed"), "held"),
        (("ground_truth", "Ground Truth", "GT", "Label", "Masks", "ground-truth",
              "scratch_mask", "NG_mask", "masks_png", "ground_truths"), "truth"),
        (
            ("good", "OK", "Ok", "normal", "Normal", "MT_Free", "ok_front", "defect-free",
             "no_defect", "gut", "良品", "正常", "no anomaly", "OK_No.1", "OK2", "good_no_flash",
             "GoodParts", "i.O.", "free_of_defects", "without_defects", "good_images", "no"),
            "normal",
        ),
        (
            ("ko", "NG", "nok", "bad", "Defect", "Anomaly", "logical_anomalies", "def_front",
             "not good", "not_ok", "n.i.O.", "不良品", "fehler", "NG_No.1", "n_ok", "NoK", "bad3",
             "BadParts"),
            "defect",
        ),
        (("Imgs", "images", "S0001", "kos12", "cam_2", "2026-11-28", "000"), "neutral"),
        (("xyz", "depth", "bad_vis", "thumbs"), "other"),
        (
            ("broken_large", "MT_Blowhole", "color", "AK", "scratch", "bottle", "okapi",
             "goodyear", "good_and_bad", "ngram", "later", "io_missing", "misplaced_label"),
            "",
        ),
    ],
)  # fmt: skip
def test_names_say_what_people_mean(names, expected):
    assert {name: meaning(name) for name in names} == dict.fromkeys(names, expected)


def test_recordings_count_or_date():
    assert all(map(is_session, ("S0001", "2024-01-05T10", "12", "cam 3")))
    assert not any(map(is_session, ("broken_large", "good", "a1b2", "bottle_with_label_2x")))


def test_what_systems_leave_is_junk():
    assert all(map(is_junk, (".DS_Store", "__MACOSX", "._a.png", "@eaDir")))
    assert not is_junk("good")


def test_a_class_may_be_called_by_a_word_that_says_a_label():
    assert is_label_of("good", ["scratch"])
    assert is_label_of("MT_Free", ["MT_Crack", "MT_Fray"])
    assert not is_label_of("ok_cap", ["bottle"])
    assert not is_label_of("ok_cap", [])
