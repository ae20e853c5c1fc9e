"""The manual is true: its commands exist, its errors are said by the program, its Python runs."""

import doctest
import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from replaycad import guide
from replaycad.cli.commands import app
from tests.conftest import invoke
from tests.toy import write_toy

PACKAGE = Path(guide.__file__).parents[1]
COMMANDS = get_command(app).commands


def test_help_lists_every_page_and_shows_each():
    listed = invoke(["help"]).stdout

    for path in (PACKAGE / "guide").glob("[!_]*.py"):
        topic = path.stem.replace("_", "-")
        assert f"{topic} " in listed
        shown = invoke(["help", topic]).stdout
        assert shown.startswith(guide.topics()[topic])
        assert all(len(line) <= 120 for line in shown.splitlines() if not line.startswith("|"))
    assert "| `compress.num_steps` | 50 |" in invoke(["help", "settings"]).stdout


def test_help_of_a_command_is_its_own():
    assert invoke(["help", "mask"]).stdout.strip() == invoke(["mask", "--help"]).stdout.strip()


def test_an_unknown_page_is_answered_with_those_there_are():
    result = invoke(["help", "magic"])

    assert result.exit_code == 1
    assert "choose from: choosing, classes, first-hour" in result.stderr


def test_help_as_json_is_one_document():
    found = json.loads(invoke(["help", "classes", "--json"]).stdout)

    assert found["topic"] == "classes"
    assert found["text"].startswith("Classes over time")


@pytest.mark.parametrize("topic", guide.topics())
def test_commands_of_a_page_exist_with_their_options(topic):
    text = " ".join(guide.page(topic).split())
    text = re.sub(r"torchrun --nproc-per-node \d+ -m ", "; ", text)  # options of torchrun's own

    for name, rest in re.findall(r"replaycad ([a-z]+)((?: [^`|.;]*)?)", text):
        assert name in COMMANDS, name
        known = {one for option in COMMANDS[name].params for one in option.opts}
        asked = rest.partition("replaycad")[0]
        assert set(re.findall(r"--[a-z-]+", asked)) <= known | {"--recipe"}, (name, rest)


def test_errors_that_troubleshooting_quotes_are_said_by_the_program():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "guide"]
    sources = " ".join(path.read_text() for path in files)
    # As a reader would see them: what is filled in stands for three points, as on the page.
    said = re.sub(r'"\s+f?"', "", re.sub(r"\{[^{}]*\}", "...", sources))
    headings = [line for line in guide.page("troubleshooting").splitlines() if line[:1] == "`"]
    assert len(headings) > 8

    quoted = [text for line in headings for text in re.findall(r"`([^`]*)`", line)]
    for text in quoted:
        for part in filter(None, (part.strip(" '") for part in text.split("..."))):
            if part not in ("Killed", "compress", "--dry-run"):
                assert part in said, part


@pytest.mark.long
def test_the_python_page_runs_as_it_stands(tmp_path, monkeypatch):
    write_toy(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    page = doctest.DocTestParser().get_doctest(guide.page("python"), {}, "python", None, None)

    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page)

    assert found.attempted > 15
    assert not found.failed


def test_tab_completes_commands(monkeypatch):
    monkeypatch.setenv("_REPLAYCAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "replaycad pre")
    monkeypatch.setenv("COMP_CWORD", "1")

    assert "predict" in invoke([]).stdout.split()
