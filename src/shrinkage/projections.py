"""Projections as functions of tensors: the nearest point of a set, in a plain or a diagonal metric.

Each solves argmin over y in a set of 1/2 sum (y - w)^2 / step. A group is a row of a matrix `(groups, size)`; `steps`
has its shape, all ones for the plain metric. A row that is in the set already, or is not finite, comes back bit for
bit. Where several points are equally near, the lowest index is kept, so that replicas agree.
"""

import torch
from torch import Tensor

from shrinkage.radial import NEWTON_ITERATIONS

LEAST_STEP = 1e-12  # in units of the largest step of a row: a smaller one moves nothing


def water_level(heights: Tensor, weights: Tensor, amount: Tensor) -> Tensor:
    """Return the level of each row, shape `(groups, 1)`, above which heights hold a given amount.

    sum_i weights_i max(heights_i - level, 0) = amount

    Args:
        heights: `(groups, size)`.
        weights: > 0, `(groups, size)`.
        amount: >= 0, `(groups, 1)`.

    >>> water_level(torch.tensor([[3.0, 2.0, 0.0]]), torch.ones(1, 3), torch.tensor([[2.0]]))
    tensor([[1.5000]])
    """
    ordered, order = heights.sort(dim=1, descending=True)
    ordered_weights = weights.gather(1, order)
    levels = ((ordered * ordered_weights).cumsum(1) - amount) / ordered_weights.cumsum(1)
    last = ((ordered > levels).sum(1, keepdim=True) - 1).clamp_min(0)
    return levels.gather(1, last)


def l1_ball(w: Tensor, steps: Tensor, radius: float) -> Tensor:
    """Project each row onto sum |y| <= radius.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1, there in the plain metric.

    >>> l1_ball(torch.tensor([[3.0, -1.0]]), torch.ones(1, 2), 2.0)
    tensor([[2., 0.]])
    """
    if w.shape[1] == 0:
        return w
    steps = positive(steps)
    size = w.abs()
    within = size.sum(1, keepdim=True) <= radius * (1 + rounding(w))
    # sum max(|w| - level * t, 0) = radius
    level = water_level(size / steps, steps, w.new_full((len(w), 1), radius))
    y = (size - level * steps).clamp_min(0)
    y = (y * (radius / y.sum(1, keepdim=True))).copysign(w) + 0.0
    return torch.where(within | ~w.isfinite().all(1, keepdim=True), w, y)


def simplex(w: Tensor, steps: Tensor, total: float) -> Tensor:
    """Project each row onto y >= 0, sum y = total.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1, there in the plain metric.

    >>> simplex(torch.tensor([[3.0, 2.0, -1.0]]), torch.ones(1, 3), 2.0)
    tensor([[1.5000, 0.5000, 0.0000]])
    """
    if w.shape[1] == 0:
        return w
    steps = positive(steps)
    level = water_level(w / steps, steps, w.new_full((len(w), 1), total))
    y = (w - level * steps).clamp_min(0)
    y = y * (total / y.sum(1, keepdim=True))
    on = (w >= 0).all(1, keepdim=True) & ((w.sum(1, keepdim=True) - total).abs() <= rounding(w) * total)
    return torch.where(on | ~w.isfinite().all(1, keepdim=True), w, y)


def clip_level(w: Tensor, steps: Tensor, threshold: float) -> Tensor:
    """Return the largest size that the prox of `threshold` * max |y| leaves in each row, shape `(groups, 1)`.

    sum max(|w_i| - level, 0) / t_i = threshold, and 0 if sum |w_i| / t_i <= threshold; infinity in a row that is not
    finite.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.5.2, there in the plain metric.

    >>> clip_level(torch.tensor([[3.0, -1.0]]), torch.ones(1, 2), 1.0)
    tensor([[2.]])
    """
    steps = positive(steps)
    least = steps.amin(1, keepdim=True)
    level = water_level(w.abs(), least / steps, threshold * least).clamp_min(0)
    return level.masked_fill(~w.isfinite().all(1, keepdim=True), torch.inf)


def l2_sphere(w: Tensor, steps: Tensor, radius: float) -> Tensor:
    """Project each row onto ||y|| = radius; a row of zeros, to which every point is equally near, stays.

    y = w / (1 + mu t), with the multiplier mu by Newton's method on 1 / ||y||, which rises to the root from below.
    Where the element with the largest step is exactly 0 and the row is short, the row is scaled at the end.

    Reference: Conn, Gould and Toint (2000), "Trust-region methods", section 7.3.

    >>> l2_sphere(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), 1.0)
    tensor([[0.6000, 0.8000]])
    """
    steps = positive(steps)
    largest = steps.amax(1, keepdim=True)
    # Every term of the norm alone is at most the radius, and 1 + mu t is positive.
    multiplier = ((w.abs() / radius - 1) / steps).amax(1, keepdim=True).maximum((1e-6 - 1) / largest)
    for _ in range(NEWTON_ITERATIONS):
        ratio = 1 / (1 + multiplier * steps)
        squares = (w * ratio).square()
        norm = squares.sum(1, keepdim=True).sqrt()
        slope = (squares * ratio * steps).sum(1, keepdim=True)
        multiplier = multiplier + ((norm - radius) / radius * norm.square() / slope).nan_to_num(0.0)
    y = w / (1 + multiplier * steps)
    y = y * (radius / torch.linalg.vector_norm(y, dim=1, keepdim=True))
    norms = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    on = (norms - radius).abs() <= rounding(w) * radius
    return torch.where(on | (norms == 0) | ~norms.isfinite(), w, y)


def l2_ball(w: Tensor, steps: Tensor, radius: float) -> Tensor:
    """Project each row onto ||y|| <= radius.

    >>> l2_ball(torch.tensor([[3.0, 4.0], [0.1, 0.2]]), torch.ones(2, 2), 1.0)
    tensor([[0.6000, 0.8000],
            [0.1000, 0.2000]])
    """
    norms = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return torch.where(norms <= radius, w, l2_sphere(w, steps, radius))


def keep_largest(w: Tensor, steps: Tensor, count: int) -> Tensor:
    """Set all but `count` elements of each row to zero: those with the largest w^2 / t stay.

    >>> keep_largest(torch.tensor([[3.0, -4.0, 3.0]]), torch.ones(1, 3), 2)
    tensor([[ 3., -4.,  0.]])
    """
    if w.shape[1] == 0:
        return w
    scores = w.abs() / positive(steps).sqrt()
    kept = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.where(torch.zeros_like(w, dtype=torch.bool).scatter_(1, kept, True), w, 0.0)


def spectral_ball(w: Tensor, limit: float) -> Tensor:
    """Clip the singular values of a matrix at `limit`, in the plain metric.

    >>> spectral_ball(torch.diag(torch.tensor([3.0, 0.5])), 1.0)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """
    left, values, right = torch.linalg.svd(w, full_matrices=False)
    y = (left * values.clamp(max=limit)) @ right
    return torch.where(values.amax() <= limit * (1 + rounding(w)), w, y)


def positive(steps: Tensor) -> Tensor:
    """Return `steps` with those that move nothing set to something that can be divided by."""
    largest = steps.amax(1, keepdim=True)
    return steps.maximum(torch.where(largest > 0, LEAST_STEP * largest, 1.0))


def rounding(w: Tensor) -> float:
    """Return the relative error that is rounding in the type of `w`: a projection of a projection is itself."""
    return 16 * torch.finfo(w.dtype).eps
