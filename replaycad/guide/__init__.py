"""The long pages of the manual: the docstring of each file here is what `replaycad help` shows."""

import importlib
import inspect
import pkgutil

from replaycad.errors import ConfigError


def topics() -> dict[str, str]:
    """Topic -> its first line."""
    names = sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
    return {name: page(name).splitlines()[0] for name in names}


def page(topic: str) -> str:
    """The text of a topic, as Markdown; with what its file reads off the program, if anything.

    Raises:
        ConfigError: if there is no such topic; the hint lists those there are.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    file = topic.replace("-", "_")
    if file not in names:
        known = ", ".join(sorted(name.replace("_", "-") for name in names))
        raise ConfigError(f"there is no page about '{topic}'", f"choose from: {known}")
    module = importlib.import_module(f"{__name__}.{file}")
    parts = [inspect.cleandoc(module.__doc__ or "")]
    if hasattr(module, "read_off"):
        parts.append(module.read_off())
    return "\n\n".join(parts)
