"""A sequence on a Ray cluster: each step is a task, and only artifacts lie between the tasks.

Ray schedules, retries what a lost node had, and counts CPUs and GPUs. Every node needs replaycad,
the same `--data` and the same `--store`, be it a shared folder or a URL.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from replaycad.engine.builder import Builder, Outcome
from replaycad.engine.settings import RunSettings
from replaycad.engine.staleness import KINDS
from replaycad.errors import ConfigError, ReplayCadError
from replaycad.experiments.plan import Step
from replaycad.experiments.run import Performed, Refused, refuse, stage_of
from replaycad.progress import silent

READS = {"compress": "masks", "replay": "conditions", "train": "replays", "eval": "detectors"}
"""Stage -> folder of the store that its sources lie in."""
NUM_RETRIES = 8  # of one step, each after its node was lost
_OPEN: dict[str, Builder] = {}


def read_by(step: Step) -> list[str]:
    """Labels of the artifacts that a step reads."""
    found = [f"{READS[step.stage]}/{name}" for name in step.sources]
    return found + ([f"detectors/{step.init}"] if step.init else [])


def perform_on_ray(builder: Builder, planned: Sequence[Step], address: str) -> Performed:
    """Do the steps of a sequence as tasks; as `walk.perform_here`.

    Args:
        builder: of the command; the tasks open their own.
        planned: in an order in which they could be done one by one.
        address: of the cluster; empty for one that Ray starts on this machine.

    Raises:
        ConfigError: ray is not installed, or no cluster answers.
        ReplayCadError: whatever a step failed with, when all that runs has ended.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        hint = "run `pip install replaycad[ray]`"
        raise ConfigError("--engine ray needs the package ray", hint) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"no Ray cluster at '{address}': {reason}", "see --address") from None
    settings = _portable(builder.settings)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0 and settings.device in ("auto", "cuda")
    task = ray.remote(_task).options(
        num_cpus=1, num_gpus=1 if has_gpus else 0, max_retries=NUM_RETRIES
    )
    made_by: dict[str, Any] = {}
    tasks: dict[Any, Step] = {}
    for step in planned:
        before = [made_by[label] for label in read_by(step) if label in made_by]
        handle = task.remote(settings, step, *before)
        made_by[f"{KINDS[step.stage]}/{step.name}"] = handle
        tasks[handle] = step
    return _gather(ray, builder, tasks)


def _gather(ray: Any, builder: Builder, tasks: dict[Any, Step]) -> Performed:
    """Wait for the tasks; a cell whose budget is too small is left out, and is told why."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    refused: Refused = {}
    left = list(tasks)
    everyone = {cell for step in tasks.values() for cell in step.cells}
    while left:
        builder.report.step("sequence", len(tasks) - len(left), len(tasks))
        ready, left = ray.wait(left)
        try:
            done = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[-300:]
            raise ConfigError(f"a step was lost: {reason}", "look at the cluster") from None
        step = tasks[ready[0]]
        if isinstance(done, ReplayCadError):
            refuse(done, step, refused, everyone, builder.report)
        else:
            # The store of this machine, which fetches the file if there is a URL.
            path = builder.store.path(done.plan.kind, done.plan.name)
            outcomes[step.stage, step.name] = replace(done, plan=replace(done.plan, path=path))
    builder.report.step("sequence", len(tasks), len(tasks))
    return outcomes, refused


def _portable(settings: RunSettings) -> RunSettings:
    """Folders by their full path: a task does not run where the command was typed."""
    return replace(settings, data=settings.data.resolve(), root=settings.root.resolve())


def _opened(settings: RunSettings) -> Builder:
    """The builder of this worker, with the model that it used last."""
    key = repr(settings)
    if key not in _OPEN:
        _OPEN.clear()
        _OPEN[key] = Builder(settings, silent)
    return _OPEN[key]


def _task(settings: RunSettings, step: Step, *before: Any) -> Outcome | ReplayCadError:
    """One step on a worker; what went wrong is told, for it is no reason to try again."""
    for one in before:
        if isinstance(one, ReplayCadError):
            return one
    builder = _opened(settings)
    try:
        outcome = builder.build(stage_of(builder, step))
        builder.digests.cache.save()
    except ReplayCadError as error:
        return error
    return replace(outcome, plan=replace(outcome.plan, inputs_now=None))
