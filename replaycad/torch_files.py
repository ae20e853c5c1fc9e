"""Reads tensors out of a file of torch.save, and refuses one that holds anything else."""

import zipfile
from pathlib import Path

import torch

from replaycad.errors import WeightsError


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a dictionary of tensors, whose shapes are as they were saved, `[...]`.

    The bytes stay in the file until they are used.

    Raises:
        WeightsError: the file cannot be read, or holds more than tensors; nothing of it is run.
    """
    again = "remove it and fetch it again"
    try:
        # What torch.load would refuse with an error of pickle, which is imported nowhere, is asked
        # before: whether it is such a file at all, and what it would call.
        if not zipfile.is_zipfile(path):
            raise WeightsError(
                f"{path} cannot be read: it is no whole file of torch.save since version 1.6", again
            )
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if unsafe:
            raise WeightsError(
                f"{path} holds more than tensors: {', '.join(unsafe)}", "use the published file"
            )
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} cannot be read: {reason}", again) from None
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise WeightsError(f"{path} holds more than tensors by name", "use the published file")
    return state
