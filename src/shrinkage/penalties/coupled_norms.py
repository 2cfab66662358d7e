"""Penalties of the norms of groups that span several tensors: prox, gradient, value and residual by sums over groups.

The slices of each tensor along one dimension are added up, and then the sums of all slices in the same group, on other
processes too. The result, one scale per group, multiplies the slices. So tensors are never joined to one.

All functions have one value per group, shape `(count,)`, where those of `group_norms.py` have one that broadcasts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shrinkage.penalties import group_norms
from shrinkage.penalties.groups import norms_within
from shrinkage.penalties.membership import GroupPenalty, Membership, padded
from shrinkage.proximal import secular, secular_search
from shrinkage.proximal.precision import at_least_float32, upcast
from shrinkage.proximal.reductions import Reduction

Parts = Sequence[Membership]
Tensors = Sequence[Tensor]


def prox(
    group_penalty: GroupPenalty, parts: Parts, ws: Tensors, steps: Sequence[float | Tensor], *, to_rest: bool
) -> Reduction[list[Tensor]]:
    """Return each tensor at the proximal point of all of them together.

    Args:
        group_penalty: the penalty of each group.
        parts: which groups the tensors' slices belong to.
        ws: the tensors.
        steps: of each tensor, a number, or a tensor of its shape.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    number = one_number(steps)
    split = split_by(parts, ws)
    if number is None:
        spread = [part.split(as_tensor(step, w)) for part, step, w in zip(parts, steps, ws, strict=True)]
        moved = yield from in_metric(group_penalty, parts, split, spread, to_rest=to_rest)
    else:
        norms = yield from norms_of(parts, split)
        factors = padded(factors_of(group_penalty, norms, number), 1.0)
        moved = [w * part.column(factors, w) for part, w in zip(parts, split, strict=True)]
    return shaped(moved, ws)


def gradient(group_penalty: GroupPenalty, parts: Parts, ws: Tensors) -> Reduction[list[Tensor]]:
    """Return weight * phi'(||w_g||) * w_g / ||w_g|| for each tensor."""
    split = split_by(parts, ws)
    norms = yield from norms_of(parts, split)
    slopes = padded(group_norms.slopes(norms, group_penalty.penalty, 1.0) * group_penalty.weights, 0.0)
    return shaped([w * part.column(slopes, w) for part, w in zip(parts, split, strict=True)], ws)


def value(group_penalty: GroupPenalty, parts: Parts, ws: Tensors) -> Reduction[Tensor]:
    """Return the sum of weight * phi(||w_g||)."""
    norms = yield from norms_of(parts, split_by(parts, ws))
    return (group_penalty.weights * group_penalty.penalty.cost(norms)).sum().to(norms.dtype)


def residual(group_penalty: GroupPenalty, parts: Parts, ws: Tensors, grads: Tensors) -> Reduction[Tensor]:
    """Return the distance per group: to the ball of radius weight * slope where w_g is 0."""
    split = split_by(parts, ws)
    slopes = split_by(parts, grads)
    norms = yield from norms_of(parts, split)
    at_zero = yield from residual_at_zero(group_penalty, parts, grads)
    penalty = yield from gradient(group_penalty, parts, split)
    elsewhere = yield from norms_of(parts, [slope + own for slope, own in zip(slopes, penalty, strict=True)])
    return torch.where(norms == 0, at_zero, elsewhere)


def residual_at_zero(group_penalty: GroupPenalty, parts: Parts, grads: Tensors) -> Reduction[Tensor]:
    """Return the residual that each group would have if it were zero."""
    norms = yield from norms_of(parts, split_by(parts, grads))
    weights = group_penalty.weights.to(norms.dtype)
    return weights * group_penalty.penalty.residual(torch.zeros_like(norms), norms / weights)


def stays(group_penalty: GroupPenalty, parts: Parts, ws: Tensors, averages: Tensors) -> Reduction[list[Tensor]]:
    """Return where each tensor is in a group that is zero and stationary for the gradients `averages`."""
    norms = yield from norms_of(parts, split_by(parts, ws))
    at_zero = yield from residual_at_zero(group_penalty, parts, averages)
    return masks_of((norms == 0) & (at_zero == 0), parts, ws)


def zeros(parts: Parts, ws: Tensors) -> Reduction[list[Tensor]]:
    """Return where each tensor is in a group that is zero."""
    marks = [(w != 0).to(at_least_float32(w.dtype)) for w in ws]  # squares of tiny weights would vanish
    norms = yield from norms_of(parts, split_by(parts, marks))
    return masks_of(norms == 0, parts, ws)


def masks_of(chosen: Tensor, parts: Parts, ws: Tensors) -> list[Tensor]:
    """Return the elements of each tensor that are in the `chosen` groups."""
    still = padded(chosen.to(torch.float32), 0.0)
    split = [part.split(w) for part, w in zip(parts, ws, strict=True)]
    held = [part.column(still, w).expand_as(w) > 0 for part, w in zip(parts, split, strict=True)]
    return [mask.reshape(w.shape) for mask, w in zip(held, ws, strict=True)]


def strength_max(group_penalty: GroupPenalty, parts: Parts, grads: Tensors) -> Reduction[Tensor]:
    """Return the strength that the largest ||grad_g|| / weight asks of the penalty."""
    norms = yield from norms_of(parts, split_by(parts, grads))
    return group_penalty.penalty.strength_max(norms / group_penalty.weights.to(norms.dtype))


