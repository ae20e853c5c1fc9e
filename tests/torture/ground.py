"""What every trial starts from and is held against: data, tiny models, an undisturbed run."""

import csv
import io
import json
import os
import random
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.torture import commands

KINDS = ("masks", "conditions", "replays", "detectors", "scores", "results")
CLOCK = {"seconds"}


@dataclass(frozen=True)
class Ground:
    """A folder with `data`, the models and the store `undisturbed`.

    Args:
        folder: of all this.
        settings: options that make every stage quick.
    """

    folder: Path
    settings: list[str]

    def command(self, trial: Path) -> list[str]:
        """The sequence on the data and the store of a trial."""
        return [
            "run", "--class", "disc,plate", "--strategy", "finetune,replay", "--detector",
            "patchcore,invad", "--data", str(trial / "data"), "--store", str(trial / "store"),
            "--device", "cpu", "--quiet", *self.settings,
        ]  # fmt: skip

    @cached_property
    def expected(self) -> dict[str, Any]:
        """Everything the undisturbed run made."""
        return contents(self.folder / "undisturbed" / "store")

    def prepare(self, trial: Path, stream: random.Random, share: float | None = None) -> None:
        """A copy of the data, and of some of the artifacts, as if the run were half done.

        Args:
            trial: folder to fill.
            stream: decides which.
            share: of the artifacts to keep; None for none, half or all.
        """
        share = stream.choice((0.0, 0.5, 1.0)) if share is None else share
        source = self.folder / "undisturbed"
        shutil.copytree(self.folder / "data", trial / "data")
        if not share:
            return
        shutil.copytree(source / "store", trial / "store")
        for path in sorted((trial / "store").rglob("*.safetensors")):
            if stream.random() > share:
                path.unlink()


def contents(store: Path) -> dict[str, Any]:
    """What a store holds by file, the clock left out; what only a killed run leaves is `rest`."""
    found: dict[str, Any] = {}
    for path in sorted(store.rglob("*")):
        name = str(path.relative_to(store))
        if not path.is_file() or name.startswith((".timings", ".locks", ".digests.json")):
            continue
        if path.name.startswith(".") or name.startswith("."):
            found.setdefault("rest", []).append(name)
        elif name.endswith((".png", ".html")):
            found[name] = path.stat().st_size > 0  # Their page tells the seconds.
        else:
            found[name] = _plain(path)
    return found


def _plain(path: Path) -> Any:
    """Bytes of an artifact; results without what the clock said."""
    if path.parent.name != "results":
        return path.read_bytes()
    if path.suffix == ".json":
        try:
            return _timeless(json.loads(path.read_text()))
        except ValueError:  # a fault's work
            return path.read_bytes()
    rows = csv.DictReader(io.StringIO(path.read_text(errors="replace")))
    return [{name: text for name, text in row.items() if name not in CLOCK} for row in rows]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if name not in CLOCK}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of files that are missing, other than expected, or left over."""
    return [
        name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)
    ]


def make_ground(folder: Path) -> Ground:
    """Write data and models, and run the sequence undisturbed.

    Raises:
        RuntimeError: that run fails.
    """
    child = os.fork()
    if not child:  # whatever torch starts in here must not be copied into the trials
        code = 1
        try:
            _write_models(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the tiny models could not be written")
    ground = Ground(folder, json.loads((folder / "settings.json").read_text()))
    (folder / "undisturbed").mkdir()
    shutil.copytree(folder / "data", folder / "undisturbed" / "data")
    log = folder / "undisturbed" / "log"
    listing = folder / "modules.json"
    done = commands.start(ground.command(folder / "undisturbed"), log, listing=listing)
    if not done.wait() or done.status:
        raise RuntimeError(f"the undisturbed run failed: {log.read_text()}")
    commands.preload(json.loads(listing.read_text()))
    return ground


def _write_models(folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    from tests.conftest import ENCODER, Models
    from tests.tiny import make_tiny_backbone
    from tests.toy import write_toy

    write_toy(folder / "data")
    torch.manual_seed(0)
    encoder = folder / "encoder.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), encoder)
    models = Models(str(make_tiny_backbone(folder / "tiny")), f"{ENCODER}:{encoder}")
    (folder / "settings.json").write_text(json.dumps(models.settings("run")))
    for path in folder.rglob("*"):  # a trial may have the rights of nobody
        path.chmod(0o755 if path.is_dir() else 0o644)
