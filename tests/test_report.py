"""The page of a run: its numbers are those of the results, and nothing in it can break out."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from replaycad.artifacts import format
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.scores import SCORES
from replaycad.continual.real_limits import RealLimits, record
from replaycad.data.samples import Sample
from replaycad.report import pictures, plots
from replaycad.report.limits import SHARED, limit_row
from replaycad.report.rates import interval, rates, told_of_missed
from tests.conftest import invoke
from tests.toy import write_toy

HOSTILE = "x'&b"
VOID = {"meta", "img"}  # elements that are not closed


@pytest.fixture(scope="module")
def results(data, models, tmp_path_factory):
    """A run of the toy over two strategies and a budget; read only."""
    store = tmp_path_factory.mktemp("report") / "store"
    result = invoke(["run", "--class", "disc,plate", "--strategy", "finetune,exemplars,joint",
                     "--budget", "8kB,20kB", "--seeds", "2", "--data", data, "--store", store,
                     "--device", "cpu", *models.settings("run")])  # fmt: skip
    assert result.exit_code == 0, result.output
    return store


@pytest.fixture(scope="module")
def page(results, data, models, tmp_path_factory):
    """The page of that run."""
    return write(results, data, models, tmp_path_factory.mktemp("page"))


def write(store, data, models, folder):
    out = folder / "page.html"
    arguments = ["report", "--store", store, "--data", data, "--out", out, "--device", "cpu",
                 "--encoder", models.encoder]  # fmt: skip
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    return out.read_text()


class Reader(HTMLParser):
    """Cells of tables, sources of images, every element's name, and those not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.sources, self.names, self._open = [], [], set(), False
        self.stack, self.misplaced = [], []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        if tag not in VOID:
            self.stack.append(tag)
        self._open = tag in ("td", "th")
        if self._open:
            self.cells.append("")
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
            assert dict(attributes)["alt"]

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.misplaced.append(tag)
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_numbers_on_the_page_are_those_of_the_results(results, page):
    document = json.loads((results / "results" / "run.json").read_text())

    found = read(page)

    for name, entry in document["strategies"].items():
        assert name in found.cells
        for metric in ("image_auroc", "pixel_ap"):
            mean, std = entry[metric]["mean"], entry[metric]["std"]["mean"]
            assert f"{100 * mean:.1f} ±{100 * std:.1f}" in found.cells
            for row in entry[metric]["matrix"]:
                known = [value for value in row if value is not None]
                assert all(f"{100 * value:.1f}" in found.cells for value in known)


def test_the_page_asks_nothing_of_any_network_and_has_pictures(page):
    found = read(page)
    assert "script" not in found.names
    assert all(source.startswith("data:image/webp;base64,") for source in found.sources)
    assert len(found.sources) > 2 * (3 + 3 + 4)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
    assert page.count("<svg") == 4 + 2  # curves and bytes of two metrics, histograms of two classes


def test_every_element_is_closed_and_every_picture_can_be_drawn(page):
    found = read(page)

    assert page.startswith("<!doctype html>")
    assert not found.misplaced
    assert not found.stack
    for source in found.sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
        assert picture.convert("RGB").getextrema() != ((0, 0),) * 3
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_a_page_can_be_written_where_the_images_no_longer_are(results, models, tmp_path):
    page = write(results, tmp_path / "gone", models, tmp_path)

    assert "Image scores of disc" in page


def test_names_from_the_file_system_cannot_break_out(run, models, tmp_path):
    folder = write_toy(tmp_path / "hostile", ("disc",))
    (folder / "disc").rename(folder / HOSTILE)
    kind = folder / HOSTILE / "test" / "<img src=x onerror=alert(1)>"
    (folder / HOSTILE / "test" / "spot").rename(kind)
    (folder / HOSTILE / "ground_truth" / "spot").rename(
        folder / HOSTILE / "ground_truth" / kind.name
    )
    result = run("run", "--class", HOSTILE, "--strategy", "finetune", data=folder)
    assert result.exit_code == 0, result.output

    page = write(tmp_path / "store", folder, models, tmp_path)

    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert HOSTILE.replace("'", "&#39;").replace("&b", "&amp;b") in page


def test_without_results_the_page_says_what_to_run(tmp_path):
    result = invoke(["report", "--store", tmp_path, "--data", tmp_path])

    assert result.exit_code == 1
    assert "replaycad run" in result.stderr


