"""A class token as other programs read it: the textual-inversion file of the diffusers library."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from replaycad.artifacts.atomic import replacing
from replaycad.errors import ArtifactError

MAX_BYTES = 10**8  # a thousand times what such a file holds


def write_embedding(path: Path, token: str, semantic_embedding: NDArray[np.float32]) -> None:
    """Write one tensor under the name of its token, in one step.

    Args:
        path: the file to replace.
        token: what a prompt says in place of the class, such as `<bottle>`.
        semantic_embedding: `[K, D]` float32, as it stands inside a prompt.

    Raises:
        ArtifactError: the token cannot be one, or the file cannot be written.
    """
    if not token or token != "".join(token.split()):
        raise ArtifactError(f"the token {token!r} is empty or holds a space", "use <bottle>")
    values = np.ascontiguousarray(semantic_embedding, dtype=np.float32)
    with replacing(path) as file:
        file.write(save({token: values}, {"format": "pt"}))


def read_embedding(path: Path) -> tuple[str, NDArray[np.float32]]:
    """Read a file of one embedding.

    Args:
        path: safetensors with one tensor `[K, D]` or `[D]`, float32 or float16.

    Returns:
        the token and `[K, D]` float32, finite.

    Raises:
        ArtifactError: the file is missing, no safetensors (a pickle, say), or holds anything else.
    """
    hint = "give a textual-inversion file in safetensors, such as diffusers writes"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path} is too large for an embedding", hint)
        tensors = load(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", hint) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}", hint) from None
    if len(tensors) != 1:
        raise ArtifactError(f"{path} holds {len(tensors)} tensors, expected one embedding", hint)
    token, values = next(iter(tensors.items()))
    if values.dtype not in (np.float32, np.float16) or values.ndim not in (1, 2) or not values.size:
        raise ArtifactError(
            f"{path} holds {values.dtype} {list(values.shape)}, expected float32 or float16 "
            "[K, D] or [D]",
            hint,
        )
    embedding = np.atleast_2d(values).astype(np.float32)
    if not np.isfinite(embedding).all():
        raise ArtifactError(f"{path} holds numbers that are not finite", "make the file again")
    return token, embedding
