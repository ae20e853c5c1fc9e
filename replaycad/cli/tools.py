"""The typer commands around the five stages: predict, exchange, inspect, fetch, doctor."""

import shlex
from pathlib import Path
from typing import Annotated

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
        list[str], typer.Argument(help="Images, folders, or - for paths from stdin.")
    ],
    name: Annotated[
        str, typer.Option("--name", help="Of the detector; default: the only one.")
    ] = "",
    class_name: Annotated[
        str, typer.Option("--class", help="Of the images, whose own threshold then counts.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for heat maps over the images, as PNG.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait for new files in the folders, until Ctrl-C.")
    ] = False,
    batch_size: BatchSize = 0,
    encoder: Encoder = "",
    store: StoreRoot = STORE,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say of images whether they are normal, and draw what is not.

    A score of 1 is the threshold, which 1 % of normal training images exceed.

    Example: replaycad predict photos --name screw --out heatmaps
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import output as summary
        from replaycad.inference.predict import STDIN, Tally, find_images, load_predictor
        from replaycad.inference.predict import predict as judge
        from replaycad.runtime import resolve_device

        predictor = load_predictor(
            Store(store), name, encoder, resolve_device(device), class_name
        )
        # Where somebody waits for each image, it does not wait for others.
        at_once = batch_size or (1 if watch or STDIN in images else 8)
        tally = Tally()
        try:
            for told in judge(predictor, find_images(images, watch), out, at_once, tally):
                summary.show_verdict(told, as_json)
        except KeyboardInterrupt:
            if not watch:
                raise typer.Exit(130) from None
        if not quiet:
            typer.echo(tally.summary(), err=True)
        if tally.failures:
            raise typer.Exit(1)


def report(
    name: Annotated[str, typer.Option("--name", help="Of the run.")] = "run",
    out: Annotated[
        Path | None, typer.Option("--out", help="Page to write; default: beside the results.")
    ] = None,
    data: Data = DATA,
    store: StoreRoot = STORE,
    encoder: Encoder = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a run as one HTML page: matrices, curves, pictures, heat maps, provenance.

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
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    name: Annotated[
        str, typer.Option("--name", help="Of a detector; default: the only one.")
    ] = "",
    form: Annotated[
        str, typer.Option("--format", help="Of a detector: onnx, openvino or torch.")
    ] = "onnx",
    encoder: Encoder = "",
    class_name: Annotated[
        str, typer.Option("--class", help="Its tokens, in place of a detector.")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", help="What a prompt will say; default: <CLASS>.")
    ] = "",
    store: StoreRoot = STORE,
    as_json: AsJson = False,
) -> None:
    """Write a detector for other programs, or a class's tokens as a textual-inversion file.

    Example: replaycad export --name screw --out screw.onnx
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console

        if class_name:
            from replaycad import textual_inversion as exchange

            named = exchange.checked_token(token, class_name)
            count, width = exchange.export_token(Store(store), class_name, out, named)
            found = {"file": str(out), "token": named, "num_tokens": count, "width": width}
            lines = [
                f"written: {out}: {count} vectors of {width} for the token {named}",
                f'next: builder.load_textual_inversion("{out}") in diffusers',
            ]
        else:
            from replaycad.inference.export import export_detector

            found = export_detector(Store(store), name, encoder, out, form)
            lines = [
                f"written: {out}: images [1, 3, {found['image_size']}, {found['image_size']}] "
                "uint8 RGB -> image_scores, anomaly_maps (1 is the threshold)",
                f"its answers differ from ours by {found['max_difference']:.1g} at most",
            ]
        if as_json:
            console.print_json(found)
        else:
            for line in lines:
                console.print_line(line)


def import_embedding(
    file: Annotated[Path, typer.Argument(help="Textual-inversion file, safetensors.")],
    class_name: Annotated[str, typer.Option("--class", help="What it shows.")],
    backbone: Backbone,
    store: StoreRoot = STORE,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make conditions of a textual-inversion file, without masks.

    Example: replaycad import bottle-token.safetensors --class bottle --backbone sd15
    """
    with one_line_errors():
        from replaycad import textual_inversion as exchange
        from replaycad.artifacts.store import Store
        from replaycad.cli import console

        path = exchange.import_token(Store(store), file, class_name, backbone, force)
        if as_json:
            console.print_json({"file": str(path), "class_name": class_name})
            return
        console.print_line(f"written: {path}")
        console.print_line(f"next: {shlex.join(['replaycad', 'replay', '--class', class_name])}")


def inspect(
    file: Annotated[Path, typer.Argument(help="An artifact.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute the digests of all bytes.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Of replays: how near they come to training images.")
    ] = False,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Say what an artifact is, where it came from and what it holds.

    Example: replaycad inspect artifacts/conditions/bottle.safetensors --verify
    """
    with one_line_errors():
        from replaycad.artifacts import inspection
        from replaycad.cli import output as summary

        if audit:
            from replaycad import audit as privacy

            summary.show_audit(privacy.audit_file(file, data), as_json)
            return
        checked = inspection.verify(file) if verify else {}
        summary.show_artifact(inspection.describe(file), checked, as_json)


def fetch(
    recipe: Annotated[
        str, typer.Option("--recipe", help="Fetch what it reads: mini, paper, release or fast.")
    ] = "",
    classes: Annotated[
        list[str], typer.Option("--class", help="Classes that it is for; default: all.")
    ] = [],  # noqa: B006
    data: Data = DATA,
    backbone: Annotated[
        list[str],
        typer.Option("--backbone", help="Fetch sd15, ldm256 or a hub id; a folder is converted."),
    ] = [],  # noqa: B006
    segmenter: Annotated[
        list[str], typer.Option("--segmenter", help="Fetch vit_b, vit_l or vit_h.")
    ] = [],  # noqa: B006
    encoder: Annotated[
        list[str], typer.Option("--encoder", help="Fetch an encoder by its timm name.")
    ] = [],  # noqa: B006
    detector: Annotated[
        list[str], typer.Option("--detector", help="Fetch for it, not for the recipe's own.")
    ] = [],  # noqa: B006
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take files brought by hand: OWNER/MODEL/PATH, sam_*.pth."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what is there and what would be fetched.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch the frozen networks that a recipe reads, or those that are named, and check them.

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
        Path | None, typer.Option("--data", help="Look through this folder of images instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine has, what is missing and how to get it; or what a data folder holds.

    Example: replaycad doctor --data data
    """
    with one_line_errors():
        from replaycad.cli import doctor as examination

        if data is None:
            examination.show(examination.examine(), as_json)
        else:
            examination.show_data(data, as_json)


def show_help(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(help="A topic or a command; none lists them.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show a page of the manual, or what a command takes.

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
