"""Proximal operators of functions of a group's norm in a diagonal metric, as a factor per element.

R(y) = phi(||y||). In a plain metric the group keeps its direction: its factor is prox_phi(||w||) / ||w||. In a diagonal
metric with steps t_i the minimiser is y_i = w_i / (1 + mu t_i) for one multiplier mu per group, with
mu ||y|| = phi'(||y||): an equation in one unknown, called secular. The functions here solve it for all groups at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shrinkage.proximal.reductions import Reduction, alone

# Newton's steps are at rest after 4 where the steps of a group differ by e^1, after 11 where they differ by e^30.
NEWTON_ITERATIONS = 12


def block_scale_in_metric(w: Tensor, thresholds: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return the factor per element by which a group soft threshold in a diagonal metric scales it.

    argmin over y of 1/2 sum_i (y_i - w_i)^2 / t_i + ||y|| for each group. The group is zero if and only if
    sum (w_i / t_i)^2 <= 1; else y_i = w_i theta / (theta + t_i), where theta = ||y|| is the root of the secular
    equation  sum (w_i / (theta + t_i))^2 = 1.

    Args:
        w: any shape.
        thresholds: step times strength, >= 0, the shape of `w`.
        within: the dimensions of `w` that run inside a group, at least one; the others tell groups apart.

    Returns:
        Factors in [0, 1], the shape of `w`; exactly 0 in a group that is zero, exactly 1 where the threshold is 0.

    Reference: Deleu and Bengio (2021), "Structured sparsity inducing adaptive optimizers", theorem 1.
    Thresholds below 1e-19 (float64: 1e-150) count as that where it is asked whether a group is zero.

    >>> block_scale_in_metric(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), within=(1,))
    tensor([[0.8000, 0.8000]])
    """
    if w.numel() == 0:
        return torch.ones_like(w)
    # Elsewhere reading whether the iteration has converged would wait for the device.
    return alone(block_scale_by_sums(w, thresholds, within, to_rest=w.device.type == "cpu"))


def block_scale_by_sums(
    w: Tensor, thresholds: Tensor, within: tuple[int, ...], *, to_rest: bool = False
) -> Reduction[Tensor]:
    """Return what `block_scale_in_metric` does, for groups of which `w` may hold only a shard.

    Args:
        w: any shape.
        thresholds: the shape of `w`.
        within: the dimensions of `w` that run inside a group.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    metric = thresholds.clamp_min(1 / largest(w.dtype)).reciprocal()
    root = yield from secular_root(
        lambda: secular_sums(w, metric, within),
        lambda theta, resting: secular_terms(w, metric, theta, within),
        to_rest=to_rest,
    )
    return secular_scale(metric, root).masked_fill(thresholds == 0, 1.0)


def secular_root(
    sums: Callable[[], Tensor], terms: Callable[[Tensor, Tensor], Tensor], *, to_rest: bool
) -> Reduction[Tensor]:
    """Return the root of each group's secular equation, 0 for a group that is zero.

    Newton's method on  S(theta)^(-1/2) - 1, which increases and is concave, rises to the root from any point below it
    (Moré and Hebden), so a fixed number of iterations serves all groups and nothing is read back from the device.

    Args:
        sums: returns `secular_sums` of a shard.
        terms: returns `secular_terms` of a shard at theta; those of groups at rest are not used.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    theta, zero = secular_start((yield sums()))
    resting = zero
    for _ in range(NEWTON_ITERATIONS):
        moved = secular_step(theta, (yield terms(theta, resting)))
        # A group at rest stays there, so that what becomes of it does not depend on its company.
        theta, resting = torch.where(resting, theta, moved), resting | at_rest(theta, moved)
        if to_rest and bool(resting.all()):
            break
    return settled(theta, zero)


