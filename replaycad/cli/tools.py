"""The commands around the stages: predict, report, export, inspect, forget, fetch, doctor, help."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from replaycad.cli.options import (
    DATA,
    STORE,
    AsJson,
    Backbone,
    BatchSize,
    Data,
    Device,
    Encoder,
    Force,
    Quiet,
    StoreRoot,
)
from replaycad.cli.session import (
    command_help,
    fetch_parts,
    one_line_errors,
    report_writer,
    split_names,
)


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders, or - to read paths from stdin.")
    ],
    name: Annotated[
        str, typer.Option("--name", help="Use this detector (default: the only one).")
    ] = "",
    class_name: Annotated[
        str, typer.Option("--class", help="Expect this class; call anything else unknown.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write heat maps over the images to this folder.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep watching the folders for new files until Ctrl-C.")
    ] = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 3 after an alarm, 4 after an unknown product."),
    ] = False,
    contours: Annotated[
        bool, typer.Option("--contours", help="Add the outlines of anomalous places to --json.")
    ] = False,
    batch_size: BatchSize = 0,
    encoder: Encoder = "",
    store: StoreRoot = STORE,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
    quiet: Quiet = False,
) -> None:
    """Score images and write heat maps.

    A score above 1 is anomalous; 1 % of the normal training images score that high, or what
    `replaycad calibrate` says.

    Example: replaycad predict photos --name screw --out heatmaps
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import output
        from replaycad.inference.drift import DriftWatch
        from replaycad.inference.photos import STDIN, find_images
        from replaycad.inference.predict import Tally, load_predictor
        from replaycad.inference.predict import predict as judge
        from replaycad.runtime import resolve_device

        predictor = load_predictor(
            Store(store), name, encoder, resolve_device(device), class_name
        )
        # An image that somebody waits for does not wait for others.
        at_once = batch_size or (1 if watch or STDIN in images else 8)
        tally, drift = Tally(), DriftWatch()
        try:
            found = find_images(images, watch)
            for told in judge(predictor, found, out, at_once, tally, contours):
                risen = drift.notice(told)
                output.show_verdict({**told, "drift": risen} if risen else told, as_json)
                if risen and not as_json:
                    typer.echo(risen, err=True)
        except KeyboardInterrupt:
            if not watch:
                raise typer.Exit(130) from None
        if not quiet:
            typer.echo(tally.summary(), err=True)
        if tally.failures:
            raise typer.Exit(1)
        if exit_code:
            raise typer.Exit(tally.worst)


def report(
    name: Annotated[str, typer.Option("--name", help="Report on this run.")] = "run",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the page here (default: with the results).")
    ] = None,
    data: Data = DATA,
    store: StoreRoot = STORE,
    encoder: Encoder = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a run.

    It shows matrices, curves, pictures, heat maps and where every figure comes from.

    Example: replaycad report --name run --out report.html
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console
        from replaycad.runtime import resolve_device

        target = out or Store(store).path("results", name, ".html")
        report_writer()(Store(store), data, name, encoder, resolve_device(device), target)
        if as_json:
            console.print_json({"file": str(target), "num_bytes": target.stat().st_size})
        else:
            console.print_line(f"written: {target}")


def export(
    out: Annotated[Path, typer.Option("--out", help="Write to this file.")],
    name: Annotated[
        str, typer.Option("--name", help="Export this detector (default: the only one).")
    ] = "",
    form: Annotated[
        str, typer.Option("--format", help="Export as onnx, openvino or torch.")
    ] = "onnx",
    encoder: Encoder = "",
    class_name: Annotated[
        str, typer.Option("--class", help="Export the tokens of this class instead of a detector.")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", help="Name the token in prompts (default: <CLASS>).")
    ] = "",
    store: StoreRoot = STORE,
    as_json: AsJson = False,
) -> None:
    """Export a detector, or the tokens of a class.

    Tokens become a textual-inversion file. A detector reads square RGB images of one size, which
    the command prints.

    Example: replaycad export --name screw --out screw.onnx
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console

        if class_name:
            from replaycad import textual_inversion

            named = textual_inversion.checked_token(token, class_name)
            count, width = textual_inversion.export_token(Store(store), class_name, out, named)
            found: dict[str, Any] = {
                "file": str(out), "token": named, "num_tokens": count, "width": width,
            }  # fmt: skip
            lines = [
                f"written: {out}: {count} vectors of {width} for the token {named}",
                f'next: pipeline.load_textual_inversion("{out}") in diffusers',
            ]
        else:
            from replaycad.inference.export import export_detector

            exported = export_detector(Store(store), name, encoder, out, form)
            found = exported
            lines = [
                f"written: {out}: images [1, 3, {found['image_size']}, {found['image_size']}] "
                f"uint8 RGB -> {', '.join(exported['outputs'])} (1 is the threshold)",
                f"its answers differ from ours by at most {found['max_difference']:.1g}",
                *(
                    f"an image of {name} is a tile of {view['tile']} px"
                    for name, view in exported["views"].items() if view["tile"]
                ),
            ]  # fmt: skip
        if as_json:
            console.print_json(found)
        else:
            for line in lines:
                console.print_line(line)


def import_embedding(
    file: Annotated[Path, typer.Argument(help="Textual-inversion file in safetensors format.")],
    class_name: Annotated[str, typer.Option("--class", help="Name the class that it shows.")],
    backbone: Backbone,
    store: StoreRoot = STORE,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Import a textual-inversion file as conditions, without masks.

    Example: replaycad import bottle-token.safetensors --class bottle --backbone sd15
    """
    with one_line_errors():
        from replaycad import textual_inversion
        from replaycad.artifacts.store import Store
        from replaycad.cli import console

        path = textual_inversion.import_token(Store(store), file, class_name, backbone, force)
        if as_json:
            console.print_json({"file": str(path), "class_name": class_name})
            return
        console.print_line(f"written: {path}")
        console.print_line(f"next: {shlex.join(['replaycad', 'replay', '--class', class_name])}")


