"""The continual protocol as data: which stage, for which class, at which step.

Strategies, each ending with one detector for all classes:

* `finetune`: step t goes on from the detector of step t - 1 with the real images of class t alone.
* `replay`: step t starts from scratch on the replays of classes < t and the real images of class t.
* `ewc`, `mas`: as `finetune`, with a penalty on leaving the weights that earlier classes need.
* `final`: only the last step of `replay`, which is all that the authors ran.
* `joint`: the upper line, trained once on the real images of all classes; only the last row of its
  matrix exists (those before would cost N - 1 trainings that no reported figure needs).

Step 1 is the same training for all but those that remember something of it beside the weights, so
it is done once; with one class it is also the joint one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from replaycad.errors import ConfigError
from replaycad.recipes import PenaltyName

STRATEGIES = ("finetune", "ewc", "mas", "replay", "joint", "final")
PENALIZED: dict[str, PenaltyName] = {"ewc": "ewc", "mas": "mas"}
_DRAWING = ("replay", "final")
_GOING_ON = ("finetune", *PENALIZED)
_LAST_STEP_ONLY = ("joint", "final")

@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage invocation of the sequence.

    Args:
        stage: one of `recipes.STAGES`.
        name: of the artifact that it makes.
        seed: of this run of the sequence.
        strategies: which strategies need it.
        class_names: mask, compress, replay: the one class; train: whose real images; eval: whose
            test images.
        sources: names of the artifacts that it reads: masks (compress), conditions (replay),
            replays (train) or the detector (eval).
        init: detector that training goes on from; empty for a training from scratch.
        penalty: that the training has on leaving the weights of `init`.
    """

    stage: str
    name: str
    seed: int
    strategies: tuple[str, ...]
    class_names: tuple[str, ...]
    sources: tuple[str, ...] = ()
    init: str = ""
    penalty: PenaltyName = "none"


def check_strategies(strategies: Sequence[str]) -> tuple[str, ...]:
    """The strategies in the order typed, without repeats.

    Raises:
        ConfigError: if one is unknown.
    """
    for name in strategies:
        if name not in STRATEGIES:
            raise ConfigError(f"unknown strategy '{name}'", f"choose from: {', '.join(STRATEGIES)}")
    return tuple(dict.fromkeys(strategies))


def artifact_name(class_name: str, seed: int, seeds: Sequence[int]) -> str:
    """Name of a class's artifact: the class, for single commands; later seeds stand apart."""
    return class_name if seed == seeds[0] else f"{class_name}-seed{seed}"


def detector_name(
    run_name: str, strategy: str, step: int, seed: int, seeds: Sequence[int]
) -> str:
    """Name of the detector after `step` (from 1); most strategies share the one of step 1."""
    middle = "step" if step == 1 and strategy not in PENALIZED else strategy
    name = f"{run_name}-{middle}-{step}"
    return name if seed == seeds[0] else f"{name}-seed{seed}"


def steps(
    classes: Sequence[str], strategies: Sequence[str], seeds: Sequence[int], run_name: str
) -> list[Step]:
    """Every stage invocation of the sequence, each after all that it reads, none twice.

    Args:
        classes: in the order in which the detector meets them.
        strategies: of `STRATEGIES`.
        seeds: one whole sequence per seed; masks are shared.
        run_name: first part of the detectors' names.
    """
    planned: list[Step] = []
    for seed in seeds:
        planned += _steps_of_seed(tuple(classes), tuple(strategies), seed, seeds, run_name)
    return planned


def _steps_of_seed(
    classes: tuple[str, ...],
    strategies: tuple[str, ...],
    seed: int,
    seeds: Sequence[int],
    run_name: str,
) -> list[Step]:
    planned: list[Step] = []
    total = len(classes)
    drawing = tuple(name for name in strategies if name in _DRAWING)
    for number, new in enumerate(classes, start=1):
        seen, past = classes[:number], classes[: number - 1]
        stored = artifact_name(new, seed, seeds)
        if drawing:
            if seed == seeds[0]:
                planned.append(Step(stage="mask", name=new, seed=seed, strategies=drawing,
                                    class_names=(new,)))  # fmt: skip
            planned.append(Step(stage="compress", name=stored, seed=seed, strategies=drawing,
                                class_names=(new,), sources=(new,)))  # fmt: skip
            if past:  # those before it were drawn at earlier steps
                planned.append(_replay(past[-1], seed, seeds, drawing))
        for owners in _trainings(strategies, number, total):
            own = "replay" if owners[0] in _DRAWING else owners[0]  # one training, one name
            name = detector_name(run_name, own, number, seed, seeds)
            before = detector_name(run_name, own, number - 1, seed, seeds)
            replayed = tuple(artifact_name(one, seed, seeds) for one in past)
            planned.append(Step(
                stage="train", name=name, seed=seed, strategies=owners,
                class_names=seen if own == "joint" else (new,),
                sources=replayed if own == "replay" else (),
                init=before if own in _GOING_ON and number > 1 else "",
                penalty=PENALIZED.get(own, "none"),
            ))  # fmt: skip
            planned.append(Step(stage="eval", name=name, seed=seed, strategies=owners,
                                class_names=seen, sources=(name,)))  # fmt: skip
    if drawing:  # to be looked at, and what the next class will be learned beside
        planned.append(_replay(classes[-1], seed, seeds, drawing))
    return planned


def _replay(
    class_name: str, seed: int, seeds: Sequence[int], drawing: tuple[str, ...]
) -> Step:
    stored = artifact_name(class_name, seed, seeds)
    return Step(stage="replay", name=stored, seed=seed, strategies=drawing,
                class_names=(class_name,), sources=(stored,))  # fmt: skip


def _trainings(strategies: tuple[str, ...], number: int, total: int) -> list[tuple[str, ...]]:
    """Which trainings step `number` has, each with the strategies that share it."""
    last = number == total
    walking = tuple(name for name in strategies if last or name not in _LAST_STEP_ONLY)
    if number == 1:
        alike = tuple(name for name in walking if name not in PENALIZED)
        alone = [(name,) for name in walking if name in PENALIZED]
        return [owners for owners in (alike, *alone) if owners]
    drawing = tuple(name for name in walking if name in _DRAWING)
    shared = {name: drawing if name in _DRAWING else (name,) for name in walking}
    return list(dict.fromkeys(shared.values()))
