"""What this machine has, what is missing and how to get it."""

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from replaycad import __version__
from replaycad.cli.console import print_json, print_line, print_table
from replaycad.cli.session import FETCH
from replaycad.config.paper_classes import VISA
from replaycad.config.stages import MaskConfig, TrainConfig
from replaycad.data.survey import DEFECT, survey
from replaycad.detectors.encoder_files import encoder_files
from replaycad.detectors.registry import DETECTORS, resolve_defaults
from replaycad.diffusion.presets import BACKBONES, locate_backbone
from replaycad.engine.settings import RunSettings
from replaycad.errors import ReplayCadError
from replaycad.experiments.odd_sheet import draw_odd
from replaycad.experiments.tables import format_bytes
from replaycad.fetch.parts import parts_of_recipe
from replaycad.segmentation.presets import SEGMENTERS
from replaycad.segmentation.presets import locate as locate_segmenter

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "timm", "segment-anything",
    "safetensors", "numpy", "pillow", "scikit-learn", "scipy", "typer", "rich",
)  # fmt: skip
BUNDLED = "mini"


def examine() -> dict[str, Any]:
    """Look at packages, device, memory and weights; nothing is downloaded.

    Returns:
        `python`, `replaycad`, `packages` (version or null), `device`, `memory_bytes`, `threads`,
        `weights` (a list of kind, name, is_present, hint) and `problems` (sentences).
    """
    packages = {name: _version(name) for name in PACKAGES}
    problems = [
        f"{name} is not installed: run `pip install {name}`"
        for name, version in packages.items()
        if version is None
    ]
    device = _device(packages, problems)
    problems += _mismatch(packages)
    weights = _weights()
    problems += [
        f"the bundled {entry['kind']} is missing: {entry['hint']}"
        for entry in weights
        if entry["name"] == BUNDLED and not entry["is_present"]
    ]
    return {
        "python": platform.python_version(),
        "replaycad": __version__,
        "packages": packages,
        **device,
        "memory_bytes": _memory_bytes(),
        "weights": weights,
        "problems": problems,
    }


def show(found: dict[str, Any], as_json: bool) -> None:
    """Print what `examine` found."""
    if as_json:
        print_json(found)
        return
    print_line(f"replaycad {found['replaycad']}, Python {found['python']}")
    memory = found["memory_bytes"]
    print_line(
        f"device {found['device']}, {found['threads']} threads, "
        f"memory {format_bytes(memory) if memory else 'unknown'}"
    )
    print_line("")
    rows = [[name, version or "missing"] for name, version in found["packages"].items()]
    print_table(("package", "version"), rows)
    print_line("")
    print_table(
        ("weights", "name", "state"),
        [
            [entry["kind"], entry["name"], "present" if entry["is_present"] else "missing"]
            for entry in found["weights"]
        ],
    )
    print_line(_how_to_fetch(found["weights"]))
    for problem in found["problems"]:
        print_line(f"problem: {problem}")
    if not found["problems"]:
        print_line("no problems found")


def _how_to_fetch(weights: list[dict[str, Any]]) -> str:
    """One command for whatever is missing; empty if nothing is."""
    read = {(part.kind, part.name) for part in parts_of_recipe("paper", ["", *VISA])}
    missing = {
        (one["kind"], one["name"]) for one in weights
        if not one["is_present"] and one["name"] != BUNDLED
    }  # fmt: skip
    if not missing:
        return ""
    if missing & read:
        return f"to fetch the networks of the paper's recipe: {FETCH} --recipe paper"
    kind, name = min(missing)
    return f"to fetch one of the others: {FETCH} --{kind} {name}"


