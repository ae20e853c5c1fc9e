"""When the scores of a class rise, it is told once, and again after they have come back."""

from replaycad.inference.drift import WINDOW, DriftWatch


def verdict(score, name="nut", kind="normal"):
    return {"image": "a.png", "score": score, "verdict": kind, "class": name}


def told(watch, *verdicts):
    return [place for place, one in enumerate(verdicts) if watch.notice(one)]


def test_scores_that_stay_are_not_told():
    watch = DriftWatch()

    assert told(watch, *[verdict(0.4)] * 100, *[verdict(-0.3)] * 100) == []


def test_a_rise_is_told_once_as_soon_as_half_of_the_window_is_high():
    watch = DriftWatch()
    assert told(watch, *[verdict(0.0)] * WINDOW) == []

    # 15 of 30 are high: the median is halfway between 0 and 0.9, and 16 are more than half
    assert told(watch, *[verdict(0.9)] * 40) == [15]
    # they come back, and rise once more
    assert told(watch, *[verdict(0.0)] * 40, *[verdict(0.9)] * 40) == [40 + 15]


def test_it_waits_for_a_whole_window():
    watch = DriftWatch()

    assert told(watch, *[verdict(3.0, kind="anomalous")] * WINDOW) == [WINDOW - 1]


def test_classes_are_watched_by_themselves_and_unknown_products_do_not_count():
    watch = DriftWatch()
    calm = [verdict(0.0, "bolt")] * 100
    strange = [verdict(9.0, "nut", "unknown product")] * 100
    broken = [{"image": "b.png", "error": "it is no image"}]
    risen = [verdict(0.8, "nut")] * WINDOW

    assert told(watch, *calm, *strange, *broken, *risen) == [201 + WINDOW - 1]
    assert "of nut" in DriftWatch().notice({}) + told_text(risen)


def told_text(verdicts):
    watch = DriftWatch()
    return "".join(watch.notice(one) for one in verdicts)


def test_a_detector_that_does_not_tell_classes_apart_is_watched_too():
    one = {"image": "a.png", "score": 0.9, "verdict": "normal"}

    assert told_text([one] * WINDOW).startswith("the scores have risen: half of the last 30 photos")
