"""A step that is held by matrices: what earlier classes left limits how weights may change.

It serves two published methods. IUF (ECCV 2024) weakens the part of a step that changes the leading
directions of what layers give out; CDAD (CVPR 2025) takes away the part that acts on what layers
were given. Both are done to the *step*, after the optimiser: a gradient without some directions
does not make a step of Adam without them, for Adam scales each number by itself.

A layer's weight is taken as `[out, in]`; a convolution's `in` is channels x k x k, as `unfold`
gives them. Matrices are sums over images of outer products, so they grow with no number of images.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.continual.released import released_bases
from replaycad.detectors.interface import Detector

Tensors = dict[str, torch.Tensor]
Layer = nn.Linear | nn.Conv2d
Side = Literal["input", "output"]
Correction = Callable[[torch.Tensor], torch.Tensor]

MOMENT_BYTES = 8 << 30  # of the matrices that are summed up in one pass over the images


@dataclass(frozen=True, kw_only=True)
class Hold:
    """How steps are held.

    Attributes:
        side: of the layers, whose matrices are kept: of what they are given, or give out.
        what: the `step`, its `gradient` alone, or `nothing`.
        pull: share of the way back to the weights at the start, before each step.
        freezes_others: whether parameters without a matrix stay as they are.
        num_images: that matrices are made of; 0 for all.
        as_released: whether bases are found as CDAD's program does: `continual.released`.
        energy: share of what layers were given that a basis must cover, on the input side.
    """

    side: Side
    what: Literal["step", "gradient", "nothing"] = "step"
    pull: float = 0.0
    freezes_others: bool = False
    num_images: int = 0
    as_released: bool = False
    energy: float = 0.999


_CDAD = Hold(side="input", freezes_others=True, num_images=24)

HOLDS: Mapping[str, Hold] = MappingProxyType(
    {
        "iuf": Hold(side="output", pull=0.05),
        "iuf-adam": Hold(side="output", pull=0.05),
        "iuf-nopull": Hold(side="output"),
        "iuf-noproject": Hold(side="output", what="nothing", pull=0.05),
        "iuf-plain": Hold(side="output", what="nothing"),
        "cdad": _CDAD,
        "cdad-gradient": replace(_CDAD, what="gradient"),
        "cdad-released": replace(_CDAD, what="gradient", as_released=True),
        "cdad-plain": Hold(side="input", what="nothing"),
    }
)
"""By the name in `TrainConfig.guard`, which begins with the detector that it belongs to.

