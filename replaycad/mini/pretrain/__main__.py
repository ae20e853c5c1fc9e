"""The command `python -m replaycad.mini.pretrain {vae,unet,encoder,sam,all}`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
PARTS = ("vae", "unet", "encoder", "sam")  # the last two in this order: sam starts from encoder


def main(
    part: Annotated[str, typer.Argument(help=f"one of {', '.join(PARTS)}, all")],
    minutes: Annotated[float, typer.Option(help="wall-clock budget of each part")] = 20.0,
    classes: Annotated[int, typer.Option(help="procedural classes in the pool")] = 1024,
    work: Annotated[Path, typer.Option(help="pool, checkpoints, losses and sample sheets")] = Path(
        ".pretrain"
    ),
    weights: Annotated[Path, typer.Option(help="where the finished weights go")] = WEIGHTS,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Pre-train the bundled models; an interrupted run goes on where it stopped."""
    if part not in (*PARTS, "all"):
        raise typer.BadParameter(f"'{part}' is none of {', '.join(PARTS)}, all")
    # The heavy libraries come after the options have been understood.
    from replaycad.mini.pretrain.encoder import train_encoder
    from replaycad.mini.pretrain.loop import LoopConfig
    from replaycad.mini.pretrain.pool import open_pool
    from replaycad.mini.pretrain.sam import train_sam
    from replaycad.mini.pretrain.unet import open_unet_pool, train_unet
    from replaycad.mini.pretrain.vae import train_vae
    from replaycad.runtime import resolve_device

    trainings: dict[str, Callable[..., Any]] = {
        "vae": train_vae,
        "unet": train_unet,
        "sam": train_sam,
        "encoder": train_encoder,
    }
    chosen = PARTS if part == "all" else (part,)
    for name in chosen:
        pool = open_unet_pool(work, classes) if name == "unet" else open_pool(work, classes)
        folder = weights / "diffusion" if name in ("vae", "unet") else weights
        trainings[name](pool, work, folder, LoopConfig(minutes=minutes), resolve_device(device))


if __name__ == "__main__":
    typer.run(main)
