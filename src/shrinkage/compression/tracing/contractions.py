"""Rules of operators that sum over channels: linear layers, convolutions, products, `einsum`, attention."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import along, as_sequence, aten, coupling_rule, placed
from shrinkage.compression.tracing.trace import Contraction, Trace, flat


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
        trace.pin([left, right], "a product with a vector")
        return Channels(trace.shape)
    return _product(trace, left, right, positions=(0, 1))


@coupling_rule(aten.addmm, aten.baddbmm, aten._sparse_addmm)
def addmm(trace: Trace, bias: Channels, left: Channels, right: Channels, **scales: Any) -> Channels:
    """A matrix product and what is added to it."""
    foldable = trace.node.args[0] if not scales and len(bias.shape) == 1 else None
    return trace.combine([bias, _product(trace, left, right, positions=(1, 2), bias=foldable)])


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
    contraction = Contraction(trace.node, *parts, rows, out, bias, padded)
    is_weight = parts[2] not in trace.from_data and parts[0] in trace.from_data
    (trace.contractions if is_weight else trace.products).append(contraction)


def _without(trace: Trace, channels: Channels, axis: int) -> Channels:
    """Return `channels` with `axis` summed away to length 1."""
    axis %= len(channels.shape)
    factors = [factor for factor in channels.factors if factor.shape[axis] == 1]
    joint = [
        factor.narrow(axis, 0, 1) for factor in channels.factors if len(axes_of(factor)) > 1 and factor.shape[axis] > 1
    ]
    shape = tuple(1 if other == axis else size for other, size in enumerate(channels.shape))
    return trace.make([*factors, *joint], shape)


@coupling_rule(aten.einsum)
def einsum(trace: Trace, equation: str, operands: Sequence[Channels], **_: Any) -> Channels:
    """Letters are axes: those of the result go together; one that both sides have and it has not is summed over."""
    terms, out = _terms(equation, [len(x.shape) for x in operands])
    nodes: Any = trace.node.args[1]
    if len(terms) == 2 and nodes[0] not in trace.from_data:
        terms, operands, nodes = terms[::-1], operands[::-1], nodes[::-1]
    weighs = len(terms) == 2 and nodes[0] in trace.from_data and nodes[1] not in trace.from_data
    rows = [letter for letter in terms[-1] if letter in out and letter not in terms[0]]
    summed = [letter for letter in terms[0] if letter in terms[-1] and letter not in out]
    repeats = any(len(set(term)) < len(term) for term in terms)
    if len(terms) != 2 or not out or repeats or (weighs and summed and len(rows) != 1):
        trace.pin(operands, "a form of `einsum` that is not taken apart")
        return Channels(trace.shape)
    (data, axis), (weight, other) = (
        (x, term.index(summed[0]) if summed else 0) for x, term in zip(operands, terms, strict=True)
    )
    labels = trace.contract(data, axis, weight, other, "summed over") if len(summed) == 1 else None
    if summed:
        row, place = (terms[1].index(rows[0]), out.index(rows[0])) if rows else (0, 0)
        _used_up(trace, labels, (0, axis), (1, other), rows=row, out=place, nodes=nodes)
    laid = []
    for x, term in zip(operands, terms, strict=True):
        alone = [term.index(letter) for letter in term if letter not in out and [letter] != summed]
        x = trace.fix(x, alone, "summed over by `einsum`")
        for letter in set(term) - set(out):
            x = _without(trace, x, term.index(letter))
        laid.append(_in_order(x, term, out))
    return trace.combine(laid)


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand, and of the result, with capital ones in place of dots.

    The result is empty where the equation does not name it, or has capital letters itself.
    """
    named, _, out = equation.replace(" ", "").partition("->")
    terms = named.split(",")
    if set(equation) & set(ascii_uppercase):
        return terms, ""
    dots = [
        ascii_uppercase[26 - (rank - len(t) + 3) :] if "..." in t else "" for t, rank in zip(terms, ranks, strict=True)
    ]
    terms = [term.replace("...", letters) for term, letters in zip(terms, dots, strict=True)]
    return terms, out.replace("...", max(dots, key=len))


def _in_order(x: Channels, term: str, out: str) -> Channels:
    """Return `x`, whose axes have the letters of `term`, with those of `out`: of length 1 for a letter it has not."""
    order = [term.index(letter) for letter in out if letter in term]
    order += [axis for axis in range(len(term)) if axis not in order]

    def laid(shape: Sequence[int]) -> list[int]:
        sizes = dict(zip(term, shape, strict=True))
        return [sizes.get(letter, 1) for letter in out]

    factors = tuple(factor.permute(order).reshape(laid(factor.shape)) for factor in x.factors)
    return Channels(tuple(laid(x.shape)), factors)


@coupling_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Channels:  # fmt: skip
    """The channels of the input are summed over with the second axis of the weight; its first makes new ones."""
    rank = len(weight.shape)
    x, weight = _fixed_in_space(trace, x, weight)
    if groups > 1:
        return _grouped(trace, x, weight, bias, groups, rows=0)
    labels = trace.contract(x, -rank + 1, weight, 1, "summed over")
    arguments = trace.node.args
    upcast = any(size > 1 for size in weight.shape[2:])
    padded = upcast and padding == "same" if isinstance(padding, str) else any(as_sequence(padding))
    _used_up(
        trace, labels, (0, 1 - rank), (1, 1), rows=0, out=1 - rank,
        bias=arguments[2] if len(arguments) > 2 else None, padded=padded,
    )  # fmt: skip
    return _filters(trace, x, weight, bias, rows=0)


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


def _fixed_in_space(trace: Trace, x: Channels, weight: Channels) -> tuple[Channels, Channels]:
    space = range(2 - len(weight.shape), 0)
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
    """The channels of a convolution in groups: a group goes as a whole, with what enters it."""
    place = len(x.shape) - len(weight.shape) + 1
    entering, made = flat(trace, x, place, "convolved in groups"), flat(trace, weight, 0, "convolved in groups")
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
    _used_up(trace, labels, (0, -1), (1, -1), rows=-2, out=-1)
    query, key = _without(trace, query, -1), _without(trace, key, -1)
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeated_heads(trace, x, query.shape[-3] // x.shape[-3]) for x in (key, value))
    masks = trace.fix(mask, [-1, -2], "a position in a sequence") if isinstance(mask, Channels) else Channels((1, 1))
    return trace.combine([query, _without(trace, key, -2), _without(trace, value, -2), _without(trace, masks, -1)])


def _repeated_heads(trace: Trace, x: Channels, times: int) -> Channels:
    """Return `x` with every head repeated `times` times, as grouped queries read the keys."""
    shape = (*x.shape[:-3], x.shape[-3] * times, *x.shape[-2:])
    return trace.make([f.repeat_interleave(times, -3) if f.shape[-3] > 1 else f for f in x.factors], shape)
