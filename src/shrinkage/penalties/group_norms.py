"""Prox and gradient of a penalty of the norms of groups, by sums over each group: the tensor may be a piece of a whole.

Only the sums need the rest of a group. What follows from them, a scale per group and a write, is done on the piece.
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


def scaled_by_sums(
    w: Tensor, step: float | Tensor, layout: Layout, function: Elementwise, weight: float
) -> Reduction[Tensor]:
    """Return `scaled` with the norms of whole groups."""
    norms = yield from norms_by_sums(w, layout)
    return w * scales(norms, step, function, weight)


def scaled_in_metric_by_sums(
    w: Tensor, steps: Tensor, layout: Layout, parts: tuple[float | Tensor, float | Tensor], *, to_rest: bool
) -> Reduction[Tensor]:
    """Return the prox of  linear * ||w_g|| + quadratic / 2 * ||w_g||^2  in a diagonal metric.

    The quadratic part is taken in first: the prox of R + q/2 ||.||^2 with step s at w is that of R with step
    s / (1 + s q) at w / (1 + s q). What is left is the secular equation.
    """
    linear, quadratic = parts
    if isinstance(quadratic, Tensor) or quadratic:
        w, steps = w / (1 + steps * quadratic), steps / (1 + steps * quadratic)
    if not isinstance(linear, Tensor) and not linear:
        return w.clone()
    scale = yield from secular.block_scale_by_sums(w, steps * linear, layout.within, to_rest=to_rest)
    return w * scale


def searched_by_sums(
    w: Tensor, steps: Tensor, layout: Layout, function: secular_search.RadialFunction
) -> Reduction[Tensor]:
    """Return the prox of `function` in a diagonal metric, the best of its minima."""
    scale = yield from secular_search.radial_scale_by_sums(w, steps, layout.within, function)
    return w * scale


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
