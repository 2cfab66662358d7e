"""The three ways in which a penalty enters an optimizer's step, in their plain form.

Everything is computed in float32 at least and written back in the type of the parameter, rounded to the nearest number
or, with a generator, stochastically. The plain form takes any penalty; a penalty that torch's own optimizers know is
registered beside it with the very operation that they use, so that results agree with theirs bit for bit.

Large tensors are penalized piece by piece, each small enough that its temporaries stay in a processor's cache. `prox_`
is the plain form of what `shrink_all_` does faster: small tensors joined (`buckets.py`), in place where torch touches
each weight once (`in_place.py`), and compiled (`compiled.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.distributed.all_reduce import shard_penalty
from shrinkage.distributed.dtensor import local, local_gradient, local_state
from shrinkage.execution.buckets import LARGEST, LARGEST_COMPILED, Joined, Shrink, batched
from shrinkage.execution.compiled import compiled_shrink_
from shrinkage.execution.in_place import shrink_, touches_once
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Step, number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1, L2
from shrinkage.penalties.schedules import fixed
from shrinkage.proximal.precision import stochastic_round, stuck, upcast

Number = float | Tensor
State = Mapping[str, Any]
PIECE = 1 << 16  # elements: four temporaries of that size are 1 MiB


def pieces(penalty: Penalty, *tensors: Tensor, share: int = 1) -> Iterator[tuple[Penalty, tuple[Tensor, ...]]]:
    """Yield views of `tensors`, which have one shape, cut alike where `penalty` penalizes each piece by itself.

    Each comes with the penalty of the piece. A piece has at most a `share` of PIECE elements.
    """
    first, *_ = tensors
    size = PIECE // share
    # What is written into a slice of another kind of tensor may be lost; a device other than a CPU has no such cache.
    may_cut = first.numel() > size and type(first) is Tensor and first.device.type == "cpu"
    # The first dimension that is long enough for many pieces.
    dims = penalty.cuts(first.shape) if may_cut else ()
    dim = max(dims, key=lambda dim: min(first.shape[dim], 64), default=None)
    if dim is None:
        yield penalty, tensors
        return
    length = max(size * first.shape[dim] // first.numel(), 1)
    for start in range(0, first.shape[dim], length):
        take = partial(piece_of, dim=dim, start=start, length=min(length, first.shape[dim] - start))
        yield penalty.with_tensors(take), tuple(map(take, tensors))


def piece_of(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return a view of `length` indices of dimension `dim`."""
    return tensor.narrow(dim, start, length)


def add_gradient_(penalty: Penalty, parameter: nn.Parameter, factor: Number) -> None:
    """Add `factor` times the penalty's derivative to the gradient of `parameter`."""
    gradient = local_gradient(parameter)
    if gradient is None:
        return
    for target, (grad, w) in pieces(shard_penalty(penalty, parameter), gradient, local(parameter.detach())):
        add_derivative_(target, grad, w, factor)


@singledispatch
def add_derivative_(penalty: Penalty, grad: Tensor, w: Tensor, factor: Number) -> None:
    """grad <- grad + factor * R'(w), rounded once."""
    widened = upcast(grad)
    widened.add_(penalty.gradient(upcast(w).to(widened.dtype)) * factor)
    if widened is not grad:
        grad.copy_(widened)


@add_derivative_.register
def _(penalty: L2, grad: Tensor, w: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor) or grad.dtype != w.dtype:
        add_plainly_(penalty, grad, w, factor)
    else:  # the sum of a product, rounded once, that optimizers ask for
        grad.add_(w, alpha=factor * fixed(penalty.strength))


add_plainly_ = add_derivative_.dispatch(Penalty)


