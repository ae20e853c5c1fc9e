"""The demo data set: three classes that pre-training never saw."""

from pathlib import Path
from typing import Annotated

import typer

from replaycad.mini.world.pictures import HELD_OUT_SEED, write_dataset

CLASSES = {
    "pill": HELD_OUT_SEED + 1000,
    "screw": HELD_OUT_SEED + 1004,
    "weave": HELD_OUT_SEED + 1017,
}
"""A part that lies still, a part that turns, a surface: the cases of the paper's class table."""


def main(
    folder: Annotated[Path, typer.Argument(help="where the data set goes")] = Path("demo/data"),
    num_train: Annotated[int, typer.Option(help="normal training images of each class")] = 60,
    num_good: Annotated[int, typer.Option(help="normal test images of each class")] = 20,
    num_defective: Annotated[int, typer.Option(help="defective test images of each class")] = 30,
    size: Annotated[int, typer.Option(help="pixels")] = 128,
) -> None:
    """Draw the demo data set in MVTec layout; drawing it again gives the same files."""
    write_dataset(folder, CLASSES, num_train, num_good, num_defective, seed=0, size=size)


if __name__ == "__main__":
    typer.run(main)
