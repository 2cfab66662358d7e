"""Rules of operators that copy along axes, and of those that make a tensor of the shape that the code gives."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import aten, coupling_rule
from shrinkage.compression.tracing.trace import Literal, Trace


@coupling_rule(aten.expand, aten.broadcast_to)
def expand(trace: Trace, x: Channels, sizes: Sequence[int], **_: Any) -> Channels:
    """Copies along axes of length 1: any number of them can stay."""
    rank, shape = len(trace.shape), trace.shape
    added = rank - len(x.shape)
    factors = [factor.reshape((1,) * added + tuple(factor.shape)) for factor in x.factors]
    lengths = (1,) * added + x.shape
    factors += [_any_number(trace, axis) for axis in range(rank) if lengths[axis] == 1 < shape[axis]]
    return trace.make(factors)


FILLED = (
    aten.zeros, aten.ones, aten.full, aten.empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
)  # fmt: skip
MAKING = (aten.expand, aten.broadcast_to, aten.repeat, *FILLED)  # which make channels where there were none


def _any_number(trace: Trace, axis: int) -> Tensor:
    """Return new labels along `axis` of the output, of which any number can stay: the code gives the length."""
    shape = trace.shape
    labels = trace.labels.new(shape[axis]).reshape([-1 if other == axis else 1 for other in range(len(shape))])
    trace.literals.append(Literal(trace.path, shape[axis], labels, axis))
    return labels


@coupling_rule(aten.expand_as)
def expand_as(trace: Trace, x: Channels, other: Channels) -> Channels:
    """Copies along axes of length 1, as many as the other tensor has channels there."""
    x = raised(x, len(trace.shape))
    copied = {axis for axis, length in enumerate(trace.shape) if x.shape[axis] == 1 < length}
    return trace.make([*x.factors, *(factor for factor in other.factors if copied.issuperset(axes_of(factor)))])


@coupling_rule(aten.broadcast_tensors)
def broadcast_tensors(trace: Trace, tensors: Sequence[Channels]) -> tuple[Channels, ...]:
    """Each tensor is copied along axes of length 1, as often as another one has channels there."""
    tensors = [raised(x, len(trace.shape)) for x in tensors]
    result = []
    for x in tensors:
        copied = {axis for axis, length in enumerate(trace.shape) if x.shape[axis] == 1 < length}
        others = [factor for other in tensors for factor in other.factors if copied.issuperset(axes_of(factor))]
        result.append(trace.combine([x, *(Channels(trace.shape, (factor,)) for factor in others)]))
    return tuple(result)


@coupling_rule(*FILLED)
def filled(trace: Trace, *_: Any, **__: Any) -> Channels:
    """A tensor of the shape that the code gives: of what it is made from, only the kind of numbers is taken."""
    return trace.make([_any_number(trace, axis) for axis, size in enumerate(trace.shape) if size > 1])


@coupling_rule(aten.repeat, aten.tile)
def repeat(trace: Trace, x: Channels, times: Sequence[int]) -> Channels:
    """Copies one after the other; where fewer numbers are given than there are axes, they are those of the last.

    Along axes of length 1, any number of copies can stay, as of `expand`.
    """
    times = [1] * (len(x.shape) - len(times)) + list(times)
    x = raised(x, len(times))
    factors = [f.repeat([n if f.shape[axis] > 1 else 1 for axis, n in enumerate(times)]) for f in x.factors]
    if trace.operator.overloadpacket is aten.repeat:
        factors += [_any_number(trace, axis) for axis, count in enumerate(times) if x.shape[axis] == 1 < count]
    return trace.make(factors)


@coupling_rule(aten.repeat_interleave)
def repeat_interleave(trace: Trace, x: Channels, times: Any, dim: int | None = None, **_: Any) -> Channels:
    """Every index several times in a row."""
    if not isinstance(times, int) or dim is None:
        trace.pin(x, "repeated a number of times that depends on the data")
        return Channels(trace.shape)
    return trace.make([f.repeat_interleave(times, dim) if f.shape[dim] > 1 else f for f in x.factors])
