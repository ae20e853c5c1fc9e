"""The README's first steps on plain folders of photos, run for real.

`python -m tests.transcript` runs the commands that the README shows after `$` on photos of the demo
classes, and puts what they print below them (two minutes).
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from replaycad.mini.world.demo import CLASSES
from replaycad.mini.world.pictures import write_dataset

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
PHOTOS = {
    "pill-1": "pill/test/good/000", "pill-2": "pill/test/broken/022",
    "screw-1": "screw/test/good/000", "screw-2": "screw/test/contamination/013",
}  # fmt: skip
"""Name among the new photos -> picture of the demo data."""


def shown() -> str:
    """What the README shows at present."""
    found = BLOCK.search(README.read_text())
    assert found, "the README has no console block"
    return found[0]


def write_photos(folder: Path) -> None:
    """Write `data/NAME/*.png`, normal photos of two products, and `photos/`, four new ones."""
    demo = folder / "demo"
    wanted = {name: CLASSES[name] for name in ("pill", "screw")}
    write_dataset(demo, wanted, 60, 20, 30, seed=0, size=128)
    (folder / "data").mkdir()
    (folder / "photos").mkdir()
    for name in wanted:
        (demo / name / "train" / "good").rename(folder / "data" / name)
    for name, place in PHOTOS.items():
        (demo / f"{place}.png").rename(folder / "photos" / f"{name}.png")


def replay(transcript: str, folder: Path) -> str:
    """Run the commands of a transcript in a folder; the transcript with what they print now."""
    parts = []
    for line in transcript.splitlines():
        if not line.startswith("$ "):
            continue
        command = shlex.split(line[2:], comments=True)
        assert command[0] == "replaycad"
        hidden = ("REPLAYCAD_DATA", "REPLAYCAD_STORE", "REPLAYCAD_RECIPE")
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**{k: v for k, v in os.environ.items() if k not in hidden},
                 "PYTHONPATH": str(ROOT), "COLUMNS": "110"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        parts.append(f"{line}\n{done.stdout.strip()}\n")
    return "\n".join(parts)


def main() -> None:
    """Update the README."""
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name))
        fresh = replay(shown(), Path(name))
    README.write_text(BLOCK.sub(lambda _: fresh, README.read_text(), count=1))


if __name__ == "__main__":
    main()
