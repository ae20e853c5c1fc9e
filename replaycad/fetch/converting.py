"""Turns pickled weights into safetensors: what is not a tensor is refused, nothing is run."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from replaycad.artifacts.atomic import replacing
from replaycad.artifacts.format import NUMPY_NAMES
from replaycad.errors import WeightsError
from replaycad.fetch.transfer import check_space


def convert(source: Path, target: Path) -> None:
    """Write the tensors of a file of torch.save as safetensors; the original stays.

    Tensors that share their bytes are each written whole.

    Raises:
        WeightsError: the file cannot be read or holds more than tensors, or the disk has not the
            space.
        ArtifactError: the disk became full, or is closed; no half file is left.
    """
    check_space(target.parent, source.stat().st_size)
    from replaycad.torch_files import read_tensors  # noqa: PLC0415 - torch

    arrays = {}
    for name, tensor in read_tensors(source).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in NUMPY_NAMES.values():
            raise WeightsError(
                f"{source} holds `{name}` as {kind}", "convert it to safetensors by yourself"
            )
        arrays[name] = np.asarray(tensor.detach().numpy(), order="C")
    with replacing(target) as file:
        file.write(save(arrays, {"format": "pt"}))
