"""What test images were told to be, counted by hand."""

import json
import shutil

import numpy as np
import pytest

from replaycad.artifacts.confusion import confusion
from replaycad.artifacts.scores import ScoresArtifact

LIMITS = {"bolt": {"product": 2.0}, "nut": {"product": 4.0}, "cap": {}}


def scores(classes, images, told_classes=("nut", "bolt", "cap")):
    """Scores of images, each with its class, the one that it is most like, and how far it is."""
    own, told, distances = zip(*images, strict=True)
    count = len(images)
    return ScoresArtifact(
        classes, np.zeros(count, np.float32), np.zeros(count, np.uint8),
        np.array([classes.index(name) for name in own]), list(map(str, range(count))), {},
        told_classes=list(told_classes),
        told_index=np.array([told_classes.index(name) for name in told]),
        product_distances=np.array(distances, np.float32),
    )  # fmt: skip


IMAGES = [
    ("bolt", "bolt", 1.0), ("bolt", "nut", 3.0), ("bolt", "nut", 5.0),  # right, wrong, none
    ("nut", "nut", 4.0), ("nut", "bolt", 2.5), ("nut", "cap", 1e9),  # at the limit; none; no limit
    ("nut", "nut", 0.5),
]  # fmt: skip


def test_images_are_counted_by_their_class_and_by_what_they_were_told_to_be():
    found = confusion(scores(["bolt", "nut"], IMAGES), {"by_class": LIMITS})

    assert (found.classes, found.told) == (["bolt", "nut"], ["nut", "bolt", "cap"])
    assert found.counts.tolist() == [[1, 1, 0, 1], [2, 0, 1, 1]]
    assert (found.num_wrong, found.num_unknown) == (2, 2)
    assert found.sentence() == (
        "Of 7 test images 2 were told to be of a wrong class and 2 of no known product."
    )
    assert found.document() == {
        "classes": ["bolt", "nut"], "told": ["nut", "bolt", "cap", "no known product"],
        "counts": [[1, 1, 0, 1], [2, 0, 1, 1]], "num_wrong": 2, "num_unknown": 2,
    }  # fmt: skip


def test_counts_go_by_the_limits_of_now():
    limits = {"by_class": {**LIMITS, "nut": {"product": 2.0}}}

    found = confusion(scores(["bolt", "nut"], IMAGES), limits)

    assert found.counts.tolist() == [[0, 1, 0, 2], [1, 0, 1, 2]]


def test_a_product_that_nobody_learned_is_right_to_be_none():
    images = [("gear", "nut", 9.0), ("gear", "nut", 1.0), ("bolt", "bolt", 9.0)]

    found = confusion(scores(["gear", "bolt"], images), {"by_class": LIMITS})

    assert found.counts.tolist() == [[1, 0, 0, 1], [0, 0, 0, 1]]
    assert (found.num_wrong, found.num_unknown) == (1, 1)
    assert found.is_right("gear", "no known product")
    assert not found.is_right("bolt", "no known product")


def test_nothing_is_told_without_classes_or_without_limits_of_each():
    told = scores(["bolt", "nut"], IMAGES)
    silent = ScoresArtifact(
        ["bolt"], np.zeros(1, np.float32), np.zeros(1, np.uint8), np.zeros(1, np.int64), ["a"], {}
    )

    assert confusion(silent, {"by_class": LIMITS}) is None
    assert confusion(told, {}) is None
    assert confusion(told, {"by_class": {"bolt": {}, "nut": {}}}) is None  # none of cap


@pytest.mark.parametrize("as_json", [False, True])
def test_eval_says_how_many_images_were_told_wrong(run, chain, tmp_path, as_json):
    path = shutil.copytree(chain, tmp_path / "store") / "scores" / "plate.safetensors"

    result = run("eval", "--class", "disc,plate", *["--json"] * as_json)

    assert result.exit_code == 0, result.output
    stored = ScoresArtifact.load(path)
    assert sorted(stored.told_classes) == ["disc", "plate"]
    assert len(stored.product_distances) == len(stored.told_index) == 8
    if as_json:
        told = json.loads(result.stdout)["outcomes"][0]["products"]
        assert [sum(row) for row in told["counts"]] == [4, 4]
    else:
        assert result.stdout.count("Of 8 test images ") == 1
