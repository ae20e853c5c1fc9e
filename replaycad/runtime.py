"""The machine under the program: device, random streams, memory."""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from replaycad.distributed import ranks
from replaycad.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that exists here.

    Raises:
        ConfigError: if the device is unknown or not present.
    """
    if name == "auto":
        if torch.cuda.is_available():
            own = ranks()
            return torch.device("cuda", own.local) if own.count > 1 else torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'", "use auto, cpu, cuda or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' is not present here", "use --device auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device '{name}' is not present here", "use --device auto or cpu")
    return device


def check_compiler(device: torch.device) -> None:
    """Make sure that `torch.compile` will work, which says so only later, and have it be quiet.

    Raises:
        ConfigError: not a CUDA device, where alone it was measured; no compiler.
    """
    if device.type != "cuda":
        message = f"compile=true is for a GPU, and this runs on {device.type}"
        raise ConfigError(message, "leave it out, or use --device cuda")
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise ConfigError("compile=true needs a C compiler", "install gcc, or leave it out")
    # What it cannot see through it leaves as it is, and need not tell users of.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of the random stream called `names`: 63 bits, the same on every machine.

    Named streams keep one purpose from disturbing another, and a stream named by a step number
    needs no saved generator state: a resumed run draws what the undisturbed run would have drawn.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """CPU generator of the random stream called `names`: the same noise for every device."""
    return torch.Generator("cpu").manual_seed(stream_seed(seed, *names))


@contextmanager
def global_stream(device: torch.device, seed: int, *names: str | int) -> Iterator[None]:
    """Draw torch's global random numbers from the stream called `names` while the block runs.

    Dropout knows no other stream. Afterwards the global one goes on where it was.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, *names))
        yield


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not say.

    Linux hands the peak of whoever started a process on to it in `getrusage`, not in `/proc`.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource  # noqa: PLC0415 (Windows lacks it)
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def free_memory_bytes(device: torch.device) -> int | None:
    """Bytes of a GPU that are free or kept by torch for reuse; None for other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
