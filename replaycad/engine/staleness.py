"""Whether an artifact is up to date, decided from headers alone; all of that is decided here.

An artifact is determined by facts: the stage and the version of its code, the config, the seed, the
content ids of what is read and the digests of the frozen networks. Their digest is the `key`; the
facts stand in the header too, so that a stale artifact can say which of them changed.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaycad import __version__
from replaycad.artifacts.conditions import CONDITIONS
from replaycad.artifacts.detector import DETECTOR
from replaycad.artifacts.format import canonical_json, read_header
from replaycad.artifacts.masks import MASKS
from replaycad.artifacts.replays import REPLAYS
from replaycad.artifacts.scores import SCORES
from replaycad.config.stages import STAGE_VERSIONS, StageConfig, as_dict
from replaycad.continual.growth import COMPRESSED
from replaycad.diffusion.presets import split_name
from replaycad.errors import ArtifactError

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

MAX_NAMED = 20  # artifacts in a hint
FACT_GROUPS = ("config", "inputs", "weights")
_LEFT_OUT = ("inputs", "weights")  # facts that the header of an automatic choice may lack
_PLACES = ("backbone", "segmenter", "encoder")  # fields that may name a place of this machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One artifact as it is wanted, held against the one that is there.

    Args:
        stage: one of `config.stages.STAGES`.
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
        if self.stage in ("mask", "compress", "replay"):
            named: dict[str, Any] = {"class_name": class_names[0]}
        else:
            named = {"classes": list(class_names)}
        return {**self.facts, **named, "key": self.key, "versions": {"replaycad": __version__}}


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
    inputs_now: Callable[[], Mapping[str, str]] | None = None,
    read: Callable[[Path, str], dict[str, Any]] | None = None,
) -> Plan:
    """Compare what an artifact says of itself with what is wanted.

    Args:
        stage: one of `config.stages.STAGES`.
        name: of the artifact.
        path: of the artifact, there or not.
        config: of the stage.
        seed: or None for a stage that draws nothing.
        inputs: name of an input -> digest or content id.
        weights: frozen network -> sha256.
        changing: names in `inputs` that will be made anew before this one (a dry run needs it).
        inputs_now: as `Plan`.
        read: gives the header for a path and a folder of the store; None for `input_header`.
    """
    facts = {
        "stage": stage,
        "stage_version": STAGE_VERSIONS[stage],
        "config": portable(config),
        "seed": seed,
        "inputs": dict(inputs),
        "weights": dict(weights),
    }
    key = digest_of(facts)
    state, reason = _state(path, KINDS[stage], facts, key, changing, read or input_header)
    return Plan(
        stage=stage, name=name, path=path, facts=facts, key=key, state=state, reason=reason,
        inputs_now=inputs_now,
    )  # fmt: skip


def still_serves(header: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether an artifact can be read as it is by a stage that comes after it.

    An engineer may have made it with other settings on purpose: it counts while what it was made
    from is the same, unless the command itself names settings of its stage.

    Args:
        header: of the artifact; empty if there is none.
        inputs: what it would be made from now.
    """
    return bool(header) and header.get("inputs") == dict(inputs)


def why_stale(header: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name every fact in which an artifact differs from what is wanted, one phrase each.

    Args:
        header: of the artifact that is there.
        wanted: the facts of a plan.

    Returns:
        phrases such as "num_steps 200 -> 500", "images changed", "vae weights changed"; empty if
        the artifact is up to date.
    """
    phrases = []
    if header.get("stage") != wanted["stage"]:
        phrases.append(f"stage {header.get('stage')} -> {wanted['stage']}")
    if header.get("stage_version") != wanted["stage_version"]:
        phrases.append("the stage's code changed")
    if header.get("seed") != wanted["seed"]:
        phrases.append(f"seed {header.get('seed')} -> {wanted['seed']}")
    for group in FACT_GROUPS:
        before = header.get(group)
        phrases += _differences(group, before if isinstance(before, dict) else {}, wanted[group])
    return phrases


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


def digest_of(values: Mapping[str, Any]) -> str:
    """One sha256 over named JSON values, such as other digests; the same in any order."""
    return hashlib.sha256(canonical_json(dict(values)).encode()).hexdigest()


def input_header(path: Path, kind: str) -> dict[str, Any]:
    """Header of an artifact that a stage wants to read.

    Args:
        path: of the artifact.
        kind: folder of the store.

    Raises:
        ArtifactError: if there is none, or it is damaged, foreign or newer; the hint is the
            command that makes such a file, and which others there are.
    """
    if not path.exists():
        made_by = SCHEMAS[kind].command.format(name=path.stem)
        if kind == "detectors":
            made_by = f"{made_by} --class NEW --past OLD --name {path.stem}"
        known = sorted(other.stem for other in path.parent.glob("*.safetensors"))[:MAX_NAMED]
        others = f"; there are: {', '.join(known)}" if known else ""
        raise ArtifactError(f"{path} does not exist", f"run `{made_by}`{others}")
    return read_header(path, SCHEMAS[kind])


def replaced(label: str) -> ArtifactError:
    """The error for an artifact that is no longer the one that this command read or made."""
    return ArtifactError(
        f"{label} was replaced by another command, with other settings",
        "run them one after the other, or give each a --store of its own",
    )


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
            "set the encoder to the one that it was trained with, as TIMM_NAME:FILE",
        )


def _state(
    path: Path,
    kind: str,
    facts: dict[str, Any],
    key: str,
    changing: Collection[str],
    read: Callable[[Path, str], dict[str, Any]],
) -> tuple[str, str]:
    if not path.exists():
        return "missing", ""
    try:
        header = read(path, kind)
    except ArtifactError as error:
        return "stale", error.message
    # A class that grew counts as what it was compressed from: its new photos are in no folder.
    if key in (header.get("key"), header.get(COMPRESSED)) and not changing:
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
    recorded = header.get(group)
    names = recorded if isinstance(recorded, dict) else {}
    return {name: value for name, value in facts[group].items() if name in names}


def _differences(group: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The phrases for one group of facts."""
    phrases = []
    for name in sorted({*before, *after}):
        if name in before and name in after and before[name] == after[name]:
            continue
        what = f"{name} weights" if group == "weights" else name
        if name not in before:
            phrases.append(f"{what} {'are' if group == 'weights' else 'is'} new")
        elif name not in after:
            phrases.append(f"{what} {'are' if group == 'weights' else 'is'} gone")
        elif group == "config" or name.startswith("view of "):
            phrases.append(f"{name} {before[name]} -> {after[name]}")
        else:
            phrases.append(f"{what} changed")
    return phrases
