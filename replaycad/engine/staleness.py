"""Whether an artifact is up to date, decided from headers before anything heavy is imported.

An artifact is determined by facts: the stage and the version of its code, the config, the seed, the
content ids of what is read and the digests of the frozen networks. Their digest is the `key`; all
facts stand in the header too, so that a stale artifact can say which of them changed.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replaycad import __version__
from replaycad.artifacts.conditions import CONDITIONS
from replaycad.artifacts.detector import DETECTOR
from replaycad.artifacts.format import canonical_json, read_header
from replaycad.artifacts.keys import stage_facts, stage_key, why_stale
from replaycad.artifacts.masks import MASKS
from replaycad.artifacts.replays import REPLAYS
from replaycad.artifacts.scores import SCORES
from replaycad.config.recipes import STAGE_VERSIONS, StageConfig, as_dict
from replaycad.diffusion.presets import split_name
from replaycad.errors import ArtifactError, ConfigError

KINDS = {
    "mask": "masks",
    "compress": "conditions",
    "replay": "replays",
    "train": "detectors",
    "eval": "scores",
}
"""Stage -> folder of the store that its artifacts lie in."""

SCHEMAS = {
    "masks": MASKS,
    "conditions": CONDITIONS,
    "replays": REPLAYS,
    "detectors": DETECTOR,
    "scores": SCORES,
}
"""Folder of the store -> what the files in it must look like."""

_LEFT_OUT = ("inputs", "weights")  # facts that a header of `continual.choice` may lack
_PLACES = ("backbone", "segmenter", "encoder")  # fields that may name a place of this machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One stage invocation and what is known about its output.

    Args:
        stage: one of `recipes.STAGES`.
        name: of the artifact.
        path: of the artifact.
        facts: all that determines the output; canonical JSON types only.
        key: digest of `facts`.
        state: `hit`, `stale` or `missing`.
        reason: what made it stale, or empty.
        inputs_now: digests and content ids of the inputs as they are at the call; None if nobody
            can change them.
    """

    stage: str
    name: str
    path: Path
    facts: dict[str, Any]
    key: str
    state: str
    reason: str
    inputs_now: Callable[[], Mapping[str, str]] | None = None

    @property
    def kind(self) -> str:
        """Folder of the store."""
        return KINDS[self.stage]

    @property
    def label(self) -> str:
        """Kind and name, as inputs of later stages are called."""
        return f"{self.kind}/{self.name}"

    def check_inputs(self) -> None:
        """Look at the inputs once more, before what was made from them is written.

        Raises:
            ArtifactError: one of them is no longer what the facts say.
        """
        now = self.inputs_now() if self.inputs_now else self.facts["inputs"]
        for name, digest in self.facts["inputs"].items():
            if now.get(name) != digest:
                raise ArtifactError(
                    f"{name} changed while {self.label} was made from it; nothing was written",
                    "run the same command again",
                )

    def header(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The common part of the artifact's header."""
        who = {"class_name": class_names[0]} if self.stage in ("mask", "compress", "replay") else {
            "classes": list(class_names)
        }  # fmt: skip
        return {**self.facts, **who, "key": self.key, "versions": {"replaycad": __version__}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one stage invocation came to.

    Args:
        plan: what was wanted and what was found.
        was_made: whether the stage ran.
        num_bytes: of the artifact, shards included; 0 if it is not there.
        num_images: that the stage read, drew or scored.
        seconds: that making it took, this time or when it was made; 0 if not known.
        peak_memory_bytes: of the process, if the stage ran.
        next_command: what a user types next.
        needs: about how many bytes of memory making it takes, on `gpu` and on `cpu`; empty if the
            stage does not tell.
    """

    plan: Plan
    was_made: bool
    num_bytes: int
    num_images: int
    seconds: float
    peak_memory_bytes: int | None
    next_command: str
    needs: Mapping[str, int] = field(default_factory=dict)


def make_plan(
    stage: str,
    name: str,
    path: Path,
    *,
    config: StageConfig,
    seed: int | None,
    inputs: Mapping[str, str],
    weights: Mapping[str, str],
    changing: Collection[str] = (),
) -> Plan:
    """Compare what an artifact says of itself with what is wanted.

    Args:
        stage: one of `recipes.STAGES`.
        name: of the artifact.
        path: of the artifact, there or not.
        config: of the stage.
        seed: or None for a stage that draws nothing.
        inputs: name of an input -> digest or content id.
        weights: frozen network -> sha256.
        changing: names in `inputs` that will be made anew before this one (a dry run needs it).
    """
    determined = (stage, STAGE_VERSIONS[stage], portable(config), seed, inputs, weights)
    facts, key = stage_facts(*determined), stage_key(*determined)
    state, reason = _state(path, KINDS[stage], facts, key, changing)
    return Plan(
        stage=stage, name=name, path=path, facts=facts, key=key, state=state, reason=reason
    )


def portable(config: StageConfig) -> dict[str, Any]:
    """The config as a dict without paths of this machine: a folder is named by its last part.

    The digests of the networks say which weights they were, so nothing is lost.
    """
    values = as_dict(config)
    for name in _PLACES:
        text = str(values.get(name) or "")
        place, variant = split_name(text)
        if name == "encoder" and ":" in text:  # ARCHITECTURE:FILE
            values[name] = text.partition(":")[0]
        elif place and Path(place).exists():
            values[name] = Path(place).resolve().name + (f":{variant}" if variant else "")
    return values


def replaced(label: str) -> ArtifactError:
    """The error for an artifact that is no longer the one that this command found or made."""
    return ArtifactError(
        f"{label} was replaced by another command, with other settings",
        "run them one after the other, or give each a --store of its own",
    )


def digest_of(values: Mapping[str, Any]) -> str:
    """One sha256 over named JSON values, such as other digests."""
    return hashlib.sha256(canonical_json(dict(values)).encode()).hexdigest()


def num_bytes(path: Path) -> int:
    """Bytes of an artifact with its shards; 0 if it is not there."""
    parts = [path, *path.with_suffix(".shards").glob("*.safetensors")]
    return sum(part.stat().st_size for part in parts if part.is_file())


def recorded_values(header: Mapping[str, Any]) -> dict[str, str]:
    """The config in a header as overrides of a recipe."""
    return {name: str(value) for name, value in header.get("config", {}).items()}


def input_header(path: Path, kind: str) -> dict[str, Any]:
    """Header of an artifact that a stage wants to read.

    Args:
        path: of the artifact.
        kind: folder of the store.

    Raises:
        ArtifactError: if there is none, or it is damaged, foreign or newer; the hint is the
            command that makes such a file.
    """
    if not path.exists():
        made_by = SCHEMAS[kind].command.format(name=path.stem)
        if kind == "detectors":
            made_by = f"{made_by} --class NEW --past OLD --name {path.stem}"
        raise ArtifactError(f"{path} does not exist", f"run `{made_by}`")
    return read_header(path, SCHEMAS[kind])


def _state(
    path: Path, kind: str, facts: dict[str, Any], key: str, changing: Collection[str]
) -> tuple[str, str]:
    if not path.exists():
        return "missing", ""
    try:
        header = read_header(path, SCHEMAS[kind])
    except ArtifactError as error:
        return "stale", error.message
    if header.get("key") == key and not changing:
        return "hit", ""
    otherwise = "it does not say how it was made"
    if header.get("form") and facts["config"].get("keep") == "auto":
        # What is not in it is either new or was left out, as only forms not chosen need it.
        facts = {**facts, **{group: _recorded(header, facts, group) for group in _LEFT_OUT}}
        otherwise = "what other forms were tried with changed"
    changes = [f"{name} will be made anew" for name in sorted(changing)] + why_stale(header, facts)
    return "stale", "; ".join(changes) or otherwise


def _recorded(header: Mapping[str, Any], facts: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The facts of one group without those that the header does not name."""
    found = header.get(group)
    names = found if isinstance(found, dict) else {}
    return {name: value for name, value in facts[group].items() if name in names}


def check_same_backbone(
    path: Path, header: Mapping[str, Any], weights: Mapping[str, str], name: str
) -> None:
    """Conditions mean something to one frozen model only.

    Raises:
        ArtifactError: if a network differs from the one that they were made with.
    """
    made_with = header.get("weights", {})
    different = [network for network in weights if made_with.get(network) != weights[network]]
    if different:
        was = header.get("config", {}).get("backbone")
        raise ArtifactError(
            f"{path} was made with another backbone: expected '{was}', found '{name}' "
            f"({', '.join(different)} differ)",
            "give the backbone that it was made with, or compress the class again",
        )


def check_same_encoder(
    path: Path, header: Mapping[str, Any], weights: Mapping[str, str], name: str
) -> None:
    """A detector reads the features of one encoder only.

    Raises:
        ArtifactError: if it was trained with another.
    """
    if header.get("weights") != weights:
        raise ArtifactError(
            f"{path} was trained with another encoder than '{name}'",
            "give its files with --encoder TIMM_NAME:FILE",
        )


def split_settings(texts: Sequence[str], stage: str | None) -> dict[str, dict[str, str]]:
    """Turn `field=value` and `stage.field=value` into overrides per stage.

    Args:
        texts: as typed after `--set`.
        stage: to which a bare field belongs; None where every field needs its stage.

    Raises:
        ConfigError: if a text is not of that form or names no stage.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in KINDS}
    for text in texts:
        field, equals, value = text.partition("=")
        owner, dot, rest = field.partition(".")
        owner, field = (owner, rest) if dot else (stage or "", field)
        if not equals or owner not in found:
            example = f"{stage or 'compress'}.num_steps=100"
            raise ConfigError(f"cannot read --set {text}", f"write it like --set {example}")
        found[owner][field.replace("-", "_")] = value
    return found