def secular_sums(w: Tensor, metric: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return the sums over each group from which its root is bracketed, one after the other in a new first dimension.

    w^2, w^2 t, w^2 t^2, (w / t)^2 and (w / t)^2 / t, where 1 / t is the `metric`.
    """
    thresholds = metric.reciprocal()
    terms = w.square()
    parts = [terms.sum(within, keepdim=True)]
    parts += [terms.mul_(thresholds).sum(within, keepdim=True) for _ in range(2)]
    terms = (w * metric).square_()
    parts += [terms.sum(within, keepdim=True), terms.mul_(metric).sum(within, keepdim=True)]
    return torch.stack(parts)


def secular_terms(w: Tensor, metric: Tensor, theta: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return S(theta) = sum (w / (theta + t))^2  of each group and  sum w^2 / (theta + t)^3  in a new first dimension.

    1 / t is the `metric`, so that one division serves an element.
    """
    inverse = (theta * metric).add_(1).reciprocal_().mul_(metric)
    terms = (w * inverse).square_()
    return torch.stack([terms.sum(within, keepdim=True), terms.mul_(inverse).sum(within, keepdim=True)])


def secular_start(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return a point near the root of each group's secular equation or below it, and which groups are zero.

    With the mean m and the variance s^2 of t, weighted by w^2, S(theta) is ||w||^2 / (theta + m)^2 times
    1 + 3 s^2 / (theta + m)^2 + ...: the point is the root of these terms, where s is small beside ||w||.
    """
    square, weighted, second, dual_square, dual_weighted = sums
    norm, tiny = square.sqrt(), torch.finfo(sums.dtype).tiny
    bound = secular_lower_bound(square, weighted, dual_square, dual_weighted)
    mean = weighted / square.clamp_min(tiny)
    spread = (second / square.clamp_min(tiny) - mean.square()) / square.clamp_min(tiny)
    near = torch.where((spread > 0) & (spread < 0.1), norm * (1 + 1.5 * spread) - mean, 0.0)
    return torch.fmax(near, bound), dual_square <= 1


def secular_step(theta: Tensor, terms: Tensor) -> Tensor:
    """Return theta after an iteration of Newton's method, which from near above falls below the root."""
    total, slope = terms
    moved = theta + (total.sqrt() - 1) * total / slope.clamp_min(torch.finfo(theta.dtype).tiny)
    # An infinite norm is its own root, and 0 / 0 there.
    return torch.where(theta.isinf(), theta, moved)


def at_rest(theta: Tensor, moved: Tensor) -> Tensor:
    """Return whether no further iteration is needed: it squares the relative error, times 3/2 at most."""
    small: float = 0.5 * torch.finfo(theta.dtype).eps ** 0.5
    return ((moved - theta).abs() <= small * moved) | ~moved.isfinite()


def settled(theta: Tensor, zero: Tensor) -> Tensor:
    """Return the roots: 0 for groups that are zero, and none so large that its product with a metric overflows."""
    return theta.clamp_max(largest(theta.dtype)).masked_fill_(zero, 0.0)


def largest(dtype: torch.dtype) -> float:
    """Return the largest metric, so that no product of two overflows.

    Written out: a compiler would ask before each call whether a global float is the same as before.
    """
    return 1e19 if dtype == torch.float32 else 1e150


def secular_scale(metric: Tensor, root: Tensor) -> Tensor:
    """Return the factor root / (root + t) of each element, where 1 / t is the `metric`."""
    kept = root * metric
    return kept.div_(kept + 1)


def secular_lower_bound(square: Tensor, weighted: Tensor, dual_square: Tensor, dual_weighted: Tensor) -> Tensor:
    """Return a point below the root of each group's secular equation, unless that is far below the group's norm.

    1 / (theta + t)^2 is convex in t, so S(theta) >= ||w||^2 / (theta + m)^2, where m is the mean of t weighted by w^2
    (Jensen): the root is at least ||w|| - m. Likewise, by u = 1 / t, it is at least (||w / t|| - 1) / m', where m' is
    the mean of u weighted by (w / t)^2. A root below a tiny share of ||w|| is taken to be there, lest squares overflow.

    Args:
        square: sum of w^2 for each group.
        weighted: sum of w^2 t.
        dual_square: sum of (w / t)^2.
        dual_weighted: sum of (w / t)^2 / t.
    """
    norm, tiny = square.sqrt(), torch.finfo(square.dtype).tiny
    by_norm = norm - weighted / square.clamp_min(tiny)
    by_dual = (dual_square.sqrt() - 1) * (dual_square / dual_weighted.clamp_min(tiny))
    share = 1e-9 if square.dtype == torch.float32 else 1e-30
    # fmax passes over the NaN of infinity / infinity.
    bound = torch.fmax(torch.fmax(by_norm, by_dual), share * norm).clamp_min(tiny)
    return torch.where(norm.isinf(), norm, bound)
