"""The command that teaches a detector what a person says of photos."""

from typing import Annotated

import typer

from replaycad.cli.options import STORE, AsJson, Device, Encoder, Quiet, StoreRoot
from replaycad.cli.session import one_line_errors


def feedback(
    images: Annotated[
        list[str] | None, typer.Argument(help="Photos, folders, or - to read paths from stdin.")
    ] = None,
    class_name: Annotated[str, typer.Option("--class", help="Say what the photos show.")] = "",
    good: Annotated[
        bool, typer.Option("--good", help="Learn from false alarms: the photos are good.")
    ] = False,
    defective: Annotated[
        bool, typer.Option("--defective", help="Lower the limit: the photos are missed defects.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the latest feedback on the detector back.")
    ] = False,
    most: Annotated[
        str,
        typer.Option(
            "--max-false-alarms", help="Let --defective make so many good photos alarms, as 5%."
        ),
    ] = "5%",
    name: Annotated[
        str, typer.Option("--name", help="Teach this detector (default: the only one).")
    ] = "",
    encoder: Encoder = "",
    store: StoreRoot = STORE,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; change nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Teach a detector what you know of photos: false alarms and missed defects.

    It learns good photos at once, and nothing else that it knows changes.

    Example: replaycad feedback false-alarms --class bottle --good
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console
        from replaycad.errors import ConfigError
        from replaycad.inference import feedback as work
        from replaycad.inference.calibrate import parsed_rate
        from replaycad.inference.photos import find_images
        from replaycad.runtime import resolve_device

        if good + defective + undo != 1:
            raise ConfigError("say one of --good, --defective and --undo")
        if bool(images) == undo or bool(class_name) == undo:
            needs = "neither photos nor --class" if undo else "photos and --class"
            kind = "--undo" if undo else "--good" if good else "--defective"
            raise ConfigError(f"{kind} takes {needs}")
        with console.TerminalReport(quiet) as shown:
            if undo:
                facts = work.undo(Store(store), name, dry_run, shown)
                lines = work.told_of_undo(facts)
            else:
                found = work.learn(
                    Store(store), name, class_name, find_images(images or []), good,
                    parsed_rate(most, "--max-false-alarms"), resolve_device(device), encoder,
                    dry_run, shown,
                )  # fmt: skip
                facts, lines = found.facts(), found.sentences()
        if as_json:
            console.print_json(facts)
            return
        for line in lines:
            console.print_line(line)
        console.print_line(f"{'unchanged' if dry_run else 'written'}: {facts['file']}")
