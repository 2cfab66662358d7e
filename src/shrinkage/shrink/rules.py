"""One rule per operator: which channels it makes one, which it holds fixed, and where its output has them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.shrink.channels import Channels, axes_of, raised
from shrinkage.shrink.trace import Contraction, Rule, Trace, flat, shapes_of

aten = torch.ops.aten
RULES: dict[Any, Rule] = {}


def coupling_rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of `operators`.

    Args:
        operators: packets of overloads, such as `torch.ops.aten.relu` or `torch.ops.mylib.my_operator`.

    The function is called as `rule(trace, *arguments, **keywords)` with the operator's own arguments, each tensor
    replaced by its `Channels`, and returns the `Channels` of the output. `trace.combine(operands)` is the rule of
    pointwise functions; `trace.fix(channels, axes, reason)` keeps axes as they are.

    >>> @coupling_rule(torch.ops.aten.frac)
    ... def rounding(trace, x):
    ...     return trace.combine([x])
    """

    def register(rule: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = rule
        return rule

    return register


@coupling_rule(
    torch.Tag.pointwise, aten.contiguous, aten.clone, aten.alias, aten.detach, aten.dropout, aten.feature_dropout,
    aten.alpha_dropout, aten._to_copy, aten.zeros_like, aten.ones_like,
    aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like, aten.masked_fill, aten.softplus, aten.mish,
    aten.where, aten.hardswish, aten.rrelu, aten.float_power, aten.square, aten.rsub, aten.selu, aten.relu6,
    aten.clamp, aten.hardsigmoid, aten.silu, aten.log_sigmoid,
)  # fmt: skip
def pointwise(trace: Trace, *arguments: Any, **keywords: Any) -> Channels:
    return trace.combine([*arguments, *keywords.values()])


@coupling_rule(aten.type_as, aten.to, aten.lift_fresh_copy, aten.expand_as)
def like_the_first(trace: Trace, x: Channels, *arguments: Any, **keywords: Any) -> Channels:
    return trace.combine([x])


@coupling_rule(aten.prelu)
def prelu(trace: Trace, x: Channels, weight: Channels) -> Channels:
    return trace.combine([x, along(weight, len(x.shape))])


def along(vector: Channels | None, rank: int, axis: int = 1) -> Channels:
    """Return the channels of a `vector`, one entry per index along `axis` of a tensor of `rank` axes."""
    if vector is None:
        return Channels((1,) * rank)
    shape = tuple(-1 if other == axis % rank else 1 for other in range(rank))
    factors = tuple(factor.reshape(shape) for factor in vector.factors)
    return Channels(tuple(vector.shape[0] if size == -1 else 1 for size in shape), factors)


# ------------------------------------------------------------------------------------- sums over channels


@coupling_rule(aten.linear)
def linear(trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None) -> Channels:
    rank = len(x.shape)
    arguments = trace.node.args
    labels = trace.contract(x, -1, weight, 1, "summed over")
    _used_up(trace, labels, (0, -1), (1, 1), rows=0, out=-1, bias=arguments[2] if len(arguments) > 2 else None)
    left = _without(trace, x, -1)
    right = Channels((*(1,) * (rank - 1), weight.shape[0]), _placed(weight, 0, rank, rank - 1))
    return trace.combine([left, right, along(bias, rank, -1)])


@coupling_rule(aten.matmul, aten.mm, aten.bmm)
def matmul(trace: Trace, left: Channels, right: Channels) -> Channels:
    if min(len(left.shape), len(right.shape)) < 2:
        trace.pin([left, right], "a product with a vector")
        return Channels(trace.shape)
    return _product(trace, left, right, positions=(0, 1))


@coupling_rule(aten.addmm, aten.baddbmm)
def addmm(trace: Trace, bias: Channels, left: Channels, right: Channels, **scales: Any) -> Channels:
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
) -> None:
    """Note the contraction of the arguments at positions `data[0]` and `weight[0]`, along `data[1]`, `weight[1]`."""
    first: Any
    second: Any
    first, second = (trace.node.args[position] for position, _ in (data, weight))
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


