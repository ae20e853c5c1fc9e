"""The README's first steps run, and print what it shows."""

import re

import pytest

from tests.transcript import replay, shown, write_photos

pytestmark = pytest.mark.long


def test_the_first_steps_print_what_the_readme_shows(tmp_path):
    write_photos(tmp_path)

    fresh = replay(shown(), tmp_path)

    assert _words(fresh) == _words(shown()), f"run `python -m tests.transcript`:\n{fresh}"


def _words(transcript: str) -> list[list[str]]:
    """Words of each line; figures, which differ from machine to machine, are blanked."""
    without = (re.sub(r"\d[\d.,]*( [kMG]B)?", "0", line) for line in transcript.splitlines())
    return [line.split() for line in without]
