"""What a command ends with: one table, or one JSON document, on stdout."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaycad.artifacts.confusion import Confusion, read_confusion
from replaycad.artifacts.format import canonical_json, read_header
from replaycad.artifacts.scores import SCORES
from replaycad.artifacts.store import Store
from replaycad.cli.console import print_json, print_line, print_table
from replaycad.engine.builder import Outcome
from replaycad.experiments.tables import METRICS, TITLES, format_bytes, fraction, strategy_row

if TYPE_CHECKING:  # what fetches is imported by the one command that fetches
    from replaycad.fetch.work import Found

FIGURES = ("image_auroc", "pixel_ap", "pixel_auroc", "aupro30", "f1_max")
SHOWN_TENSORS = 20
SHOWN_MATRICES = 6


def show_fetched(found: Sequence["Found"], as_json: bool) -> None:
    """Print what became of each frozen network, and where the files are that it lacks."""
    if as_json:
        print_json({"parts": [one.document() for one in found]})
        return
    for one in found:
        part = one.part
        size = f", {format_bytes(part.num_bytes)}" if part.num_bytes else ""
        where = f" ({part.page})" if part.page and part.page not in part.licence else ""
        licence = f", {part.licence}{where}" if part.licence else ""
        print_line(f"{part.title}: {one.state}{size}{licence}")
        for path, address in one.missing.items():
            print_line(f"  {address}" + ("  (all files of it)" if path[-1:] == "/" else ""))
    if all(one.state == "bundled" for one in found):
        print_line("nothing to fetch: everything comes with the package")


def show(outcomes: Sequence[Outcome], as_json: bool, dry_run: bool) -> None:
    """Print what stage invocations came to.

    Args:
        outcomes: in the order done.
        as_json: print a document instead of a table.
        dry_run: say what would be done.
    """
    if as_json:
        print_json({"outcomes": [_document(outcome, dry_run) for outcome in outcomes]})
    elif dry_run:
        rows = [[str(o.plan.path), o.plan.state, _needs(o), o.plan.reason] for o in outcomes]
        print_table(("artifact", "state", "memory on gpu / cpu", "why"), rows)
    else:
        for outcome in outcomes:
            if outcome.plan.stage == "eval":
                _print_metrics(_metrics(outcome.plan.path), _confusion(outcome))
        rows = [_row(outcome) for outcome in outcomes]
        print_table(("file", "state", "bytes", "images/s", "seconds", "peak memory"), rows)
        print_line(f"next: {outcomes[-1].next_command}")


def show_results(document: Mapping[str, Any], files: Sequence[Path], as_json: bool) -> None:
    """Print the results of a sequence: strategies side by side, then each step x class matrix.

    Args:
        document: as `plan.results_document` gives it.
        files: that hold it.
        as_json: print the document itself.
    """
    if as_json:
        print_json(document)
        return
    classes, strategies = document["classes"], document["strategies"]
    print_table(
        ("strategy", *(f"{TITLES[m]} {f}" for m in METRICS for f in ("mean", "past", "fm", "gap")),
         "bytes/class", "seconds"),
        [strategy_row(name, entry) for name, entry in strategies.items()],
    )  # fmt: skip
    for name, reason in document.get("left_out", {}).items():
        print_line(f"left out: {name}: {reason}")
    for name, entry in strategies.items() if len(strategies) <= SHOWN_MATRICES else ():
        for metric in METRICS:
            print_line("")
            print_line(f"{name}: {TITLES[metric]} after each step")
            print_table(
                ("step", *classes),
                [
                    [f"{step} + {classes[step - 1]}", *map(fraction, row)]
                    for step, row in enumerate(entry[metric]["matrix"], start=1)
                ],
            )
    print_line("")
    for file in files:
        print_line(f"written: {file}")


def show_artifact(facts: Mapping[str, Any], checked: Mapping[str, str], as_json: bool) -> None:
    """Print what an artifact is.

    Args:
        facts: as `artifacts.inspection.describe` gives them.
        checked: file -> recomputed content id; empty if nothing was recomputed.
        as_json: print one document instead of tables.
    """
    if as_json:
        print_json({**facts, "verified": dict(checked)} if checked else dict(facts))
        return
    rows = [
        [name, value if isinstance(value, str) else canonical_json(value)]
        for name, value in facts.items()
        if name not in ("tensors", "shards") and value not in ({}, [], None, "")
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print_line(f"{name:<{width}}  {text}")
    print_line("")
    print_table(
        ("tensor", "dtype", "shape", "bytes"),
        [
            [e["name"], e["dtype"], "x".join(map(str, e["shape"])), format_bytes(e["num_bytes"])]
            for e in facts["tensors"][:SHOWN_TENSORS]
        ],
    )
    if len(facts["tensors"]) > SHOWN_TENSORS:
        print_line(f"and {len(facts['tensors']) - SHOWN_TENSORS} more tensors")
    for path in checked:
        print_line(f"verified: {path}")


def show_verdict(told: Mapping[str, Any], as_json: bool) -> None:
    """Print one image's verdict at once, as one line.

    Args:
        told: as `prediction.predict` gives it.
        as_json: as JSON, for a program that reads along.
    """
    if as_json:
        text = canonical_json(dict(told))
    elif "error" in told:
        text = f"error: {told['error']}"
    else:
        width = 15 if "class" in told else 9  # of `unknown product`, or of `anomalous`
        text = f"{told['verdict']:<{width}}  {told['score']:7.3f}  "
        text += f"{told['class']}  " if "class" in told else ""
        text += told["image"]
        text += f"  (note: {told['note']})" if "note" in told else ""
    print_line(text.replace("\n", "\\n"))
    sys.stdout.flush()


def show_audit(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print how near replays come to training images.

    Args:
        facts: as `privacy.audit_file` gives them.
        as_json: print one document instead of a table.
    """
    if as_json:
        print_json(dict(facts))
        return
    print_table(
        ("median distance to a training image", "replays", "images", "least ratio", "copies"),
        [
            [kind, f"{found['replay_to_image']:.3g}", f"{found['image_to_image']:.3g}",
             f"{found['ratio']:.2f}", str(len(found["near_copies"]))]
            for kind, found in ((kind, facts[kind]) for kind in ("pixels", "features"))
        ],
    )  # fmt: skip
    copies = facts["near_copies"]
    print_line(
        f"{facts['class_name']}: {len(copies)} of {facts['num_replays']} replays are near copies "
        f"of one of the {facts['num_images']} training images"
        + (f": {', '.join(map(str, copies[:SHOWN_TENSORS]))}" if copies else "")
    )
    if facts["num_kept_images"]:
        print_line(f"its conditions also hold {facts['num_kept_images']} real images")
    if facts["num_fragments"]:
        print_line(
            f"its conditions hold {facts['num_fragments']} squares of images, of none more than "
            f"{facts['largest_share']:.0%} of its area"
        )