def show_data(
    data: Path, as_json: bool, quick: bool = False, sheet: Path | None = None
) -> None:
    """Print what a data folder holds, how it was read, and what to do about it.

    Args:
        data: the folder.
        as_json: print one JSON document.
        quick: do not unpack the images.
        sheet: PNG to write, with the training images that are unlike the others.

    Raises:
        DatasetError: if it holds no class.
    """
    settings = RunSettings(data=data, root="", overrides={})
    size = resolve_defaults(settings.config(TrainConfig)).image_size
    found = survey(data, size, settings.config(MaskConfig).fit, quick)
    if sheet is not None:
        odd = {one["name"]: [Path(path) for path in one["odd"]] for one in found["classes"]}
        draw_odd(odd, sheet)
    if as_json:
        print_json(found)
        return
    print_line(f"{data}: {found['layout']}")
    print_line("")
    print_table(
        ("class", "train", "test normal", "test defective", "with masks", "defects", "sizes",
         f"{DEFECT} px become"),
        [
            [one["name"], str(one["train"]), str(one["test_normal"]), str(one["test_defective"]),
             str(one["with_masks"]) if one["test_defective"] else "-",
             ", ".join(one["kinds"]) or "-", ", ".join(one["sizes"]) or "-",
             "-" if one["defect_px"] is None else f"{one['defect_px']:g} px"]
            for one in found["classes"]
        ],
    )  # fmt: skip
    print_line("")
    for one in found["classes"]:
        for text in one["notes"]:
            print_line(f"{one['name']}: {text}")
    if found["skipped"]:
        names = ", ".join(found["skipped"])
        print_line(f"left out, for nothing in them says what is normal: {names}")
    problems = [f"{one['name']}: {text}" for one in found["classes"] for text in one["problems"]]
    for problem in problems:
        print_line(f"problem: {problem}")
    if not problems:
        print_line("no problems found")
    if sheet is not None:
        print_line(f"wrote {sheet}")
    first = found["classes"][0]
    command = ["replaycad", "compress", "--data", str(data), "--class", first["name"]]
    command += ["--tile", str(first["tile"])] if first["tile"] else []
    print_line(f"next: {shlex.join(command)}")


def wheel_mismatch(torch_version: str, torchvision_version: str) -> bool:
    """Whether a CPU-only torch stands beside a torchvision that was built for another torch.

    The registry's torchvision is compiled against the registry's torch, which carries CUDA; beside
    a `+cpu` torch its operators do not register, and timm and segment-anything fail on import.
    """
    torch_build = torch_version.partition("+")[2]
    torchvision_build = torchvision_version.partition("+")[2]
    return torch_build == "cpu" and torchvision_build != "cpu"


def _mismatch(packages: dict[str, str | None]) -> list[str]:
    torch, torchvision = packages["torch"], packages["torchvision"]
    if torch and torchvision and wheel_mismatch(torch, torchvision):
        return [
            f"torch {torch} is a CPU-only build, but torchvision {torchvision} is not: reinstall "
            "both from one index with `pip install --force-reinstall torch torchvision`"
        ]
    return []


def _device(packages: dict[str, str | None], problems: list[str]) -> dict[str, Any]:
    """Name the device that `auto` means here; a torch that cannot be imported is a problem."""
    if packages["torch"] is None:
        return {"device": "unknown", "threads": 0}
    try:
        import torch  # noqa: PLC0415 - a broken installation is what this looks for

        from replaycad.runtime import resolve_device  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"torch cannot be imported: {error}")
        return {"device": "unknown", "threads": 0}
    device = resolve_device("auto")
    name = str(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"cuda ({properties.name}, {format_bytes(properties.total_memory)})"
    try:
        import torchvision  # noqa: F401, PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"torchvision cannot be imported: {error}; reinstall it with torch")
    return {"device": name, "threads": torch.get_num_threads()}


def _weights() -> list[dict[str, Any]]:
    presets = [preset for kind in DETECTORS.values() for preset in kind.values()]
    encoders = dict.fromkeys(preset.encoder for preset in presets)
    wanted = (
        [("backbone", name, locate_backbone) for name in BACKBONES]
        + [("segmenter", name, locate_segmenter) for name in SEGMENTERS]
        + [("encoder", name, encoder_files) for name in encoders]
    )
    found = []
    for kind, name, locate in wanted:
        hint = ""
        try:
            locate(name)
        except ReplayCadError as error:
            hint = error.hint or error.message
        found.append({"kind": kind, "name": name, "is_present": not hint, "hint": hint})
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    """Memory of the machine; None where the system does not say."""
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return None