def inspect(
    file: Annotated[
        Path, typer.Argument(help="Artifact to look into, or with --lacks the store.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute every digest.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Measure how close replays come to training images.")
    ] = False,
    lacks: Annotated[
        str, typer.Option("--lacks", help="Exit with 1 if any file of a store names this class.")
    ] = "",
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Show what an artifact is, where it came from and what it holds.

    Example: replaycad inspect artifacts/conditions/bottle.safetensors --verify
    """
    with one_line_errors():
        from replaycad.artifacts import inspection
        from replaycad.cli import output

        if lacks:
            from replaycad.artifacts.store import Store
            from replaycad.artifacts.traces import traces_of

            found = traces_of(Store(file), lacks)
            output.show_traces(lacks, found, as_json)
            raise typer.Exit(int(any(found.values())))
        if audit:
            from replaycad.audit import audit_file

            output.show_audit(audit_file(file, data), as_json)
            return
        checked = inspection.verify(file) if verify else {}
        output.show_artifact(inspection.describe(file), checked, as_json)


def forget(
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="Class to forget.")],
    remove_detectors: Annotated[
        bool,
        typer.Option("--remove-detectors", help="Also remove detectors that cannot lose it."),
    ] = False,
    store: StoreRoot = STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go, and change nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forget a class: remove what is kept of it and its part of every detector.

    Afterwards it searches every file for the bytes that it removed.

    Example: replaycad forget bottle
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console, output
        from replaycad.engine.forget import forget as remove_class

        with console.TerminalReport(quiet) as told:
            found = remove_class(Store(store), class_name, remove_detectors, dry_run, told)
        output.show_forgotten(found, as_json)
        raise typer.Exit(int(bool(found.get("left"))))


def fetch(
    recipe: Annotated[
        str, typer.Option("--recipe", help="Fetch what mini, fast, paper or release reads.")
    ] = "",
    classes: Annotated[
        list[str], typer.Option("--class", help="Fetch for these classes only (default: all).")
    ] = [],  # noqa: B006
    data: Data = DATA,
    backbone: Annotated[
        list[str],
        typer.Option("--backbone", help="Fetch sd15, ldm256 or a hub id; or convert a folder."),
    ] = [],  # noqa: B006
    segmenter: Annotated[
        list[str], typer.Option("--segmenter", help="Fetch vit_b, vit_l or vit_h.")
    ] = [],  # noqa: B006
    encoder: Annotated[
        list[str], typer.Option("--encoder", help="Fetch an encoder by its timm name.")
    ] = [],  # noqa: B006
    detector: Annotated[
        list[str], typer.Option("--detector", help="Fetch for these, not the recipe's detector.")
    ] = [],  # noqa: B006
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take files from this folder: OWNER/MODEL/PATH, sam_*.pth."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is there and what would be fetched.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch and check the frozen networks of a recipe.

    Or fetch the networks that you name.

    Example: replaycad fetch --recipe paper --dry-run
    """
    named = {
        kind: split_names(names) for kind, names in
        (("backbone", backbone), ("segmenter", segmenter), ("encoder", encoder))
    }  # fmt: skip
    fetch_parts(
        recipe, split_names(classes), data, named, split_names(detector), source, dry_run, as_json,
        quiet,
    )  # fmt: skip


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", help="Check this folder of images instead.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at the files' names and sizes only.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Draw the photos that are unlike the others into this PNG."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, or say how a data folder is read and what is wrong with its images.

    Example: replaycad doctor --data data
    """
    with one_line_errors():
        from replaycad.cli.doctor import examine, show, show_data

        if data is None:
            show(examine(), as_json)
        else:
            if quick and sheet is not None:
                raise typer.BadParameter("--sheet needs the images, which --quick does not unpack")
            show_data(data, as_json, quick, sheet)


def show_help(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="Topic or command (default: list topics).")] = "",
    as_json: AsJson = False,
) -> None:
    """Show a page of the manual, or the options of a command.

    Example: replaycad help first-hour
    """
    with one_line_errors():
        from replaycad import guide
        from replaycad.cli import console

        if not topic:
            found = guide.topics()
            width = max(map(len, found))
            text = "\n".join(f"{name:<{width}}  {line}" for name, line in found.items())
        else:
            text = command_help(context, topic) or guide.page(topic)
        if as_json:
            console.print_json({"topic": topic, "text": text})
        else:
            console.print_line(text)
