"""The cells of a comparison and the stage invocations that they need, in order.

A comparison is a list of cells: one sequence each, of a strategy, a detector, a budget of bytes, an
order of the classes and a seed. What two cells have in common is done once: step 1 is the same
training for every strategy that `shares_first_step`, and with one class it is the joint one too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from replaycad.errors import ConfigError
from replaycad.experiments.strategies import STRATEGIES, Changes, Strategy, check_strategies


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
        stage: one of `config.stages.STAGES`.
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


def orders(classes: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """So many orders of the classes, the first as typed.

    Turned by one class after another, so that as many orders as classes put each class once at
    each place; then the same backwards.

    Raises:
        ConfigError: if there are not so many.
    """
    typed = tuple(classes)
    turned = [way[k:] + way[:k] for way in (typed, typed[::-1]) for k in range(len(typed))]
    known = list(dict.fromkeys(turned))
    if not 1 <= count <= len(known):
        raise ConfigError(f"{len(typed)} classes give 1 to {len(known)} orders, not {count}")
    return known[:count]


def comparison(
    classes: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int] = (0,),
    detectors: Sequence[str] = ("",),
    budgets: Sequence[int] = (0,),
    num_orders: int = 1,
) -> list[Cell]:
    """Every sequence of a comparison, none twice.

    Budgets matter to strategies that keep something of each class, orders to all that do not train
    on all images at once.

    Raises:
        ConfigError: unknown strategy, or too many orders.
    """
    cells = []
    for name in check_strategies(strategies):
        strategy = STRATEGIES[name]
        cells += [
            Cell(strategy=name, classes=order, seed=seed, detector=detector, budget=budget,
                 order=number)
            for detector in ((strategy.detector,) if strategy.detector else detectors)
            for budget in (budgets if strategy.keeps_classes else (0,))
            for number, order in enumerate(
                orders(classes, 1 if strategy.uses_all_images else num_orders)
            )
            for seed in seeds
        ]  # fmt: skip
    return cells


def artifact_name(class_name: str, cell: Cell) -> str:
    """Name of what a cell keeps of a class: the class's own unless `compress` is told otherwise.

    Args:
        class_name: the class.
        cell: that needs it.
    """
    parts = [
        class_name,
        _shown_as(cell) if STRATEGIES[cell.strategy].compress else "",
        size_text(cell.budget) if cell.budget else "",
        f"seed{cell.seed}" if cell.seed else "",
    ]
    return "-".join(part for part in parts if part)


def detector_name(run_name: str, cell: Cell, number: int) -> str:
    """Name of a cell's detector after step `number`; most cells share the one of step 1."""
    strategy = STRATEGIES[cell.strategy]
    is_shared = number == 1 and strategy.shares_first_step
    parts = [
        f"{run_name}-{'step' if is_shared else _shown_as(cell)}-{number}",
        "" if strategy.detector else cell.detector,
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
    compared = {other.detector for other in cells if not STRATEGIES[other.strategy].detector}
    if len(compared) > 1 and not STRATEGIES[cell.strategy].detector:
        parts.append(cell.detector)
    if cell.budget and len({other.budget for other in cells if other.budget}) > 1:
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


def _shown_as(cell: Cell) -> str:
    """The strategy in the names of a cell's artifacts."""
    return STRATEGIES[cell.strategy].named_as or cell.strategy


def _steps_of(cell: Cell, number: int, run_name: str) -> Iterator[Step]:
    """What a cell does at step `number`, from 1; behind the last, it draws the newest class."""
    strategy = STRATEGIES[cell.strategy]
    past, seen = cell.classes[: number - 1], cell.classes[:number]
    new = cell.classes[number - 1] if number <= len(cell.classes) else ""
    is_last = number == len(cell.classes)
    stored = {name: artifact_name(name, cell) for name in seen}
    if strategy.compress is not None:
        if new and not (strategy.last_step_only and is_last):
            yield Step(stage="mask", name=new, seed=cell.seed, cells=(cell,), class_names=(new,))
            budget = (("budget", cell.budget),) if cell.budget else ()
            yield Step(stage="compress", name=stored[new], seed=cell.seed, cells=(cell,),
                       class_names=(new,), sources=(new,), changes=(*strategy.compress, *budget))
        if past and (new or not strategy.last_step_only):  # others were drawn before
            # At last to be looked at, and what the next class will be learned beside.
            yield Step(stage="replay", name=stored[past[-1]], seed=cell.seed, cells=(cell,),
                       class_names=past[-1:], sources=(stored[past[-1]],))  # fmt: skip
    if new and (is_last or not strategy.last_step_only):
        yield _training(cell, strategy, number, run_name)
        name = detector_name(run_name, cell, number)
        yield Step(stage="eval", name=name, seed=cell.seed, cells=(cell,), class_names=seen,
                   sources=(name,))  # fmt: skip


def _training(
    cell: Cell, strategy: Strategy, number: int, run_name: str
) -> Step:
    """The training of a cell at step `number`, from 1."""
    past, seen = cell.classes[: number - 1], cell.classes[:number]
    goes_on = strategy.goes_on and number > 1
    return Step(
        stage="train",
        name=detector_name(run_name, cell, number),
        seed=cell.seed,
        cells=(cell,),
        class_names=seen if strategy.uses_all_images else seen[-1:],
        sources=(
            tuple(artifact_name(name, cell) for name in past)
            if strategy.keeps_classes else ()
        ),
        init=detector_name(run_name, cell, number - 1) if goes_on else "",
        changes=(
            *((("detector", cell.detector),) if cell.detector else ()),
            *strategy.train, *(strategy.later if number > 1 else ()),
        ),
    )  # fmt: skip
