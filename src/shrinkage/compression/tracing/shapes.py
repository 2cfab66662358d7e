"""Rules of operators that move axes, reshape them, fill tensors and put them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import aten, coupling_rule
from shrinkage.compression.tracing.trace import Trace, flat


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


@coupling_rule(aten.t, aten.numpy_T, aten.mT, aten.mH, aten.adjoint)
def t(trace: Trace, x: Channels) -> Channels:
    """The last two axes change places."""
    return trace.make([factor.mT if factor.dim() > 1 else factor for factor in x.factors])


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
