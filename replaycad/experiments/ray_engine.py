"""A sequence on a Ray cluster: each step is a task, and only artifacts lie between the tasks.

Ray schedules, retries what a lost node had, and counts CPUs and GPUs. Every node needs replaycad,
the same `--data` and the same `--store`, a shared folder.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaycad.engine.builder import Builder, Outcome
from replaycad.engine.settings import RunSettings
from replaycad.engine.staleness import KINDS
from replaycad.errors import ConfigError, ReplayCadError
from replaycad.experiments.plan import Step
from replaycad.experiments.run import Performed, Refused, perform_step, refuse
from replaycad.progress import silent

READS = {"compress": "masks", "replay": "conditions", "train": "replays", "eval": "detectors"}
"""Stage -> folder of the store that its sources lie in."""
NUM_RETRIES = 8  # of one step, each after its node was lost


def read_by(step: Step) -> list[str]:
    """Labels of the artifacts that a step reads."""
    found = [f"{READS[step.stage]}/{name}" for name in step.sources]
    return found + ([f"detectors/{step.init}"] if step.init else [])


def perform_on_ray(builder: Builder, planned: Sequence[Step]) -> Performed:
    """Do the steps of a sequence as tasks; as `run.perform_here`.

    Ray connects to the cluster that RAY_ADDRESS names, or starts on this machine.

    Args:
        builder: of the command; the tasks open their own.
        planned: in an order in which they could be done one by one.

    Raises:
        ConfigError: ray is not installed, or no cluster answers.
        ReplayCadError: whatever a step failed with, when all that runs has ended.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        hint = "run `pip install replaycad[ray]`"
        raise ConfigError("--device ray needs the package ray", hint) from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"Ray does not start: {reason}", "check RAY_ADDRESS") from None
    settings = _portable(builder.settings)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0 and settings.device in ("auto", "cuda")
    task = ray.remote(num_cpus=1, num_gpus=int(has_gpus), max_retries=NUM_RETRIES)(_task)
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
            raise ConfigError(f"Ray lost a step: {reason}", "look at `ray status`") from None
        step = tasks[ready[0]]
        if isinstance(done, ReplayCadError):
            refuse(done, step, refused, everyone, builder.report)
        elif done is not None:
            outcomes[step.stage, step.name] = done
    builder.report.step("sequence", len(tasks), len(tasks))
    return outcomes, refused


def _portable(settings: RunSettings) -> RunSettings:
    """Folders by their full path: a task does not run where the command was typed."""
    return replace(settings, data=settings.data.resolve(), root=Path(settings.root).resolve())


def _task(settings: RunSettings, step: Step, *before: Any) -> Outcome | ReplayCadError | None:
    """One step on a worker; a foreseen failure is returned, for trying again would not help it.

    A task loads its networks anew: Ray ends the process of a GPU task with the task, and the
    bundled networks take less than a second.
    """
    for one in before:
        if isinstance(one, ReplayCadError):
            return one
    try:
        with Builder(settings, silent) as builder:
            outcome = perform_step(builder, step)
    except ReplayCadError as error:
        return error
    if outcome is None:
        return None
    return replace(outcome, plan=replace(outcome.plan, inputs_now=None))
