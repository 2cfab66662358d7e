"""Rules of operators that move axes, cut them and put them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import aten, coupling_rule
from shrinkage.compression.tracing.trace import Literal, Trace, flat, shapes_of


@coupling_rule(aten.view, aten.reshape, aten._unsafe_view)
def view(trace: Trace, x: Channels, sizes: Sequence[int]) -> Channels:
    """The same elements in another shape, as the code gives it."""
    return trace.reshape(x, trace.shape, [-1 if not isinstance(size, int) else size for size in sizes])


@coupling_rule(aten.flatten, aten.view_as, aten.reshape_as)
def flatten(trace: Trace, x: Channels, *_: Any) -> Channels:
    """The same elements in a shape that follows by itself."""
    return trace.reshape(x, trace.shape, [-1] * len(trace.shape))


@coupling_rule(aten.unflatten)
def unflatten(trace: Trace, x: Channels, axis: int, sizes: Sequence[int]) -> Channels:
    """One axis taken apart."""
    lengths = [-1] * len(trace.shape)
    axis %= len(x.shape)
    lengths[axis : axis + len(sizes)] = sizes
    return trace.reshape(x, trace.shape, lengths)


@coupling_rule(aten.unsqueeze, aten.squeeze)
def squeeze(trace: Trace, x: Channels, *_: Any) -> Channels:
    """Axes of length 1 come or go."""
    return trace.reshape(x, trace.shape, [-1] * len(trace.shape))


@coupling_rule(aten.permute)
def permute(trace: Trace, x: Channels, axes: Sequence[int]) -> Channels:
    """The axes in another order."""
    return trace.make([factor.permute(*axes) for factor in x.factors])


@coupling_rule(aten.transpose, aten.swapaxes, aten.swapdims)
def transpose(trace: Trace, x: Channels, first: int, second: int) -> Channels:
    """Two axes change places."""
    return trace.make([factor.transpose(first, second) for factor in x.factors])


@coupling_rule(aten.movedim, aten.moveaxis)
def movedim(trace: Trace, x: Channels, source: Any, destination: Any) -> Channels:
    """Axes at other places."""
    return trace.make([torch.movedim(factor, source, destination) for factor in x.factors])


@coupling_rule(aten.t, aten.numpy_T, aten.mT)
def t(trace: Trace, x: Channels) -> Channels:
    """The last two axes change places."""
    return trace.make([factor.mT if factor.dim() > 1 else factor for factor in x.factors])


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
MAKING = (aten.expand, aten.broadcast_to, *FILLED)  # which make channels where there were none


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
    """Copies one after the other; where fewer numbers are given than there are axes, they are those of the last."""
    times = [1] * (len(x.shape) - len(times)) + list(times)
    added = len(times) - len(x.shape)
    factors = [factor.reshape((1,) * added + tuple(factor.shape)) for factor in x.factors]
    return trace.make(
        [f.repeat([n if f.shape[axis] > 1 else 1 for axis, n in enumerate(times)]) for f in factors]
    )  # fmt: skip


@coupling_rule(aten.repeat_interleave)
def repeat_interleave(trace: Trace, x: Channels, times: Any, dim: int | None = None, **_: Any) -> Channels:
    """Every index several times in a row."""
    if not isinstance(times, int) or dim is None:
        trace.pin(x, "repeated a number of times that depends on the data")
        return Channels(trace.shape)
    return trace.make([f.repeat_interleave(times, dim) if f.shape[dim] > 1 else f for f in x.factors])


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
def slice_(trace: Trace, x: Channels, axis: int = 0, *_: Any) -> Channels:
    """A range of an axis that has to stay."""
    if trace.shape == x.shape:
        return x
    x = trace.fix(x, [axis], "a slice of the channels is taken")
    return trace.make([factor for factor in x.factors if factor.shape[axis] == 1])


@coupling_rule(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split)
def split(trace: Trace, x: Channels, sizes: Any, axis: int = 0) -> tuple[Channels, ...]:
    """Parts of an axis; equal ones lose the same channels."""
    axis %= len(x.shape)
    lengths = [shape[axis] for shape in shapes_of(trace.node)]
    even = len(set(lengths)) == 1
    by_count = trace.operator.overloadpacket in (aten.chunk, aten.tensor_split, aten.unsafe_chunk)
    in_a_grid = any(len(axes_of(factor)) > 1 and factor.shape[axis] > 1 for factor in x.factors)
    if (by_count and not even) or in_a_grid:
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


@coupling_rule(aten.cat, aten.concat)
def cat(trace: Trace, tensors: Sequence[Channels], axis: int = 0) -> Channels:
    """Channels one after the other."""
    rank = len(trace.shape)
    axis %= rank
    factors: list[Tensor] = []
    others: list[Channels] = []
    tensors = [x for x in tensors if len(x.shape) == rank]
    if all(x.along(axis) is None for x in tensors):
        return trace.combine([Channels(_one(x.shape, axis), x.factors) for x in tensors])
    for x in tensors:
        factor = x.along(axis)
        if factor is not None and len(axes_of(factor)) > 1:
            x = trace.fix(x, [axis], "put together along")
            factor = x.along(axis)
        if factor is None:
            factor = trace.labels.new(x.shape[axis]).reshape([-1 if other == axis else 1 for other in range(rank)])
            trace.labels.pin(factor, trace.because("put together with channels of fixed number"))
        factors.append(factor)
        rest = tuple(other for other in x.factors if other.shape[axis] == 1)
        others.append(Channels(_one(x.shape, axis), rest))
    whole = Channels(
        tuple(trace.shape[axis] if other == axis else 1 for other in range(rank)), (torch.cat(factors, axis),)
    )
    return trace.combine([whole, *others])


@coupling_rule(aten.hstack)
def hstack(trace: Trace, tensors: Sequence[Channels]) -> Channels:
    """Channels one after the other along the second axis, or the only one."""
    whole: Channels = cat(trace, tensors, min(1, len(trace.shape) - 1))
    return whole


@coupling_rule(aten.vstack)
def vstack(trace: Trace, tensors: Sequence[Channels]) -> Channels:
    """Rows one below the other."""
    whole: Channels = cat(trace, [raised(x, len(trace.shape)) for x in tensors], 0)
    return whole


def _one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """Return `shape` with the length 1 at `axis`."""
    return tuple(1 if other == axis else length for other, length in enumerate(shape))


@coupling_rule(aten.stack)
def stack(trace: Trace, tensors: Sequence[Channels], axis: int = 0) -> Channels:
    """Tensors side by side along a new axis."""
    axis %= len(trace.shape)
    raised = []
    for x in tensors:
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        raised.append(Channels(shape, tuple(factor.unsqueeze(axis) for factor in x.factors)))
    return trace.combine(raised)


@coupling_rule(aten.pixel_shuffle)
def pixel_shuffle(trace: Trace, x: Channels, factor: int) -> Channels:
    """Channels that become the pixels of one go together."""
    x, labels = _shuffled(trace, x, -3)
    if labels is None:
        return x
    members = labels.reshape(-1, factor**2)
    trace.labels.unite(members, members[:, :1])
    return _with_channels(trace, x, -3, members[:, 0])


@coupling_rule(aten.pixel_unshuffle)
def pixel_unshuffle(trace: Trace, x: Channels, factor: int) -> Channels:
    """The pixels of a channel become channels."""
    x, labels = _shuffled(trace, x, -3)
    return x if labels is None else _with_channels(trace, x, -3, labels.repeat_interleave(factor**2))


@coupling_rule(aten.channel_shuffle)
def channel_shuffle(trace: Trace, x: Channels, groups: int) -> Channels:
    """Channels at the same place of each group go together, so that groups stay alike."""
    x, labels = _shuffled(trace, x, 1)
    if labels is None:
        return x
    members = labels.reshape(groups, -1)
    trace.labels.unite(members, members[:1])
    return _with_channels(trace, x, 1, members.T.flatten())


def _shuffled(trace: Trace, x: Channels, place: int) -> tuple[Channels, Tensor | None]:
    """Return what lies in front of the axis `place`, as the output has it, and the labels along it."""
    place %= len(x.shape)
    x = trace.fix(x, range(place + 1, len(x.shape)), "shuffled along")
    labels = flat(trace, x, place, "shuffled")
    return trace.make([factor for factor in x.factors if max(axes_of(factor)) < place]), labels


def _with_channels(trace: Trace, x: Channels, place: int, labels: Tensor) -> Channels:
    shape = [-1 if axis == place % len(x.shape) else 1 for axis in range(len(x.shape))]
    return trace.make([*x.factors, labels.reshape(shape)])
