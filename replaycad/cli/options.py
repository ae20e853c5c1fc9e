"""The options that several commands share, and what their help says."""

from pathlib import Path
from typing import Annotated

import typer

from replaycad.config.recipes import FOLDERS
from replaycad.detectors.registry import DETECTORS

Classes = Annotated[
    list[str],
    typer.Option("--class", help="Class names, comma separated or repeated, or 'all'."),
]
Data = Annotated[
    Path, typer.Option("--data", envvar=FOLDERS["--data"][0], help="Folder of the images.")
]
StoreRoot = Annotated[
    str,
    typer.Option("--store", envvar=FOLDERS["--store"][0], help="Folder or URL of the artifacts."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random stream.")]
Force = Annotated[bool, typer.Option("--force", help="Make it again even if it is up to date.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what is up to date and why.")]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="Set of defaults: mini, fast, paper or release; else what --backbone needs.",
    ),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any other setting, repeatable; STAGE.FIELD=VALUE for a stage that runs before.",
    ),
]
Segmenter = Annotated[
    str, typer.Option("--segmenter", help="mini, vit_b, vit_l, vit_h, a path, or none.")
]
Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="mini, sd15, ldm256, a folder or a hub id; behind it :ema, :non_ema or :fp16.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=0,
        help="Images at once, for less memory; compress adds passes up to its batch; 0: what fits.",
    ),
]
Keep = Annotated[
    str, typer.Option("--keep", help="What stays: conditions, exemplars, hybrid or auto.")
]
Budget = Annotated[
    str,
    typer.Option("--budget", help="Bytes that it may take, as 25kB; with images 200kB if unsaid."),
]
Detector = Annotated[
    str,
    typer.Option(
        "--detector",
        help=f"{', '.join(DETECTORS)}; with a preset behind it, as invad-lite.",
    ),
]
Encoder = Annotated[
    str, typer.Option("--encoder", help="Frozen encoder: mini, a timm name, or TIMM_NAME:FILE.")
]
ReplayBudget = Annotated[
    int, typer.Option("--replay-budget", min=0, help="Replays of all past classes together.")
]

DATA, STORE = Path(FOLDERS["--data"][1]), FOLDERS["--store"][1]
