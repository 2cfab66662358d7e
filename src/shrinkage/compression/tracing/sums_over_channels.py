"""Rules of operators that reduce axes; what zeros do not change (sums, norms, a largest value) does without them."""

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import fx

from shrinkage.compression.tracing.channels import Channels, axes_of, raised
from shrinkage.compression.tracing.operators import as_sequence, aten, coupling_rule
from shrinkage.compression.tracing.signs import never_negative
from shrinkage.compression.tracing.trace import MEAN, Divisor, Literal, Sum, Trace, flat, name_of, shapes_of

SUMS = (aten.sum, aten.nansum, aten.any, aten.count_nonzero)
NORMS = (aten.norm, aten.linalg_vector_norm, aten.linalg_norm, aten.linalg_matrix_norm)
LARGEST = (aten.amax, aten.max)


@coupling_rule(
    aten.mean, aten.amin, aten.var, aten.std, aten.min, aten.argmax, aten.argmin, aten.prod, aten.logsumexp, aten.all,
    aten.median, aten.topk, aten.sort, aten.var_mean, aten.std_mean, *SUMS, *NORMS, *LARGEST,
)  # fmt: skip
def reduction(trace: Trace, x: Channels, *arguments: Any, **keywords: Any) -> Any:
    """Axes that are reduced are held fixed, unless zeros there change nothing."""
    if any(isinstance(argument, Channels) for argument in arguments):
        return trace.combine([x, *arguments])
    schema = trace.operator._schema.arguments[1:]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    named = defaults | {each.name: value for each, value in zip(schema, arguments, strict=False)} | keywords
    dims = named.get("dim")
    axes = (
        sorted({axis % len(x.shape) for axis in as_sequence(dims)}) if dims not in (None, []) else range(len(x.shape))
    )
    text = f"{name_of(trace.node)} over channels"
    node: Any = trace.node.args[0]
    if trace.operator.overloadpacket is aten.mean:
        x = averaged(trace, x, node, axes)
    else:
        x = summed(trace, x, node, axes, text) if _unchanged_by_zeros(trace, named) else trace.fix(x, axes, text)
    results = [left_after_sum(trace, x, axes, shape) for shape in shapes_of(trace.node)]
    return results[0] if len(results) == 1 else tuple(results)


def _unchanged_by_zeros(trace: Trace, named: dict[str, Any]) -> bool:
    """Return whether the operator gives the same without some of the zeros among what it reduces."""
    packet, node = trace.operator.overloadpacket, trace.node
    if packet in LARGEST:
        return never_negative(node.args[0]) and not any(
            user.target is getitem and user.args[1] == 1 for user in node.users
        )
    power = named.get("ord", named.get("p"))
    if power in (None, "fro") or packet in SUMS:  # a norm without a power is the root of the sum of squares
        return packet in (*SUMS, *NORMS)
    of_vectors = packet in (aten.norm, aten.linalg_vector_norm) or len(as_sequence(named["dim"] or ())) == 1
    return packet in NORMS and of_vectors and isinstance(power, int | float) and power >= 0


def summed(trace: Trace, x: Channels, node: fx.Node, axes: Sequence[int], text: str) -> Channels:
    """Return `x`, which `node` gives, when it is reduced along `axes` by what zeros do not change.

    Channels there have to be zero to go; `text` is the reason for those that cannot.
    """
    x = by_lines(trace, x, axes, text)
    for axis in axes:
        labels = flat(trace, x, axis, text)
        if labels is not None:
            trace.sums.append(Sum(trace.node, ((node, axis),), labels))
    return x


def by_lines(trace: Trace, x: Channels, axes: Sequence[int], text: str) -> Channels:
    """Return `x` when those channels in a grid that extend along `axes` go as a whole across them.

    Where all of a grid lies along `axes`, it goes by lines across the first of them.
    """
    inner: list[int] = []
    for factor in x.factors:
        own = [axis for axis in axes_of(factor) if axis in axes]
        if len(axes_of(factor)) > 1:
            inner += own[len(own) == len(axes_of(factor)) :]
    return trace.fix(x, inner, text) if inner else x


def left_after_sum(trace: Trace, x: Channels, axes: Sequence[int], shape: Sequence[int] | None = None) -> Channels:
    """Return the channels of `x` beside `axes`, which have length 1 or, as `shape` tells, are gone."""
    factors = [factor for factor in x.factors if not set(axes_of(factor)) & set(axes)]
    ones = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if shape is None or len(shape) == len(x.shape):
        return trace.make(factors, ones if shape is None else shape)
    stay = [axis for axis in range(len(x.shape)) if axis not in axes]
    return trace.make([factor.reshape([factor.shape[axis] for axis in stay]) for factor in factors], shape)


