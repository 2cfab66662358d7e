"""Prox and gradient of a penalty of the norms of groups, by sums over each group: the tensor may be a shard.

Only the sums need the rest of a group. Each shard is then multiplied by one scale per group.
"""

import torch
from torch import Tensor

from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.groups import Layout, norms_within
from shrinkage.proximal import secular, secular_search
from shrinkage.proximal.reductions import Reduction
from shrinkage.proximal.secular import largest


def norms_by_sums(w: Tensor, layout: Layout) -> Reduction[Tensor]:
    """Return the norm of each group, in the shape that broadcasts against the groups."""
    squares = yield norms_within(w, layout.within).square()
    return squares.sqrt()


def scales(norms: Tensor, step: float | Tensor, function: Elementwise, weight: float | Tensor) -> Tensor:
    """Return prox_phi(norm) / norm of each group, in the metric of one step for all.

    Norms whose squares overflow, or vanish, are taken to be as large as those whose squares just do not.
    """
    bound = largest(norms.dtype)
    norms = norms.clamp(1 / bound, bound)
    return function.prox(norms.reshape(-1), step * weight).reshape(norms.shape) / norms


def in_plain_metric(
    w: Tensor, step: float | Tensor, layout: Layout, function: Elementwise, weight: float
) -> Reduction[Tensor]:
    """Return the prox in the metric of one step for all elements, with the norms of whole groups."""
    norms = yield from norms_by_sums(w, layout)
    return w * scales(norms, step, function, weight)


def in_metric(
    w: Tensor, steps: Tensor, layout: Layout, function: Elementwise, weight: float, *, like: Tensor, to_rest: bool
) -> Reduction[Tensor]:
    """Return the prox in a diagonal metric: the secular equation of each group, or the best of its minima.

    Of  linear * ||w_g|| + quadratic / 2 * ||w_g||^2  the quadratic part is taken in first: the prox of
    R + q/2 ||.||^2 with step s at w is that of R with step s / (1 + s q) at w / (1 + s q). What is left is the secular
    equation.

    Args:
        w: the tensor, split into groups.
        steps: one for each element.
        layout: of the groups.
        function: what a norm is penalized, times `weight`.
        weight: of all groups.
        like: what the result has the shape and the type of.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    radial = function.radial()
    if radial is None:
        target = target_of(function, weight, layout.kept)
        return scaled(w, like, secular_search.radial_scale_by_sums(w, steps, layout.within, target))
    linear, quadratic = (weight * as_column(part, layout.kept) for part in radial)
    if isinstance(quadratic, Tensor) or quadratic:
        w, steps = w / (1 + steps * quadratic), steps / (1 + steps * quadratic)
    if not isinstance(linear, Tensor) and not linear:
        return scaled(w, like)
    return scaled(w, like, secular.block_scale_by_sums(w, steps * linear, layout.within, to_rest=to_rest))


def scaled(w: Tensor, like: Tensor, scale: Reduction[Tensor] | None = None) -> Reduction[Tensor]:
    """Return `w` times the result of another computation, in the shape and type of `like`."""
    result = w.clone() if scale is None else w * (yield from scale)
    return result.reshape(like.shape).to(like.dtype)


def target_of(function: Elementwise, weight: float | Tensor, shape: tuple[int, ...]) -> secular_search.RadialFunction:
    """Return what norms in a tensor of `shape` are penalized: `weight` times what `function` penalizes an element."""
    return secular_search.RadialFunction(
        cost=lambda norms: weight * function.cost(norms.reshape(-1)).reshape(shape),
        slope=lambda norms: weight * function.gradient(norms.reshape(-1)).reshape(shape),
        slope_at_zero=weight * as_column(function.slope_at_zero, shape),
    )


def slopes(norms: Tensor, function: Elementwise, weight: float) -> Tensor:
    """Return weight * phi'(norm) / norm, and 0 where a group is zero."""
    slope = weight * function.gradient(norms.reshape(-1)).reshape(norms.shape)
    return slope / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def gradient_by_sums(w: Tensor, layout: Layout, function: Elementwise, weight: float) -> Reduction[Tensor]:
    """Return weight * phi'(||w_g||) * w_g / ||w_g||."""
    norms = yield from norms_by_sums(w, layout)
    return w * slopes(norms, function, weight).to(w.dtype)


def reshaped(computation: Reduction[Tensor], like: Tensor) -> Reduction[Tensor]:
    """Return the result of `computation` in the shape and type of `like`."""
    result = yield from computation
    return result.reshape(like.shape).to(like.dtype)


def as_column(part: float | Tensor, shape: tuple[int, ...]) -> float | Tensor:
    """Return one value per group in the shape that broadcasts against the groups, a number as it is."""
    return part.reshape(() if part.numel() == 1 else shape) if isinstance(part, Tensor) else part
