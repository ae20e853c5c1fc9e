"""What the limit of a class is, and where it came from."""

from collections.abc import Mapping
from typing import Any

from replaycad.continual.feedback import records
from replaycad.continual.real_limits import RealLimits
from replaycad.engine.banks import LIMITS_OF_REAL

SHARED = "of all classes together, for the detector has none of its own"
Header = Mapping[str, Any]


def limit_row(header: Header, class_name: str, stored: Mapping[str, Header]) -> dict[str, str]:
    """The image limit of a class as the page shows it.

    Args:
        header: of the detector.
        class_name: the class.
        stored: kind and name, such as `replays/bottle-25kB` -> header of what the detector may have
            learned the class from.

    Returns:
        `limit` and `typical`, scores as they come; `origin` in words; and `moved`, where the limit
        is by now on the scale where that of training is 1, empty where nobody set it anew.
    """
    own, origin = header["thresholds"].get("by_class", {}).get(class_name), SHARED
    if own is None:
        own = header["thresholds"]
    else:
        origin = _set_by_people(header, class_name) or _of_training(header, class_name, stored)
    first = [record["before"] for record in records(header, class_name)][:1]
    trained = own.get("trained") or (first or [own])[0]
    spread = max(trained["image"] - trained["typical_image"], 1e-12)
    moved = f"{(own['image'] - trained['typical_image']) / spread:.3g}"
    return {
        "limit": f"{own['image']:.4g}", "typical": f"{own['typical_image']:.4g}", "origin": origin,
        "moved": "" if own["image"] == trained["image"] else moved,
    }  # fmt: skip


def _set_by_people(header: Header, class_name: str) -> str:
    """Who set the limit since the training; empty if nobody did."""
    own = header["thresholds"]["by_class"][class_name]
    for record in reversed(records(header, class_name)):
        if record["after"] != own:  # somebody has set it since
            break
        if record["before"]["image"] != own["image"]:
            return f"moved by feedback of {_photos(len(record['photos']))}"
        own = record["before"]
    return f"calibrated with {_photos(own['photos'])}" if "photos" in own else ""


def _of_training(header: Header, class_name: str, stored: Mapping[str, Header]) -> str:
    """Whose scores the limit of training is from; a dash where the headers do not say it."""
    inputs, own = header.get("inputs", {}), header["thresholds"]["by_class"][class_name]
    if f"images/{class_name}" in inputs:
        return "its training images"
    for label, kept in stored.items():
        if label not in inputs:
            continue
        if label.startswith("conditions/"):
            return "its training images, carried with its features"
        # A record of another bank than the detector's does not hold the limit.
        real = RealLimits.of(kept.get(LIMITS_OF_REAL), "")
        if real is not None and real.real["image"] == own["image"]:
            return "its training images, carried with its replays"
        return "estimated from its replays"
    return "-"


def _photos(count: int) -> str:
    return f"{count} photo{'s' * (count != 1)}"
