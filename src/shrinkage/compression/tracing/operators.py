"""One rule per operator: which channels it makes one, which it holds fixed, and where its output has them."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of
from shrinkage.compression.tracing.trace import Literal, Rule, Trace, flat, name_of, shapes_of

aten = torch.ops.aten
RULES: dict[Any, Rule] = {}


def coupling_rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of `operators`.

    Args:
        operators: packets of overloads, such as `torch.ops.aten.relu` or `torch.ops.mylib.my_operator`, or the names of
            some that need not be there, such as "mylib.my_operator".

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
    aten.clamp, aten.hardsigmoid, aten.silu, aten.log_sigmoid, aten.leaky_relu, aten.__and__, aten.__or__, aten.__xor__,
    aten.copy, aten.real, aten.imag, aten.complex, aten.polar, aten.conj, aten._conj, aten.resolve_conj,
    aten.resolve_neg, aten._neg_view,
)  # fmt: skip
def pointwise(trace: Trace, *arguments: Any, **keywords: Any) -> Channels:
    """Elements that meet belong to one channel."""
    return trace.combine([*arguments, *keywords.values()])


@coupling_rule(aten.type_as, aten.to, aten.lift_fresh_copy, aten.zero, aten.fill)
def like_the_first(trace: Trace, x: Channels, *arguments: Any, **keywords: Any) -> Channels:
    """The channels of the first argument; of others only the type or the shape is taken."""
    return trace.combine([x])


@coupling_rule(aten.prelu)
def prelu(trace: Trace, x: Channels, weight: Channels) -> Channels:
    """A slope for every channel, or one for all."""
    return trace.combine([x, along(weight, len(x.shape))])


def along(vector: Channels | None, rank: int, axis: int = 1) -> Channels:
    """Return the channels of a `vector`, one entry per index along `axis` of a tensor of `rank` axes."""
    if vector is None:
        return Channels((1,) * rank)
    shape = tuple(-1 if other == axis % rank else 1 for other in range(rank))
    factors = tuple(factor.reshape(shape) for factor in vector.factors)
    return Channels(tuple(vector.shape[0] if size == -1 else 1 for size in shape), factors)


def placed(weight: Channels, axis: int, rank: int, place: int) -> tuple[Tensor, ...]:
    """Return the labels along `axis` of a `weight`, placed along the axis `place` of a tensor of `rank` axes."""
    factor = weight.along(axis)
    if factor is None:
        return ()
    return (factor.reshape([-1 if other == place % rank else 1 for other in range(rank)]),)


def as_sequence(value: Any) -> Sequence[int]:
    """Return `value` as a sequence: axes, or lengths along them, that may be given as one number."""
    return value if isinstance(value, list | tuple) else [value]


@coupling_rule(aten.batch_norm, aten.instance_norm)
def batch_norm(
    trace: Trace, x: Channels, weight: Any, bias: Any, mean: Any, variance: Any, training: bool = False, *_: Any,
    **__: Any,
) -> Channels:  # fmt: skip
    """A scale, a shift, a mean and a variance for every channel."""
    if trace.operator.overloadpacket is aten.instance_norm:
        x = trace.fix(x, range(2, len(x.shape)), "normalized along")
    elif training or mean is None:  # statistics of the call itself: those of a weight that is standardized, say
        x = trace.fix(x, [axis for axis in range(len(x.shape)) if axis != 1], "standardized over channels")
    grid = x.along(1)
    if grid is not None:  # pixels that a linear layer makes go with their channel
        x = trace.fix(x, [axis for axis in axes_of(grid) if axis != 1], "normalized along")
    if weight is None and mean is None:  # so that no shape tells a layer how many channels are left
        trace.literals += [Literal(trace.path, x.shape[1], factor, 1) for factor in x.factors if factor.shape[1] > 1]
    vectors = [along(vector, len(x.shape)) for vector in (weight, bias, mean, variance)]
    return trace.combine([x, *vectors])


@coupling_rule(aten.group_norm)
def group_norm(trace: Trace, x: Channels, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Channels:
    """A group that is normalized together goes as a whole; without weights no shape would tell how many are left."""
    if weight is None:
        x = trace.fix(x, [1], "normalized in groups by a norm without weights")
    x = trace.fix(x, range(2, len(x.shape)), "normalized along")
    labels = flat(trace, x, 1, "normalized in groups")
    if labels is not None:
        members = labels.reshape(groups, -1)
        trace.labels.unite(members, members[:, :1])
    return trace.combine([x, *(along(vector, len(x.shape)) for vector in (weight, bias))])


@coupling_rule(aten.layer_norm)
def layer_norm(
    trace: Trace, x: Channels, lengths: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> Channels:
    """What a mean over the channels is subtracted from needs all of them."""
    axes = range(-len(lengths), 0)
    text = f"layer norm also subtracts the mean over {prod(lengths)} channels"
    return trace.combine([trace.fix(y, axes, text) for y in (x, weight, bias) if isinstance(y, Channels)])


@coupling_rule(aten._weight_norm)
def weight_norm(trace: Trace, direction: Channels, length: Channels, axis: int = 0) -> Channels:
    """Every index along the axis has a length; what is measured along the other axes stays, or that takes it up."""
    if trace.node not in trace.lengths:
        own = None if axis == -1 else axis  # the norm of all
        others = [other for other in range(len(direction.shape)) if other != own]
        direction = trace.fix(direction, others, "measured by a norm of the weight")
    return trace.combine([direction, length])


@coupling_rule(
    aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod, aten.flip,
    aten.logcumsumexp, aten.cummax, aten.cummin,
)  # fmt: skip
def over_axes(trace: Trace, x: Channels, axes: Any, *_: Any, **__: Any) -> Any:
    """What depends on all elements along an axis holds that axis fixed."""
    result = trace.combine([trace.fix(x, as_sequence(axes), f"{name_of(trace.node)} over channels")])
    several = shapes_of(trace.node)
    return result if len(several) == 1 else tuple(result for _ in several)


@coupling_rule(aten.roll)
def roll(trace: Trace, x: Channels, shifts: Any, axes: Any = ()) -> Channels:
    """What moves elements along an axis holds that axis fixed."""
    return trace.combine([trace.fix(x, as_sequence(axes) or range(len(x.shape)), "rolled over channels")])


@coupling_rule(
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool2d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten.upsample_linear1d,
    aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d, aten._upsample_nearest_exact2d,
    aten.max_pool2d_with_indices, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
    aten.max_pool1d_with_indices, aten.max_pool3d_with_indices, aten.adaptive_max_pool1d, aten.adaptive_max_pool3d,
)  # fmt: skip
def pooling(trace: Trace, x: Channels, *arguments: Any, **_: Any) -> Any:
    """Windows along the last axes; channels stay apart, and those along an axis where each window is one place too."""
    name = str(trace.operator)
    space = next(number for number in (1, 2, 3) if f"{number}d" in name)
    alone = [] if "adaptive" in name or "upsample" in name else _windows_of_one(space, *arguments)
    x = trace.fix(x, [place - space for place in range(space) if place not in alone], "pooled along")
    results = tuple(trace.make(x.factors, shape) for shape in shapes_of(trace.node))
    return results[0] if len(results) == 1 else results


def _windows_of_one(space: int, kernel: Any, *_: Any) -> list[int]:
    """Return those of the last axes along which a window is one place. If some are left out, the length changes."""
    sizes = as_sequence(kernel)
    return [place for place in range(space) if sizes[place if len(sizes) > 1 else 0] == 1]


@coupling_rule(aten.max_unpool2d, aten.max_unpool3d)
def unpooling(trace: Trace, x: Channels, places: Channels, *_: Any) -> Channels:
    """The largest values go back to their places, in the same channels."""
    x = trace.combine([x, places], x.shape)
    space = 3 if trace.operator.overloadpacket is aten.max_unpool3d else 2
    return trace.make(trace.fix(x, range(-space, 0), "pooled along").factors)


@coupling_rule(
    aten.pad, aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
    aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
)  # fmt: skip
def pad(trace: Trace, x: Channels, widths: Sequence[int], *_: Any, **__: Any) -> Channels:
    """Axes that grow are held fixed."""
    padded = [-1 - number // 2 for number, width in enumerate(widths) if width]
    return trace.make(trace.fix(x, padded, "padded along").factors)
