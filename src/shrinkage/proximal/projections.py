"""Projections as functions of tensors: the nearest point of a set, in a plain or a diagonal metric.

Each solves argmin over y in a set of 1/2 sum (y - w)^2 / step. A group is a row of a matrix `(groups, size)`; `steps`
has its shape, or is None for the plain metric. A row that is in the set already, or is not finite, comes back bit for
bit. Where several points are equally near, the lowest index is kept, so that replicas agree.

Sums are taken in float64, where a device has it: the square of 1e30 is a number there. Results have the type of `w`.
"""

import torch
from torch import Tensor

from shrinkage.proximal.precision import widest_float
from shrinkage.proximal.secular import NEWTON_ITERATIONS

LEAST_STEP = 1e-18  # in units of the largest step of a row: a smaller one moves nothing
POLISH = 3  # iterations that take rounding out of a level
LEAST_SHARE = 1e-100  # of a row's largest element, or of the radius, that is told from 0


def depths(heights: Tensor, weights: Tensor, amount: Tensor) -> Tensor:
    """Return how far each height is above the level of its row above which heights hold a given amount, 0 below it.

    sum_i weights_i max(heights_i - level, 0) = amount

    Args:
        heights: `(groups, size)`, at least one each.
        weights: > 0, `(groups, size)`.
        amount: > 0, `(groups, 1)`.

    >>> depths(torch.tensor([[3.0, 2.0, 0.0]]), torch.ones(1, 3), torch.tensor([[2.0]]))
    tensor([[1.5000, 0.5000, 0.0000]])
    """
    ordered, order = heights.sort(dim=1, descending=True)
    ordered_weights = weights.gather(1, order)
    # From the top downwards, lest the amount be lost to rounding beside the heights; no level is below the floor.
    floor = -amount / ordered_weights[:, :1]
    below = (ordered - ordered[:, :1]).maximum(floor)
    levels = ((below * ordered_weights).cumsum(1) - amount) / ordered_weights.cumsum(1)
    last = ((below > levels).sum(1, keepdim=True) - 1).clamp_min(0)
    return (heights - ordered[:, :1] - levels.gather(1, last)).clamp_min(0)


def above_level(w: Tensor, steps: Tensor, amount: Tensor) -> Tensor:
    """Return max(w - level * t, 0), whose sum is the amount of each row.

    The level of w / t is rounded where steps differ much. So it is measured anew, from the lowest height above it and
    in units of w, and found by Newton's method, which has little left to do.

    >>> above_level(torch.tensor([[3.0, 2.0, 0.0]]), torch.ones(1, 3), torch.tensor([[2.0]]))
    tensor([[1.5000, 0.5000, 0.0000]])
    """
    heights = w / steps
    depth = depths(heights, steps, amount)
    depth, lowest = depth.masked_fill(depth == 0, torch.inf).min(1, keepdim=True)
    # Exactly 0 where it is measured from, so that something is always above the level.
    beyond = (w - heights.gather(1, lowest) * steps).scatter(1, lowest, 0.0)
    for _ in range(POLISH):
        y = (beyond + depth * steps).clamp_min(0)
        depth = depth - (y.sum(1, keepdim=True) - amount) / steps.masked_fill(y == 0, 0.0).sum(1, keepdim=True)
    return (beyond + depth * steps).clamp_min(0)


def l1_ball(w: Tensor, steps: Tensor | None, radius: float) -> Tensor:
    """Project each row onto sum |y| <= radius.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1, there in the plain metric.

    >>> l1_ball(torch.tensor([[3.0, -1.0]]), None, 2.0)
    tensor([[2., 0.]])
    """
    if w.shape[1] == 0:
        return w
    upcast, steps = widened(w, steps)
    size = upcast.abs()
    within = size.sum(1, keepdim=True) <= radius * (1 + rounding(w))
    # sum max(|w| - level * t, 0) = radius
    y = above_level(size, steps, upcast.new_full((len(w), 1), radius))
    y = (y * (radius / y.sum(1, keepdim=True))).to(w.dtype).copysign(w) + 0.0
    return torch.where(within | ~w.isfinite().all(1, keepdim=True), w, y)


def simplex(w: Tensor, steps: Tensor | None, total: float) -> Tensor:
    """Project each row onto y >= 0, sum y = total.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1, there in the plain metric.

    >>> simplex(torch.tensor([[3.0, 2.0, -1.0]]), None, 2.0)
    tensor([[1.5000, 0.5000, 0.0000]])
    """
    if w.shape[1] == 0:
        return w
    upcast, steps = widened(w, steps)
    y = above_level(upcast, steps, upcast.new_full((len(w), 1), total))
    y = (y * (total / y.sum(1, keepdim=True))).to(w.dtype)
    on = (upcast.clamp_min(0).sum(1, keepdim=True) - total).abs() <= rounding(w) * total
    y = torch.where(on, w.clamp_min(0), y)
    return torch.where(w.isfinite().all(1, keepdim=True), y, w)


def clip_level(w: Tensor, steps: Tensor, threshold: float) -> Tensor:
    """Return the largest size that the prox of `threshold` * max |y| leaves in each row, shape `(groups, 1)`.

    sum max(|w_i| - level, 0) / t_i = threshold, and 0 if sum |w_i| / t_i <= threshold; infinity in a row that is not
    finite.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.5.2, there in the plain metric.

    >>> clip_level(torch.tensor([[3.0, -1.0]]), torch.ones(1, 2), 1.0)
    tensor([[2.]])
    """
    size = w.abs().to(widest_float(w.device))
    steps = positive(steps.to(size.dtype))
    least = steps.amin(1, keepdim=True)
    first = size.argmax(1, keepdim=True)
    level = size.gather(1, first) - depths(size, least / steps, threshold * least).gather(1, first)
    return level.clamp_min(0).masked_fill(~w.isfinite().all(1, keepdim=True), torch.inf).to(w.dtype)