`iuf-adam` holds as `iuf` does; its optimiser is another: `detectors.registry.FIRST_OPTIMIZER`.
"""


def guarded_layers(detector: Detector) -> dict[str, Layer]:
    """The layers whose matrices are kept, by name."""
    named = dict(detector.named_modules())
    found = {name: named[name] for name in detector.guarded()}
    assert all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in found.values())
    return found  # type: ignore[return-value]


def inputs_of(layer: Layer, given: torch.Tensor) -> torch.Tensor:
    """What a layer is given as columns of its weight, `[N, in]`: a token or a place in each row."""
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def token_means(_: Layer, output: torch.Tensor) -> torch.Tensor:
    """The mean of what a layer gives out over the tokens `[B, N, D]` of each image, `[B, D]`."""
    return output.mean(dim=1)


def _for_doubles(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor `[...]` where float64 is known: Apple's devices lack it, so theirs go to the CPU."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


@torch.no_grad()
def moments(
    detector: Detector, layers: Mapping[str, Layer], pyramids: Iterable[Sequence[torch.Tensor]],
    side: Side,
) -> Tensors:
    """Sum over images of outer products of what layers were given, or gave out.

    The detector judges the images as it would any, in eval mode.

    Args:
        detector: trained.
        layers: of it, by name.
        pyramids: of normal images, levels `[B, C, H, W]`.
        side: `input`: of each token or place `[in, in]`; `output`: of the means over an image's
            tokens `[out, out]`.

    Returns:
        by the layers' names, float64.
    """
    total: Tensors = {}

    def add(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            # Of inputs a share of the whole is asked for, for which products of float32 will do,
            # twice as fast; of the outputs the smallest part counts: `output_projection`.
            if side == "input":
                rows = inputs_of(layer, given[0]).float()
            else:
                rows = _for_doubles(token_means(layer, output)).double()
            product = _for_doubles(rows.T @ rows).double()
            total[name] = total[name] + product if name in total else product

        return hook

    handles = [layer.register_forward_hook(add(name)) for name, layer in layers.items()]
    try:
        for pyramid in pyramids:
            detector.anomaly_maps(pyramid)
    finally:
        for handle in handles:
            handle.remove()
    return total


def output_projection(moment: torch.Tensor) -> torch.Tensor:
    """V diag(w) V^T of a moment `[out, out]`, float32: how much of each direction may change.

    V are its eigenvectors, the leading one first, and w_i = ln i / ln out: of the leading one
    nothing, of the last all (IUF; its program, whose paper has a factor before the logarithm). In
    directions that no image ever had w is 1; there the program stops with an error.

    Outputs lie far from zero, so the first eigenvalue is that of their mean, and those of what
    varies are 1e-5 to 1e-13 of it. Hence float64 throughout, and 1 only below its rounding.

    Args:
        moment: float64.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0), vectors.flip(1)
    many = len(values)
    weights = torch.arange(1, many + 1, dtype=torch.float64).log() / math.log(max(many, 2))
    weights = weights.to(values.device)
    weights[values <= values[0].clamp_min(0) * many * torch.finfo(torch.float64).eps] = 1.0
    return (vectors * weights @ vectors.T).float()


def orthonormal(basis: torch.Tensor) -> torch.Tensor:
    """Columns `[in, r]` of any precision made orthonormal, float64; the first ones span the same.

    A basis is kept in 16 bits, in which its columns are only nearly orthonormal.
    """
    return torch.linalg.qr(basis.double()).Q


def extended(basis: torch.Tensor, moment: torch.Tensor, energy: float) -> torch.Tensor:
    """Let a basis cover what one more class gave to a layer.

    The leading eigenvectors of what the basis leaves of the moment are appended, as few as cover
    the wanted share of it. Nothing is taken away, so each class keeps its own share.

    Args:
        basis: `[in, r]` float16, r may be 0.
        moment: of the new class, `[in, in]` float64.
        energy: share of the moment's trace that the basis must cover, as it is kept in 16 bits.

    Returns:
        `[in, r']` float16, r' from r to `in`.
    """
    width, known = basis.shape
    held, left = orthonormal(basis), moment
    if known:
        left = left - held @ (held.T @ left)
        left = left - (left @ held) @ held.T
    # They are kept in 16 bits, and what they cover is measured below.
    vectors = torch.linalg.eigh(left.float()).eigenvectors.flip(1)[:, : width - known]
    both = torch.cat([basis, vectors.half()], dim=1)
    whole = orthonormal(both)
    covered = (whole * (moment @ whole)).sum(0).cumsum(0)
    wanted = energy * moment.trace()
    already = covered[known - 1] if known else torch.zeros_like(wanted)
    if already >= wanted:
        return basis
    many = int((covered < wanted).sum()) + 1  # rounding may leave the very last share open
    return both[:, : min(max(many, known), width)]