def decay_(penalty: Penalty, parameter: nn.Parameter, step: Number, generator: torch.Generator | None = None) -> None:
    """Move `parameter` by -step * R'(w): the decoupled form of a smooth penalty."""
    for target, (w,) in pieces(shard_penalty(penalty, parameter), local(parameter.detach())):
        widened = upcast(w)
        decay_by_derivative_(target, widened, step)
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
    parameter: Tensor,
    state: State,
    step: Callable[[State, Tensor], Step],
    generator: torch.Generator | None = None,
    *,
    elementwise: bool = True,
) -> None:
    """Move `parameter` to the penalty's proximal point.

    Args:
        penalty: what is penalized.
        parameter: what is moved.
        state: what the optimizer keeps of the parameter.
        step: the step of the proximal operator, a number or shaped like its second argument, which is a piece of the
            parameter; the first is the state of that piece.
        generator: rounds stochastically to bfloat16 and float16; None rounds to the nearest number.
        elementwise: whether `step` of an element follows from the state of that element, so that pieces can be cut.
    """
    w, state, penalty = local(parameter.detach()), local_state(state), shard_penalty(penalty, parameter)
    if w.numel() == 0:
        return
    if w.numel() <= PIECE or not (elementwise and cuts(state, w)):
        write_(w, penalty.prox(upcast(w), number(step(state, w))), generator)
        return
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and not value.is_sparse}
    shaped = {name: value for name, value in tensors.items() if value.shape == w.shape}
    for target, (piece, *cut) in pieces(penalty, w, *shaped.values()):
        size = number(step({**state, **dict(zip(shaped, cut, strict=True))}, piece))
        write_(piece, target.prox(upcast(piece), size), generator)


def shrink_all_(shrinks: Sequence[Shrink], *, compile: bool) -> None:
    """Do what `prox_` does for many parameters whose steps cost nothing to ask for: joined, in place, or compiled."""
    for batch in batched(shrinks, LARGEST_COMPILED if compile else LARGEST):
        joined = Joined(batch) if len(batch) > 1 else None
        shrink = batch[0] if joined is None else joined.shrink
        if not (compile and compiled_shrink_(*shrink)):
            shrink_by_pieces_(*shrink)
        if joined is not None:
            joined.write_back()


def shrink_by_pieces_(penalty: Penalty, w: Tensor, step: Step) -> None:
    """Move `w` in place, with scratch memory for one piece only."""
    if touches_once(penalty, w, step):
        shrink_(penalty, w, step)
        return
    shaped = (
        [step.moment] if isinstance(step, AdaptiveStep) else [step] if isinstance(step, Tensor) and step.dim() else []
    )
    share = 1 if isinstance(penalty, L1) else 2  # others need up to eight temporaries
    for target, (piece, *cut) in pieces(penalty, w, *shaped, share=share):
        if isinstance(step, AdaptiveStep):
            shrink_(target, piece, step._replace(moment=cut[0]))
        else:
            shrink_(target, piece, cut[0] if cut else step)


def write_(w: Tensor, moved: Tensor, generator: torch.Generator | None) -> None:
    """Write `moved` into `w`, rounded to the nearest number of its type, or stochastically."""
    w.copy_(moved if generator is None else stochastic_round(moved, w.dtype, generator))


def stuck_share(
    penalty: Penalty, parameter: nn.Parameter, state: State, step: Callable[[State, Tensor], Step], *, prox: bool
) -> float:
    """Return the share of the elements that a prox, or decay, is to move which rounding brings back; waits for it."""
    w = parameter.detach()
    widened, size = upcast(w), number(step(state, w))
    return float(stuck(w, penalty.prox(widened, size) if prox else widened - size * penalty.gradient(widened)))


def follow_(parameter: nn.Parameter, moved: Tensor, share: Number) -> None:
    """Move `parameter` by a share of what was `moved`."""
    parameter.detach().add_(moved * share)


def restore_(parameter: Tensor, mask: Tensor, penalty: Penalty) -> None:
    """Set `parameter` to the penalty's origin where `mask` is true."""
    w = local(parameter.detach())
    w.copy_(torch.where(mask, shard_penalty(penalty, parameter).origin(w), w))


@contextmanager
def at_origin(penalized: Sequence[tuple[Penalty, nn.Parameter]]) -> Iterator[None]:
    """Hold parameters where their penalties draw them to, and give them their values back afterwards."""
    kept = [parameter.detach().clone() for _, parameter in penalized]
    try:
        for penalty, parameter in penalized:
            parameter.detach().copy_(penalty.origin(parameter.detach()))
        yield
    finally:
        for value, (_, parameter) in zip(kept, penalized, strict=True):
            parameter.detach().copy_(value)


def cuts(state: State, w: Tensor) -> bool:
    """Return whether `state` can be cut with `w`: whether its tensors are numbers or have the shape of `w`."""
    return all(value.numel() == 1 or value.shape == w.shape for value in state.values() if isinstance(value, Tensor))
