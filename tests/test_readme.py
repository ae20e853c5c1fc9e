"""The README says what the program says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_generated_parts_of_the_readme_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "--diff", "README.md"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:] + "run `make docs`"


def test_the_two_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()

    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile


def test_top_level_holds_only_what_the_plan_allows():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    tops = {name.split("/")[0] for name in listed if not name.startswith(".")}

    assert tops <= {"pyproject.toml", "replaycad", "tests", "README.md", "Makefile", "LICENSE"}
