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
* `dne`: as `finetune`, with the detector of that name, to which each past class leaves a Gaussian;
  `dne-panda` learns to be compact in place of CutPaste, `dne-cutpaste` remembers no past class.
* `final`: only the last step of `replay`, which is all that the authors ran; its last class is real
  and is not compressed.
* `joint`: the upper line, trained once on the real images of all classes; only the last row of its
  matrix exists (those before would cost N - 1 trainings that no reported figure needs).

Step 1 is the same training for all but those that remember something of it beside the weights, so
it is done once; with one class it is also the joint one.

A comparison is a list of cells: one sequence each, of a strategy, a detector, a budget of bytes, an
order of the classes and a seed. What two cells have in common is done once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from replaycad.errors import ConfigError

Changes = tuple[tuple[str, Any], ...]

PENALIZED, BANKED = ("ewc", "mas"), ("features", "ucad")
OWN_DETECTOR = {"dne": "dne", "dne-panda": "dne", "dne-cutpaste": "dne"}
"""Strategies that are a detector of their own, whatever others are compared."""
_ALONE = (*PENALIZED, "ucad", *OWN_DETECTOR)  # whose first training is not that of the rest
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
GOING_ON: dict[str, Changes] = {
    "finetune": (),
    "ewc": (("penalty", "ewc"),),
    "mas": (("penalty", "mas"),),
    "features": (("banks", "extend"),),
    "ucad": (("banks", "extend"), ("preset", "ucad")),
    "dne": (),
    "dne-panda": (("preset", "panda"),),
    "dne-cutpaste": (("preset", "cutpaste"),),
}
"""Strategies that go on from the detector of the step before -> what `train` is told."""
STRATEGIES = (*GOING_ON, *KEEPING, "joint", "final")
_LAST_STEP_ONLY = ("joint", "final")

@dataclass(frozen=True, kw_only=True)
class Cell:
    """One sequence of a comparison.

    Args:
        strategy: of `STRATEGIES`.
        classes: in the order in which the detector meets them.
        seed: of every random stream.
        detector: its name; empty for the one of the recipe.
        budget: bytes of a class; 0 where none was named or nothing is kept of a class.
        order: number of the order of the classes, 0 for the one that was typed.
    """

    strategy: str
    classes: tuple[str, ...]
    seed: int = 0
    detector: str = ""
    budget: int = 0
    order: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage invocation of the sequence.

    Args:
        stage: one of `recipes.STAGES`.
        name: of the artifact that it makes.
        seed: of this run of the sequence.
        cells: that need it.
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
    cells: tuple[Cell, ...]
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


def orders(classes: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """So many orders of the classes, the first as typed.

    Turned by one class after another, so that as many orders as classes put each class once at
    each place; then the same backwards.

    Raises:
        ConfigError: if there are not so many.
    """
    typed = tuple(classes)
    turned = [one[k:] + one[:k] for one in (typed, typed[::-1]) for k in range(len(typed))]
    found = list(dict.fromkeys(turned))
    if not 1 <= count <= len(found):
        raise ConfigError(f"{len(typed)} classes give 1 to {len(found)} orders, not {count}")
    return found[:count]


def comparison(
    classes: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int] = (0,),
    detectors: Sequence[str] = ("",),
    budgets: Sequence[int] = (0,),
    num_orders: int = 1,
) -> list[Cell]:
    """Every sequence of a comparison, none twice.

    Budgets matter to strategies that keep something of each class, orders to all but `joint`.

    Raises:
        ConfigError: unknown strategy, or too many orders.
    """
    return [
        Cell(strategy=strategy, classes=order, seed=seed, detector=detector, budget=budget,
             order=number)
        for strategy in check_strategies(strategies)
        for detector in ((OWN_DETECTOR[strategy],) if strategy in OWN_DETECTOR else detectors)
        for budget in (budgets if form_of(strategy) in KEEPING else (0,))
        for number, order in enumerate(orders(classes, 1 if strategy == "joint" else num_orders))
        for seed in seeds
    ]  # fmt: skip


def artifact_name(class_name: str, cell: Cell) -> str:
    """Name of what a cell keeps of a class: the class's own unless the cell asks for another form.

    Args:
        class_name: the class.
        cell: that needs it.
    """
    form = form_of(cell.strategy)
    parts = [
        class_name,
        "" if form == "replay" else form,
        size_text(cell.budget) if cell.budget else "",
        f"seed{cell.seed}" if cell.seed else "",
    ]
    return "-".join(part for part in parts if part)


