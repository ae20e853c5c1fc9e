"""Builds an artifact unless it is up to date, once per command, and remembers what was built.

Nothing here imports torch before a stage has to run.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.store import Store
from replaycad.config.stages import CompressConfig, ReplayConfig, StageConfig
from replaycad.data.layouts import find_classes, read_class
from replaycad.diffusion.memory import needed_bytes
from replaycad.distributed import ranks
from replaycad.engine import staleness
from replaycad.engine.inputs import InputDigests
from replaycad.engine.models import Models
from replaycad.engine.settings import RunSettings, split_settings
from replaycad.engine.staleness import KINDS, Plan, make_plan
from replaycad.engine.timings import Timings
from replaycad.errors import ArtifactError, ConfigError, DatasetError
from replaycad.progress import Report, silent

if TYPE_CHECKING:
    from replaycad.diffusion.aligner import Aligner


class Stage(ABC):
    """One artifact that a stage is asked for: its config, its inputs, its networks, how it runs.

    Making such an object looks at folders and headers only.

    Attributes:
        stage: one of `config.stages.STAGES`.
        name: of the artifact.
        config: all that the stage is told.
        seed: of its random streams; None for a stage that draws nothing.
        weights: frozen network -> sha256.
        num_images: that the stage reads, draws or scores.
        next_command: what a user types next.
    """

    stage: ClassVar[str]
    name: str
    config: StageConfig
    seed: int | None = None
    weights: Mapping[str, str] = MappingProxyType({})
    num_images: int
    next_command: str

    def prepare(self) -> None:  # noqa: B027 - most stages read what others are asked for
        """Build what this one reads, where that needs no command of its own."""

    def refuse(self, plan: Plan) -> None:  # noqa: B027 - most may always be made anew
        """Refuse to replace what is there by less, unless the user forces it; in a dry run too."""

    def complete(self, path: Path) -> None:  # noqa: B027
        """Write what belongs beside an artifact that is up to date, where a killed run did not."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Digests and content ids of all that is read, by name, as they are now.

        Raises:
            ArtifactError: an artifact that is read is not there, or not sound.
        """

    @abstractmethod
    def run(self, plan: Plan) -> None:
        """Make the artifact and save it at the path of the plan."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call of `Builder.build` came to.

    Args:
        plan: what was wanted and what was there.
        was_made: whether the stage ran.
        num_bytes: of the artifact, shards included; 0 if it is not there.
        num_images: that the stage read, drew or scored.
        seconds: that making it took, this time or when it was made; 0 if not known.
        peak_memory_bytes: of the process, if the stage ran.
        next_command: what a user types next.
        needs: about how many bytes of memory making it takes, on `gpu` and on `cpu`; empty if the
            stage does not tell.
    """

    plan: Plan
    was_made: bool
    num_bytes: int
    num_images: int
    seconds: float
    peak_memory_bytes: int | None
    next_command: str
    needs: Mapping[str, int] = field(default_factory=dict)


def rejoined(typed: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names that were typed with commas between them, where a known name has commas of its own.

    The most parts that make up a known name are one, unless each is known by itself.
    """
    whole = {",".join(part.strip() for part in name.split(",")): name for name in known}
    names, at = [], 0
    while at < len(typed):
        stop = next(
            (
                stop for stop in range(len(typed), at, -1)
                if ",".join(typed[at:stop]) in whole and not whole.keys() >= set(typed[at:stop])
            ),
            at + 1,
        )  # fmt: skip
        names.append(whole.get(",".join(typed[at:stop]), typed[at]))
        at = stop
    return names


