"""`make bench`: measure, print a table, write build/bench.json."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import memory


def main() -> None:
    """Run every row."""
    rows = [memory.measure()]
    table = Table("row", "reference", "ours", "difference", "bar", "met")
    for row in rows:
        table.add_row(
            row["row"], f"{row['reference_mb']} MB", f"{row['ours_mb']} MB",
            f"{row['difference_mb']} MB", row["bar"], "yes" if row["met"] else "NO",
        )  # fmt: skip
    Console(width=120).print(table)
    target = Path("build/bench.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