def detector_name(run_name: str, cell: Cell, number: int) -> str:
    """Name of a cell's detector after step `number`; most cells share the one of step 1."""
    is_shared = number == 1 and cell.strategy not in _ALONE
    parts = [
        f"{run_name}-{'step' if is_shared else form_of(cell.strategy)}-{number}",
        "" if cell.strategy in OWN_DETECTOR else cell.detector,
        size_text(cell.budget) if cell.budget and not is_shared else "",
        f"order{cell.order}" if cell.order else "",
        f"seed{cell.seed}" if cell.seed else "",
    ]
    return "-".join(part for part in parts if part)


def size_text(num_bytes: int) -> str:
    """A budget as it is typed: 25kB, 1.5MB, or the bare number."""
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if num_bytes >= size and num_bytes * 10 % size == 0:
            return f"{num_bytes / size:g}{unit}"
    return str(num_bytes)


def label(cell: Cell, cells: Sequence[Cell]) -> str:
    """A strategy's name, with its detector and budget where the comparison has several."""
    parts = [cell.strategy]
    compared = {one.detector for one in cells if one.strategy not in OWN_DETECTOR}
    if len(compared) > 1 and cell.strategy not in OWN_DETECTOR:
        parts.append(cell.detector)
    if cell.budget and len({one.budget for one in cells if one.budget}) > 1:
        parts.append(size_text(cell.budget))
    return " ".join(parts)


def steps(cells: Sequence[Cell], run_name: str) -> list[Step]:
    """Every stage invocation of the cells, each after all that it reads, none twice.

    Args:
        cells: as `comparison` gives them.
        run_name: first part of the detectors' names.
    """
    planned: dict[tuple[str, str], Step] = {}
    for number in range(1, max(len(cell.classes) for cell in cells) + 2):
        for cell in cells:
            for step in _steps_of(cell, number, run_name):
                key = (step.stage, step.name)
                known = planned.get(key)
                if known:
                    step = replace(known, cells=(*known.cells, cell))
                planned[key] = step
    return list(planned.values())


def form_of(strategy: str) -> str:
    """What a strategy keeps of a class, a key of `KEEPING`; itself for those that keep nothing."""
    return "replay" if strategy == "final" else strategy


def _steps_of(cell: Cell, number: int, run_name: str) -> Iterator[Step]:
    """What a cell does at step `number`, from 1; behind the last, it draws the newest class."""
    past, seen = cell.classes[: number - 1], cell.classes[:number]
    form = form_of(cell.strategy)
    new = cell.classes[number - 1] if number <= len(cell.classes) else ""
    stored = {one: artifact_name(one, cell) for one in seen}
    ends_real = cell.strategy == "final"  # nothing will ever be drawn of its last class
    if form in KEEPING and new and not (ends_real and number == len(cell.classes)):
        yield Step(stage="mask", name=new, seed=cell.seed, cells=(cell,), class_names=(new,))
        budget = (("budget", cell.budget),) if cell.budget else ()
        yield Step(stage="compress", name=stored[new], seed=cell.seed, cells=(cell,),
                   class_names=(new,), sources=(new,), changes=(*KEEPING[form], *budget))
    if form in KEEPING and past and (new or not ends_real):  # others were drawn before
        # At last to be looked at, and what the next class will be learned beside.
        yield Step(stage="replay", name=stored[past[-1]], seed=cell.seed, cells=(cell,),
                   class_names=past[-1:], sources=(stored[past[-1]],))  # fmt: skip
    if not new or (cell.strategy in _LAST_STEP_ONLY and number < len(cell.classes)):
        return
    name = detector_name(run_name, cell, number)
    goes_on = cell.strategy in GOING_ON and number > 1
    told = GOING_ON.get(cell.strategy, ()) if goes_on or cell.strategy in _ALONE else ()
    yield Step(
        stage="train", name=name, seed=cell.seed, cells=(cell,),
        class_names=seen if cell.strategy == "joint" else (new,),
        sources=tuple(stored[one] for one in past) if form in KEEPING else (),
        init=detector_name(run_name, cell, number - 1) if goes_on else "",
        changes=(("detector", cell.detector), *told) if cell.detector else told,
    )  # fmt: skip
    yield Step(stage="eval", name=name, seed=cell.seed, cells=(cell,), class_names=seen,
               sources=(name,))  # fmt: skip
