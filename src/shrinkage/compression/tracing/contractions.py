"""Rules of operators that sum over channels: linear layers, convolutions, products, attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.einsum import product_with_a_vector
from shrinkage.compression.tracing.operators import along, as_sequence, aten, coupling_rule, placed
from shrinkage.compression.tracing.trace import FIXED, Contraction, Sum, Trace, flat


@coupling_rule(aten.linear)
def linear(trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None) -> Channels:
    """The channels of the input are summed over with the columns of the weight; its rows make those of the output."""
    rank = len(x.shape)
    arguments = trace.node.args
    labels = trace.contract(x, -1, weight, 1, "summed over")
    _used_up(trace, labels, (0, -1), (1, 1), rows=0, out=-1, bias=arguments[2] if len(arguments) > 2 else None)
    left = _without(trace, x, -1)
    right = Channels((*(1,) * (rank - 1), weight.shape[0]), placed(weight, 0, rank, rank - 1))
    return trace.combine([left, right, along(bias, rank, -1)])


@coupling_rule(aten.matmul, aten.mm, aten.bmm, aten._sparse_mm)
def matmul(trace: Trace, left: Channels, right: Channels) -> Channels:
    """The last axis of the left side is summed over with the one before the last of the right side."""
    if min(len(left.shape), len(right.shape)) < 2:
        return product_with_a_vector(trace, left, right)
    return _product(trace, left, right, positions=(0, 1))


@coupling_rule(aten.addmm, aten.baddbmm, aten._sparse_addmm)
def addmm(trace: Trace, bias: Channels, left: Channels, right: Channels, **scales: Any) -> Channels:
    """A matrix product and what is added to it."""
    foldable = trace.node.args[0] if not scales and len(bias.shape) == 1 else None
    return trace.combine([bias, _product(trace, left, right, positions=(1, 2), bias=foldable)])


@coupling_rule(aten.addmv)
def addmv(trace: Trace, bias: Channels, left: Channels, right: Channels, **_: Any) -> Channels:
    """A product of a matrix with a vector, and what is added to it."""
    return trace.combine([bias, product_with_a_vector(trace, left, right)])


@coupling_rule(aten._grouped_mm, "transformers.grouped_mm_fallback")
def grouped_product(trace: Trace, x: Channels, weight: Channels, offsets: Channels, *_: Any, **__: Any) -> Channels:
    """The rows of each expert are multiplied with the matrix of its own: a channel is one in all of them.

    The operator takes matrices whose rows are a multiple of 16 bytes long, also once they are of half precision.
    """
    matrices: Any = trace.node.args[1]
    trace.multiples.append((matrices, 8))
    trace.pin(offsets, "where the rows of an expert end")
    weight = trace.fix(weight, [0], "the number of experts")
    labels = trace.contract(x, -1, weight, -2, "summed over")
    _used_up(trace, labels, (0, -1), (1, -2), rows=-1, out=-1)
    made = Channels((1, weight.shape[2]), placed(weight, 2, 2, 1))
    return trace.combine([_without(trace, x, -1), made])


def _product(
    trace: Trace, left: Channels, right: Channels, *, positions: tuple[int, int], bias: Any = None
) -> Channels:
    rank = max(len(left.shape), len(right.shape))
    left, right = raised(left, rank), raised(right, rank)
    labels = trace.contract(left, -1, right, -2, "summed over")
    _used_up(trace, labels, (positions[0], -1), (positions[1], -2), rows=-1, out=-1, bias=bias)
    shape = (*trace.shape[:-2], left.shape[-2], right.shape[-1])
    return trace.combine([_without(trace, left, -1), _without(trace, right, -2)], shape)


def _used_up(
    trace: Trace,
    labels: tuple[Tensor, Tensor] | None,
    data: tuple[int, int],
    weight: tuple[int, int],
    *,
    rows: int,
    out: int,
    bias: Any = None,
    padded: bool = False,
    nodes: Sequence[Any] | None = None,
) -> None:
    """Note the contraction of the arguments at positions `data[0]` and `weight[0]`, along `data[1]`, `weight[1]`.

    The positions are those in `nodes`, or in the operator's own arguments.
    """
    given: Any = trace.node.args if nodes is None else nodes
    first, second = given[data[0]], given[weight[0]]
    mine, theirs = labels or (torch.empty(0, dtype=torch.long),) * 2
    parts = (first, data[1], second, weight[1], mine, theirs)
    if first not in trace.from_data and second in trace.from_data:
        parts, rows, out, bias = (second, weight[1], first, data[1], theirs, mine), -2, -2, None
    if parts[2] not in trace.from_data and parts[0] in trace.from_data:
        trace.contractions.append(Contraction(trace.node, *parts, rows, out, bias, padded))
    elif labels is not None:
        trace.sums.append(Sum(trace.node, (parts[:2], parts[2:4]), mine))


def _without(trace: Trace, channels: Channels, axis: int) -> Channels:
    """Return `channels` with `axis` summed away to length 1."""
    axis %= len(channels.shape)
    factors = [factor for factor in channels.factors if factor.shape[axis] == 1]
    joint = [
        factor.narrow(axis, 0, 1) for factor in channels.factors if len(axes_of(factor)) > 1 and factor.shape[axis] > 1
    ]
    shape = tuple(1 if other == axis else size for other, size in enumerate(channels.shape))
    return trace.make([*factors, *joint], shape)


@coupling_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Channels:  # fmt: skip
    """The channels of the input are summed over with the second axis of the weight; its first makes new ones."""
    covered = _covered(x, weight, padding) if groups == 1 else []
    x, weight = _fixed_in_space(trace, x, weight, covered)
    if groups > 1:
        return _grouped(trace, x, weight, bias, groups, rows=0)
    first: Any
    second: Any
    first, second, *others = trace.node.args
    upcast = any(size > 1 for size in weight.shape[2:])
    padded = upcast and padding == "same" if isinstance(padding, str) else any(as_sequence(padding))
    pairs = [(1 - len(weight.shape), 1), *((axis, axis) for axis in covered)]
    found = [trace.contract(x, mine, weight, other, "summed over") for mine, other in pairs]
    chosen = next((place for place, labels in enumerate(found) if labels is not None), 0)
    for place, ((mine, other), labels) in enumerate(zip(pairs, found, strict=True)):
        if place == chosen:
            _used_up(
                trace, labels, (0, mine), (1, other), rows=0, out=pairs[0][0],
                bias=others[0] if others else None, padded=padded,
            )  # fmt: skip
        elif labels is not None:
            trace.sums.append(Sum(trace.node, ((first, mine), (second, other)), labels[0]))
    return _filters(trace, x, weight, bias, rows=0)


def _covered(x: Channels, weight: Channels, padding: Any) -> list[int]:
    """Return the axes along which a kernel is as long as what it reads, so that it sums over them."""
    space = range(2 - len(weight.shape), 0)
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else 1
    widths = list(as_sequence(padding))
    widths = widths * len(space) if len(widths) == 1 else widths
    return [
        axis for axis, width in zip(space, widths, strict=True) if not width and x.shape[axis] == weight.shape[axis]
    ]


@coupling_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(
    trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Channels:  # fmt: skip
    """The channels of the input are summed over with the first axis of the weight; its second makes new ones."""
    rank = len(weight.shape)
    x, weight = _fixed_in_space(trace, x, weight)
    if groups > 1:
        return _grouped(trace, x, weight, bias, groups, rows=1)
    labels = trace.contract(x, 1 - rank, weight, 0, "summed over")
    # A constant that enters comes out as a pattern of the kernel, so that it is as if there were zeros between.
    arguments = trace.node.args
    bias_node = arguments[2] if len(arguments) > 2 else None
    _used_up(trace, labels, (0, 1 - rank), (1, 0), rows=1, out=1 - rank, bias=bias_node, padded=True)
    return _filters(trace, x, weight, bias, rows=1)


def _fixed_in_space(trace: Trace, x: Channels, weight: Channels, free: Sequence[int] = ()) -> tuple[Channels, Channels]:
    space = [axis for axis in range(2 - len(weight.shape), 0) if axis not in free]
    return trace.fix(x, space, "convolved along"), trace.fix(weight, space, "the size of a kernel")


def _filters(trace: Trace, x: Channels, weight: Channels, bias: Channels | None, *, rows: int) -> Channels:
    """Return the channels of the output of a convolution with `weight`, whose `rows` make them."""
    rank, place = len(x.shape), len(x.shape) - len(weight.shape) + 1
    factors = placed(weight, rows, rank, place)
    out = Channels(tuple(trace.shape[axis] if axis == place else 1 for axis in range(rank)), factors)
    return trace.combine([out, along(bias, rank, place), _batch_alone(x, place)])


def _batch_alone(x: Channels, place: int) -> Channels:
    """Return `x` without its channels and all that is behind them."""
    factors = tuple(factor for factor in x.factors if max(axes_of(factor)) < place)
    return Channels(tuple(size if axis < place else 1 for axis, size in enumerate(x.shape)), factors)


def _grouped(trace: Trace, x: Channels, weight: Channels, bias: Channels | None, groups: int, *, rows: int) -> Channels:
    """The channels of a convolution in groups: a group goes as a whole, with what enters it.

    All groups lose the same channels where that leaves more to go, or where they have the same: samples are groups
    where each has filters of its own.
    """
    place = len(x.shape) - len(weight.shape) + 1
    entering, made = flat(trace, x, place, "convolved in groups"), flat(trace, weight, 0, "convolved in groups")
    if entering is not None and made is not None and _go_evenly(trace, entering.reshape(groups, -1)):
        return _evenly(trace, x, weight, bias, (entering, made), groups, rows)
    weight = trace.fix(weight, [1], "the size of a group")
    if entering is None or made is None:
        trace.fix(x, [place], "convolved in groups of fixed number")
        trace.fix(weight, [0], "convolved in groups of fixed number")
        trace.pin(bias, "convolved in groups of fixed number")
        return Channels(trace.shape)
    for labels in (entering, made):
        members = labels.reshape(groups, -1)
        trace.labels.unite(members, members[:, :1])
    trace.labels.unite(entering.reshape(groups, -1)[:, 0], made.reshape(groups, -1)[:, 0])
    count = trace.shape[place]
    labels = made.reshape(groups, -1)[:, :1].expand(groups, count // groups) if rows else made.reshape(groups, -1)
    shape = tuple(count if axis == place else 1 for axis in range(len(x.shape)))
    out = Channels(shape, (labels.reshape(shape),))
    return trace.combine([out, along(bias, len(x.shape), place), _batch_alone(x, place)])


def _go_evenly(trace: Trace, entering: Tensor) -> bool:
    """Return whether groups, the rows of labels, lose the same channels rather than go as a whole."""
    groups, size = entering.shape
    roots = trace.labels.find(entering)
    return size > 1 and (groups < size or torch.equal(roots, roots[:1].expand_as(roots)))


def _evenly(
    trace: Trace, x: Channels, weight: Channels, bias: Channels | None, labels: tuple[Tensor, Tensor], groups: int,
    rows: int,
) -> Channels:  # fmt: skip
    """The channels of a convolution in groups, of which each has the same; what is read is in each the `inner` axis.

    A transposed one has what it reads along its first axis, in all groups, and what it makes along its second.
    """
    for each in labels:
        members = each.reshape(groups, -1)
        trace.labels.unite(members, members[:1])
    entering, first = labels
    inner = flat(trace, weight, 1, "the size of a group")
    read = first.reshape(groups, -1)[0] if rows else inner
    if read is None:
        trace.labels.pin(entering, trace.because(f"{FIXED} where it is summed over"))
    else:
        trace.labels.unite(entering.reshape(groups, -1)[0], read)
        data, filters, *_ = trace.node.args
        sides: Any = ((data, 1 - len(weight.shape)), (filters, 1 - rows))
        trace.sums.append(Sum(trace.node, sides, entering))
    if not rows:
        return _filters(trace, x, weight, bias, rows=0)
    rank, place = len(x.shape), len(x.shape) - len(weight.shape) + 1
    made = () if inner is None else (along(Channels((len(inner) * groups,), (inner.repeat(groups),)), rank, place),)
    return trace.combine([*made, along(bias, rank, place), _batch_alone(x, place)])


@coupling_rule(aten.scaled_dot_product_attention)
def attention(
    trace: Trace, query: Channels, key: Channels, value: Channels, mask: Channels | None = None,
    dropout: float = 0.0, causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False, **_: Any,
) -> Channels:  # fmt: skip
    """Heads of queries, keys and values go together; the size of a head stays where it sets the scale."""
    query, key, value = (trace.fix(x, [-2], "a position in a sequence") for x in (query, key, value))
    for x in (query, key):
        if scale is None:
            trace.fix(x, [-1], "the size of a head sets the scale of attention")
    labels = trace.contract(query, -1, key, -1, "the size of a head")
    given: Any = trace.node.args
    if given[2] not in trace.from_data:
        _used_up(trace, labels, (0, -1), (1, -1), rows=-2, out=-1)
    elif labels is not None:  # queries that are always the same, say, make no channels of what is put out
        trace.sums.append(Sum(trace.node, ((given[0], -1), (given[1], -1)), labels[0]))
    query, key = _without(trace, query, -1), _without(trace, key, -1)
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeated_heads(trace, x, query.shape[-3] // x.shape[-3]) for x in (key, value))
    masks = trace.fix(mask, [-1, -2], "a position in a sequence") if isinstance(mask, Channels) else Channels((1, 1))
    return trace.combine([query, _without(trace, key, -2), _without(trace, value, -2), _without(trace, masks, -1)])


def _repeated_heads(trace: Trace, x: Channels, times: int) -> Channels:
    """Return `x` with every head repeated `times` times, as grouped queries read the keys."""
    shape = (*x.shape[:-3], x.shape[-3] * times, *x.shape[-2:])
    return trace.make([f.repeat_interleave(times, -3) if f.shape[-3] > 1 else f for f in x.factors], shape)
