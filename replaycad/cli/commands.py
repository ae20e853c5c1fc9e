"""The commands of the five stages, and `run`: options in, one summary out."""

from typing import Annotated

import typer

from replaycad.cli.calibrate import calibrate
from replaycad.cli.feedback import feedback
from replaycad.cli.options import (
    DATA,
    RAY,
    STORE,
    AsJson,
    Backbone,
    BatchSize,
    Budget,
    Classes,
    Data,
    Detector,
    Device,
    DryRun,
    Encoder,
    Force,
    Keep,
    Quiet,
    Recipe,
    RunDevice,
    Seed,
    Segmenter,
    Settings,
    StoreRoot,
    Tile,
)
from replaycad.cli.session import (
    Shared,
    grown,
    session,
    show_outcomes,
    show_run,
    split_names,
    split_seeds,
    split_sizes,
    write_page,
)
from replaycad.cli.tools import (
    doctor,
    export,
    fetch,
    forget,
    import_embedding,
    inspect,
    predict,
    report,
    show_help,
)
from replaycad.experiments.strategies import STRATEGIES

app = typer.Typer(
    name="replaycad",
    help="Teach an anomaly detector class after class without keeping the images.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,  # plain help: boxes would cost half of the time of `--help`
    context_settings={"help_option_names": ["-h", "--help"]},
)



@app.command()
def mask(
    classes: Classes,
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    segmenter: Segmenter = "",
    tile: Tile = "",
    settings: Settings = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the object in every training image.

    Example: replaycad mask --class bottle
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    with session(shared, "mask", {"segmenter": segmenter, "tile": tile}) as builder:
        from replaycad.engine.mask import MaskStage

        names = builder.class_names(split_names(classes))
        show_outcomes(shared, [builder.build(MaskStage(builder, name)) for name in names])


@app.command()
def compress(
    classes: Classes,
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    keep: Keep = "",
    budget: Budget = "",
    backbone: Backbone = "",
    tile: Tile = "",
    image_size: Annotated[
        int,
        typer.Option(
            "--image-size", min=0, help="Keep a class at this size in px (0: as the detector sees)."
        ),
    ] = 0,
    add: Annotated[
        list[str],
        typer.Option(
            "--add", help="Add new photos or folders to what is kept; needs no old photos."
        ),
    ] = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a class into what is kept of it: images, features or conditions.

    Builds its masks first if needed.

    Example: replaycad compress --class bottle
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    sizes = split_sizes(budget)
    if len(sizes) > 1:
        raise typer.BadParameter("compress takes one budget; `replaycad run` compares several")
    choices = {"keep": keep, "budget": str(*sizes), "backbone": backbone,
               "mask.tile": tile, "image_size": str(image_size or "")}  # fmt: skip
    with session(shared, "compress", choices) as builder:
        if add:
            show_outcomes(shared, [grown(builder, split_names(classes), add)])
            return
        from replaycad.engine.compress import CompressStage

        names = builder.class_names(split_names(classes))
        show_outcomes(shared, [builder.build(CompressStage(builder, name)) for name in names])


@app.command()
def replay(
    classes: Classes,
    num: Annotated[
        int, typer.Option("--num", min=0, help="Draw this many per class (0: as the recipe says).")
    ] = 0,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    backbone: Backbone = "",
    batch_size: BatchSize = 0,
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw images of a class from its conditions; needs no data.

    Example: replaycad replay --class bottle --num 800
    """
    shared = Shared(classes, DATA, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    choices = {"num_images": str(num or ""), "backbone": backbone,
               "batch_size": str(batch_size or "")}  # fmt: skip
    with session(shared, "replay", choices) as builder:
        from replaycad.engine.replay import ReplayStage

        names = builder.class_names(split_names(classes), stored=True)
        show_outcomes(shared, [builder.build(ReplayStage(builder, name)) for name in names])


@app.command()
def train(
    classes: Classes,
    past: Annotated[
        list[str], typer.Option("--past", help="Replay these classes, comma separated or repeated.")
    ] = [],  # noqa: B006
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    detector: Detector = "",
    encoder: Encoder = "",
    tile: Tile = "",
    name: Annotated[
        str, typer.Option("--name", help="Name the new detector (default: its last class).")
    ] = "",
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train on real images of new classes and replays of past ones.

    Example: replaycad train --class screw --past bottle,grid
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    choices = {"detector": detector, "encoder": encoder, "mask.tile": tile}
    with session(shared, "train", choices) as builder:
        from replaycad.engine.train import TrainStage

        names = builder.class_names(split_names(classes))
        asked = TrainStage(builder, names, split_names(past), name or names[-1])
        show_outcomes(shared, [builder.build(asked)])


@app.command("eval")
def evaluate(
    classes: Classes,
    name: Annotated[
        str, typer.Option("--name", help="Evaluate this detector (default: the last class).")
    ] = "",
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    encoder: Encoder = "",
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a detector on test images, per class and on average.

    Example: replaycad eval --class bottle,grid,screw
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    with session(shared, "eval", {"encoder": encoder}) as builder:
        from replaycad.engine.evaluate import EvalStage

        names = builder.class_names(split_names(classes))
        show_outcomes(shared, [builder.build(EvalStage(builder, names, name or names[-1]))])


@app.command()
def run(
    classes: Classes = ["all"],  # noqa: B006
    strategy: Annotated[
        list[str], typer.Option("--strategy", help=f"Compare any of {', '.join(STRATEGIES)}.")
    ] = ["replay"],  # noqa: B006
    detector: Annotated[
        list[str], typer.Option("--detector", help="Compare these, comma separated or repeated.")
    ] = [],  # noqa: B006
    budget: Annotated[
        str, typer.Option("--budget", help="Compare budgets in bytes per class, as 25kB,50kB.")
    ] = "",
    num_orders: Annotated[
        int, typer.Option("--orders", min=1, help="Repeat with this many orders of the classes.")
    ] = 1,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Repeat with this many seeds, or list them, as 0,4.")
    ] = "1",
    name: Annotated[
        str, typer.Option("--name", help="Name the results and the detectors.")
    ] = "run",
    tile: Tile = "",
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    settings: Settings = [],  # noqa: B006
    device: RunDevice = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn class after class and print the step x class matrix.

    Compares several strategies, detectors, budgets, orders and seeds.

    Example: replaycad run --class bottle,grid,screw --strategy finetune,replay,joint
    """
    is_on_ray, device = device == RAY, "auto" if device == RAY else device
    shared = Shared(classes, data, store, recipe, settings, device, seed=0, force=False,
                    dry_run=dry_run, as_json=as_json, quiet=quiet)  # fmt: skip
    numbers, sizes = split_seeds(seeds), split_sizes(budget)
    with session(shared, None, {"mask.tile": tile}) as builder:
        from replaycad.experiments.plan import comparison
        from replaycad.experiments.ray_engine import perform_on_ray
        from replaycad.experiments.run import run_sequence

        cells = comparison(
            builder.class_names(split_names(classes)), split_names(strategy), numbers,
            split_names(detector) or [""], sizes or [0], num_orders,
        )  # fmt: skip
        engine = perform_on_ray if is_on_ray and not dry_run else None
        result = run_sequence(builder, cells, name, engine)
        if not dry_run:
            write_page(builder, result, name)
        show_run(result, as_json, dry_run)


app.command()(predict)
app.command()(calibrate)
app.command()(feedback)
app.command()(report)
app.command()(export)
app.command("import")(import_embedding)
app.command()(inspect)
app.command()(forget)
app.command()(fetch)
app.command()(doctor)
app.command("help")(show_help)
