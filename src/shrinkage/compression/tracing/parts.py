"""Rules of operators that take parts of an axis: one index, ranges, and parts that make up all of it."""

from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of
from shrinkage.compression.tracing.operators import aten, coupling_rule
from shrinkage.compression.tracing.trace import Literal, Trace, flat, shapes_of


@coupling_rule(aten.select)
def select(trace: Trace, x: Channels, axis: int, index: int) -> Channels:
    """One index of an axis that has to stay."""
    x = trace.fix(x, [axis], "one index of the channels is selected")
    return trace.make([factor.select(axis, 0) for factor in x.factors if factor.shape[axis] == 1])


@coupling_rule(aten.unbind)
def unbind(trace: Trace, x: Channels, axis: int = 0) -> tuple[Channels, ...]:
    """Every index of an axis that has to stay."""
    x = trace.fix(x, [axis], "taken apart along the channels")
    factors = [factor.select(axis, 0) for factor in x.factors if factor.shape[axis] == 1]
    return tuple(trace.make(factors) for _ in range(x.shape[axis]))


@coupling_rule(aten.slice, aten.narrow)
def slice_(trace: Trace, x: Channels, axis: int = 0, start: Any = None, *_: Any) -> Channels:
    """A range of an axis. Its channels can go where no other range has some of them.

    Channels behind all ranges stay, as if a longer input took them; those of a table stay if no range has them.
    """
    if trace.shape == x.shape:
        return x
    axis %= len(x.shape)
    if _first_for_its_shape(trace, axis, start):
        return trace.make([factor for factor in x.factors if factor.shape[axis] == 1])
    factor, ranges = x.along(axis), _apart(trace.node, axis, x.shape[axis])
    if factor is None or len(axes_of(factor)) > 1 or ranges is None:
        x = trace.fix(x, [axis], "a slice of the channels is taken")
        return trace.make([each for each in x.factors if each.shape[axis] == 1])
    source: Any = trace.node.args[0]
    rest = torch.full((x.shape[axis],), source not in trace.from_data)
    rest[ranges[-1][1] :] = True
    for first, stop in ranges:
        rest[first:stop] = False
    trace.labels.pin(factor.reshape(-1)[rest], trace.because("a slice of the channels is taken that leaves these out"))
    part = factor.narrow(axis, start or 0, trace.shape[axis])
    return trace.make([part if each is factor else each for each in x.factors])


def _apart(node: Any, axis: int, length: int) -> list[tuple[int, int]] | None:
    """Return all ranges that are sliced along `axis` of what `node` slices; None if some overlap, or are not known."""
    if node.args[0].target in (aten.select.int, aten.unsqueeze.default):  # by one index together with it
        return None
    slices = [each for each in node.args[0].users if each.target is aten.slice.Tensor and each.args[1] == axis]
    ranges = {each.args[2:] for each in slices}
    if node not in slices or any(len(ends) != 2 or not all(type(end) is int for end in ends) for ends in ranges):
        return None
    found = sorted((first, min(stop, length)) for first, stop in ranges if (first, min(stop, length)) != (0, length))
    ends = [end for each in found for end in each]
    return found if min(ends) >= 0 and ends == sorted(ends) else None


def _first_for_its_shape(trace: Trace, axis: int, start: Any) -> bool:
    """Return whether the output is the first index along an axis, and what is made of it takes its shape alone.

    So does `torch.ones_like(x[:, :1]) * t`, the time as one more channel. One index is always there.
    """
    users = [getattr(user.target, "overloadpacket", None) for user in trace.node.users]
    return trace.shape[axis] == 1 and not start and all(user in LIKE for user in users)


LIKE = frozenset({
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like,
})  # fmt: skip


@coupling_rule(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split)
def split(trace: Trace, x: Channels, sizes: Any, axis: int = 0) -> tuple[Channels, ...]:
    """Parts of an axis; equal ones lose the same channels."""
    axis %= len(x.shape)
    lengths = [shape[axis] for shape in shapes_of(trace.node)]
    even = len(set(lengths)) == 1
    by_count = trace.operator.overloadpacket in (aten.chunk, aten.tensor_split, aten.unsafe_chunk)
    in_a_grid = any(len(axes_of(factor)) > 1 and factor.shape[axis] > 1 for factor in x.factors)
    if not even and (by_count or in_a_grid):
        x = trace.fix(x, [axis], "split into parts of fixed length")
    parts: list[list[Tensor]] = [[] for _ in lengths]
    for factor in x.factors:
        if factor.shape[axis] == 1:
            chunks = [factor] * len(lengths)
        else:
            chunks = list(torch.split(factor, lengths, axis))
            if even:
                for chunk in chunks[1:]:
                    trace.labels.unite(chunk, chunks[0])
            if not by_count:
                trace.literals += [Literal(trace.path, n, p, axis) for n, p in zip(lengths, chunks, strict=True)]
        for part, chunk in zip(parts, chunks, strict=True):
            part.append(chunk)
    shapes = shapes_of(trace.node)
    return tuple(trace.make(part, shape) for part, shape in zip(parts, shapes, strict=True))


@coupling_rule(aten.glu)
def glu(trace: Trace, x: Channels, axis: int = -1) -> Channels:
    """One half of the channels gates the other."""
    axis %= len(x.shape)
    if flat(trace, x, axis, "gated") is None:
        return trace.make([factor for factor in x.factors if factor.shape[axis] == 1])
    halves = [[f.chunk(2, axis)[half] if f.shape[axis] > 1 else f for f in x.factors] for half in (0, 1)]
    return trace.combine([Channels(trace.shape, tuple(half)) for half in halves])
