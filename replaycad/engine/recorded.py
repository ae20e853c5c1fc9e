"""What the header of a detector says of how it was made, as if one class had never been there."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from replaycad.engine.builder import rejoined
from replaycad.engine.staleness import digest_of
from replaycad.engine.views import VIEW_OF

ORDER = "class order"
FACTS = ("stage", "stage_version", "config", "seed", "inputs", "weights")
_BETWEEN = " + "  # classes known before, past and new ones in the input `ORDER`


@dataclass(frozen=True)
class Others:
    """What else of the store a header refers to, and what becomes of it.

    Attributes:
        classes: class by name of what is kept of it.
        contents: new content id of a detector by its content id before.
        renamed: new name of a detector by its name before.
        removed: names of detectors that will be gone.
    """

    classes: Mapping[str, str]
    contents: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: AbstractSet[str] = frozenset()


def header_without(
    header: Mapping[str, Any], class_name: str, others: Others
) -> dict[str, Any]:
    """The header of a detector whose banks are apart, as a training without a class writes it.

    The same command without the class then finds it up to date. Where that would have given
    something else, the key is none that a training has: the detector counts as stale.

    Args:
        header: with the class; its facts may be missing.
        class_name: the class.
        others: what it refers to.
    """
    classes = [name for name in header["class_order"] if name != class_name]
    named = {"classes": classes} if "classes" in header else {}
    if not isinstance(header.get("inputs"), dict) or not isinstance(header.get("config"), dict):
        return {**header, **named}
    inputs, config = dict(header["inputs"]), dict(header["config"])
    before, past, new = _parted(str(inputs.get(ORDER, "")), header["class_order"], inputs)
    own = _of_class(class_name, header["class_order"], (before, past, new), others.classes)
    num_replays = _num_replays(inputs)
    for name in (f"images/{class_name}", f"{VIEW_OF}{class_name}"):
        inputs.pop(name, None)
    for name in own:
        for kind in ("replays", "conditions"):
            inputs.pop(f"{kind}/{name}", None)
    if ORDER in inputs:
        without = ([n for n in before if n != class_name], [n for n in past if n not in own],
                   [n for n in new if n != class_name])  # fmt: skip
        inputs[ORDER] = _BETWEEN.join(map(",".join, without))
    if config.get("replay_budget") and 0 < _num_replays(inputs) < num_replays:
        # as much of each class as it was learned from
        config["replay_budget"] = config["replay_budget"] // num_replays * _num_replays(inputs)
    _go_on_from(config, inputs, class_name, others)
    facts = {**{name: header.get(name) for name in FACTS}, "config": config, "inputs": inputs}
    return {**header, **named, **facts, "key": digest_of(facts)}


def _go_on_from(
    config: dict[str, Any], inputs: dict[str, str], class_name: str, others: Others
) -> None:
    """Bring up to date which detector it went on from; none, where that knew this class alone."""
    init = config.get("init", "")
    if not init:
        return
    content = inputs.pop(f"detectors/{init}", "")
    is_gone = init in others.removed or (init == class_name and init not in others.renamed)
    config["init"] = "" if is_gone else others.renamed.get(init, init)
    if not is_gone:
        inputs[f"detectors/{config['init']}"] = others.contents.get(content, content)


def _num_replays(inputs: Mapping[str, str]) -> int:
    return sum(name.startswith("replays/") for name in inputs)


def _parted(
    text: str, class_order: Sequence[str], inputs: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Classes known before, names of past ones, new classes; empty if a name misleads."""
    kept = [
        name.partition("/")[2] for name in inputs if name.startswith(("replays/", "conditions/"))
    ]
    parts = [
        rejoined(part.split(","), [*class_order, *kept]) if part else []
        for part in text.split(_BETWEEN)
    ]
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ([], [], [])


def _of_class(
    class_name: str,
    class_order: Sequence[str],
    parts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    classes: Mapping[str, str],
) -> set[str]:
    """Names under which the class was kept, also where what was kept is gone by now."""
    before, past, new = parts
    known = {name: classes.get(name, name if name in class_order else "") for name in past}
    strangers = [name for name in past if not known[name]]
    told = {*before, *new, *known.values()}
    untold = [name for name in class_order if name not in told]
    if len(strangers) == len(untold):  # both in the order in which they were typed
        known |= dict(zip(strangers, untold, strict=True))
    return {class_name, *(name for name in past if known[name] == class_name)}
