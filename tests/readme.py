"""The parts of the README and of the guide that are generated from the program."""

import ast
import re
import textwrap
from pathlib import Path

import typer

from replaycad import guide
from replaycad.artifacts.inspection import artifact_table
from replaycad.cli.commands import app
from replaycad.config.recipes import RECIPES, stage_config
from replaycad.config.stages import STAGES as CONFIGURED
from replaycad.config.stages import CompressConfig, as_dict
from replaycad.data.classes import POLICIES, ClassPolicy
from replaycad.detectors.encoder_files import PACKAGED, PUBLISHED
from replaycad.diffusion.presets import BACKBONES
from replaycad.experiments.strategies import STRATEGIES
from replaycad.fetch.parts import Part, part_named
from replaycad.segmentation.presets import SEGMENTERS
from replaycad.stages.compress import MAX_MASK_SIZE

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "replaycad"
STAGES = ("mask", "compress", "replay", "train", "eval")


GUIDE = sorted((PACKAGE / "guide").glob("*.md"))
"""Pages with generated parts, beside the README."""


def artifacts() -> str:
    """Table of every artifact format."""
    rows = [row for row in artifact_table().splitlines() if "---" not in row]
    return table(*([cell.strip() for cell in row.split("|")[1:-1]] for row in rows))


def sizes() -> str:
    """Bytes of a class in each backbone's own setting, and of the masks."""
    kinds = ["tokens", "variations", "spatial layer", "10 masks", "together"]
    rows = [["backbone", *kinds]]
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
        rows.append([preset.name, *(f"{part:,}" for part in (*parts, sum(parts)))])
    return table(*rows)


def settings() -> str:
    """Every field with its value in each recipe; those that are equal in all in one paragraph."""
    rows, equal = [["setting", *RECIPES]], []
    for stage in CONFIGURED:
        configs = [as_dict(recipe[stage]) for recipe in RECIPES.values()]
        for name in configs[0]:
            values = [str(config[name]) or "-" for config in configs]
            if len(set(values)) > 1:
                rows.append([f"`{stage}.{name}`", *values])
            else:
                equal.append(f"`{stage}.{name}` {values[0]}")
    same = textwrap.wrap(f"The same in all recipes: {', '.join(equal)}.", 118)
    return "\n".join([table(*rows), "", *same])


def policies() -> str:
    """How each class of MVTec AD and VisA is masked and moved."""
    rows = [["class", "mask rule", "image moves in compress", "mask moves in replay", "init word"]]
    rows += [
        [one.class_name, one.mask_rule + (", several" if one.several_objects else ""),
         one.train_augmentation, _moves(one), one.init_word]
        for one in POLICIES.values()
    ]  # fmt: skip
    return table(*rows)


def _moves(policy: ClassPolicy) -> str:
    parts = [policy.replay_augmentation]
    if policy.replay_rotate_degrees:
        parts.append(f"{policy.replay_rotate_degrees} degrees")
    if policy.replay_shift_fraction:
        parts.append(f"{100 * policy.replay_shift_fraction:.1f} % of the width")
    if policy.replay_rotate_180:
        parts.append("half turns")
    return ", ".join(parts)


def sources() -> str:
    """Where each network is published, how large it is and its licence."""
    parts = [part_named("backbone", name) for name in BACKBONES]
    parts += [part_named("segmenter", name) for name in SEGMENTERS]
    parts += [part_named("encoder", name) for name in (*PACKAGED, *PUBLISHED)]
    rows = [["kind", "name", "size", "licence of the weights", "published at"]]
    rows += [
        [part.kind, part.name, _megabytes(part), part.licence, part.page]
        for part in parts if part.page
    ]  # fmt: skip
    return table(*rows)


def _megabytes(part: Part) -> str:
    return f"{part.num_bytes / 1e6:,.0f} MB"


def commands() -> str:
    """Every command with its own options; those that all stages share stand once."""
    commands = typer.main.get_command(app).commands
    shared = [
        option
        for option in commands["mask"].params
        if all(option.name in {own.name for own in commands[stage].params} for stage in STAGES)
    ]
    shared_names = {option.name for option in shared}
    rows = [["command", "what it does", "its own options"]]
    for name, command in commands.items():
        text, _, _ = command.help.partition("Example:")
        own = [option for option in command.params if option.name not in shared_names]
        rows.append([f"`{name}`", " ".join(text.split()), _spelled(own)])
    absent = [o for o in shared if o.name not in {own.name for own in commands["run"].params}]
    ending = f"Every stage takes {_spelled(shared)}; so does `run`, without {_spelled(absent)}."
    return "\n".join([table(*rows), "", *textwrap.wrap(ending, 118)])


def _spelled(options: list) -> str:
    named = [option.opts[0] for option in options if option.opts[0].startswith("-")]
    return ", ".join(f"`{name}`" for name in named)


def table(*rows: list[str]) -> str:
    """Rows as a Markdown table whose columns also line up in a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (rows[0], rule, *rows[1:])
    )
    return "\n".join(f"| {line} |" for line in lines)


def deviations() -> str:
    """Every remark that begins with the word, and the file that holds it."""
    found: list[str] = []
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


def departures() -> str:
    """How many such remarks there are."""
    count = len(deviations().splitlines())
    return f"The code departs from the paper in {count} places. The three that matter most:"


def pages() -> str:
    """The guide's pages with their titles, as links."""
    return "\n".join(
        f"* [{topic}](replaycad/guide/{topic}.md): {title[0].lower() + title[1:]}"
        for topic, title in guide.topics().items()
    )


def strategies() -> str:
    """The strategies of `run`, from their table."""
    rows = [[f"`{name}`", strategy.description] for name, strategy in STRATEGIES.items()]
    return table(["strategy", "what it does"], *rows)


def tree() -> str:
    """Folders of the package with the first line of their docstrings; names of the files beside."""
    rooms = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    rows = [
        (f"{room.relative_to(PACKAGE)}/", _first_line(room / "__init__.py"))
        for room in rooms
    ]  # fmt: skip
    names = ", ".join(path.stem for path in _modules(PACKAGE))
    rows += zip(("*.py", "", ""), textwrap.wrap(names, 118), strict=False)
    width = max(len(name) for name, _ in rows)
    return "```\n" + "\n".join(f"{name:<{width}}  {line}" for name, line in rows) + "\n```"


def _modules(room: Path) -> list[Path]:
    return sorted(path for path in room.glob("*.py") if not path.name.startswith("__"))


def _first_line(path: Path) -> str:
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return re.sub(r"\s+", " ", line)
