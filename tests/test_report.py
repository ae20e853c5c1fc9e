"""The page of a run: its numbers are those of the results, and nothing in it can break out."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from replaycad.report import plots
from tests.conftest import invoke
from tests.toy import write_toy

CHROMIUM = shutil.which("chromium")
HOSTILE = "x'&b"


@pytest.fixture
def results(run, tmp_path):
    """A run of the toy over two strategies and a budget."""
    result = run("run", "--class", "disc,plate", "--strategy", "finetune,exemplars,joint",
                 "--budget", "8kB,20kB", "--seeds", "2")  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path / "store"


def write(store, data, models, *more):
    out = store / "page.html"
    arguments = ["report", "--store", store, "--data", data, "--out", out, "--device", "cpu",
                 "--encoder", models.encoder]  # fmt: skip
    result = invoke([*arguments, *more])
    assert result.exit_code == 0, result.output
    return out.read_text()


class Reader(HTMLParser):
    """Cells of tables, sources of images, and every element's name."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.sources, self.names, self._open = [], [], set(), False

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self._open = tag in ("td", "th")
        if self._open:
            self.cells.append("")
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
            assert dict(attributes)["alt"]

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_numbers_on_the_page_are_those_of_the_results(results, data, models):
    document = json.loads((results / "results" / "run.json").read_text())

    found = read(write(results, data, models))

    for name, entry in document["strategies"].items():
        assert name in found.cells
        for metric in ("image_auroc", "pixel_ap"):
            mean, std = entry[metric]["mean"], entry[metric]["std"]["mean"]
            assert f"{100 * mean:.1f} ±{100 * std:.1f}" in found.cells
            for row in entry[metric]["matrix"]:
                known = [value for value in row if value is not None]
                assert all(f"{100 * value:.1f}" in found.cells for value in known)


def test_the_page_asks_nothing_of_any_network_and_has_pictures(results, data, models):
    page = write(results, data, models)

    found = read(page)
    assert "script" not in found.names
    assert all(source.startswith("data:image/webp;base64,") for source in found.sources)
    assert len(found.sources) > 2 * (3 + 3 + 4)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
    assert page.count("<svg") == 4 + 2  # curves and bytes of two metrics, histograms of two classes


def test_a_page_can_be_written_where_the_images_no_longer_are(results, models, tmp_path):
    page = write(results, tmp_path / "gone", models)

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

    page = write(tmp_path / "store", folder, models)

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


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_it_without_complaint(results, data, models, tmp_path):
    write(results, data, models)
    picture = tmp_path / "page.png"

    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--screenshot={picture}", "--window-size=1100,1600", f"file://{results / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    assert picture.stat().st_size > 20_000
    assert ":CONSOLE" not in done.stderr
