"""The harness of `make torture` sees what it is there to see, and a short round of it."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.commands import Child
from tests.torture.faults import Trial
from tests.torture.ground import Ground, contents, differences

ROOT = Path(__file__).resolve().parent.parent


def write(store, **files):
    for name, text in files.items():
        path = store / "masks" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_missing_changed_and_left_over_files_are_told(tmp_path):
    write(tmp_path / "one", same="s", changed="a", missing="m")
    write(tmp_path / "two", same="s", changed="b", more="n")
    (tmp_path / "two" / "masks" / ".x.safetensors.0.tmp").write_text("")

    found = differences(contents(tmp_path / "two"), contents(tmp_path / "one"))

    assert found == [f"masks/{name}.safetensors" for name in ("changed", "missing", "more")] + [
        "rest"
    ]


def test_the_clock_is_no_difference(tmp_path):
    for name, seconds in (("one", 1), ("two", 2)):
        folder = tmp_path / name / "results"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(f'{{"a": [{{"seconds": {seconds}, "mean": 0.5}}]}}')
        (folder / "run.csv").write_text(f"mean,seconds\n0.5,{seconds}\n")

    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")

    assert not differences(one, two)
    assert one["results/run.json"] == {"a": [{"mean": 0.5}]}


def test_a_finished_artifact_that_is_gone_counts_as_lost(tmp_path):
    write(tmp_path / "undisturbed" / "store", a="a", b="b", c="c")
    write(tmp_path / "trial" / "store", a="a", b="b", c="damaged before")
    trial = Trial(Ground(tmp_path, []), tmp_path / "trial", random.Random(0))

    with trial.nothing_lost({"masks/b.safetensors"}):
        for name in "abc":
            (trial.store / "masks" / f"{name}.safetensors").unlink()

    assert trial.lost == ["masks/a.safetensors"]


def test_a_command_may_do_its_work_or_say_one_line(tmp_path):
    log = tmp_path / "log"
    for status, words, is_right in (
        (0, "", True), (1, "error: no room (free some)\n", True), (1, "", False),
        (1, "error: one\nerror: two\n", False), (0, "Traceback (most recent call last)", False),
        (70, "Traceback", False), (-9, "", False), (None, "", False),
    ):  # fmt: skip
        log.write_text(words)
        assert (Child(0, log, status=status).complaint() == "") is is_right, (status, words)


@pytest.mark.long
def test_a_short_round_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--faults", "6", "--trials", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ faults, 0 wrong, 0 lost", done.stdout.splitlines()[-1])
