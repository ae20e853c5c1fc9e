"""`make bench`: measure, print a table, write build/bench.json."""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from replaycad.mini.world import demo
from tests.bench import backbone, detectors, growth, memory, stages

UNITS = {"_mb": " MB", "_s": " s"}


def cell(row: dict, name: str) -> str:
    """The value of a row called `name` with or without a unit; empty if it has none."""
    for ending, unit in UNITS.items():
        if name + ending in row:
            return f"{row[name + ending]}{unit}"
    return str(row.get(name, ""))


def main() -> None:
    """Run every row."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "backbones", nargs="*", default=["mini"],
        help="mini, sd15 and ldm256; the large ones have random weights",
    )  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, help="folder of classes; default: drawn ones")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = typed.data or Path(folder)
        if not typed.data:
            demo.main(data)
        rows = [memory.measure(), *detectors.measure(), *stages.measure(data, typed.backbones)]
    table = Table("row", "reference", "ours", "difference", "ratio", "spread", "bar", "met")
    for row in rows:
        cells = [cell(row, name) for name in ("reference", "ours", "difference", "ratio", "spread")]
        table.add_row(row["row"], *cells, row["bar"], "yes" if row["met"] else "NO")
    speeds = [backbone.measure(name, typed.device) for name in typed.backbones]
    second = Table(*(key.replace("_", " ") for key in speeds[0]) if speeds else ())
    for row in speeds:
        second.add_row(*map(str, row.values()))
    grown = growth.measure()
    third = Table("growth", "seconds", "MB")
    for row in grown:
        third.add_row(row["row"], str(row["ours_s"]), str(row["ours_mb"]))
    console = Console(width=140)
    for one in (table, second, third):
        console.print(one)
    target = Path("build/bench.json")
    target.parent.mkdir(exist_ok=True)
    growth.draw(grown, target.with_name("growth.png"))
    target.write_text(json.dumps({"rows": rows + speeds + grown}, indent=1) + "\n")


if __name__ == "__main__":
    main()
