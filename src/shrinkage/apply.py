"""The three ways in which a penalty enters an optimizer's step. All in-place work on parameters is here.

Everything is computed in float32 at least and written back in the type of the parameter, rounded to the nearest number
or, with a generator, stochastically. The plain form takes any
penalty; a penalty that torch's own optimizers know is registered beside it with the very operation that they use, so
that results agree with theirs bit for bit.

Large tensors are charged piece by piece, each small enough that its temporaries stay in a processor's cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.penalties import L2, Penalty
from shrinkage.prox import wide
from shrinkage.rounding import stochastic_round, stuck
from shrinkage.schedules import fixed

Number = float | Tensor
State = Mapping[str, Any]
PIECE = 1 << 18  # elements


def pieces(penalty: Penalty, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of `tensors`, which have one shape, cut alike where `penalty` charges each piece by itself."""
    first, *_ = tensors
    # What is written into a slice of a distributed tensor is lost, and a device other than a CPU has no such cache.
    may_cut = first.numel() > PIECE and type(first) is Tensor and first.device.type == "cpu"
    dim = penalty.cut(first.shape) if may_cut else None
    if dim is None:
        yield tensors
    else:
        length = max(PIECE * first.shape[dim] // first.numel(), 1)
        yield from zip(*(torch.split(tensor, length, dim) for tensor in tensors), strict=True)


def add_gradient_(penalty: Penalty, parameter: nn.Parameter, factor: Number) -> None:
    """Add `factor` times the penalty's derivative to the gradient of `parameter`."""
    if parameter.grad is None:
        return
    for grad, w in pieces(penalty, parameter.grad, parameter.detach()):
        widened = wide(grad)
        add_derivative_(penalty, widened, wide(w).to(widened.dtype), factor)
        if widened is not grad:
            grad.copy_(widened)


@singledispatch
def add_derivative_(penalty: Penalty, grad: Tensor, w: Tensor, factor: Number) -> None:
    """grad <- grad + factor * R'(w)."""
    grad.add_(penalty.gradient(w) * factor)


@add_derivative_.register
def _(penalty: L2, grad: Tensor, w: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        grad.add_(penalty.gradient(w) * factor)
    else:
        grad.add_(w, alpha=factor * fixed(penalty.strength))


def decay_(penalty: Penalty, parameter: nn.Parameter, step: Number, generator: torch.Generator | None = None) -> None:
    """Move `parameter` by -step * R'(w): the decoupled form of a smooth penalty."""
    for (w,) in pieces(penalty, parameter.detach()):
        widened = wide(w)
        decay_by_derivative_(penalty, widened, step)
        if widened is not w:
            write_(w, widened, generator)


@singledispatch
def decay_by_derivative_(penalty: Penalty, w: Tensor, step: Number) -> None:
    """w <- w - step * R'(w)."""
    w.sub_(penalty.gradient(w) * step)


@decay_by_derivative_.register
def _(penalty: L2, w: Tensor, step: Number) -> None:
    w.mul_(1 - step * fixed(penalty.strength))


def prox_(
    penalty: Penalty,
    parameter: nn.Parameter,
    state: State,
    step: Callable[[State, Tensor], Number],
    generator: torch.Generator | None = None,
) -> None:
    """Move `parameter` to the penalty's proximal point.

    Args:
        penalty: what is charged.
        parameter: what is moved.
        state: what the optimizer keeps of the parameter.
        step: the step of the proximal operator, a number or shaped like its second argument, which is a piece of the
            parameter; the first is the state of that piece.
        generator: rounds stochastically to bfloat16 and float16; None rounds to the nearest number.
    """
    w = parameter.detach()
    if w.numel() <= PIECE or not cuts(state, w):
        write_(w, penalty.prox(wide(w), step(state, w)), generator)
        return
    shaped = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.shape == w.shape}
    for piece, *cut in pieces(penalty, w, *shaped.values()):
        moved = penalty.prox(wide(piece), step({**state, **dict(zip(shaped, cut, strict=True))}, piece))
        write_(piece, moved, generator)


def write_(w: Tensor, moved: Tensor, generator: torch.Generator | None) -> None:
    """Write `moved` into `w`, rounded to the nearest number of its type, or stochastically."""
    w.copy_(moved if generator is None else stochastic_round(moved, w.dtype, generator))


def stuck_share(
    penalty: Penalty, parameter: nn.Parameter, state: State, step: Callable[[State, Tensor], Number], *, prox: bool
) -> float:
    """Return the share of the elements that a prox, or decay, is to move which rounding brings back; waits for it."""
    w = parameter.detach()
    widened, size = wide(w), step(state, w)
    return float(stuck(w, penalty.prox(widened, size) if prox else widened - size * penalty.gradient(widened)))


def restore_(parameter: nn.Parameter, mask: Tensor, penalty: Penalty) -> None:
    """Set `parameter` to the penalty's origin where `mask` is true."""
    w = parameter.detach()
    w.copy_(torch.where(mask, penalty.origin(w), w))


@contextmanager
def at_origin(charged: Sequence[tuple[Penalty, nn.Parameter]]) -> Iterator[None]:
    """Hold parameters where their penalties draw them to, and give them their values back afterwards."""
    kept = [parameter.detach().clone() for _, parameter in charged]
    try:
        for penalty, parameter in charged:
            parameter.detach().copy_(penalty.origin(parameter.detach()))
        yield
    finally:
        for value, (_, parameter) in zip(kept, charged, strict=True):
            parameter.detach().copy_(value)


def cuts(state: State, w: Tensor) -> bool:
    """Return whether `state` can be cut with `w`: whether its tensors are numbers or have the shape of `w`."""
    return all(value.numel() == 1 or value.shape == w.shape for value in state.values() if isinstance(value, Tensor))
