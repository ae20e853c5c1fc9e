"""The pages of the manual: the Markdown files here are what `replaycad help TOPIC` shows."""

import re
from pathlib import Path

from replaycad.errors import ConfigError

TOPICS = (
    "first-hour", "folders", "choosing", "settings", "classes", "artifacts", "machines", "costs",
    "python", "troubleshooting", "benchmarks", "published", "model-card", "departures",
)  # fmt: skip
"""In the order in which a newcomer reads them."""


def topics() -> dict[str, str]:
    """Topic -> its title."""
    return {name: page(name).splitlines()[0].lstrip("# ") for name in TOPICS}


def page(topic: str) -> str:
    """Text of a page in Markdown, without the comments that generate its tables.

    Raises:
        ConfigError: if there is no such topic; the hint lists those there are.
    """
    if topic not in TOPICS:
        raise ConfigError(f"there is no page about '{topic}'", f"choose from: {', '.join(TOPICS)}")
    text = (Path(__file__).parent / f"{topic}.md").read_text(encoding="utf-8")
    return re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL).strip()
