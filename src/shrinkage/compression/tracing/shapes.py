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
def slice_(trace: Trace, x: Channels, axis: int = 0, *bounds: Any) -> Channels:
    """A range of an axis that has to stay, unless the first index is there for its shape alone."""
    if trace.shape == x.shape:
        return x
    if _first_for_its_shape(trace, axis % len(x.shape), *bounds):
        return trace.make([factor for factor in x.factors if factor.shape[axis] == 1])
    x = trace.fix(x, [axis], "a slice of the channels is taken")
    return trace.make([factor for factor in x.factors if factor.shape[axis] == 1])


def _first_for_its_shape(trace: Trace, axis: int, start: Any = None, *_: Any) -> bool:
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
