"""The command that sets the limits of a class from good photos."""

from typing import Annotated

import typer

from replaycad.cli.options import STORE, AsJson, Device, Encoder, Quiet, StoreRoot
from replaycad.cli.session import one_line_errors


def calibrate(
    images: Annotated[
        list[str], typer.Argument(help="Good photos, folders, or - to read paths from stdin.")
    ],
    class_name: Annotated[str, typer.Option("--class", help="Set the limits of this class.")],
    name: Annotated[
        str, typer.Option("--name", help="Set them in this detector (default: the only one).")
    ] = "",
    target: Annotated[
        str,
        typer.Option("--target-false-alarms", help="Let so many good photos alarm, as 0.5%."),
    ] = "1%",
    encoder: Encoder = "",
    store: StoreRoot = STORE,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the limits would be; change nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set the alarm limits of a class from good photos of today.

    The weights stay as they are. 99 photos or more can promise 1 % false alarms.

    Example: replaycad calibrate good-photos --class bottle
    """
    with one_line_errors():
        from replaycad.artifacts.store import Store
        from replaycad.cli import console
        from replaycad.inference import calibrate as work
        from replaycad.inference.photos import find_images
        from replaycad.runtime import resolve_device

        rate = work.parsed_rate(target)
        with console.TerminalReport(quiet) as shown:
            found = work.calibrate(
                Store(store), name, class_name, find_images(images), rate, resolve_device(device),
                encoder, dry_run, shown,
            )  # fmt: skip
        if as_json:
            console.print_json(found.facts())
            return
        for line in found.sentences():
            console.print_line(line)
        console.print_line(f"{'unchanged' if dry_run else 'written'}: {found.file}")
