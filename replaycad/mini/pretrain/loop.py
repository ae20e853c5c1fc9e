"""One resumable training loop for the four bundled models."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from replaycad.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        minutes: wall-clock budget of this call; the learning rate falls to zero at its end.
        num_steps: steps in all (resumed steps count); whichever of the two comes first ends it.
        learning_rate: peak rate of AdamW, after `warmup` steps.
        save_minutes: time between two checkpoints.
    """

    minutes: float = 10.0
    num_steps: int = 10**9
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    save_minutes: float = 3.0
    log_every: int = 50


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster: a CPU without AVX-512 takes far longer with it."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


LossFunction = Callable[[int], tuple[torch.Tensor, dict[str, float]]]


def train_loop(
    name: str,
    modules: dict[str, nn.Module],
    loss_function: LossFunction,
    work: Path,
    config: LoopConfig,
    sample_sheet: Callable[[int], None] | None = None,
) -> dict[str, nn.Module]:
    """Train `modules` together and leave their averaged (EMA) weights in them.

    Args:
        name: of the run; checkpoints and `<name>.jsonl` with the losses go to `work`.
        loss_function: step number -> (scalar loss, figures to log). Randomness must come from the
            step number, so that a resumed run goes on as an undisturbed one would.
        sample_sheet: called with the step number at every checkpoint.

    Returns:
        `modules`, holding the averaged weights.

    Raises:
        TrainingError: if a loss is not finite; the last good checkpoint stays.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.safetensors"
    weights = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    parameters = [p for p in weights.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    ema = {n: p.detach().clone() for n, p in weights.items()}
    step, spent = 0, 0.0
    if path.exists():
        step, spent = _resume(path, modules, weights, ema, optimizer)
    begin = last_save = time.monotonic()
    # The budget counts from the first step, so that a resumed run ends where it was planned to.
    budget = config.minutes * 60
    while step < config.num_steps and spent + time.monotonic() - begin < budget:
        elapsed = spent + time.monotonic() - begin
        progress = max(elapsed / budget, step / config.num_steps)
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup, 4 * (1 - progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, figures = loss_function(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()
        step += 1
        decay = min(config.ema_decay, step / (step + 10))
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in weights.values()], 1 - decay)
        if step % config.log_every == 0:
            if not torch.isfinite(loss):
                raise _not_finite(name, step, path)
            row = {
                "step": step,
                "seconds": round(elapsed, 1),
                "lr": rate,
                "loss": loss.item(),
                **figures,
            }
            with (work / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if time.monotonic() - last_save > config.save_minutes * 60:
            _save(path, modules, weights, ema, optimizer, step, spent + time.monotonic() - begin)
            last_save = time.monotonic()
            if sample_sheet:
                sample_sheet(step)
    _save(path, modules, weights, ema, optimizer, step, spent + time.monotonic() - begin)
    with torch.no_grad():
        for n, p in weights.items():
            p.copy_(ema[n])
    if sample_sheet:
        sample_sheet(step)
    return modules


def _not_finite(name: str, step: int, path: Path) -> TrainingError:
    kept = f"{path} is good" if path.exists() else "no checkpoint was written yet"
    return TrainingError(
        f"{name}: the loss is not finite at step {step}", f"use a lower learning_rate; {kept}"
    )


def _save(path, modules, weights, ema, optimizer, step, spent) -> None:
    tensors = {f"weight/{n}": p.detach() for n, p in weights.items()}
    tensors |= {f"ema/{n}": p for n, p in ema.items()}
    for m, module in modules.items():
        tensors |= {f"buffer/{m}.{n}": b for n, b in module.named_buffers()}
    for n, p in weights.items():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{key}/{n}"] = value
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"loop": json.dumps({"step": step, "seconds": spent})})
    temporary.replace(path)


def _resume(path, modules, weights, ema, optimizer) -> tuple[int, float]:
    tensors = load_file(path)
    with torch.no_grad():
        for n, p in weights.items():
            p.copy_(tensors[f"weight/{n}"])
            ema[n].copy_(tensors[f"ema/{n}"])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{n}" in tensors]
            if keys:
                optimizer.state[p] = {k: tensors[f"{k}/{n}"].to(p.device) for k in keys}
        for m, module in modules.items():
            for n, b in module.named_buffers():
                b.copy_(tensors[f"buffer/{m}.{n}"])
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        state = json.loads(json.loads(file.read(size))["__metadata__"]["loop"])
    return state["step"], state["seconds"]


def export_module(module: nn.Module, folder: Path, config: dict) -> None:
    """Write `config.json` and `model.safetensors` (fp16) of one network into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        n: (t.half() if t.is_floating_point() else t).cpu().contiguous().clone()
        for n, t in module.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
