"""Class tokens to and from other Stable Diffusion programs."""

from pathlib import Path

import numpy as np

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.digests import file_digest
from replaycad.artifacts.embedding import read_embedding, write_embedding
from replaycad.artifacts.store import Store
from replaycad.config.stages import CompressConfig
from replaycad.data.classes import auto_policy, policy_for
from replaycad.diffusion.presets import backbone_sizes
from replaycad.engine.inputs import InputDigests
from replaycad.engine.staleness import input_header, make_plan
from replaycad.errors import ArtifactError, ConfigError


def export_token(store: Store, name: str, target: Path, token: str) -> tuple[int, int]:
    """Write what a class's conditions say inside a prompt as a textual-inversion embedding.

    The spatial layer and the masks have no place in such a file and stay behind.

    Args:
        store: that holds the conditions.
        name: of the conditions.
        target: the file to replace.
        token: what a prompt will say.

    Returns:
        K and D.

    Raises:
        ArtifactError: no such conditions, without tokens, or with tokens that stand beside the
            encoded prompt, which no other program has a place for.
    """
    path = store.path("conditions", name)
    input_header(path, "conditions")
    kept = ConditionsArtifact.load(path)
    if kept.header.get("placement") != "prompt" or not len(kept.semantic_embedding):
        raise ArtifactError(
            f"{path} holds no tokens that stand inside a prompt",
            f"run `replaycad compress --class {name} --set semantic_placement=prompt "
            "--set init=word`",
        )
    write_embedding(target, token, kept.semantic_embedding)
    num_tokens, width = kept.semantic_embedding.shape
    return num_tokens, width


def import_token(
    store: Store, source: Path, class_name: str, backbone: str, force: bool = False
) -> Path:
    """Make conditions of a textual-inversion embedding: semantic alone, without masks.

    Args:
        store: to write to.
        source: as `artifacts.embedding.read_embedding` takes it.
        class_name: what the embedding shows.
        backbone: that it was made for.
        force: replace conditions that are there.

    Returns:
        where the conditions lie.

    Raises:
        ArtifactError: the file is no embedding or of another width, or conditions are there.
        WeightsError: the backbone is not there.
    """
    path = store.path("conditions", class_name)
    if path.exists() and not force:
        raise ArtifactError(f"{path} is there already", "use --force to replace it")
    _, embedding = read_embedding(source)
    num_tokens, width = embedding.shape
    frozen = InputDigests(store)
    weights = frozen.backbone(backbone)
    expected, image_size = backbone_sizes(backbone)
    if width != expected:
        raise ArtifactError(
            f"{source} holds tokens {width} wide, backbone '{backbone}' reads {expected}",
            "give the backbone that it was made for",
        )
    config = CompressConfig(
        backbone=backbone, conditioning="semantic", semantic_placement="prompt", init="word",
        num_tokens=num_tokens, num_steps=0, num_masks=0, alignment="none",
    )  # fmt: skip
    inputs = {"embedding": file_digest(source, frozen.cache)}
    plan = make_plan(
        "compress", class_name, path, config=config, seed=None, inputs=inputs, weights=weights
    )
    policy = policy_for(class_name) or auto_policy(class_name)
    ConditionsArtifact(
        class_name=class_name, semantic_embedding=embedding, spatial_weight=None,
        spatial_bias=None, object_masks=np.zeros((0, image_size, image_size), dtype=np.bool_),
        policy=policy.as_dict(), header={**plan.header((class_name,)), "placement": "prompt"},
    ).save(path)  # fmt: skip
    frozen.cache.save()
    return path


def checked_token(token: str, class_name: str) -> str:
    """The token that was typed, or one made of the class's name.

    Raises:
        ConfigError: it could not be told from an ordinary word.
    """
    token = token or f"<{class_name}>"
    if token.isalnum():
        raise ConfigError(f"the token '{token}' reads like a word", f"use --token <{token}>")
    return token