def _placed(weight: Channels, axis: int, rank: int, place: int) -> tuple[Tensor, ...]:
    """Return the labels along `axis` of a `weight`, placed along the axis `place` of a tensor of `rank` axes."""
    factor = weight.along(axis)
    if factor is None:
        return ()
    return (factor.reshape([-1 if other == place % rank else 1 for other in range(rank)]),)


@coupling_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    trace: Trace, x: Channels, weight: Channels, bias: Channels | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Channels:  # fmt: skip
    rank = len(weight.shape)
    x, weight = _fixed_in_space(trace, x, weight)
    if groups > 1:
        return _grouped(trace, x, weight, bias, groups, rows=0)
    labels = trace.contract(x, -rank + 1, weight, 1, "summed over")
    arguments = trace.node.args
    padded = (isinstance(padding, str) and padding != "valid") or (
        not isinstance(padding, str) and any(_listed(padding))
    )
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
    factors = _placed(weight, rows, rank, place)
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


def _listed(value: Any) -> Sequence[int]:
    return value if isinstance(value, list | tuple) else [value]


# ------------------------------------------------------------------------------------- attention


@coupling_rule(aten.scaled_dot_product_attention)
def attention(
    trace: Trace, query: Channels, key: Channels, value: Channels, mask: Channels | None = None,
    dropout: float = 0.0, causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False, **_: Any,
) -> Channels:  # fmt: skip
    query, key, value = (trace.fix(x, [-2], "a position in a sequence") for x in (query, key, value))
    for x in (query, key):
        if scale is None:
            trace.fix(x, [-1], "the size of a head sets the scale of attention")
    labels = trace.contract(query, -1, key, -1, "the size of a head")
    if labels is not None:
        _used_up(trace, labels, (0, -1), (1, -1), rows=-2, out=-1)
    query, key = _without(trace, query, -1), _without(trace, key, -1)
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeated_heads(trace, x, query.shape[-3] // x.shape[-3]) for x in (key, value))
    queries = Channels((*query.shape[:-1], 1), query.factors)
    keys = Channels((*key.shape[:-2], 1, 1), _without(trace, key, -2).factors)
    values = Channels((*value.shape[:-2], 1, value.shape[-1]), value.factors)
    masks = trace.fix(mask, [-1, -2], "a position in a sequence") if isinstance(mask, Channels) else Channels(())
    if masks.shape:
        masks = Channels((*masks.shape[:-2], 1, 1), masks.factors)
    return trace.combine([queries, keys, values, masks])


def _repeated_heads(trace: Trace, x: Channels, times: int) -> Channels:
    """Return `x` with every head repeated `times` times, as grouped queries read the keys."""
    shape = (*x.shape[:-3], x.shape[-3] * times, *x.shape[-2:])
    return trace.make([f.repeat_interleave(times, -3) if f.shape[-3] > 1 else f for f in x.factors], shape)


# ------------------------------------------------------------------------------------- norms and tables


@coupling_rule(aten.batch_norm, aten.instance_norm)
def batch_norm(
    trace: Trace, x: Channels, weight: Any, bias: Any, mean: Any, variance: Any, *_: Any, **__: Any
) -> Channels:
    if trace.operator.overloadpacket is aten.instance_norm:
        x = trace.fix(x, range(2, len(x.shape)), "normalized along")
    vectors = [along(vector, len(x.shape)) for vector in (weight, bias, mean, variance)]
    return trace.combine([x, *vectors])


@coupling_rule(aten.group_norm)
def group_norm(trace: Trace, x: Channels, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Channels:
    x = trace.fix(x, range(2, len(x.shape)), "normalized along")
    labels = flat(trace, x, 1, "normalized in groups")
    if labels is not None:
        members = labels.reshape(groups, -1)
        trace.labels.unite(members, members[:, :1])
    return trace.combine([x, *(along(vector, len(x.shape)) for vector in (weight, bias))])


@coupling_rule(aten.layer_norm, aten.rms_norm)
def layer_norm(
    trace: Trace, x: Channels, lengths: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> Channels:
    axes = range(-len(lengths), 0)
    operands = [
        trace.fix(y, axes, "normalized over the channels") for y in (x, weight, bias) if isinstance(y, Channels)
    ]
    return trace.combine(operands)


@coupling_rule(aten.embedding)
def embedding(trace: Trace, weight: Channels, index: Channels, *_: Any) -> Channels:
    trace.fix(weight, [0], "looked up by index")
    trace.pin(index, "an index into a table")
    trace.lookups.append(trace.node)
    rank = len(trace.shape)
    shape = (*(1,) * (rank - 1), weight.shape[1])
    return trace.combine([Channels(shape, _placed(weight, 1, rank, rank - 1))])


@coupling_rule(aten.index)
def index(trace: Trace, x: Channels, indices: Sequence[Any]) -> Channels:
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    trace.pin(indices, "an index into a table")
    x = trace.fix(x, axes, "looked up by index")
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


def _is_mask(trace: Trace, position: int) -> bool:
    argument: Any = trace.node.args[1]
    return bool(argument[position].meta["val"].dtype == torch.bool)


# ------------------------------------------------------------------------------------- sums, orders, windows


@coupling_rule(
    aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod, aten.flip,
    aten.logcumsumexp,
)  # fmt: skip
def over_axes(trace: Trace, x: Channels, axes: Any, *_: Any, **__: Any) -> Channels:
    return trace.combine([trace.fix(x, _listed(axes), f"{_name(trace)} over channels")])


@coupling_rule(aten.roll)
def roll(trace: Trace, x: Channels, shifts: Any, axes: Any = ()) -> Channels:
    return trace.combine([trace.fix(x, _listed(axes) or range(len(x.shape)), "rolled over channels")])


@coupling_rule(
    aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.max, aten.min, aten.argmax, aten.argmin,
    aten.prod, aten.logsumexp, aten.norm, aten.linalg_vector_norm, aten.all, aten.any, aten.median, aten.topk,
    aten.sort,
)  # fmt: skip
def reduction(trace: Trace, x: Channels, *arguments: Any, **keywords: Any) -> Any:
    if any(isinstance(argument, Channels) for argument in arguments):
        return trace.combine([x, *arguments])
    schema = [argument.name for argument in trace.operator._schema.arguments][1:]
    named = dict(zip(schema, arguments, strict=False)) | keywords
    dims = named.get("dim")
    axes = sorted({axis % len(x.shape) for axis in _listed(dims)}) if dims not in (None, []) else range(len(x.shape))
    x = trace.fix(x, axes, f"{_name(trace)} over channels")
    results = []
    for shape in shapes_of(trace.node):
        kept = len(shape) == len(x.shape)
        results.append(_reduced_to(trace, x, list(axes), shape, kept))
    return results[0] if len(results) == 1 else tuple(results)


def _reduced_to(trace: Trace, x: Channels, axes: list[int], shape: Sequence[int], kept: bool) -> Channels:
    factors = [factor for factor in x.factors if not set(axes_of(factor)) & set(axes)]
    if not kept:
        stay = [axis for axis in range(len(x.shape)) if axis not in axes]
        factors = [factor.reshape([factor.shape[axis] for axis in stay]) for factor in factors]
    return trace.make(factors, shape)


@coupling_rule(
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool2d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten.upsample_linear1d,
    aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d, aten._upsample_nearest_exact2d,
    aten.max_pool2d_with_indices, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
)  # fmt: skip
def pooling(trace: Trace, x: Channels, *_: Any, **__: Any) -> Any:
    name = str(trace.operator)
    space = next(number for number in (1, 2, 3) if f"{number}d" in name)
    x = trace.fix(x, range(-space, 0), "pooled along")
    results = tuple(trace.make(x.factors, shape) for shape in shapes_of(trace.node))
    return results[0] if len(results) == 1 else results


@coupling_rule(aten.pad, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d)
def pad(trace: Trace, x: Channels, widths: Sequence[int], *_: Any, **__: Any) -> Channels:
    padded = [-1 - number // 2 for number, width in enumerate(widths) if width]
    return trace.make(trace.fix(x, padded, "padded along").factors)


def _name(trace: Trace) -> str:
    return str(trace.operator.overloadpacket).removeprefix("aten.").strip("_")