def show_traces(
    class_name: str, found: Mapping[str, Sequence[str]], as_json: bool
) -> None:
    """Print where the artifacts of a store name a class.

    Args:
        class_name: the class.
        found: as `artifacts.traces.traces_of` gives it.
        as_json: print one document instead of lines.
    """
    if as_json:
        print_json({"class_name": class_name, "files": {one: [*of] for one, of in found.items()}})
        return
    for file, places in found.items():
        print_line(f"{file}: " + (f"names it in {', '.join(places)}" if places else "-"))
    count = sum(map(bool, found.values()))
    print_line(f"{count} of {len(found)} files name {class_name}")


def show_forgotten(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what a store lost with a class, and whether anything is left.

    Args:
        found: as `engine.forget.forget` gives it.
        as_json: print it as one document.
    """
    if as_json:
        print_json(dict(found))
        return
    name, is_done = found["class_name"], "left" in found
    shown = [file for file in found["removed"] if file[0] != "." and ".shards/" not in file]
    num_others = len(found["removed"]) - len(shown)
    others = [f"{num_others} shards, kept banks, unfinished work and the like"] * bool(num_others)
    for file in (*shown, *others):
        print_line(f"{'removed' if is_done else 'would remove'}: {file}")
    for old, new in found["reduced"].items():
        called = f" and is called {new}" if new != old else ""
        print_line(f"{'lost' if is_done else 'would lose'} {name}: detectors/{old}{called}")
    for one in found.get("trained", ()):
        print_line(f"cannot lose {name}: detectors/{one} (--remove-detectors removes it)")
    if not is_done:
        return
    size, files = format_bytes(found["num_bytes"]), {one["file"] for one in found["left"]}
    for one in found["left"]:
        print_line(f"left: {one['file']} {one['what']}")
    rest = f"some are left in {len(files)} files" if files else "none is left"
    print_line(
        f"searched {found['num_files']} files, {size}, for {found['num_pieces']} pieces of what "
        f"was kept of {name}: {rest}"
    )


def _row(outcome: Outcome) -> list[str]:
    peak = outcome.peak_memory_bytes
    return [
        str(outcome.plan.path),
        "made" if outcome.was_made else "up to date",
        format_bytes(outcome.num_bytes),
        _images_per_second(outcome),
        f"{outcome.seconds:.1f}" if outcome.seconds else "-",
        format_bytes(peak) if peak else "-",
    ]


def _needs(outcome: Outcome) -> str:
    return " / ".join(f"about {format_bytes(value)}" for value in outcome.needs.values()) or "-"


def _images_per_second(outcome: Outcome) -> str:
    if not outcome.was_made or not outcome.seconds:
        return "-"
    return f"{outcome.num_images / outcome.seconds:.1f}"


def _document(outcome: Outcome, dry_run: bool) -> dict[str, Any]:
    plan = outcome.plan
    document: dict[str, Any] = {
        "stage": plan.stage,
        "name": plan.name,
        "file": str(plan.path),
        "state": plan.state,
        "reason": plan.reason,
        "key": plan.key,
    }
    if dry_run:
        return document | {"memory_bytes": dict(outcome.needs) or None}
    document |= {
        "was_made": outcome.was_made,
        "num_bytes": outcome.num_bytes,
        "num_images": outcome.num_images,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "next": outcome.next_command,
    }
    if plan.stage == "eval":
        told = _confusion(outcome)
        document |= {"metrics": _metrics(plan.path), "products": told and told.document()}
    return document


def _metrics(path: Path) -> dict[str, Any]:
    return read_header(path, SCORES)["metrics"]


def _confusion(outcome: Outcome) -> Confusion | None:
    plan = outcome.plan
    return read_confusion(Store(plan.path.parents[1]), plan.name)


def _print_metrics(metrics: Mapping[str, Any], told: Confusion | None) -> None:
    rows = [
        [name, *(fraction(figures.get(figure)) for figure in FIGURES)]
        for name, figures in (*metrics["classes"].items(), ("mean", metrics["mean"]))
    ]
    print_table(("class", *FIGURES), rows)
    if told is not None and len(told.told) > 1:
        print_line(told.sentence())
    print_line("")
