"""Decides from a header alone whether an artifact is up to date, or what changed since."""

import hashlib
from collections.abc import Mapping
from typing import Any

from replaycad.artifacts.format import canonical_json

GROUPS = ("config", "inputs", "weights")


def stage_facts(
    stage: str,
    stage_version: int,
    config: Mapping[str, Any],
    seed: int | None,
    inputs: Mapping[str, str],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """Collect all that determines the output of a stage, as it stands in the header.

    Args:
        stage: its name.
        stage_version: of its code; raised when it writes something else for the same arguments.
        config: JSON values by name.
        seed: None for a stage that draws nothing.
        inputs: name of what is read -> content id or digest.
        weights: frozen network -> sha256.
    """
    return {
        "stage": stage,
        "stage_version": stage_version,
        "config": dict(config),
        "seed": seed,
        "inputs": dict(inputs),
        "weights": dict(weights),
    }


def stage_key(
    stage: str,
    stage_version: int,
    config: Mapping[str, Any],
    seed: int | None,
    inputs: Mapping[str, str],
    weights: Mapping[str, str],
) -> str:
    """sha256 over the facts: the same key means the same output."""
    facts = stage_facts(stage, stage_version, config, seed, inputs, weights)
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def why_stale(header: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name every fact in which an artifact differs from what is wanted, one phrase each.

    Args:
        header: of the artifact that is there.
        wanted: what `stage_facts` gives now.

    Returns:
        phrases such as "num_steps 200 -> 500", "images changed", "vae weights changed"; empty if
        the artifact is up to date.
    """
    found = []
    if header.get("stage") != wanted["stage"]:
        found.append(f"stage {header.get('stage')} -> {wanted['stage']}")
    if header.get("stage_version") != wanted["stage_version"]:
        found.append("the stage's code changed")
    if header.get("seed") != wanted["seed"]:
        found.append(f"seed {header.get('seed')} -> {wanted['seed']}")
    for group in GROUPS:
        before = header.get(group)
        found += _differences(group, before if isinstance(before, dict) else {}, wanted[group])
    return found


def _differences(group: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The phrases for one group of facts."""
    found = []
    for name in sorted({*before, *after}):
        if name in before and name in after and before[name] == after[name]:
            continue
        what = f"{name} weights" if group == "weights" else name
        if name not in before:
            found.append(f"{what} {'are' if group == 'weights' else 'is'} new")
        elif name not in after:
            found.append(f"{what} {'are' if group == 'weights' else 'is'} gone")
        elif group == "config":
            found.append(f"{name} {before[name]} -> {after[name]}")
        else:
            found.append(f"{what} changed")
    return found
