"""The parts of the README that are read off the program."""

import ast
import re
import textwrap
from pathlib import Path

import typer

from replaycad.artifacts.inspection import artifact_table
from replaycad.cli.commands import app
from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig
from replaycad.diffusion.presets import BACKBONES
from replaycad.stages.compress import MAX_MASK_SIZE

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "replaycad"
STAGES = ("mask", "compress", "replay", "train", "eval")


def artifacts() -> str:
    """Table of every artifact format."""
    return artifact_table().strip()


def sizes() -> str:
    """What a class weighs in each backbone's own setting, and the masks."""
    kinds = ["tokens", "variations", "spatial layer", "10 masks", "together"]
    rows = [f"| backbone | {' | '.join(kinds)} |", "| --- |" + " --- |" * len(kinds)]
    for preset in BACKBONES.values():
        config = stage_config("mini" if preset.name == "mini" else "paper", "compress", {})
        assert isinstance(config, CompressConfig)
        width = 2 if config.half else 4
        values = preset.num_tokens * preset.cross_attention_dim
        tokens, variations = width * values, config.num_variations * (values + width)
        layer = width * (preset.in_features + 1) * preset.out_features
        side = min(preset.image_size, MAX_MASK_SIZE)
        masks = 10 * side * -(-side // 8)
        parts = (tokens, variations, layer, masks)
        cells = " | ".join(f"{part:,}" for part in (*parts, sum(parts)))
        rows.append(f"| {preset.name} | {cells} |")
    return "\n".join(rows)


def commands() -> str:
    """Every command with its own options; those that all stages share stand once."""
    commands = typer.main.get_command(app).commands
    shared = [
        option
        for option in commands["mask"].params
        if all(option.name in {own.name for own in commands[stage].params} for stage in STAGES)
    ]
    shared_names = {option.name for option in shared}
    rows = ["| command | what it does | of its own |", "| --- | --- | --- |"]
    for name, command in commands.items():
        text, _, example = command.help.partition("Example:")
        own = [option for option in command.params if option.name not in shared_names]
        summary, example = " ".join(text.split()), example.strip()
        rows.append(f"| `{name}` | {summary} `{example}` | {_spelled(own)} |")
    absent = [o for o in shared if o.name not in {own.name for own in commands["run"].params}]
    ending = f"Every stage takes {_spelled(shared)}; so does `run`, without {_spelled(absent)}."
    return "\n".join([*rows, "", ending])


def _spelled(options: list) -> str:
    named = [option.opts[0] for option in options if option.opts[0].startswith("-")]
    return ", ".join(f"`{name}`" for name in named)


def deviations() -> str:
    """Every remark that begins with the word, and where it stands."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "Deviation:" in line:
                found.append(f"* {_remark(lines, number)} (`{path.relative_to(PACKAGE)}`)")
    return "\n".join(found)


def _remark(lines: list[str], number: int) -> str:
    """The remark at `number` with its continuation lines, as one sentence."""
    is_comment = lines[number].lstrip().startswith("#")
    parts = []
    for line in lines[number:]:
        text = line.strip()
        if is_comment and not text.startswith("#"):
            break
        text = text.lstrip("# ").strip().strip('"')
        if not text:
            break
        parts.append(text)
    remark = " ".join(parts).partition("Deviation:")[2].strip()
    return remark if remark.endswith(".") else remark + "."


def tree() -> str:
    """Files at the top with the first line of their docstrings; rooms with the names of theirs."""
    rows = [(path.name, _first_line(path)) for path in _modules(PACKAGE)]
    for room in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        if room == PACKAGE:
            continue
        inside = ", ".join(path.stem for path in _modules(room))
        rows += [(f"{room.relative_to(PACKAGE)}/", _first_line(room / "__init__.py"))]
        rows += [("", line) for line in textwrap.wrap(inside, 130)]
    width = max(len(name) for name, _ in rows)
    return "```\n" + "\n".join(f"{name:<{width}}  {line}" for name, line in rows) + "\n```"


def _modules(room: Path) -> list[Path]:
    return sorted(path for path in room.glob("*.py") if not path.name.startswith("__"))


def _first_line(path: Path) -> str:
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return re.sub(r"\s+", " ", line)
