"""The README and the guide say what the program says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.readme import GUIDE

ROOT = Path(__file__).resolve().parent.parent


def test_generated_parts_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "--diff", ROOT / "README.md", *GUIDE],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:] + "run `make docs`"


def test_the_two_commands_of_the_readme_exist():
    makefile, page = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()

    for target in ("demo", "test"):
        assert f"\n{target}:" in makefile
        assert f"\nmake {target} " in page


def test_pictures_and_pages_that_the_readme_shows_exist_and_are_small():
    page = (ROOT / "README.md").read_text()
    shown = [ROOT / path for path in re.findall(r"\]\(([^)#:]+)\)", page)]

    assert len(shown) > 10
    assert all(path.is_file() for path in shown)
    assert sum(p.stat().st_size for p in (ROOT / "replaycad/guide").glob("*.webp")) < 200_000


def test_top_level_holds_only_what_the_plan_allows():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    tops = {name.split("/")[0] for name in listed if not name.startswith(".")}

    assert tops <= {"pyproject.toml", "replaycad", "tests", "README.md", "Makefile", "LICENSE"}
