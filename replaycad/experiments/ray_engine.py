"""A sequence on a Ray cluster: each step is a task, and only artifacts lie between the tasks.

Ray schedules, retries what a lost node had, and counts CPUs and GPUs. Every node needs replaycad,
the same `--data` and the same `--store`, a shared folder.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaycad.engine.builder import RunSettings
from replaycad.engine.pipeline import Pipeline
from replaycad.engine.staleness import KINDS, Outcome
from replaycad.errors import ConfigError, ReplayCadError
from replaycad.experiments.plan import Step
from replaycad.experiments.run import Performed, Refused, perform_step, refuse
from replaycad.progress import silent

READS = {"compress": "masks", "replay": "conditions", "train": "replays", "eval": "detectors"}
"""Stage -> folder of the store that its sources lie in."""
NUM_RETRIES = 8  # of one step, each after its node was lost
_OPEN: dict[str, Pipeline] = {}


def read_by(step: Step) -> list[str]:
    """Labels of the artifacts that a step reads."""
    found = [f"{READS[step.stage]}/{name}" for name in step.sources]
    return found + ([f"detectors/{step.init}"] if step.init else [])


def perform_on_ray(pipeline: Pipeline, planned: Sequence[Step], address: str) -> Performed:
    """Do the steps of a sequence as tasks; as `walk.perform_here`.

    Args:
        pipeline: of the command; the tasks open their own.
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
    wishes = _portable(pipeline.wishes)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0 and wishes.device in ("auto", "cuda")
    task = ray.remote(_task).options(
        num_cpus=1, num_gpus=1 if has_gpus else 0, max_retries=NUM_RETRIES
    )
    made_by: dict[str, Any] = {}
    tasks: dict[Any, Step] = {}
    for step in planned:
        before = [made_by[label] for label in read_by(step) if label in made_by]
        handle = task.remote(wishes, step, *before)
        made_by[f"{KINDS[step.stage]}/{step.name}"] = handle
        tasks[handle] = step
    return _gather(ray, pipeline, tasks)


def _gather(ray: Any, pipeline: Pipeline, tasks: dict[Any, Step]) -> Performed:
    """Wait for the tasks; a cell whose budget is too small is left out, and is told why."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    refused: Refused = {}
    left = list(tasks)
    everyone = {cell for step in tasks.values() for cell in step.cells}
    while left:
        pipeline.report.step("sequence", len(tasks) - len(left), len(tasks))
        ready, left = ray.wait(left)
        try:
            done = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[-300:]
            raise ConfigError(f"a step was lost: {reason}", "look at the cluster") from None
        step = tasks[ready[0]]
        if isinstance(done, ReplayCadError):
            refuse(done, step, refused, everyone, pipeline.report)
        else:
            outcomes[step.stage, step.name] = done
    pipeline.report.step("sequence", len(tasks), len(tasks))
    return outcomes, refused


def _portable(wishes: RunSettings) -> RunSettings:
    """Folders by their full path: a task does not run where the command was typed."""
    return replace(wishes, data=wishes.data.resolve(), root=Path(wishes.root).resolve())


def _opened(wishes: RunSettings) -> Pipeline:
    """The pipeline of this worker, with the model that it used last."""
    key = repr(wishes)
    if key not in _OPEN:
        _OPEN.clear()
        _OPEN[key] = Pipeline(wishes, silent)
    return _OPEN[key]


def _task(wishes: RunSettings, step: Step, *before: Any) -> Outcome | ReplayCadError:
    """One step on a worker; what went wrong is told, for it is no reason to try again."""
    for one in before:
        if isinstance(one, ReplayCadError):
            return one
    pipeline = _opened(wishes)
    try:
        outcome = perform_step(pipeline, step)
        pipeline.frozen.cache.save()
    except ReplayCadError as error:
        return error
    return replace(outcome, plan=replace(outcome.plan, inputs_now=None))