def in_metric(
    group_penalty: GroupPenalty, parts: Parts, ws: Tensors, steps: Tensors, *, to_rest: bool
) -> Reduction[list[Tensor]]:
    """Return the proximal point in a diagonal metric, by one secular equation for all parts of a group.

    The quadratic part is taken in first, as in `group_norms`.
    """
    found = group_penalty.penalty.radial()
    if found is None:
        return (yield from searched(group_penalty, parts, ws, steps))
    linear, quadratic = found
    if isinstance(quadratic, Tensor) or quadratic:
        curve = padded(group_penalty.weights * quadratic, 0.0)
        divisors = [1 + step * part.column(curve, w) for part, w, step in zip(parts, ws, steps, strict=True)]
        ws = [w / divisor for w, divisor in zip(ws, divisors, strict=True)]
        steps = [step / divisor for step, divisor in zip(steps, divisors, strict=True)]
    if not isinstance(linear, Tensor) and not linear:
        return list(ws)
    slope = padded(group_penalty.weights * linear, 0.0)
    thresholds = [step * part.column(slope, w) for part, w, step in zip(parts, ws, steps, strict=True)]
    metrics = [each.clamp_min(1 / secular.largest(each.dtype)).reciprocal() for each in thresholds]
    members = list(zip(parts, ws, metrics, strict=True))

    def sums() -> Tensor:
        return added(parts, [secular.secular_sums(w, metric, part.within(w)) for part, w, metric in members])

    def terms(theta: Tensor, resting: Tensor) -> Tensor:
        each = [(part, w, metric, part.column(padded(theta, 0.0), w)) for part, w, metric in members]
        return added(parts, [secular.secular_terms(w, metric, own, part.within(w)) for part, w, metric, own in each])

    root = yield from secular.secular_root(sums, terms, to_rest=to_rest)
    scales = [secular.secular_scale(metric, part.column(padded(root, 0.0), w)) for part, w, metric in members]
    pairs = zip(ws, scales, thresholds, strict=True)
    return [w * scale.masked_fill(threshold == 0, 1.0) for w, scale, threshold in pairs]


def searched(group_penalty: GroupPenalty, parts: Parts, ws: Tensors, steps: Tensors) -> Reduction[list[Tensor]]:
    """Return the proximal point of a penalty that may have several minima, the best of them for each group."""
    members = [
        (part, secular_search.Curve(w, step, part.within(w))) for part, w, step in zip(parts, ws, steps, strict=True)
    ]
    penalty = group_norms.target_of(
        group_penalty.penalty, group_penalty.weights.to(widest(ws)), tuple(group_penalty.weights.shape)
    )

    def sums() -> Tensor:
        return added(parts, [curve.sums() for _, curve in members])

    def at(multiplier: Tensor, *, distance: bool) -> Tensor:
        columns = [(part.column(padded(multiplier, 0.0), curve.w), curve) for part, curve in members]
        return added(parts, [curve.at(column, distance=distance) for column, curve in columns])

    multiplier = yield from secular_search.radial_multiplier(sums, at, penalty)
    return [curve.w * curve.scale(part.column(padded(multiplier, 0.0), curve.w)) for part, curve in members]


def split_by(parts: Parts, ws: Tensors) -> list[Tensor]:
    """Return tensors in float32 at least, each with dimensions within its slices."""
    return [part.split(upcast(w)) for part, w in zip(parts, ws, strict=True)]


def factors_of(group_penalty: GroupPenalty, norms: Tensor, step: float | Tensor) -> Tensor:
    """Return prox_phi(norm) / norm of each group, in the metric of one step for all."""
    return group_norms.scales(norms, (step * group_penalty.weights).to(norms.dtype), group_penalty.penalty, 1.0)


def products_of(parts: Parts, ws: Tensors, others: Sequence[Tensor | None]) -> Reduction[Tensor]:
    """Return the sum of products of two lists of tensors in each group; None stands for zeros."""
    pairs = [(part, part.split(upcast(w)), other) for part, w, other in zip(parts, ws, others, strict=True)]
    slices = [
        (w.new_zeros(w.shape[part.dim]) if other is None else (w * part.split(other)).sum(part.within(w)))[None]
        for part, w, other in pairs
    ]
    products = yield added(parts, slices)
    return products[0]


def norms_of(parts: Parts, ws: Tensors) -> Reduction[Tensor]:
    """Return the norm of each group of `split` tensors."""
    squares = yield added(
        parts, [norms_within(w, part.within(w)).square()[None] for part, w in zip(parts, ws, strict=True)]
    )
    return squares[0].sqrt()


def added(parts: Parts, sums: Tensors) -> Tensor:
    """Return sums per slice of all parts, each of shape `(k, ...)`, as sums per group, shape `(k, count)`."""
    total = torch.zeros(len(sums[0]), parts[0].count + 1, dtype=widest(sums), device=sums[0].device)
    for part, each in zip(parts, sums, strict=True):
        if part.counts:
            part.add_(total, each)
    return total[:, :-1]


def widest(tensors: Tensors) -> torch.dtype:
    """Return the type in which numbers of all `tensors` can be added up."""
    return max((each.dtype for each in tensors), key=lambda dtype: torch.finfo(dtype).bits)


def one_number(steps: Sequence[float | Tensor]) -> float | Tensor | None:
    """Return the step if it is one number for all; None if it is not, or to know that would wait for a device."""
    first, *others = steps
    if isinstance(first, Tensor):
        return first if first.dim() == 0 and all(each is first for each in others) else None
    return first if all(not isinstance(each, Tensor) and each == first for each in others) else None


def as_tensor(step: float | Tensor, w: Tensor) -> Tensor:
    """Return `step` as one number per element of `w`, in the type that `w` is computed in."""
    return torch.as_tensor(step, dtype=at_least_float32(w.dtype), device=w.device).expand_as(w)


def shaped(moved: Tensors, ws: Tensors) -> list[Tensor]:
    """Return the tensors that were `moved` in the shapes of `ws`."""
    return [each.reshape(w.shape) for each, w in zip(moved, ws, strict=True)]
