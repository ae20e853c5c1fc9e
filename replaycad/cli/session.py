"""What every command does around its work: open the pipeline, show a failure as one line."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from replaycad.distributed import join, leave, ranks
from replaycad.errors import ConfigError, ReplayCadError, WeightsError

if TYPE_CHECKING:
    from replaycad.engine.builder import Builder, Outcome


MAX_SEEDS = 10_000
FETCH = "replaycad fetch"  # what hints of missing weights name


@dataclass(frozen=True)
class Shared:
    """The options that mean the same in every command, in the order in which commands list them."""

    classes: list[str]
    data: Path
    store: str
    recipe: str
    settings: list[str]
    device: str
    seed: int
    force: bool
    dry_run: bool
    as_json: bool
    quiet: bool


def split_names(texts: list[str]) -> list[str]:
    """Split at commas, drop blanks and repeats, keep the order."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def split_seeds(text: str) -> list[int]:
    """Which seeds: `3` for 0, 1 and 2; `0,4` for these; `4,` for that one."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if "," not in text and numbers and 0 < numbers[0] <= MAX_SEEDS:
        return list(range(numbers[0]))
    if "," not in text or not numbers or min(numbers) < 0:
        raise typer.BadParameter(f"'{text}' is neither a number of seeds (3) nor a list (0,4)")
    return list(dict.fromkeys(numbers))


def split_sizes(text: str) -> list[int]:
    """Bytes, comma separated, such as 25000, 25kB or 1.5MB (1 kB is 1,000 bytes)."""
    found = []
    for part in text.split(",") if text else []:
        number, unit = part.strip(), 1
        for name, size in (("kb", 1_000), ("mb", 1_000_000)):
            if number.lower().endswith(name):
                number, unit = number[:-2].strip(), size
        try:
            found.append(round(float(number) * unit))
        except (ValueError, OverflowError):
            found.append(0)
        if found[-1] <= 0:
            raise typer.BadParameter(f"'{part}' is not a size such as 25000 or 25kB")
    return list(dict.fromkeys(found))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a foreseen failure as one line and leave with exit code 1."""
    try:
        yield
    except ReplayCadError as error:
        from replaycad.cli import console

        console.print_error(error)
        raise typer.Exit(1) from None
    except PermissionError as error:
        # Whether a file is there cannot be asked in a folder that nobody may enter.
        from replaycad.cli import console

        hint = "check the permissions of its folder"
        console.print_error(ReplayCadError(f"permission denied: {error.filename}", hint))
        raise typer.Exit(1) from None


@contextmanager
def session(
    shared: Shared, stage: str | None, choices: dict[str, str]
) -> Iterator["Builder"]:
    """Open a builder for one command; an interruption says what was kept and leaves with 130.

    Args:
        shared: options of every command.
        stage: whose fields a bare `--set` means; None where each has to name its stage.
        choices: fields and what options said of them; empty texts do not count.
    """
    with one_line_errors():
        own = ranks()
        if own.count > 1 and stage != "train":
            raise ConfigError(
                "torchrun only speeds up train",
                "use `make -j` or `replaycad run --device ray` instead",
            )
        from replaycad.cli import console
        from replaycad.engine.builder import Builder
        from replaycad.engine.settings import RunSettings, split_per_class, split_settings

        overrides = split_settings(
            [f"{name}={text}" for name, text in choices.items() if text] + shared.settings, stage
        )
        asked = split_names(shared.classes)
        strangers = set(split_per_class(overrides["mask"].get("tile", ""))) - {"", *asked}
        if strangers and asked != ["all"]:
            named = ", ".join(sorted(strangers))
            raise ConfigError(f"--tile names {named}, which --class does not", "write it alike")
        with console.TerminalReport(shared.quiet or own.rank > 0) as report:
            settings = RunSettings(
                data=shared.data, root=shared.store, overrides=overrides, device=shared.device,
                seed=shared.seed, recipe=shared.recipe, force=shared.force, dry_run=shared.dry_run,
            )  # fmt: skip
            with Builder(settings, report) as builder:
                try:
                    if own.count > 1:  # processes of torchrun share the batches of a training
                        join(builder.models.device)
                    yield builder
                    leave()
                except WeightsError as error:
                    raise _brought_at_once(error, shared, overrides) from None
                except KeyboardInterrupt:
                    report.close()
                    console.print_interrupted(builder.kept())
                    raise typer.Exit(130) from None


