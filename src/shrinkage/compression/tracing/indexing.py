"""Rules of operators that look up by index, and of those that write or add at an index."""

from collections.abc import Sequence
from typing import Any

import torch

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import aten, coupling_rule, placed
from shrinkage.compression.tracing.trace import Trace, shapes_of


@coupling_rule(aten.embedding)
def embedding(trace: Trace, weight: Channels, index: Channels, *_: Any) -> Channels:
    """The columns of a table make the channels of the output."""
    trace.fix(weight, [0], "looked up by index")
    trace.pin(index, "an index into a table")
    trace.lookups.append(trace.node)
    rank = len(trace.shape)
    shape = (*(1,) * (rank - 1), weight.shape[1])
    return trace.combine([Channels(shape, placed(weight, 1, rank, rank - 1))])


@coupling_rule(aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only)
def embedding_bag(trace: Trace, weight: Channels, *places: Any, **others: Any) -> tuple[Channels | None, ...]:
    """The columns of a table make the channels of the sum, mean or largest value of each bag; places of it stay."""
    trace.fix(weight, [0], "looked up by index")
    trace.pin([*places, *others.values()], "an index into a table")
    trace.lookups.append(trace.node)
    several = [Channels(shape) for shape in shapes_of(trace.node)]
    return Channels(several[0].shape, placed(weight, 1, 2, 1)), *several[1:]


@coupling_rule(aten.index)
def index(trace: Trace, x: Channels, indices: Sequence[Any]) -> Channels:
    """Axes that are looked up by index stay; what lies along others moves with them."""
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    trace.pin(indices, "an index into a table")
    x = trace.fix(x, axes, "looked up by index")
    _note_lookup(trace, x, axes)
    if axes != list(range(axes[0], axes[0] + len(axes))) or any(_is_mask(trace, one) for one in axes):
        trace.pin(x, "looked up by index")
        return Channels(trace.shape)
    inserted = len(trace.shape) - (len(x.shape) - len(axes))
    factors = []
    for factor in x.factors:
        if not set(axes_of(factor)) & set(axes):
            before, after = factor.shape[: axes[0]], factor.shape[axes[-1] + 1 :]
            factors.append(factor.reshape(*before, *(1,) * inserted, *after))
    return trace.make(factors)


def _note_lookup(trace: Trace, x: Channels, axes: Sequence[int]) -> None:
    """Note that rows of a table are looked up along `axes`, if `x` is one and none of them is that of its columns."""
    if trace.node.args[0] not in trace.from_data and len(x.shape) - 1 not in axes:
        trace.lookups.append(trace.node)


def _is_mask(trace: Trace, position: int) -> bool:
    argument: Any = trace.node.args[1]
    return bool(argument[position].meta["val"].dtype == torch.bool)


@coupling_rule(aten.index_put)
def index_put(trace: Trace, x: Channels, indices: Sequence[Any], values: Channels, *_: Any) -> Channels:
    """Elements at an index are written: channels beside the axes of the index meet those of what is written."""
    trace.pin(indices, "an index into a table")
    axes, inserted = _looked_up(trace, indices)
    x = trace.fix(x, axes, "looked up by index")
    if axes != list(range(axes[0], axes[0] + len(axes))):
        trace.pin([x, values], "looked up by index")
        return Channels(trace.shape)
    rank, first = len(x.shape) - len(axes) + inserted, axes[0]
    values = trace.fix(raised(values, rank), range(first, first + inserted), "looked up by index")

    def beside(shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:first], *(1,) * len(axes), *shape[first + inserted :])

    factors = [factor for factor in values.factors if not set(axes_of(factor)) & set(range(first, first + inserted))]
    written = Channels(beside(values.shape), tuple(factor.reshape(beside(factor.shape)) for factor in factors))
    return trace.combine([x, written])


def _looked_up(trace: Trace, indices: Sequence[Any]) -> tuple[list[int], int]:
    """Return the axes that `indices` look up, and how many axes there are in their place."""
    axes: list[int] = []
    inserted = place = 0
    for position, one in enumerate(indices):
        mask = one is not None and _is_mask(trace, position)
        width = len(one.shape) if mask else 1
        if one is not None:
            axes += range(place, place + width)
            inserted = max(inserted, 1 if mask else len(one.shape))
        place += width
    return axes, inserted


@coupling_rule(aten.index_select)
def index_select(trace: Trace, x: Channels, axis: int, index: Channels) -> Channels:
    """The axis that is looked up by index stays; what lies along others moves with it."""
    trace.pin(index, "an index into a table")
    _note_lookup(trace, x, [axis % len(x.shape)])
    return trace.combine([_beside(trace, x, axis)])


@coupling_rule(aten.index_add, aten.index_copy, aten.index_reduce)
def index_add(trace: Trace, x: Channels, axis: int, index: Channels, source: Channels, *_: Any, **__: Any) -> Channels:
    """Slices are written or added at an index: channels beside the axis meet those of the tensor that takes them."""
    trace.pin(index, "an index into a table")
    return trace.combine([_beside(trace, x, axis), _beside(trace, source, axis)])


@coupling_rule(aten.gather, aten.scatter, aten.scatter_add, aten.scatter_reduce)
def scatter(trace: Trace, x: Channels, axis: int, index: Channels, source: Any = None, *_: Any, **__: Any) -> Channels:
    """Each element has an index along the axis: all channels beside it meet, those of the index too."""
    operands = [x, index, *([source] if isinstance(source, Channels) else [])]
    if len({_one(operand, axis) for operand in operands}) > 1:  # an index that is smaller reaches a part
        trace.pin(operands, "an index of another shape")
        return Channels(trace.shape)
    return trace.combine([_beside(trace, operand, axis) for operand in operands])


@coupling_rule(aten.take_along_dim)
def take_along(trace: Trace, x: Channels, index: Channels, axis: int | None = None) -> Channels:
    """Each element has an index along the axis, or all beside it have the same."""
    if axis is None:
        trace.pin([x, index], "looked up by index")
        return Channels(trace.shape)
    return trace.combine([_beside(trace, x, axis), _beside(trace, index, axis)])


def _beside(trace: Trace, x: Channels, axis: int) -> Channels:
    """Return the channels of `x` beside `axis`, which has to stay."""
    x = trace.fix(x, [axis], "looked up by index")
    return Channels(_one(x, axis), tuple(factor for factor in x.factors if factor.shape[axis] == 1))


def _one(x: Channels, axis: int) -> tuple[int, ...]:
    """Return the shape of `x` with length 1 along `axis`."""
    return tuple(1 if other == axis % len(x.shape) else length for other, length in enumerate(x.shape))
