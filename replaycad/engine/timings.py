"""How long each artifact took; kept beside the artifacts, for a clock has no place inside."""

import json

from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.format import canonical_json
from replaycad.artifacts.store import Store
from replaycad.engine.staleness import Plan


class Timings:
    """Seconds by artifact and key, one small file each: stages may run side by side.

    Args:
        store: whose artifacts are meant.
    """

    def __init__(self, store: Store) -> None:
        self._folder = store.root / ".timings"

    def record(self, plan: Plan, seconds: float) -> None:
        """Remember how long an artifact took."""
        text = canonical_json({"key": plan.key, "seconds": round(seconds, 2)})
        write_text(self._folder / plan.kind / f"{plan.name}.json", text)

    def seconds(self, kind: str, name: str, key: str) -> float:
        """How long the artifact of this key took; 0 if it was made elsewhere."""
        try:
            entry = json.loads((self._folder / kind / f"{name}.json").read_text())
            return float(entry["seconds"]) if entry["key"] == key else 0.0
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0