def _brought_at_once(
    error: WeightsError, shared: Shared, overrides: Mapping[str, Mapping[str, str]]
) -> WeightsError:
    """The same error with the one command that brings all networks of the recipe, not just it."""
    named = {
        name: fields[name] for fields in overrides.values()
        for name in ("backbone", "segmenter", "encoder", "detector") if name in fields
    }  # fmt: skip
    recipe = shared.recipe or ("fast" if named.get("backbone", "mini") != "mini" else "")
    is_own = any(value == "none" or Path(value).exists() for value in named.values())
    if FETCH not in error.hint or recipe in ("", "mini") or is_own:
        return error
    typed = {"--recipe": recipe, "--class": ",".join(split_names(shared.classes))}
    if typed["--class"] == "all":
        typed["--data"] = str(shared.data)
    typed |= {f"--{name}": value for name, value in named.items()}
    command = shlex.join([*FETCH.split(), *(part for pair in typed.items() for part in pair)])
    return WeightsError(error.message, f"run: {command}")


def grown(builder: "Builder", classes: list[str], added: list[str]) -> "Outcome":
    """Add photos to what is kept of one class."""
    from replaycad.engine.grow import GrowStage
    from replaycad.inference.photos import find_images

    names = builder.class_names(classes, stored=True)
    if len(names) > 1:
        raise ConfigError("--add takes photos of one class", "name that class alone")
    photos = [one.path for one in find_images(added)]
    return builder.build(GrowStage(builder, names[0], photos), force=False)


def show_outcomes(shared: Shared, outcomes: list["Outcome"]) -> None:
    """Print what a command came to; of the processes of torchrun, the first does."""
    if ranks().rank == 0:
        from replaycad.cli import output

        output.show(outcomes, shared.as_json, shared.dry_run)


def command_help(context: typer.Context, name: str) -> str:
    """What `replaycad NAME --help` says; empty if there is no such command."""
    root = context.find_root()
    command = root.command.get_command(root, name)  # type: ignore[attr-defined]
    if command is None:
        return ""
    with command.make_context(name, ["--help"], parent=root, resilient_parsing=True) as own:
        return str(command.get_help(own)).rstrip()


def report_writer() -> Callable[..., None]:
    """`report.build.write_report`, whose packages are an extra.

    Raises:
        ConfigError: if one of them is missing.
    """
    try:
        from replaycad.report.build import write_report
    except ImportError as error:
        message = f"a report page needs the package {error.name}"
        raise ConfigError(message, "run `pip install replaycad[report]`") from None
    return write_report


def write_page(builder: "Builder", result: dict[str, Any], name: str) -> None:
    """Write the page of a run beside its results if they changed; a failure is only noted."""
    target = builder.store.path("results", name, ".html")
    try:
        if result["is_new"] or not target.exists():
            write = report_writer()
            from replaycad.config.stages import TrainConfig
            from replaycad.runtime import resolve_device

            settings = builder.settings
            encoder = builder.settings.config(TrainConfig).encoder
            device = resolve_device(settings.device)
            write(builder.store, settings.data, name, encoder, device, target)
        result["files"].append(target)
    except ReplayCadError as error:
        builder.report.note(f"wrote no report page: {error}")


def fetch_parts(
    recipe: str,
    classes: list[str],
    data: Path,
    named: dict[str, list[str]],
    detectors: list[str],
    source: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch what a recipe reads for its classes, or the networks that are named by kind."""
    with one_line_errors():
        from replaycad.cli import console, output
        from replaycad.fetch import work
        from replaycad.fetch.parts import asked_for

        parts, meant = asked_for(recipe, classes, data, named, detectors)
        if source is not None and not source.is_dir():
            raise typer.BadParameter(f"--from {source} is not a folder")
        with console.TerminalReport(quiet) as report:
            if meant:
                report.note(meant)
            try:
                if dry_run:
                    found = [work.look(part) for part in parts]
                else:
                    found = work.fetch_all(parts, source, report)
            except KeyboardInterrupt:
                report.close()
                console.print_interrupted(["kept what has been fetched so far"])
                raise typer.Exit(130) from None
        output.show_fetched(found, as_json)


def show_run(result: dict[str, Any], as_json: bool, dry_run: bool) -> None:
    """Show what a sequence came to, or would do."""
    from replaycad.cli import output

    if dry_run:
        output.show(result["outcomes"], as_json, dry_run)
    else:
        output.show_results(result["document"], result["files"], as_json)
