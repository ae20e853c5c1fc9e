"""The typer commands: options become wishes, the pipeline answers, the console shows it."""

from pathlib import Path
from typing import Annotated

import typer

from replaycad.cli.options import (
    DATA,
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
    ReplayBudget,
    Seed,
    Segmenter,
    Settings,
    StoreRoot,
)
from replaycad.cli.session import (
    Shared,
    engine_named,
    perform,
    session,
    show_forecast,
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
    settings: Settings = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut the object out of every training image.

    Example: replaycad mask --class bottle
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    perform(
        shared,
        "mask",
        {"segmenter": segmenter},
        lambda pipeline, names: [pipeline.mask(name) for name in names],
    )


@app.command()
def compress(
    classes: Classes,
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    keep: Keep = "",
    budget: Budget = "",
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
    """Turn a class into conditions of a frozen diffusion model.

    Makes its masks first if needed.

    Example: replaycad compress --class bottle
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    sizes = split_sizes(budget)
    if len(sizes) > 1:
        raise typer.BadParameter("compress takes one budget; `replaycad run` compares several")
    perform(
        shared,
        "compress",
        {"keep": keep, "budget": str(*sizes), "backbone": backbone,
         "pass_size": str(batch_size or "")},
        lambda pipeline, names: [pipeline.compress(name) for name in names],
    )


@app.command()
def replay(
    classes: Classes,
    num: Annotated[
        int, typer.Option("--num", min=0, help="Images per class; 0: the recipe's.")
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
    perform(
        shared,
        "replay",
        {"num_images": str(num or ""), "backbone": backbone, "batch_size": str(batch_size or "")},
        lambda pipeline, names: [pipeline.replay(name) for name in names],
    )


@app.command()
def train(
    classes: Classes,
    past: Annotated[
        list[str], typer.Option("--past", help="Classes to replay, comma separated or repeated.")
    ] = [],  # noqa: B006
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    detector: Detector = "",
    encoder: Encoder = "",
    init: Annotated[
        str, typer.Option("--init", help="Detector of the store to go on from.")
    ] = "",
    name: Annotated[
        str, typer.Option("--name", help="Of the new detector; default: its last class.")
    ] = "",
    replay_budget: ReplayBudget = 0,
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
    replayed = split_names(past)
    perform(
        shared,
        "train",
        {"detector": detector, "encoder": encoder, "init": init,
         "replay_budget": str(replay_budget or "")},
        lambda pipeline, names: [pipeline.train(names, replayed, name or names[-1])],
    )


@app.command("eval")
def evaluate(
    classes: Classes,
    name: Annotated[
        str, typer.Option("--name", help="Of the detector; default: the last class.")
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
    """Measure a detector on test images, per class and in the mean.

    Example: replaycad eval --class bottle,grid,screw
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    perform(
        shared,
        "eval",
        {"encoder": encoder},
        lambda pipeline, names: [pipeline.evaluate(names, name or names[-1])],
    )


@app.command()
def run(
    classes: Classes = ["all"],  # noqa: B006
    strategy: Annotated[
        list[str], typer.Option("--strategy", help=f"Of {', '.join(STRATEGIES)}.")
    ] = ["replay"],  # noqa: B006
    seeds: Annotated[
        str, typer.Option("--seeds", help="How many, from --seed on; or which, comma separated.")
    ] = "",
    num_orders: Annotated[
        int, typer.Option("--orders", min=1, help="How many orders of the classes.")
    ] = 1,
    name: Annotated[
        str, typer.Option("--name", help="Of the result and of the detectors.")
    ] = "run",
    engine: Annotated[
        str, typer.Option("--engine", help="ray, or empty for this process alone.")
    ] = "",
    address: Annotated[
        str, typer.Option("--address", help="Of the Ray cluster; empty for one on this machine.")
    ] = "",
    assume: Annotated[
        list[str], typer.Option("--assume", help="With --dry-run: reckon a size, as classes=1000.")
    ] = [],  # noqa: B006
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Contact sheet; default: beside the result.")
    ] = None,
    data: Data = DATA,
    store: StoreRoot = STORE,
    recipe: Recipe = "",
    segmenter: Segmenter = "",
    budget: Annotated[
        str, typer.Option("--budget", help="Bytes of a class, comma separated, as 25kB,50kB.")
    ] = "",
    replay_budget: ReplayBudget = 0,
    backbone: Backbone = "",
    detector: Annotated[
        list[str], typer.Option("--detector", help="One or more, comma separated or repeated.")
    ] = [],  # noqa: B006
    encoder: Encoder = "",
    settings: Settings = [],  # noqa: B006
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Walk the whole sequence and print the step x class matrix.

    Several strategies, detectors, budgets, orders and seeds are compared with each other.

    Example: replaycad run --class bottle,grid,screw --strategy finetune,replay,joint
    """
    shared = Shared(classes, data, store, recipe, settings, device, seed, force, dry_run, as_json,
                    quiet)  # fmt: skip
    if assume:
        if not dry_run:
            raise typer.BadParameter("--assume reckons what a --dry-run of that size would cost")
        return show_forecast(shared, assume, replay_budget)
    choices = {"mask.segmenter": segmenter, "compress.backbone": backbone,
               "train.encoder": encoder,
               "train.replay_budget": str(replay_budget or "")}  # fmt: skip
    numbers, sizes = split_seeds(seeds, seed), split_sizes(budget)
    with session(shared, None, choices) as pipeline:
        from replaycad.experiments import run as walk
        from replaycad.experiments.plan import comparison

        cells = comparison(
            pipeline.class_names(split_names(classes)), split_names(strategy), numbers,
            split_names(detector) or [""], sizes or [0], num_orders,
        )  # fmt: skip
        engine_of = None if dry_run else engine_named(engine, address)
        result = walk.run_sequence(pipeline, cells, name, sheet, engine_of)
        if not dry_run:
            write_page(pipeline, result, name)
        show_run(result, as_json, dry_run)


app.command()(predict)
app.command()(report)
app.command()(export)
app.command("import")(import_embedding)
app.command()(inspect)
app.command()(fetch)
app.command()(doctor)
app.command("help")(show_help)
