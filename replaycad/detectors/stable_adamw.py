"""StableAdamW: AdamW whose learning rate shrinks for a tensor that its moments do not expect."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

EPS = 1e-10


class StableAdamW(torch.optim.Optimizer):
    """AdamW with AMSGrad and update clipping (Wortsman et al. 2023, algorithm 2).

    The learning rate of every tensor is divided by max(1, RMS), where RMS is the root mean square
    of gradient over root second moment. Dinomaly is trained with it.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled, times the learning rate of the tensor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; `closure` is not used."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        mean, square, largest = state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"]
        mean.lerp_(grad, 1.0 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        torch.maximum(largest, square, out=largest)
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
        root = (largest / correction2).sqrt_().add_(EPS)
        expected = (square / correction2).clamp_min_(EPS**2)
        surprise = (grad.square() / expected).mean().sqrt()
        rate = group["lr"] / surprise.clamp_min(1.0) / correction1
        parameter.mul_(1.0 - rate * correction1 * group["weight_decay"])
        parameter.sub_(rate * mean / root)
