"""Has an artifact made if it is due, once per command, and remembers what was made.

Torch is not imported before a stage has to run.
"""

import os
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaycad.artifacts.store import Store
from replaycad.config.recipes import FOLDERS, CompressConfig, ReplayConfig, StageConfig
from replaycad.diffusion.memory import needed_bytes
from replaycad.distributed import ranks
from replaycad.engine import staleness as plans
from replaycad.engine.staleness import Outcome, Plan
from replaycad.engine.timings import Ledger
from replaycad.errors import ArtifactError
from replaycad.progress import Report

if TYPE_CHECKING:
    from replaycad.engine.workshop import Workshop


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a user asked of a command, beyond the classes.

    Args:
        data: folder of the images.
        root: folder or URL of the artifacts.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: of every random stream, unless a step names its own.
        recipe: key of `recipes.RECIPES`; empty for the backbone's own.
        overrides: stage -> field -> text.
        force: make what is asked for even if it is up to date.
        dry_run: make nothing.
        save_every_seconds: time between two checkpoints.
    """

    data: Path
    root: str | Path
    overrides: Mapping[str, dict[str, str]]
    device: str = "auto"
    seed: int = 0
    recipe: str = ""
    force: bool = False
    dry_run: bool = False
    save_every_seconds: float = 60.0


class Builder:
    """The artifacts of one command.

    Args:
        wishes: of the user.
        store: that they are read from and written to.
        report: hears of progress.

    Attributes:
        handled: artifacts, as kind/name, settled by this command.
        changing: those that a dry run found to be due.
    """

    def __init__(self, wishes: RunSettings, store: Store, report: Report) -> None:
        self._wishes, self._store, self._report = wishes, store, report
        self.handled: set[str] = set()
        self.changing: set[str] = set()
        self._ledger = Ledger(store)
        self._workshop: Workshop | None = None
        self._finished: list[Path] = []
        self._current: Plan | None = None
        self._keys: dict[str, str] = {}

    def kept(self) -> list[str]:
        """What an interruption leaves behind, in words."""
        found = [f"kept {path}" for path in self._finished]
        if self._current is not None:
            plan = self._current
            partial = self._store.partial(plan.kind, plan.name, plan.key)
            if partial.exists():
                found.append(f"kept the checkpoint {partial}")
            elif plan.stage == "replay":
                found.append(f"kept the images of {plan.name} drawn so far, but for the last few")
        return found

    def next_command(self, stage: str, class_names: str, past: str = "", name: str = "") -> str:
        """What a user types next, as a shell reads it, about the same two folders."""
        typed = {"--class": class_names, "--past": past, "--name": name}
        folders = {"--data": str(self._wishes.data), "--store": str(self._wishes.root)}
        if stage == "replay":
            del folders["--data"]
        for option, folder in folders.items():
            variable, default = FOLDERS[option]
            if folder != os.environ.get(variable, default):
                typed[option] = folder
        parts = [part for option, text in typed.items() if text for part in (option, text)]
        return shlex.join(["replaycad", stage, *parts])

    def header(self, kind: str, name: str) -> dict[str, Any]:
        """Header of an artifact of the store; empty if there is none that can be read."""
        try:
            return plans.input_header(self._store.path(kind, name), kind)
        except ArtifactError:
            return {}

    def content(self, kind: str, name: str) -> str:
        """Content id of an input; empty where a dry run would make it first.

        Raises:
            ArtifactError: there is none that can be read, or it is not the one that this command
                found up to date or made: another command wants another of that name.
        """
        label = f"{kind}/{name}"
        if label in self.changing:
            return ""
        header = plans.input_header(self._store.path(kind, name), kind)
        if header.get("key") != self._keys.get(label, header.get("key")):
            raise plans.replaced(label)
        return str(header["content_id"])

    def plan(
        self,
        stage: str,
        name: str,
        config: StageConfig,
        seed: int | None,
        inputs: Callable[[], Mapping[str, str]],
        weights: Mapping[str, str],
    ) -> Plan:
        """Hold an artifact against what it would be made from; as `plans.make_plan`.

        `inputs` is asked now, and again before what was made is written.
        """
        path, found = self._store.path(plans.KINDS[stage], name), inputs()
        plan = plans.make_plan(
            stage, name, path, config=config, seed=seed, inputs=found, weights=weights,
            changing=self.changing & set(found),
        )  # fmt: skip
        return replace(plan, inputs_now=inputs)

    def finish(
        self,
        plan: Plan,
        num_images: int,
        next_command: str,
        force: bool,
        work: Callable[["Workshop"], None],
        diffusing: CompressConfig | ReplayConfig | None = None,
    ) -> Outcome:
        """Have the artifact made if it is due; a dry run says what it takes.

        Args:
            plan: of the artifact.
            num_images: that the stage reads, draws or scores.
            next_command: what a user types next.
            force: make it even if it is up to date.
            work: makes it.
            diffusing: config of a stage whose memory can be told beforehand; None for others.
        """
        due = (plan.state != "hit" or force) and plan.label not in self.handled
        self.handled.add(plan.label)
        peak, needs = None, {}
        if due and self._wishes.dry_run:
            self.changing.add(plan.label)
            if diffusing is not None:
                needs = {where: needed_bytes(diffusing, where == "gpu") for where in ("gpu", "cpu")}
        elif due:
            peak = self._make(plan, work, force)
            due = peak is not None
        if not self._wishes.dry_run:
            self._keys.setdefault(plan.label, plan.key)
        return Outcome(
            plan=plan, was_made=due and not self._wishes.dry_run,
            num_bytes=plans.num_bytes(plan.path), num_images=num_images,
            seconds=self._ledger.seconds(plan.kind, plan.name, plan.key),
            peak_memory_bytes=peak, next_command=next_command, needs=needs,
        )  # fmt: skip

    def _make(
        self, plan: Plan, work: Callable[["Workshop"], None], force: bool
    ) -> int | None:
        """Run the stage; the peak memory in bytes, or None if another command made it meanwhile."""
        from replaycad.engine.workshop import Workshop
        from replaycad.runtime import peak_memory_bytes

        def wait() -> None:
            self._report.note(f"waiting: another command makes {plan.label}")

        shared = plan.stage == "train" and ranks().rank > 0  # beside rank 0, which holds it
        alone = nullcontext() if shared else self._store.alone_with(
            plan.kind, plan.name, wait)  # fmt: skip
        with alone:
            # Another command may have made it since the plan.
            if not force and self.header(plan.kind, plan.name).get("key") == plan.key:
                return None
            self._workshop = self._workshop or Workshop(
                self._store, self._wishes.device, self._report, self._wishes.save_every_seconds
            )
            start, self._current = time.monotonic(), plan
            work(self._workshop)
            if not shared:
                self._ledger.note(plan, time.monotonic() - start)
                self._store.publish(plan.kind, plan.name)
        self._finished.append(plan.path)
        self._current = None
        return peak_memory_bytes()