class Guard:
    """Holds the steps of a training that goes on from a detector.

    Args:
        detector: as it was after the class before; its weights now are what a pull leads back to.
        memory: what `remembered` gave after that class, by layer; empty if no matrix holds.
        hold: how.
    """

    def __init__(self, detector: Detector, memory: Tensors, hold: Hold) -> None:
        self._hold = hold
        self._start: list[tuple[torch.Tensor, torch.Tensor]] = []
        if hold.pull:
            floats = [one for one in detector.state_dict().values() if one.is_floating_point()]
            self._start = [(now, now.clone()) for now in floats]
        held: list[tuple[torch.Tensor, Correction]] = []
        layers = guarded_layers(detector) if hold.what != "nothing" else {}
        for name, layer in layers.items():
            matrix, device = memory[name].cpu(), layer.weight.device
            if hold.side == "input":
                # As released a basis is none: its columns are of any length, and not orthogonal.
                basis = matrix if hold.as_released else orthonormal(matrix)
                basis = basis.float().to(device)
                held.append((layer.weight, partial(without_inputs, basis=basis)))
            else:
                projection = output_projection(matrix).to(device)
                weigh = partial(weighed_outputs, projection=projection)
                held += [(one, weigh) for one in (layer.weight, layer.bias) if one is not None]
        if hold.freezes_others:
            kept = {id(parameter) for parameter, _ in held}
            for parameter in detector.parameters():
                parameter.requires_grad_(id(parameter) in kept)
        self._held = held
        self._before: list[torch.Tensor] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Pull all weights and statistics back by a share, before the forward pass."""
        for now, start in self._start:
            now.lerp_(start, self._hold.pull)
        if self._hold.what == "step":
            self._before = [parameter.detach().clone() for parameter, _ in self._held]

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Correct the gradients, where they are what is held."""
        if self._hold.what == "gradient":
            for parameter, corrected in self._held:
                if parameter.grad is not None:
                    parameter.grad.copy_(corrected(parameter.grad))

    @torch.no_grad()
    def after_step(self) -> None:
        """Correct what the optimiser did."""
        if self._hold.what == "step":
            for (parameter, corrected), before in zip(self._held, self._before, strict=True):
                parameter.copy_(before + corrected(parameter - before))


def without_inputs(step: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """A step of a weight `[out, ...]` that changes nothing for inputs in a basis `[in, r]`."""
    flat = step.flatten(1)
    return (flat - flat @ basis @ basis.T).view_as(step)


def weighed_outputs(step: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """A step of a weight `[out, ...]` or bias `[out]`, its directions weighed by `[out, out]`."""
    return (projection @ (step.flatten(1) if step.dim() > 1 else step)).view_as(step)


def remembered(
    detector: Detector, pyramids: Iterable[Sequence[torch.Tensor]], hold: str, before: Tensors
) -> Tensors:
    """What the next class needs to hold its steps: of all classes so far.

    Args:
        detector: trained.
        pyramids: of normal images of the classes just learned; they are gone through once for each
            of the groups that `in_groups` makes of the layers.
        hold: key of `HOLDS`.
        before: what was remembered before.

    Returns:
        by layer, on the output side moments `[out, out]` float64, on the input side bases
        `[in, r]` float16.
    """
    own, found = HOLDS[hold], Tensors()
    if own.what == "nothing":
        return found
    for layers in in_groups(guarded_layers(detector), own.side):
        some = {name: before[name] for name in layers if name in before}
        if own.as_released:
            singles = ([level[row : row + 1] for level in one] for one in pyramids
                       for row in range(len(one[0])))  # fmt: skip
            images = (moments(detector, layers, [single], own.side) for single in singles)
            found |= released_bases(images, some, own.energy)
        else:
            summed = moments(detector, layers, pyramids, own.side)
            found |= {name: _added(summed.pop(name), some.get(name), own) for name in layers}
    return found


def in_groups(layers: Mapping[str, Layer], side: Side) -> Iterator[dict[str, Layer]]:
    """Layers by name, as many at once as have moments of `MOMENT_BYTES` together, or one alone.

    Those of the full-size U-Net take 56 GB.
    """
    group, total = dict[str, Layer](), 0
    for name, layer in layers.items():
        wide = layer.weight[0].numel() if side == "input" else len(layer.weight)
        if group and total + 8 * wide**2 > MOMENT_BYTES:
            yield group
            group, total = {}, 0
        group[name] = layer
        total += 8 * wide**2
    yield group


def _added(moment: torch.Tensor, before: torch.Tensor | None, hold: Hold) -> torch.Tensor:
    """A class's moment beside what was remembered of the layer."""
    before = None if before is None else before.to(moment.device)
    if hold.side == "output":
        return moment if before is None else moment + before
    none = moment.new_zeros(len(moment), 0).half()
    return extended(none if before is None else before, moment, hold.energy)
