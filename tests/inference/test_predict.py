"""predict: verdicts as the detector's own, heat maps where images are, nothing lost on the way."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.inference.overlay import heat, overlay
from tests.conftest import invoke
from tests.toy import draw_object


@pytest.fixture
def store(chain, tmp_path):
    return shutil.copytree(chain, tmp_path / "store")


@pytest.fixture
def call(store, models):
    def named(*arguments, stdin=None):
        typed = ["predict", *arguments, "--store", store, "--encoder", models.encoder, "--json"]
        return invoke([*typed, "--name", "plate"], stdin)

    return named


def lines(result) -> list[dict]:
    assert result.exception is None or result.exit_code == 1, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_scores_are_those_of_eval_on_the_scale_of_the_threshold(call, store, data):
    scored = ScoresArtifact.load(store / "scores" / "plate.safetensors")
    limits = DetectorArtifact.load(store / "detectors" / "plate.safetensors").thresholds

    told = lines(call(data / "plate" / "test"))

    found = {entry["image"].split("plate/")[1]: entry for entry in told}
    assert len(found) == 4
    for image_id, score, index in zip(
        scored.image_ids, scored.image_scores, scored.class_index, strict=True
    ):
        if scored.classes[index] == "plate":
            told_of = found[image_id]
            own = limits["by_class"][told_of["class"]]
            expected = (score - own["typical_image"]) / (own["image"] - own["typical_image"])
            assert told_of["score"] == pytest.approx(expected, abs=2e-3)
            verdict = "anomalous" if expected > 1 else "normal"
            is_unknown = told_of["class_distance"] > 1
            assert told_of["verdict"] == ("unknown product" if is_unknown else verdict)


def test_a_class_that_is_named_has_a_threshold_of_its_own(call, store, data):
    limits = DetectorArtifact.load(store / "detectors" / "plate.safetensors").thresholds
    assert list(limits["by_class"]) == ["disc", "plate"]
    own = limits["by_class"]["plate"]

    images = data / "plate" / "test"
    disc = limits["by_class"]["disc"]
    for_disc, for_it = (
        lines(call(images, "--class", name)) for name in ("disc", "plate")
    )

    for one, other in zip(for_disc, for_it, strict=True):
        assert (one["class"], other["class"]) == ("disc", "plate")
        score = disc["typical_image"] + one["score"] * (disc["image"] - disc["typical_image"])
        expected = (score - own["typical_image"]) / (own["image"] - own["typical_image"])
        # of the score that is printed the last digit is rounded
        rounding = 1e-4 * (disc["image"] - disc["typical_image"])
        rounding /= own["image"] - own["typical_image"]
        assert other["score"] == pytest.approx(expected, abs=1e-4 + rounding)
    refused = call(data / "plate" / "test", "--class", "screw")
    assert refused.exit_code == 1
    assert "it has thresholds for: disc, plate" in refused.stderr


def test_overlays_have_the_images_names_and_sizes(call, tmp_path):
    folder, out = tmp_path / "Prüf bilder", tmp_path / "out"
    (folder / "schicht 1").mkdir(parents=True)
    draw_object("plate", 0).resize((70, 41)).save(folder / "schicht 1" / "Stück ä.png")
    draw_object("plate", 1).convert("L").save(folder / "grau.jpg")

    told = lines(call(folder, "--out", out))

    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == [
        "grau.jpg.png", "schicht 1/Stück ä.png.png",
    ]  # fmt: skip
    for entry in told:
        with Image.open(entry["image"]) as image, Image.open(entry["overlay"]) as drawn:
            assert drawn.size == image.size
            assert drawn.mode == "RGB"


def test_a_broken_image_is_told_and_the_others_are_judged(call, tmp_path):
    draw_object("plate", 0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    draw_object("plate", 1).save(tmp_path / "c.png")

    result = call(*(tmp_path / f"{name}.png" for name in "abc"))

    told = lines(result)
    assert result.exit_code == 1
    assert [("error" in entry) for entry in sorted(told, key=lambda one: one["image"])] == [
        False, True, False,
    ]  # fmt: skip
    assert "1 could not be read" in result.stderr


def test_links_to_nowhere_and_unread_formats_of_a_folder_are_told(call, tmp_path):
    draw_object("plate", 0).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    (tmp_path / "c.HEIC").write_bytes(b"a photo of a telephone")

    result = call(tmp_path)

    errors = {Path(one["image"]).name: one["error"] for one in lines(result) if "error" in one}
    assert result.exit_code == 1
    assert set(errors) == {"b.png", "c.HEIC"}
    assert "is not there" in errors["b.png"]
    assert "is no image of a known format" in errors["c.HEIC"]


def test_a_grey_photo_of_a_class_in_colours_is_told(call, tmp_path):
    draw_object("plate", 0).save(tmp_path / "a.png")
    draw_object("plate", 0).convert("L").save(tmp_path / "b.png")

    told = {Path(one["image"]).name: one.get("note") for one in lines(call(tmp_path))}

    assert told == {"a.png": None, "b.png": "it is grey, and its class was learned in colours"}


def test_paths_come_from_stdin_and_names_from_elsewhere_do_not_collide(call, tmp_path):
    paths = [tmp_path / part / "x.png" for part in "ab"]
    for path in paths:
        path.parent.mkdir()
        draw_object("plate", 0).save(path)

    out = tmp_path / "out"
    told = lines(call("-", "--out", out, stdin="\n".join(map(str, paths)) + "\n"))

    assert [entry["image"] for entry in told] == [str(path) for path in paths]
    assert [entry["overlay"] for entry in told] == [str(out / "x.png.png"),
                                                    str(out / "x.png-2.png")]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no images"),
    ],
)
def test_what_is_no_image_is_named(call, tmp_path, monkeypatch, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    result = call(*arguments)

    assert result.exit_code == 1
    assert message in result.stderr


def test_the_only_detector_need_not_be_named(store, models, tmp_path):
    draw_object("plate", 0).save(tmp_path / "a.png")
    options = ["predict", tmp_path / "a.png", "--encoder", models.encoder, "--store"]
    arguments = [*options, store]
    names = sorted(path.stem for path in (store / "detectors").glob("*.safetensors"))
    for name in names:
        if name != "plate":
            (store / "detectors" / f"{name}.safetensors").unlink()

    assert invoke(arguments).exit_code == 0
    shutil.copy(
        store / "detectors" / "plate.safetensors", store / "detectors" / "other.safetensors"
    )
    assert "other, plate" in invoke(arguments).stderr
    assert "empty holds no detector" in invoke([*options, tmp_path / "empty"]).stderr


def test_a_watched_folder_is_judged_as_it_fills(store, models, tmp_path):
    folder = tmp_path / "arriving"
    folder.mkdir()
    command = [
        sys.executable, "-m", "replaycad", "predict", folder, "--name", "plate", "--store", store,
        "--watch", "--json", "--encoder", models.encoder,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that put the tests into the background has them ignore Ctrl-C, and all below them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        for index in range(2):
            draw_object("plate", index).save(folder / f"{index}.png")
            told = json.loads(process.stdout.readline())
            assert told["image"] == str(folder / f"{index}.png")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "2 images" in errors


def test_colours_grow_lighter_and_leave_the_ordinary_alone():
    brightness = heat(np.linspace(0, 1, 20, dtype=np.float32)).sum(-1)
    assert (np.diff(brightness) > 0).all()

    picture = Image.new("RGB", (64, 32), (90, 120, 30))
    found = np.zeros((16, 16), np.float32)
    found[:, 8:] = 2.0
    drawn = np.asarray(overlay(picture, found))

    assert drawn.shape == (32, 64, 3)
    assert (drawn[:, :20] == (90, 120, 30)).all()
    assert drawn[16, 60].sum() > 3 * 150


def test_an_image_is_never_replaced_by_its_overlay(call, tmp_path):
    draw_object("plate", 0).save(tmp_path / "a.png.png")
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "a.png.png")
    before = (tmp_path / "a.png.png").read_bytes()

    result = call(link, "--out", tmp_path)

    assert result.exit_code == 1
    assert "would overwrite the image" in result.stderr
    assert (tmp_path / "a.png.png").read_bytes() == before


def test_the_exit_code_is_that_of_the_worst_verdict_on_request(call, store, data, tmp_path):
    path = store / "detectors" / "plate.safetensors"
    trained = DetectorArtifact.load(path)
    below = {"typical_image": -2.0, "image": -1.0, "product": 1e9}  # all are above 0
    by_class = trained.thresholds["by_class"]
    low = {**trained.thresholds,
           "by_class": {name: {**own, **below} for name, own in by_class.items()}}  # fmt: skip
    replace(trained, thresholds=low).save(path)
    images = data / "plate" / "test"
    assert "anomalous" in {one["verdict"] for one in lines(call(images))}

    assert call(images).exit_code == 0
    assert call(images, "--exit-code").exit_code == 3
    draw_object("plate", 0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert call(tmp_path, "--exit-code").exit_code == 1
