"""The options that several commands share, and what their help says."""

from pathlib import Path
from typing import Annotated

import typer

from replaycad.config.stages import FOLDERS
from replaycad.detectors.registry import DETECTORS

Classes = Annotated[
    list[str],
    typer.Option("--class", help="Choose classes, comma separated or repeated, or 'all'."),
]
Data = Annotated[
    Path, typer.Option("--data", envvar=FOLDERS["--data"][0], help="Read images from this folder.")
]
StoreRoot = Annotated[  # a Path would swallow a slash of a URL, which is to be refused by name
    str,
    typer.Option("--store", envvar=FOLDERS["--store"][0], help="Keep artifacts in this folder."),
]
Device = Annotated[str, typer.Option("--device", help="Run on cpu, cuda or mps; auto picks one.")]
RAY = "ray"
RunDevice = Annotated[
    str,
    typer.Option(
        "--device",
        help="Run on cpu, cuda or mps, or the steps of run on ray; auto picks one.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.")]
Force = Annotated[bool, typer.Option("--force", help="Rebuild even what is up to date.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be built, and why.")]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="Start from standard, mini, fast, paper or release (default: standard, or what the "
        "backbone needs; REPLAYCAD_RECIPE names another).",
    ),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a setting; STAGE.FIELD=VALUE names its stage; repeatable.",
    ),
]
Segmenter = Annotated[
    str,
    typer.Option(
        "--segmenter", help="Segment with mini, vit_b, vit_l, vit_h or a file; or with none."
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="Use mini, sd15, ldm256, a folder or a hub id; append :ema, :non_ema or :fp16.",
    ),
]
Tile = Annotated[
    str,
    typer.Option(
        "--tile",
        help="See pictures as tiles of this many px; by class as plate=256,board=512 (0: whole).",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=0,
        help="Process this many images at once; fewer need less memory (0: choose for me).",
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        "--keep", help="Keep exemplars, fragments, features, conditions, hybrid or auto."
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        "--budget", help="Limit the bytes per class, as 25kB (default with images: 200kB)."
    ),
]
Detector = Annotated[
    str,
    typer.Option(
        "--detector",
        help=f"Train {', '.join(DETECTORS)}; append a preset, as invad-lite.",
    ),
]
Encoder = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="Use this encoder: efficientnet-lite0, mini, a timm name, or TIMM_NAME:FILE.",
    ),
]

DATA, STORE = Path(FOLDERS["--data"][1]), FOLDERS["--store"][1]
