"""A second device that is not there: tensors stay in memory, and must not be mixed all the same.

What a GPU refuses (tensors of two devices in one operation, `numpy()` without `cpu()`, a CPU random
stream for its own numbers, float64 on `mps`) goes unseen where there is none. Inside `pretended()`
the device `mps` is present, its tensors are CPU tensors with a mark, every operation hands the mark
on, and what a real device refuses is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

PRETENDED, CPU = torch.device("mps", 0), torch.device("cpu")
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_TAKES_CPU_INDICES = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)
_TAKES_NO_SCALARS = (_aten.cat.default, _aten.stack.default)


def _is_marked(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "is_pretended", False)


def _device(tensor: torch.Tensor) -> torch.device:
    return PRETENDED if _is_marked(tensor) else tensor.device


def _marked(tensor: torch.Tensor, is_pretended: bool) -> torch.Tensor:
    if is_pretended and tensor.dtype in (torch.float64, torch.complex128):
        raise TypeError("the device has no float64")
    tensor.is_pretended = is_pretended  # type: ignore[attr-defined]
    return tensor


class _Operations(TorchDispatchMode):
    """Refuses operations on tensors of both devices, and marks what comes out of the others."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        is_pretended = any(map(_is_marked, found))
        if func in _COPIES:
            is_pretended = _is_marked(found[0])
        elif is_pretended:
            self._check(func, args, found)
        results = func(*args, **kwargs)
        tree_map_only(torch.Tensor, lambda one: _marked(one, is_pretended), results)
        return results

    def _check(self, func: Any, args: tuple, found: list[torch.Tensor]) -> None:
        needed = found
        if func in _TAKES_CPU_INDICES and _is_marked(args[0]):
            needed = [args[0], *(one for one in args[2:3] if isinstance(one, torch.Tensor))]
        if func not in _TAKES_NO_SCALARS:  # a number may lie on the CPU
            needed = [one for one in needed if one.dim() or _is_marked(one)]
        if not all(map(_is_marked, needed)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")


class _Calls(TorchFunctionMode):
    """Answers for the device where Python asks for it, and takes it where Python names it."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return _device(args[0])
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            func(*args)
            _marked(args[0], _is_marked(args[1]))
            return None
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and _is_marked(args[0]):
            raise TypeError("can't convert a tensor of the device to numpy: use cpu() first")
        if func == torch.Tensor.cpu:
            return _moved(args[0], args[0], CPU)
        device = kwargs.get("device")
        if func == torch.Tensor.to:
            if args[1:] and isinstance(args[1], torch.Tensor):
                args = (args[0], _device(args[1]), args[1].dtype, *args[2:])
            if args[1:] and isinstance(args[1], str | torch.device):
                device, args = args[1], (args[0], CPU, *args[2:])
            if "device" in kwargs:
                kwargs["device"] = CPU
            result = func(*args, **kwargs)
            return result if device is None else _moved(result, args[0], device)
        if device is None:
            return func(*args, **kwargs)
        is_pretended = torch.device(device).type == PRETENDED.type
        stream = kwargs.get("generator")
        if is_pretended and stream is not None:
            raise RuntimeError(f"expected a generator of {device}, found one of {stream.device}")
        result = func(*args, **{**kwargs, "device": "cpu"} if is_pretended else kwargs)
        return tree_map_only(torch.Tensor, lambda one: _marked(one, is_pretended), result)


def _moved(result: torch.Tensor, source: torch.Tensor, device: Any) -> torch.Tensor:
    is_pretended = torch.device(device).type == PRETENDED.type
    if is_pretended == _is_marked(result):
        return result
    return _marked(result.clone() if result is source else result, is_pretended)


@contextmanager
def pretended() -> Iterator[None]:
    """While the block runs there is a device `mps`."""
    with pytest.MonkeyPatch.context() as patch, _Calls(), _Operations():
        patch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
        yield
