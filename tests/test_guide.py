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

PAGES = Path(guide.__file__).parent
PACKAGE = PAGES.parent
COMMANDS = get_command(app).commands


def test_every_page_is_a_topic_and_every_topic_a_page():
    assert {path.stem for path in PAGES.glob("*.md")} == set(guide.TOPICS)


def test_help_lists_every_page_and_shows_each():
    listed = invoke(["help"]).stdout

    for topic, title in guide.topics().items():
        assert f"{topic} " in listed
        shown = invoke(["help", topic]).stdout
        assert shown.startswith(f"# {title}")
        assert "<!--" not in shown
        assert "[[[" not in shown
        prose = [line for line in shown.splitlines() if not line.startswith(("|", "* "))]
        assert all(len(line) <= 140 for line in prose), topic


def test_pages_have_their_generated_tables():
    assert "| `compress.num_steps`" in guide.page("settings")
    assert "| `predict`" in guide.page("settings")
    assert "| hazelnut" in guide.page("classes")
    assert "| segmenter | vit_h" in guide.page("choosing")
    assert "| `conditions`" in guide.page("artifacts")
    assert guide.page("departures").count("\n* ") > 30


def test_help_of_a_command_is_its_own():
    assert invoke(["help", "mask"]).stdout.strip() == invoke(["mask", "--help"]).stdout.strip()


def test_an_unknown_page_is_answered_with_those_there_are():
    result = invoke(["help", "magic"])

    assert result.exit_code == 1
    assert "choose from: first-hour, folders, choosing" in result.stderr


def test_help_as_json_is_one_document():
    found = json.loads(invoke(["help", "classes", "--json"]).stdout)

    assert found["topic"] == "classes"
    assert found["text"].startswith("# Add the sixteenth class")


@pytest.mark.parametrize("topic", [*guide.TOPICS, "README"])
def test_commands_of_a_page_exist_with_their_options(topic):
    is_readme = topic == "README"
    text = (PACKAGE.parent / "README.md").read_text() if is_readme else guide.page(topic)
    text = " ".join(text.replace("\n", "; ").split() if is_readme else text.split())
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


@pytest.mark.parametrize(
    ("topic", "examples"), [pytest.param("python", 16, marks=pytest.mark.long), ("costs", 14)]
)
def test_examples_of_a_page_run_as_they_stand(topic, examples, tmp_path, monkeypatch):
    write_toy(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    page = doctest.DocTestParser().get_doctest(guide.page(topic), {}, topic, None, None)

    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page)

    assert found.attempted >= examples
    assert not found.failed


def test_the_sum_by_hand_of_costs_is_that_of_its_formulas():
    page = guide.page("costs")
    names: dict = {}
    for example in doctest.DocTestParser().get_examples(page.partition("## 10, 100")[0]):
        exec(example.source, names)

    assert names["prepare"]() == pytest.approx(49.2)
    assert sum(names["training"](n) for n in range(1, 11)) == pytest.approx(897)
    for n in (10, 100, 1000):
        terms = 49.2 * n + 0.3 * n * (n - 1) + 87 * n + 1.4 * n * (n + 1)
        assert 3600 * names["hours"](n) == pytest.approx(terms)
    assert 3600 * names["hours"](3, 2) == pytest.approx(2 * 49.2 + 3 * 87.6 / 1.8 + 6 * 2.8 / 2)


def test_tab_completes_commands(monkeypatch):
    monkeypatch.setenv("_REPLAYCAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "replaycad pre")
    monkeypatch.setenv("COMP_CWORD", "1")

    assert "predict" in invoke([]).stdout.split()
