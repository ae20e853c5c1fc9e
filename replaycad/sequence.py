"""The continual protocol as data: which stage, for which class, at which step.

Strategies, each ending with one detector for all classes:

* `finetune`: step t goes on from the detector of step t - 1 with the real images of class t alone.
* `replay`: step t starts from scratch on the replays of classes < t and the real images of class t.
* `ewc`, `mas`: as `finetune`, with a penalty on leaving the weights that earlier classes need.
* `semantic`, `spatial`, `none`: as `replay`, from one of the two conditions or from neither
  (paper Table 3); `noisy`, `box`: from worse masks (Table 5).
* `exemplars`: as `replay`, from as many real images as fit into a budget of bytes.
* `hybrid`: likewise, from conditions and real images in one budget.
* `auto`: likewise, from whichever form of these three covers other images of the class best.
* `features`: as `finetune`, but the memory banks of earlier classes stay, each a part of a whole
  that does not grow.
* `ucad`: as `features`, but with small banks of a fixed size, each image held against one of them:
  UCAD (Liu et al. 2024) without its prompts, with routing by image and no test-set choice.
* `final`: only the last step of `replay`, which is all that the authors ran.
* `joint`: the upper line, trained once on the real images of all classes; only the last row of its
  matrix exists (those before would cost N - 1 trainings that no reported figure needs).

Step 1 is the same training for all but those that remember something of it beside the weights, so
it is done once; with one class it is also the joint one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replaycad.errors import ConfigError

Changes = tuple[tuple[str, Any], ...]

PENALIZED, BANKED = ("ewc", "mas"), ("features", "ucad")
_ALONE = (*PENALIZED, "ucad")  # their first training is another than that of the rest
KEEPING: dict[str, Changes] = {
    "replay": (),
    "semantic": (("conditioning", "semantic"),),
    "spatial": (("conditioning", "spatial"),),
    # The class's word in a prompt, nothing learned: what the model knows without compressing.
    "none": (("conditioning", "semantic"), ("init", "word"), ("num_steps", 0)),
    "noisy": (("spoil_masks", "noisy"),),
    "box": (("spoil_masks", "box"),),
    "exemplars": (("keep", "exemplars"),),
    "hybrid": (("keep", "hybrid"),),
    "auto": (("keep", "auto"),),
}
"""What is kept of a class, to be drawn again -> what `compress` is told; names of strategies."""
_GOING_ON: dict[str, Changes] = {
    "finetune": (),
    "ewc": (("penalty", "ewc"),),
    "mas": (("penalty", "mas"),),
    "features": (("banks", "extend"),),
    "ucad": (("banks", "extend"), ("preset", "ucad")),
}
"""Strategies that go on from the detector of the step before -> what `train` is told."""
STRATEGIES = (*_GOING_ON, *KEEPING, "joint", "final")
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
        changes: fields of the stage's config and what the strategy wants of them.
    """

    stage: str
    name: str
    seed: int
    strategies: tuple[str, ...]
    class_names: tuple[str, ...]
    sources: tuple[str, ...] = ()
    init: str = ""
    changes: Changes = ()


def check_strategies(strategies: Sequence[str]) -> tuple[str, ...]:
    """The strategies in the order typed, without repeats.

    Raises:
        ConfigError: if one is unknown.
    """
    for name in strategies:
        if name not in STRATEGIES:
            raise ConfigError(f"unknown strategy '{name}'", f"choose from: {', '.join(STRATEGIES)}")
    return tuple(dict.fromkeys(strategies))


def artifact_name(
    class_name: str, seed: int, seeds: Sequence[int], form: str = "replay"
) -> str:
    """Name of a class's artifact: the class, for single commands; others stand apart.

    Args:
        class_name: the class.
        seed: of the sequence.
        seeds: of the whole run; the first has the plain names.
        form: what is kept of the class, a key of `KEEPING`.
    """
    name = class_name if form == "replay" else f"{class_name}-{form}"
    return name if seed == seeds[0] else f"{name}-seed{seed}"


def detector_name(
    run_name: str, strategy: str, step: int, seed: int, seeds: Sequence[int]
) -> str:
    """Name of the detector after `step` (from 1); most strategies share the one of step 1."""
    middle = "step" if step == 1 and strategy not in _ALONE else strategy
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
    forms = _forms(strategies)
    drawing = tuple(name for owners in forms.values() for name in owners)
    for number, new in enumerate(classes, start=1):
        seen, past = classes[:number], classes[: number - 1]
        if drawing and seed == seeds[0]:
            planned.append(Step(stage="mask", name=new, seed=seed, strategies=drawing,
                                class_names=(new,)))  # fmt: skip
        for form, owners in forms.items():
            stored = artifact_name(new, seed, seeds, form)
            planned.append(Step(stage="compress", name=stored, seed=seed, strategies=owners,
                                class_names=(new,), sources=(new,), changes=KEEPING[form]))
            if past:  # those before it were drawn at earlier steps
                planned.append(_replay(past[-1], seed, seeds, form, owners))
        for own, owners in _trainings(strategies, number, len(classes)):
            name = detector_name(run_name, own, number, seed, seeds)
            before = detector_name(run_name, own, number - 1, seed, seeds)
            replayed = tuple(artifact_name(one, seed, seeds, own) for one in past)
            planned.append(Step(
                stage="train", name=name, seed=seed, strategies=owners,
                class_names=seen if own == "joint" else (new,),
                sources=replayed if own in KEEPING else (),
                init=before if own in _GOING_ON and number > 1 else "",
                changes=_GOING_ON.get(own, ()) if number > 1 or own in _ALONE else (),
            ))  # fmt: skip
            planned.append(Step(stage="eval", name=name, seed=seed, strategies=owners,
                                class_names=seen, sources=(name,)))  # fmt: skip
    for form, owners in forms.items():
        # to be looked at, and what the next class will be learned beside
        planned.append(_replay(classes[-1], seed, seeds, form, owners))
    return planned


def form_of(strategy: str) -> str:
    """What a strategy keeps of a class, a key of `KEEPING`; itself for those that keep nothing."""
    return "replay" if strategy == "final" else strategy


def _forms(strategies: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is kept of a class -> the strategies that draw from it."""
    found: dict[str, tuple[str, ...]] = {}
    for name in strategies:
        form = form_of(name)
        if form in KEEPING:
            found[form] = (*found.get(form, ()), name)
    return found


def _replay(
    class_name: str, seed: int, seeds: Sequence[int], form: str, owners: tuple[str, ...]
) -> Step:
    stored = artifact_name(class_name, seed, seeds, form)
    return Step(stage="replay", name=stored, seed=seed, strategies=owners,
                class_names=(class_name,), sources=(stored,))  # fmt: skip


def _trainings(
    strategies: tuple[str, ...], number: int, total: int
) -> list[tuple[str, tuple[str, ...]]]:
    """The trainings of step `number`: whose name it bears, and the strategies that share it."""
    walking = [name for name in strategies if number == total or name not in _LAST_STEP_ONLY]
    shared: dict[str, tuple[str, ...]] = {}
    for name in walking:
        # A first training that remembers nothing beside its weights is the same for all.
        first = number == 1 and name not in _ALONE
        own = next((one for one in shared if one not in _ALONE), name) if first else name
        own = form_of(own)
        shared[own] = (*shared.get(own, ()), name)
    return list(shared.items())