def test_plots_take_the_pages_ink_and_are_the_same_each_time():
    lines = {"one": [(1, 50.0), (2, 60.0)], "two": [(1, 40.0), (2, 45.0)]}

    drawn = plots.curves(lines, "step", "score")

    assert drawn == plots.curves(lines, "step", "score")
    assert "currentColor" in drawn
    assert "#010203" not in drawn


def test_rates_have_the_interval_that_tables_give():
    # 0 of 20: 0.025 = (1 - p)^20 at p = 0.168; the others from printed tables.
    assert interval(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert interval(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert interval(1, 20) == pytest.approx((0.0013, 0.2487), abs=1e-4)
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_false_alarms_and_defects_found_are_counted_above_the_limit():
    scores = np.array([0.2, 1.0, 1.1, 0.9, 3.0], np.float32)
    labels = np.array([False, False, False, True, True])

    told = rates(scores, labels, 0.01)

    assert told == (
        "1 of 3 normal test images is called anomalous: 0.8 to 90.6 % of all with 95 % confidence, "
        "where the limit allows 1 %; 1 of 2 defective ones is found."
    )
    assert rates(scores[:0], labels[:0], 0.01) == ""


def test_the_page_tells_false_alarms_of_every_class(page):
    assert page.count("By the limit of this class ") == 2
    assert "normal test image" in page


def test_the_page_promises_no_more_than_a_calibration(results, data, models, tmp_path):
    store = shutil.copytree(results, tmp_path / "store")
    document = json.loads((store / "results" / "run.json").read_text())
    names = {entry["artifacts"]["detector"] for entry in document["strategies"].values()}
    for name in names:
        typed = [data / "plate" / "test" / "good", "--class", "plate", "--name", name]
        result = invoke(["calibrate", *typed, "--store", store, "--encoder", models.encoder])
        assert result.exit_code == 0, result.output

    page = write(store, data, models, tmp_path)

    assert page.count("where the limit allows 33.3 %") == 1  # of plate, by 2 photos
    assert page.count("where the limit allows 1 %") == 1


def test_missed_defects_are_told_by_the_limit_of_now():
    said = [("plate", "defective", (0.9, 1.4)), ("plate", "good", (2.0,)),
            ("disc", "defective", (3.0,)), ("plate", "defective", (1.5,))]  # fmt: skip
    header = {"feedback": [
        {"class_name": name, "kind": kind, "photos": [{"score": one} for one in found]}
        for name, kind, found in said
    ]}  # fmt: skip

    told = told_of_missed(header, "plate", 1.0)

    assert told == "Missed defects told by people: 3; 2 of them are above the limit now."
    assert told_of_missed(header, "nut", 1.0) == told_of_missed({}, "plate", 1.0) == ""


def test_the_page_tells_missed_defects(results, data, models, tmp_path):
    store = shutil.copytree(results, tmp_path / "store")
    document = json.loads((store / "results" / "run.json").read_text())
    photos = sorted((data / "plate" / "test" / "spot").iterdir())
    for name in {entry["artifacts"]["detector"] for entry in document["strategies"].values()}:
        typed = [*photos, "--class", "plate", "--defective", "--name", name]
        result = invoke(["feedback", *typed, "--store", store, "--encoder", models.encoder])
        assert result.exit_code == 0, result.output

    page = write(store, data, models, tmp_path)

    assert page.count(f"Missed defects told by people: {len(photos)};") == 1


def limits(image, typical=1.0, **others):
    return {"image": image, "typical_image": typical, **others}


def origin(limit, inputs=(), stored=None, feedback=()):
    """Row of a bolt with this limit in a detector made from these inputs."""
    header = {"thresholds": {**limits(9.0), "by_class": {"bolt": limit} if limit else {}},
              "inputs": dict.fromkeys(inputs, ""), "feedback": list(feedback)}  # fmt: skip
    return limit_row(header, "bolt", stored or {})


def test_a_limit_of_training_is_told_with_what_it_was_measured_on():
    real = dict.fromkeys(("image", "typical_image", "pixel", "typical_pixel", "product"), 5.0)
    kept = {"limits_of_real": record(RealLimits(real, real), "a bank")}

    assert origin(limits(3.0), ["images/bolt"]) == {
        "limit": "3", "typical": "1", "moved": "", "origin": "its training images",
    }  # fmt: skip
    for inputs, limit, told in (
        (["replays/bolt-9kB", "images/nut"], 5.0, "its training images, carried with its replays"),
        (["replays/bolt-9kB", "images/nut"], 5.1, "estimated from its replays"),
        (["conditions/bolt-9kB"], 5.0, "its training images, carried with its features"),
        (["replays/nut"], 5.0, "-"),
    ):
        stored = {"conditions/bolt-9kB": {}, "replays/bolt-9kB": kept}
        assert origin(limits(limit), inputs, stored)["origin"] == told
    assert origin(None) == {"limit": "9", "typical": "1", "moved": "", "origin": SHARED}


def test_a_limit_that_people_set_is_told_with_where_it_went():
    trained = limits(3.0)  # 2 above what is typical
    set_anew = limits(4.0, 2.0, photos=12, promised=0.1, trained=trained)
    missed = {"class_name": "bolt", "photos": [{}], "before": set_anew,
              "after": {**limits(2.5, 2.0), "trained": trained}}  # fmt: skip
    same = {"class_name": "bolt", "photos": [{}, {}], "before": trained, "after": trained}
    raised = {**same, "after": limits(7.0)}

    calibrated = origin(set_anew, ["images/bolt"])
    lowered = origin(missed["after"], ["images/bolt"], feedback=[missed])

    assert (calibrated["origin"], calibrated["moved"]) == ("calibrated with 12 photos", "1.5")
    assert (lowered["origin"], lowered["moved"]) == ("moved by feedback of 1 photo", "0.75")
    # Patches alone were learned; then somebody calibrated after a limit was moved.
    assert origin(trained, ["images/bolt"], feedback=[same])["origin"] == "its training images"
    later = limits(6.0, 2.0, photos=20, promised=0.05, trained=trained)
    again = origin(later, ["images/bolt"], feedback=[missed])
    assert (again["origin"], again["moved"]) == ("calibrated with 20 photos", "2.5")
    moved = origin(limits(7.0), ["images/bolt"], feedback=[raised])
    assert (moved["origin"], moved["moved"]) == ("moved by feedback of 2 photos", "3")


def test_images_on_both_sides_of_a_limit_come_nearest_first(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "_shown", lambda what, sample, _: {
        "what": what, "name": sample.image_id, "score": -1.0})  # fmt: skip
    scores = {"a": 0.2, "b": 0.9, "c": 1.0, "d": 0.95, "e": 1.5, "f": 1.01, "g": 9.0}
    samples = [
        Sample(path=tmp_path, image_id=name, class_name="bolt", kind="any",
               is_anomalous=name in "cdefg"[::2])
        for name in [*scores, "not scored"]
    ]  # fmt: skip

    above, below = pictures.nearest(samples, scores, None).values()

    assert [(one["name"], one["score"]) for one in above] == [("f", 1.01), ("e", 1.5), ("g", 9.0)]
    # At the limit it is no alarm; a fourth is left out.
    assert [one["name"] for one in below] == ["c", "d", "b"]
    assert [one["what"] for one in above] == ["normal, false alarm", "defect, found",
                                              "defect, found"]  # fmt: skip
    assert [one["what"] for one in below] == ["defect, missed", "normal, passed",
                                              "normal, passed"]  # fmt: skip
    assert [one["is_wrong"] for one in (*above, *below)] == [1, 0, 0, 1, 0, 0]


def test_the_page_tells_limits_and_products_and_shows_both_sides(results, page):
    document = json.loads((results / "results" / "run.json").read_text())
    name = document["strategies"]["exemplars 8kB"]["artifacts"]["detector"]
    trained = DetectorArtifact.load(results / "detectors" / f"{name}.safetensors")

    found = read(page)

    for class_name in ("disc", "plate"):
        own = trained.thresholds["by_class"][class_name]
        assert f"{own['image']:.4g}" in found.cells
        assert f"{own['typical_image']:.4g}" in found.cells
    assert "no known product" in found.cells
    assert "<p>Of 8 test images " in page
    sides = page.count("<p>Nearest above the limit: ") + page.count("<p>Nearest below the limit: ")
    assert 2 <= sides <= 4


def test_a_page_of_old_scores_says_why_there_is_no_table_of_products(
    results, data, models, tmp_path
):
    store = shutil.copytree(results, tmp_path / "store")
    for path in (store / "scores").glob("*.safetensors"):
        without_products(path)

    page = write(store, data, models, tmp_path)

    assert "these scores are of an earlier version" in page
    assert "no known product" not in page


def without_products(path):
    """Write scores as an earlier version did."""
    tensors, header = format.read(path, SCORES)
    kept = {name: tensors[name] for name in ("image_scores", "image_labels", "class_index")}
    own = ("told_classes", *format.OWN_FIELDS)
    format.write(path, SCORES, kept, {n: v for n, v in header.items() if n not in own})