def averaged(trace: Trace, x: Channels, node: fx.Node, axes: Sequence[int]) -> Channels:
    """Return `x`, which `node` gives, when the mean along `axes` is taken: fixed there, unless that only divides."""
    absorbers = trace.absorbers.get(trace.node, MEAN)
    if isinstance(absorbers, str):
        return trace.fix(x, axes, absorbers)
    before = len(trace.sums)
    x = summed(trace, x, node, axes, MEAN)
    if trace.sums[before:]:
        trace.divisors.append(Divisor(trace.node, tuple(each.labels for each in trace.sums[before:]), absorbers))
    return x


@coupling_rule(aten.rms_norm)
def rms_norm(trace: Trace, x: Channels, lengths: Sequence[int], weight: Any = None, *_: Any) -> Channels:
    """The mean of squares over the channels divides."""
    axes = range(len(x.shape) - len(lengths), len(x.shape))
    node: Any = trace.node.args[0]
    x = averaged(trace, x, node, axes)
    places = [(factor, axis) for factor in x.factors for axis in axes if factor.shape[axis] > 1]
    trace.literals += [Literal(trace.path, x.shape[axis], factor, axis) for factor, axis in places]
    return trace.combine([x, weight])


@coupling_rule(aten.renorm)
def renorm(trace: Trace, x: Channels, power: float, dim: int, *_: Any) -> Channels:
    """Each slice along an axis is divided by its own norm if that is too large, as under a constraint on weights."""
    node: Any = trace.node.args[0]
    others = [axis for axis in range(len(x.shape)) if axis != dim % len(x.shape)]
    return trace.combine([summed(trace, x, node, others, "renorm over channels")])


@coupling_rule(aten.cosine_similarity)
def cosine_similarity(trace: Trace, left: Channels, right: Channels, dim: int = 1, *_: Any, **__: Any) -> Channels:
    """The sum of products along an axis, over the norm of each side."""
    return _compared(trace, left, right, dim)


@coupling_rule(aten.pairwise_distance)
def pairwise_distance(
    trace: Trace, left: Channels, right: Channels, p: float = 2.0, eps: float = 1e-6, *_: Any, **__: Any
) -> Channels:
    """A norm of the differences along the last axis, to each of which `eps` is added."""
    if eps or p < 0:
        trace.pin([left, right], "the distance of pairs adds its `eps` over channels")
        return Channels(trace.shape)
    return _compared(trace, left, right, -1)


def _compared(trace: Trace, left: Channels, right: Channels, dim: int) -> Channels:
    """Return the channels of what compares two tensors along `dim`: they are summed over on both sides."""
    rank = max(len(left.shape), len(right.shape))
    axis, text = dim % rank - rank, f"{name_of(trace.node)} over channels"
    sides = []
    for x, node in zip((left, right), trace.node.args, strict=False):
        given: Any = node
        if -axis <= len(x.shape) and left.shape[axis:][:1] == right.shape[axis:][:1]:
            sides.append(summed(trace, x, given, [axis + len(x.shape)], text))
        else:  # copies of one channel, as many as the other side has
            sides.append(trace.fix(x, [axis], text) if -axis <= len(x.shape) else x)
    shape = [max(sizes) for sizes in zip(*(raised(x, rank).shape for x in sides), strict=True)]
    return left_after_sum(trace, trace.combine(sides, shape), [axis % rank], trace.shape)


@coupling_rule(aten.pdist)
def pdist(trace: Trace, x: Channels, *_: Any) -> Channels:
    """A norm of the differences of all pairs of rows."""
    node: Any = trace.node.args[0]
    summed(trace, trace.fix(x, [0], "pairs of rows"), node, [1], f"{name_of(trace.node)} over channels")
    return Channels(trace.shape)


@coupling_rule(aten.cdist)
def cdist(trace: Trace, left: Channels, right: Channels, *_: Any, **__: Any) -> Channels:
    """A norm of the differences along the last axis, for all pairs of rows: zeros on both sides do not change it."""
    text = f"{name_of(trace.node)} over channels"
    first, second = trace.node.args[:2]
    nodes: Any = (first, second)
    trace.contract(left, -1, right, -1, text)
    left, right = (
        summed(trace, x, node, [len(x.shape) - 1], text) for x, node in zip((left, right), nodes, strict=True)
    )
    rows, columns = (left_after_sum(trace, x, [len(x.shape) - 1]) for x in (left, right))
    turned = Channels((*columns.shape[:-2], 1, columns.shape[-2]), tuple(factor.mT for factor in columns.factors))
    return trace.combine([rows, turned])
