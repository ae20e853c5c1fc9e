"""`make bench`: measure, print a table, write build/bench.json."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import detectors, memory

UNITS = {"_mb": " MB", "_s": " s"}


def cell(row: dict, name: str) -> str:
    """The value of a row called `name` with or without a unit; empty if it has none."""
    for ending, unit in UNITS.items():
        if name + ending in row:
            return f"{row[name + ending]}{unit}"
    return str(row.get(name, ""))


def main() -> None:
    """Run every row."""
    rows = [memory.measure(), *detectors.measure()]
    table = Table("row", "reference", "ours", "difference", "ratio", "bar", "met")
    for row in rows:
        cells = [cell(row, name) for name in ("reference", "ours", "difference", "ratio")]
        table.add_row(row["row"], *cells, row["bar"], "yes" if row["met"] else "NO")
    Console(width=140).print(table)
    target = Path("build/bench.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
