"""Takes one class out of a detector whose memory banks are apart."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.detector import Arrays, DetectorArtifact

BANK, INDEX = "bank", "bank_class_index"
LOOKS, LOOKS_INDEX = "looks.rows", "looks.class_index"
RECORDS = "feedback"  # field of a header: what people said of photos of a class, the latest last

Limits = Mapping[str, Any]


def rows_of(
    artifact: DetectorArtifact, class_name: str, held: Arrays | None = None
) -> NDArray[np.float32]:
    """The bank of a class `[M, D]`, in the order of its picks; M is 0 if it has none.

    Args:
        artifact: knows the class.
        class_name: of the rows.
        held: other banks of the artifact than those of the detector itself.

    Raises:
        ValueError: the detector does not know the class.
    """
    held = artifact.state if held is None else held
    own = held[INDEX] == artifact.class_order.index(class_name)
    bank: NDArray[np.float32] = held[BANK][own]
    return bank


def without_class(artifact: DetectorArtifact, class_name: str) -> DetectorArtifact:
    """A detector whose banks are apart, without one of its classes.

    What it says of images of the other classes stays the same: their banks and their limits do.
    Only of its bank does it lose rows, so it is the network that a training without the class
    gives. The limits over all classes are measured on images, which are not at hand. As where
    features are kept (`banks.with_kept`), they become those of the class that has the highest, and
    what is typical becomes the mean over classes; no image is judged by them.

    Args:
        artifact: knows the class and others; its header is left as it is, but for `views` and
            `feedback`.
        class_name: the class.

    Returns:
        the same with the classes behind it one place farther in front.

    Raises:
        ValueError: the detector does not know the class.
    """
    gone = artifact.class_order.index(class_name)
    state = dict(artifact.state)
    for rows, of_class in ((BANK, INDEX), (LOOKS, LOOKS_INDEX)):
        if of_class in state:  # detectors of before have no looks
            kept = state[of_class] != gone
            left = state[of_class][kept]
            state |= {rows: state[rows][kept], of_class: left - (left > gone).astype(left.dtype)}
    views = {n: v for n, v in artifact.header.get("views", {}).items() if n != class_name}
    header = {**artifact.header, "views": views} if "views" in artifact.header else artifact.header
    if RECORDS in header:  # with limits of the class and names of its photos
        kept = [record for record in header[RECORDS] if record["class_name"] != class_name]
        header = {name: value for name, value in header.items() if name != RECORDS}
        header |= {RECORDS: kept} if kept else {}
    return replace(
        artifact,
        class_order=[name for name in artifact.class_order if name != class_name],
        state=state,
        thresholds=_limits_without(artifact.thresholds, class_name),
        header=header,
    )


def _limits_without(thresholds: Limits, class_name: str) -> dict[str, Any]:
    """Limits without those of a class; those over all classes are of the classes that have some."""
    by_class: dict[str, Limits] = dict(thresholds.get("by_class", {}))
    if class_name not in by_class:
        return dict(thresholds)
    del by_class[class_name]
    overall = {name: value for name, value in thresholds.items() if name != "by_class"}
    for name in ("image", "pixel"):
        values = [own[name] for own in by_class.values()]
        typical = [own[f"typical_{name}"] for own in by_class.values()]
        overall |= {name: max(values), f"typical_{name}": sum(typical) / len(typical)}
    return {**overall, "by_class": by_class}
