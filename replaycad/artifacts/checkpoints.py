"""Keeps the state of a long computation, so that a killed run goes on where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from replaycad.artifacts.atomic import cannot_write, remove_leftovers
from replaycad.artifacts.format import NUMPY_NAMES, read, write
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.errors import ArtifactError

CHECKPOINT = Schema(
    format="checkpoint",
    version=1,
    tensors={
        "*": TensorSpec(tuple(NUMPY_NAMES.values()), None, "state of the computation", finite=False)
    },
    command="replaycad run",
    fields={"step": int, "key": str},
)


class Checkpoint:
    """One file with a step and arrays by name.

    Args:
        path: the file.
        key: of the output that is being made; a checkpoint of another key counts as none.
        check: called before each save; raises if the state is not worth going on from.
    """

    def __init__(
        self, path: str | Path, key: str = "", check: Callable[[], None] = lambda: None
    ) -> None:
        self.path = Path(path)
        self.key = key
        self.check = check

    def load(self) -> tuple[int, dict[str, NDArray[Any]]] | None:
        """Read the step and the arrays; None if there is no sound checkpoint."""
        try:
            tensors, header = read(self.path, CHECKPOINT)
        except ArtifactError:
            return None
        return (header["step"], tensors) if header["key"] == self.key else None

    def save(self, step: int, tensors: dict[str, NDArray[Any]]) -> None:
        """Replace the checkpoint in one step.

        Args:
            step: how many steps are done.
            tensors: arrays of any shape by name.

        Raises:
            ArtifactError: it cannot be written, or `check` says so; the one before is still there.
        """
        self.check()
        write(self.path, CHECKPOINT, tensors, {"step": step, "key": self.key})

    def clear(self) -> None:
        """Remove the checkpoint and what killed runs left of it.

        Raises:
            ArtifactError: it is there and cannot be removed.
        """
        try:
            remove_leftovers(self.path, "tmp")
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