class Builder:
    """The artifacts of one command, on one data folder and one store; a context manager.

    Args:
        settings: of the user.
        report: hears of progress.

    Attributes:
        store: that artifacts are read from and written to.
        digests: of images and networks.
        models: the frozen networks.
        handled: labels of the artifacts that this command has settled.
        changing: those of them that a dry run would build.
        searches: conditions of this command by what they were searched from; budgets and
            representations that are compared share them.
        forms: what each class of this command is to be kept as, by the name of its conditions.
        sound: replays of which this command has read every byte, by path, with their content id.
        pixels: class -> `View.white` and `View.colours` of its pictures, if they were asked for.
        ignored: class -> what is ignored in its pictures, as `View.ignore`, if it was asked for.
    """

    def __init__(self, settings: RunSettings, report: Report = silent) -> None:
        self.settings, self.report = settings, report
        self.store = Store(settings.root)
        self.digests = InputDigests(self.store)
        self.models = Models(settings.device)
        self.handled: set[str] = set()
        self.changing: set[str] = set()
        self.searches: dict[tuple, ConditionsArtifact] = {}
        self.forms: dict[str, str] = {}
        self.sound: dict[Path, str] = {}
        self.pixels: dict[str, tuple[float, str]] = {}
        self.ignored: dict[str, bytes] = {}
        self._told: set[str] = set()
        self._timings = Timings(self.store)
        self._finished: list[Path] = []
        self._current: Plan | None = None
        self._keys: dict[str, str] = {}
        self._headers: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}

    @classmethod
    def of(
        cls,
        data: str | Path,
        store: str | Path,
        settings: Mapping[str, Any] = MappingProxyType({}),
        recipe: str = "",
        seed: int = 0,
        device: str = "auto",
    ) -> "Builder":
        """A builder as a notebook opens it; `replaycad help python` has examples.

        Args:
            data: folder of the images.
            store: folder of the artifacts.
            settings: `stage.field` -> value, as `--set` takes them.
            recipe: as of `RunSettings`, like the rest.
            seed: of every random stream.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            ConfigError: if a setting is unknown or has no such value.
        """
        typed = [f"{name}={value}" for name, value in settings.items()]
        return cls(RunSettings(
            data=Path(data), root=Path(store), overrides=split_settings(typed, None),
            recipe=recipe, seed=seed, device=device,
        ))  # fmt: skip

    def __enter__(self) -> "Builder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.digests.cache.save()

    @cached_property
    def aligner(self) -> "Aligner":
        """Finds the poses of a class's images, once for all that is built from them."""
        from replaycad.diffusion.aligner import Aligner

        return Aligner()

    def class_names(self, wanted: Sequence[str], stored: bool = False) -> list[str]:
        """The classes that were asked for; `all` stands for every one there is.

        Args:
            wanted: names as typed.
            stored: whether `all` means the classes in the store, not those in the data folder.

        Raises:
            ConfigError: if nothing was asked for, or `all` finds nothing stored.
            DatasetError: if `all` finds no class in the data folder.
        """
        if list(wanted) == ["all"]:
            names = self.store.list("conditions") if stored else find_classes(self.settings.data)
            if not names:
                hint = "run `replaycad compress --class NAME`"
                raise ConfigError(f"{self.store.root} holds no conditions", hint)
            return names
        if not wanted or "all" in wanted:
            raise ConfigError("no class is named", "use --class NAME[,NAME...] or --class all")
        if len(wanted) < 2:  # a name with a comma is typed as two
            return list(wanted)
        known: list[str] = []
        with suppress(DatasetError):  # the stage that needs the class will say it better
            known = self.store.list("conditions") if stored else find_classes(self.settings.data)
        return rejoined(wanted, known)

    def tell_reading(self, class_names: Iterable[str]) -> None:
        """Say once what the folders of classes were read as, where that is not plain.

        Raises:
            DatasetError: if a class does not exist.
        """
        for class_name in class_names:
            if class_name not in self._told:
                self._told.add(class_name)
                for sentence in read_class(self.settings.data, class_name).sentences():
                    self.report.note(f"{class_name}: {sentence}")

    def build(self, stage: Stage, force: bool | None = None) -> Outcome:
        """Run a stage unless its artifact is up to date; a dry run says what it would take.

        Args:
            stage: what is asked for.
            force: run it even so, unless this command has done so; None: as the user said.

        Raises:
            ReplayCadError: whatever the stage failed with; what was there before is still there.
        """
        force = self.settings.force if force is None else force
        stage.prepare()
        plan = self.plan(stage)
        due = (plan.state != "hit" or force) and plan.label not in self.handled
        if due and not force:
            stage.refuse(plan)
        self.handled.add(plan.label)
        peak, needs = None, {}
        if due and self.settings.dry_run:
            self.changing.add(plan.label)
            if isinstance(stage.config, CompressConfig | ReplayConfig) and stage.config.backbone:
                needs = {
                    place: needed_bytes(stage.config, place == "gpu") for place in ("gpu", "cpu")
                }
        elif due:
            # Beside rank 0 of a shared training, which holds the artifact for all of them.
            is_helping = plan.stage == "train" and ranks().rank > 0
            with nullcontext() if is_helping else self.store.alone_with(
                plan.kind, plan.name, lambda: self.report.note(
                    f"waiting: another command is making {plan.label}")
            ):  # fmt: skip
                # Another command may have made it since the plan.
                due = force or self.header(plan.kind, plan.name).get("key") != plan.key
                if due:
                    self.models.check_device()
                    start, self._current = time.monotonic(), plan
                    stage.run(plan)
                    if not is_helping:
                        self._timings.record(plan, time.monotonic() - start)
                    peak = _peak_memory_bytes()
                    self._finished.append(plan.path)
                    self._current = None
        if not self.settings.dry_run:
            key = plan.key
            if plan.state == "hit":  # of a class that grew it is another
                key = self.header(plan.kind, plan.name).get("key", key)
            self._keys.setdefault(plan.label, key)
            if plan.state == "hit":
                stage.complete(plan.path)
        return Outcome(
            plan=plan, was_made=due and not self.settings.dry_run,
            num_bytes=self.store.num_bytes(plan.kind, plan.name), num_images=stage.num_images,
            seconds=self._timings.seconds(plan.kind, plan.name, plan.key),
            peak_memory_bytes=peak, next_command=stage.next_command, needs=needs,
        )  # fmt: skip

    def plan(self, stage: Stage) -> Plan:
        """Hold an artifact against what it would be made from now.

        Its inputs are asked for now, and again before what was made is written.
        """
        inputs = stage.inputs()
        return make_plan(
            stage.stage, stage.name, self.store.path(KINDS[stage.stage], stage.name),
            config=stage.config, seed=stage.seed, inputs=inputs, weights=stage.weights,
            changing=self.changing & set(inputs), inputs_now=stage.inputs, read=self._read,
        )  # fmt: skip

    def header(self, kind: str, name: str) -> dict[str, Any]:
        """Header of an artifact of the store; empty if there is none that can be read."""
        try:
            return self._read(self.store.path(kind, name), kind)
        except ArtifactError:
            return {}

    def content(self, kind: str, name: str) -> str:
        """Content id of an input; empty where a dry run would make it first.

        Raises:
            ArtifactError: there is none that can be read, or it is not the one that this command
                read or made: another command wants another of that name.
        """
        label = f"{kind}/{name}"
        if label in self.changing:
            return ""
        header = self._read(self.store.path(kind, name), kind)
        if header.get("key") != self._keys.get(label, header.get("key")):
            raise staleness.replaced(label)
        return str(header["content_id"])

    def _read(self, path: Path, kind: str) -> dict[str, Any]:
        """Header of an artifact; read again only if another file has taken its place."""
        try:
            status = path.stat()
        except OSError:
            return staleness.input_header(path, kind)
        file = (status.st_ino, status.st_mtime_ns, status.st_size)
        if path not in self._headers or self._headers[path][0] != file:
            self._headers[path] = (file, staleness.input_header(path, kind))
        return self._headers[path][1]

    def checkpoint(self, plan: Plan) -> Checkpoint:
        """The checkpoint of this very output; those of outputs no longer wanted are removed."""
        self.store.drop_partials(plan.kind, plan.name, keep=plan.key)
        path = self.store.partial(plan.kind, plan.name, plan.key)
        return Checkpoint(path, plan.key, plan.check_inputs)

    def kept(self) -> list[str]:
        """What an interruption leaves behind, in words."""
        kept = [f"kept {path}" for path in self._finished]
        if self._current is not None:
            plan = self._current
            partial = self.store.partial(plan.kind, plan.name, plan.key)
            if partial.exists():
                kept.append(f"kept the checkpoint {partial}")
            elif plan.stage == "replay" and any(plan.path.with_suffix(".shards").glob("*")):
                kept.append(f"kept the images of {plan.name} drawn so far, but for the last few")
        return kept


def _peak_memory_bytes() -> int | None:
    from replaycad.runtime import peak_memory_bytes

    return peak_memory_bytes()
