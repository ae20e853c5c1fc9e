"""The selective scan of state-space models, in chunks that fit a processor's cache.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t h_t + D u_t  (Gu and Dao 2023, eq. 2).

The state is N times as large as the sequence: keeping it for the backward pass is what makes a
plain loop slow and large. Here a chunk of it is made at a time, and made again going backward.
"""

from typing import Any

import torch

try:  # an extra that needs a GPU's compiler
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError:
    selective_scan_fn = None

CHUNK_VALUES = 2**19  # of the state in one chunk: 2 MB
GPU_CHUNK_VALUES = 2**25  # which has no such cache, but waits for every small step
MAX_CHUNK = 64  # steps


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
) -> torch.Tensor:
    """Run K independent scans over each sequence of a batch.

    Args:
        u: `[B, K, D, L]` float32, inputs.
        delta: `[B, K, D, L]` step sizes, positive.
        a: `[K, D, N]` decay rates, negative.
        b: `[B, K, N, L]` how an input enters the state.
        c: `[B, K, N, L]` how the state is read.
        d: `[K, D]` weight of the input in the output.

    Returns:
        `[B, K, D, L]`.
    """
    if selective_scan_fn is not None and u.is_cuda:
        return _fused_scan(u, delta, a, b, c, d)
    # time first: a step is then one piece of memory
    sequences = [x.permute(3, 0, 1, 2).contiguous() for x in (u, delta, b, c)]
    y = _Scan.apply(*sequences[:2], a, *sequences[2:])
    return y.permute(1, 2, 3, 0) + d[..., None] * u


def _fused_scan(u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any) -> torch.Tensor:
    """The same by mamba-ssm's kernel, which wants all K x D channels in one row."""
    y = selective_scan_fn(u.flatten(1, 2), delta.flatten(1, 2), a.flatten(0, 1), b, c, d.flatten())
    return y.unflatten(1, u.shape[1:3])


class _Scan(torch.autograd.Function):
    """The recurrence without D; u, delta `[L, B, K, D]`, a `[K, D, N]`, b, c `[L, B, K, N]`."""

    @staticmethod
    def forward(ctx: Any, u: Any, delta: Any, a: Any, b: Any, c: Any) -> torch.Tensor:
        length = len(u)
        state = u.new_zeros(*u.shape[1:], a.shape[-1])
        values = GPU_CHUNK_VALUES if u.is_cuda else CHUNK_VALUES
        chunk = max(1, min(MAX_CHUNK, values // max(1, state.numel())))
        starts, y = [], torch.empty_like(u)
        for first in range(0, length, chunk):
            part = slice(first, first + chunk)
            starts.append(state)
            _, states = _states(u[part], delta[part], a, b[part], state)
            torch.matmul(states, c[part][..., None], out=y[part][..., None])
            state = states[-1].clone()
        ctx.save_for_backward(u, delta, a, b, c)
        ctx.chunk, ctx.starts = chunk, starts
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Any) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        u, delta, a, b, c = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grads = [torch.empty_like(u), torch.empty_like(delta), torch.zeros_like(a)]
        grads += [torch.empty_like(b), torch.empty_like(c)]
        flowing = torch.zeros_like(ctx.starts[0])  # what the steps after this chunk send back
        for number in reversed(range(len(ctx.starts))):
            part = slice(number * ctx.chunk, (number + 1) * ctx.chunk)
            inputs = u[part], delta[part], a, b[part]
            decay, states = _states(*inputs, ctx.starts[number])
            grads[4][part] = (grad_y[part][..., None, :] @ states)[..., 0, :]
            grad_states = grad_y[part][..., None] * c[part][..., None, :]  # [T, B, K, D, N]
            grad_states[-1] += flowing
            for step in range(len(states) - 2, -1, -1):
                grad_states[step].addcmul_(decay[step + 1], grad_states[step + 1])
            flowing = decay[0] * grad_states[0]
            before = torch.cat([ctx.starts[number][None], states[:-1]])
            _spread(grads, part, inputs, grad_states, decay.mul_(before))
        return tuple(grads)


def _states(u: Any, delta: Any, a: Any, b: Any, start: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay factors and states of every step of a chunk, both `[T, B, K, D, N]`."""
    decay = (delta[..., None] * a).exp_()
    states = (delta * u)[..., None] * b[..., None, :]
    states[0].addcmul_(decay[0], start)
    for step in range(1, len(states)):
        states[step].addcmul_(decay[step], states[step - 1])
    return decay, states


def _spread(
    grads: list[torch.Tensor], part: slice, inputs: tuple[Any, ...], grad_states: Any, decayed: Any
) -> None:
    """Gradients of u, delta, a, b from those of a chunk's states; `decayed` is decay x state."""
    u, delta, a, b = inputs
    entering = (grad_states @ b[..., None])[..., 0]  # of delta * u, [T, B, K, D]
    grads[3][part] = ((delta * u)[..., None, :] @ grad_states)[..., 0, :]
    grads[0][part] = entering * delta
    exponents = grad_states.mul_(decayed)  # of delta * a
    grads[1][part] = (exponents * a).sum(dim=-1).addcmul_(entering, u)
    grads[2].add_((exponents * delta[..., None]).sum(dim=(0, 1)))