def l2_sphere(w: Tensor, steps: Tensor | None, radius: float) -> Tensor:
    """Project each row onto ||y|| = radius; a row of zeros, to which every point is equally near, stays.

    y = w / (1 + mu t), with the multiplier mu by Newton's method on 1 / ||y||, which rises to the root from below.
    Where the element with the largest step is exactly 0 and the row is short, the row is scaled at the end.

    Reference: Conn, Gould and Toint (2000), "Trust-region methods", section 7.3.

    >>> l2_sphere(torch.tensor([[3.0, 4.0]]), None, 1.0)
    tensor([[0.6000, 0.8000]])
    """
    if w.shape[1] == 0:
        return w
    upcast = w.to(widest_float(w.device))
    largest = upcast.abs().amax(1, keepdim=True)
    y = upcast / largest
    norms = torch.linalg.vector_norm(y, dim=1, keepdim=True) * largest
    if steps is not None:
        y = scaled_to(y, widened(w, steps)[1], (radius / largest).clamp(LEAST_SHARE, 1 / LEAST_SHARE))
    y = y * (radius / torch.linalg.vector_norm(y, dim=1, keepdim=True))
    on = (norms - radius).abs() <= rounding(w) * radius
    return torch.where(on | (largest == 0) | ~w.isfinite().all(1, keepdim=True), w, y.to(w.dtype))


def scaled_to(w: Tensor, steps: Tensor, radius: Tensor) -> Tensor:
    """Return w / (1 + mu t) of nearly the norm `radius`, shape `(groups, 1)`, for rows and steps of at most 1 in size.

    1 + mu t is written as 1 - t + k t, with k = 1 + mu > 0: it is as exact beside 0, where short rows have it, as
    elsewhere.
    """
    rest = 1 - steps
    # Every term of the norm alone is at most the radius.
    k = ((w.abs() / radius - rest) / steps).amax(1, keepdim=True)
    for _ in range(NEWTON_ITERATIONS):
        ratio = 1 / (rest + k * steps)
        squares = (w * ratio).square()
        norm = squares.sum(1, keepdim=True).sqrt()
        slope = (squares * ratio * steps).sum(1, keepdim=True)
        move = (norm / radius - 1) * (norm.square() / slope)
        k = (k + move.nan_to_num(0.0, 0.0, 0.0)).clamp_min(LEAST_SHARE)
    return w / (rest + k * steps)


def l2_ball(w: Tensor, steps: Tensor | None, radius: float) -> Tensor:
    """Project each row onto ||y|| <= radius.

    >>> l2_ball(torch.tensor([[3.0, 4.0], [0.1, 0.2]]), None, 1.0)
    tensor([[0.6000, 0.8000],
            [0.1000, 0.2000]])
    """
    norms = torch.linalg.vector_norm(w, dim=1, keepdim=True, dtype=widest_float(w.device))
    return torch.where(norms <= radius, w, l2_sphere(w, steps, radius))


def l2_shell(w: Tensor, steps: Tensor | None, low: float, high: float) -> Tensor:
    """Project each row onto low <= ||y|| <= high; a row of zeros, which has no nearest point if low > 0, stays.

    >>> l2_shell(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.6, 0.8]]), None, 1.0, 2.0)
    tensor([[1.2000, 1.6000],
            [0.6000, 0.8000],
            [0.6000, 0.8000]])
    """
    below = l2_ball(w, steps, high)
    if low == 0:
        return below
    norms = torch.linalg.vector_norm(w, dim=1, keepdim=True, dtype=widest_float(w.device))
    return torch.where(norms < low, l2_sphere(w, steps, low), below)


def keep_largest(w: Tensor, steps: Tensor | None, count: int) -> Tensor:
    """Set all but `count` elements of each row to zero: those with the largest w^2 / t stay.

    >>> keep_largest(torch.tensor([[3.0, -4.0, 3.0]]), None, 2)
    tensor([[ 3., -4.,  0.]])
    """
    if w.shape[1] == 0:
        return w
    scores = w.abs()
    if steps is not None:  # an element that may not move, whose step is 0, is not zero unless it is now
        upcast, steps = scores.to(widest_float(w.device)), steps.to(widest_float(w.device))
        scores = torch.where(w == 0, 0.0, upcast / steps.sqrt())
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


def widened(w: Tensor, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows in the type that they are computed in, and steps in units of the largest of each row."""
    upcast = w.to(widest_float(w.device))
    if steps is None:
        return upcast, torch.ones_like(upcast)
    steps = positive(steps.to(upcast.dtype))
    return upcast, steps / steps.amax(1, keepdim=True)


def positive(steps: Tensor) -> Tensor:
    """Return `steps` with those that move nothing set to something that can be divided by."""
    largest = steps.amax(1, keepdim=True)
    return steps.maximum(torch.where(largest > 0, LEAST_STEP * largest, 1.0))


def rounding(w: Tensor) -> float:
    """Return the relative error that is rounding in the type of `w`: a projection of a projection is itself."""
    return 16 * torch.finfo(w.dtype).eps
