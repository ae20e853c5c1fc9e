"""What a sequence of any size would cost: hours, bytes and dollars from the cost of one unit.

Units are those that the artifacts of the store took, else those of the bundled models on two CPU
cores; whoever plans for another machine names its own. Nothing is run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, get_type_hints

from replaycad.artifacts.format import read_header
from replaycad.artifacts.store import Store
from replaycad.engine.timings import Timings
from replaycad.errors import ArtifactError, ConfigError

EFFICIENCY = 0.9  # of a training on several devices, against as many times the speed of one
DEVICES = (1, 8, 64)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Counts of the plan and costs of a unit.

    Args:
        classes: learned one after another.
        images: real ones of a class.
        replays: drawn of each class, once.
        replay_budget: replays that one training reads; 0 for all there are.
        test_images: of a class.
        mask_s: seconds for the mask of an image.
        compress_s: seconds for a class.
        replay_s: seconds for a replay.
        read_s: seconds until a training has an image and its features.
        steps: of a training.
        step_s: seconds for a step.
        score_s: seconds for a test image.
        image_bytes: of a real image's file.
        conditions_bytes: of a class.
        replay_bytes: of a replay.
        dollars_per_hour: of one device.
    """

    classes: int = 15
    images: int = 300
    replays: int = 120
    replay_budget: int = 0
    test_images: int = 100
    mask_s: float = 0.08
    compress_s: float = 12.0
    replay_s: float = 0.11
    read_s: float = 0.005
    steps: int = 1500
    step_s: float = 0.057
    score_s: float = 0.028
    image_bytes: float = 500_000
    conditions_bytes: float = 200_000
    replay_bytes: float = 51_000
    dollars_per_hour: float = 0.1

    def __post_init__(self) -> None:
        """Refuse counts and costs that cannot be."""
        for entry in fields(self):
            value, least = getattr(self, entry.name), 1 if entry.name == "classes" else 0
            if not least <= value < math.inf:
                raise ConfigError(f"{entry.name} cannot be {value}", f"use {least} or more")


def assumed(texts: Sequence[str], known: Mapping[str, float]) -> Assumptions:
    """Assumptions from `name=value` texts over what is known of this store.

    Args:
        texts: as typed after `--assume`, each with commas or without.
        known: as `measured` gives it.

    Raises:
        ConfigError: a name that is none, or a value that is no number.
    """
    kinds = get_type_hints(Assumptions)
    found: dict[str, Any] = dict(known)
    for part in (part.strip() for text in texts for part in text.split(",") if part.strip()):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise ConfigError(f"cannot assume '{part}'", f"names: {', '.join(kinds)}")
        try:
            found[name] = kinds[name](float(value.replace("_", "")))
        except (ValueError, OverflowError):
            raise ConfigError(f"cannot assume '{part}'", f"write {name}=NUMBER") from None
    return replace(Assumptions(), **found)


def measured(store: Store) -> dict[str, float]:
    """Median unit costs of the artifacts that this store holds and knows the time of."""
    ledger, found = Timings(store), {}
    units = (("mask_s", "masks", ""), ("compress_s", "conditions", "conditions_bytes"),
             ("replay_s", "replays", "replay_bytes"), ("score_s", "scores", ""))  # fmt: skip
    for unit, kind, weight in units:
        costs, sizes = [], []
        for name in store.list(kind):
            path = store.path(kind, name)
            try:
                header = read_header(path)
                seconds = ledger.seconds(kind, name, header.get("key", ""))
            except ArtifactError:
                continue  # what cannot be read says nothing of costs
            number = header.get("num_images") or len(header.get("image_ids", [])) or 1
            if seconds and number:
                costs.append(seconds / number)
                sizes.append(path.stat().st_size / number)
        if costs:
            found[unit] = round(median(costs), 4)
            if weight:
                found[weight] = round(median(sizes))
    return found


def forecast(given: Assumptions, devices: int, walked: bool = True) -> dict[str, float]:
    """Cost of a plan on some devices.

    Masks, searches and replays of different classes need not wait for each other; the trainings
    of a sequence come one after another, each on all devices.

    Args:
        given: what is assumed.
        devices: GPUs, or machines.
        walked: whether a detector is trained after each class, or once at the end.

    Returns:
        `prepare_h`, `train_h`, `eval_h`, `wall_h`; `last_step_h`, from the arrival of the last
        class to its detector; `device_h`, of all devices; `stored_gb` (conditions and replays);
        `moved_gb` (images to those who compress them, conditions back, replays to the trainer);
        `dollars`.
    """
    count, each = given.classes, given.classes if walked else 1
    prepare_s = given.images * given.mask_s + given.compress_s + given.replays * given.replay_s
    steps = range(1, count + 1) if walked else [count]
    train_s = sum(_training_s(given, step) for step in steps)
    eval_s = sum(step * given.test_images * given.score_s for step in steps)
    rounds = math.ceil(count / devices)
    speed = devices * EFFICIENCY if devices > 1 else 1.0
    wall_s = rounds * prepare_s + train_s / speed + eval_s / devices
    last_s = prepare_s + _training_s(given, count) / speed
    last_s += count * given.test_images * given.score_s / devices
    device_s = count * prepare_s + train_s * devices / speed + eval_s
    moved = count * given.images * given.image_bytes + count * given.conditions_bytes
    drawn = (count - 1) * given.replays * given.replay_bytes
    return {
        "devices": devices, "trainings": each,
        "prepare_h": rounds * prepare_s / 3600, "train_h": train_s / speed / 3600,
        "eval_h": eval_s / devices / 3600, "wall_h": wall_s / 3600, "last_step_h": last_s / 3600,
        "device_h": device_s / 3600, "stored_gb": (count * given.conditions_bytes + drawn) / 1e9,
        "moved_gb": (moved + drawn) / 1e9, "dollars": device_s / 3600 * given.dollars_per_hour,
    }  # fmt: skip


def _training_s(given: Assumptions, step: int) -> float:
    """Seconds on one device of the training with `step` classes."""
    replayed = (step - 1) * given.replays
    if given.replay_budget:
        replayed = min(replayed, given.replay_budget)
    return (replayed + given.images) * given.read_s + given.steps * given.step_s


def advice(given: Assumptions) -> str:
    """What has to change at this size, in a sentence; empty if nothing has to."""
    reading = (given.classes - 1) * given.replays * given.read_s
    learning = given.steps * given.step_s
    if given.replay_budget or reading <= 2 * learning:
        return ""
    fair = max(given.classes - 1, round(2 * learning / given.read_s))
    return (
        f"one device would read replays for {reading / 3600:.1f} h in the last training and learn "
        f"for {learning / 3600:.2f} h: --replay-budget {fair} reads for "
        f"{fair * given.read_s / 3600:.2f} h"
    )
