"""Says where a store names a class: in headers and in names of files."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from replaycad.artifacts.format import read_header
from replaycad.artifacts.store import KINDS, Store
from replaycad.errors import ArtifactError, ConfigError

OF_ONE_CLASS = ("masks", "conditions", "replays")
"""Kinds whose artifacts are of one class each, which their header tells as `class_name`."""
_KEYED = ("inputs", "views", "by_class", "classes")
"""Fields of headers whose keys may be names of classes; other keys are words of the program."""
_WORDS = frozenset((
    "config", "detector", "encoder", "features", "form", "format", "image_ids", "placement",
    "policy", "preset", "rule", "stage", "versions", "view", "weights",
))  # fmt: skip
"""Fields that hold no name of a class; but `tile` and `grid` are words there, and classes."""


@dataclass(frozen=True)
class Held:
    """One artifact of a store.

    Attributes:
        kind: folder of the store.
        name: of the artifact.
        path: of its file.
        header: its own; of results the document; empty where it cannot be read.
        fault: why it cannot be read; empty if it can.
    """

    kind: str
    name: str
    path: Path
    header: Mapping[str, Any]
    fault: str = ""

    @property
    def label(self) -> str:
        """Kind and name."""
        return f"{self.kind}/{self.name}"

    @property
    def classes(self) -> list[str]:
        """The classes that it is of, in its order."""
        one = self.header.get("class_name")
        found = [one] if one else self.header.get("class_order", self.header.get("classes", []))
        return [str(name) for name in found] if isinstance(found, list) else []


@dataclass(frozen=True)
class Names:
    """How a class is called in a store.

    Attributes:
        class_name: the class.
        own: it, and artifacts of it alone, such as `bottle-25kB`.
        others: other classes, and artifacts of these.
    """

    class_name: str
    own: frozenset[str]
    others: frozenset[str]

    def is_own(self, name: str) -> bool:
        """Whether a name, also of unfinished work, is that of an artifact of this class."""
        is_derived = name.startswith(f"{self.class_name}-") and not self._is_of_another(name)
        return name in self.own or is_derived

    def in_text(self, text: str) -> bool:
        """Whether the class is named in a text as a word; in `bottle-2` there is no `bottle`."""
        if self._of_others:
            text = self._of_others.sub("\0", text)
        return bool(self._of_own.search(text))

    def in_header(self, header: Mapping[str, Any]) -> list[str]:
        """The fields of a header that name the class, such as `inputs.images/bottle`."""
        config = header.get("config")
        init = str(config.get("init", "")) if isinstance(config, dict) else ""
        named = [*_texts("", header), ("config.init", init)]
        return list(dict.fromkeys(place for place, text in named if self.in_text(text)))

    def in_place(self, place: Path) -> bool:
        """Whether a file is named after the class; the place is relative to the store."""
        folders = [part for part in place.parts[:-1] if part not in KINDS]
        return any(map(self.in_text, (*folders, place.name)))

    def _is_of_another(self, name: str) -> bool:
        return any(name == other or name.startswith(f"{other}-") for other in self.others
                   if not self.class_name.startswith(other))  # fmt: skip

    @cached_property
    def _of_own(self) -> re.Pattern[str]:
        return _words(self.own)

    @cached_property
    def _of_others(self) -> re.Pattern[str] | None:
        """Longer names in which the class stands as a word, as `nut` does in `metal nut`."""
        longer = [name for name in self.others if self._of_own.search(name)]
        return _words(longer) if longer else None


def survey(store: Store) -> list[Held]:
    """All artifacts of a store, from headers alone; of results the JSON documents."""
    found = []
    for kind in KINDS[:-1]:
        for name in store.list(kind):
            path = store.path(kind, name)
            try:
                found.append(Held(kind, name, path, read_header(path)))
            except ArtifactError as error:
                found.append(Held(kind, name, path, {}, str(error)))
    for path in sorted((store.root / "results").glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            header, fault = (document, "") if isinstance(document, dict) else ({}, "no document")
        except (OSError, ValueError) as error:
            header, fault = {}, f"{path}: {error}"
        classes = {"classes": header["classes"]} if "classes" in header else {}
        found.append(Held("results", path.stem, path, classes, fault))
    return found


def names_of(class_name: str, held: Iterable[Held]) -> Names:
    """How a class is called in a store with these artifacts."""
    own: set[str] = {class_name}
    others: set[str] = set()
    for one in held:
        if one.kind in OF_ONE_CLASS and one.classes:
            (own if class_name in one.classes else others).add(one.name)
        others |= {*one.classes}
    return Names(class_name, frozenset(own), frozenset(others - own))


def traces_of(
    store: Store, class_name: str, names: Names | None = None
) -> dict[str, list[str]]:
    """Where each artifact of a store names a class, and which other files do in their names.

    Args:
        store: whose files are meant.
        class_name: the class.
        names: how it was called before anything was removed; None for how it is called now.

    Returns:
        places by file, relative to the store; an artifact that names it nowhere has none.

    Raises:
        ConfigError: there is no such store.
        ArtifactError: an artifact cannot be read.
    """
    if not store.root.is_dir():
        raise ConfigError(f"{store.root} is no folder of artifacts", "give one, as artifacts")
    held = survey(store)
    names = names or names_of(class_name, held)
    found: dict[str, list[str]] = {}
    for one in held:
        if one.fault:
            raise ArtifactError(f"{one.label} cannot be searched: {one.fault}")
        found[one.path.relative_to(store.root).as_posix()] = names.in_header(one.header)
    for path in all_files(store):
        place = path.relative_to(store.root)
        if names.in_place(place):
            found.setdefault(place.as_posix(), []).append("its file name")
    return found


def all_files(store: Store) -> list[Path]:
    """Every file of a store, hidden ones too."""
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def _texts(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """What may be a name of a class in a header, and where it stands."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(place, one)
    elif isinstance(value, dict):
        field_name = place.rpartition(".")[2]
        for key, entry in value.items():
            inner = f"{place}.{key}" if place else key
            if field_name in _KEYED:
                yield inner, key
            if field_name != "views" and not (not place and key in _WORDS):
                yield from _texts(inner, entry)


def _words(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the names where neither a letter, a digit nor a hyphen is beside it."""
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{either})(?![\w-])")
