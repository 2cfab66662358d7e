"""Proximal operators of functions of a group's norm in a diagonal metric, as a factor per element.

R(y) = phi(||y||). In a plain metric the group keeps its direction: its factor is prox_phi(||w||) / ||w||. In a diagonal
metric with steps t_i the minimiser is y_i = w_i / (1 + mu t_i) for one multiplier mu per group, with
mu ||y|| = phi'(||y||): an equation in one unknown, called secular. The functions here solve it for all groups at once.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.groups import norms_within
from shrinkage.sums import Sums, alone

# Newton's steps are at rest after 4 where the steps of a group differ by e^1, after 11 where they differ by e^30.
NEWTON_ITERATIONS = 12
GRID = 64  # multipliers per group among which brackets are sought, over up to 60 powers of e
BASINS = 2  # brackets that are followed to their stationary point
LARGEST = {torch.float32: 1e19, torch.float64: 1e150}  # of a metric, so that no product of two overflows
BISECTIONS = {torch.float32: 26, torch.float64: 54}  # to rounding


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
    # Elsewhere reading whether the iteration has come to rest would wait for the device.
    return alone(block_scale_by_sums(w, thresholds, within, to_rest=w.device.type == "cpu"))


def block_scale_by_sums(
    w: Tensor, thresholds: Tensor, within: tuple[int, ...], *, to_rest: bool = False
) -> Sums[Tensor]:
    """Return what `block_scale_in_metric` does, for groups that `w` may hold only a piece of.

    Args:
        w: any shape.
        thresholds: the shape of `w`.
        within: the dimensions of `w` that run inside a group.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    metric = thresholds.clamp_min(1 / LARGEST[w.dtype]).reciprocal()
    root = yield from secular_root(
        lambda: secular_sums(w, metric, within),
        lambda theta: secular_terms(w, metric, theta, within),
        to_rest=to_rest,
    )
    return secular_scale(metric, root).masked_fill(thresholds == 0, 1.0)


def secular_root(sums: Callable[[], Tensor], terms: Callable[[Tensor], Tensor], *, to_rest: bool) -> Sums[Tensor]:
    """Return the root of each group's secular equation, 0 for a group that is zero.

    Newton's method on  S(theta)^(-1/2) - 1, which increases and is concave, rises to the root from any point below it
    (Moré and Hebden), so a fixed number of iterations serves all groups and nothing is read back from the device.

    Args:
        sums: returns `secular_sums` of a piece.
        terms: returns `secular_terms` of a piece at theta.
        to_rest: end as soon as no group moves, which takes a look at all of them.
    """
    theta, zero = secular_start((yield sums()))
    resting = zero
    for _ in range(NEWTON_ITERATIONS):
        moved = secular_step(theta, (yield terms(theta)))
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
    return theta.clamp_max(LARGEST[theta.dtype]).masked_fill_(zero, 0.0)


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


class Charge(NamedTuple):
    """A function phi of a group's norm; the first two take and return one value per group.

    `slope_at_zero` is its derivative beside 0, infinity if phi jumps there.
    """

    cost: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    slope_at_zero: float | Tensor


def radial_scale_in_metric(w: Tensor, steps: Tensor, within: tuple[int, ...], charge: Charge) -> Tensor:
    """Return the factor per element by which the prox of phi(||y||) in a diagonal metric scales a group.

    argmin over y of 1/2 sum_i (y_i - w_i)^2 / t_i + phi(||y||) for each group. phi need not be convex, so there can be
    several stationary points; the best of them, of 0 and of w itself is taken. Brackets of stationary points that are
    minima are sought on a grid of multipliers, and followed by bisection.

    Args:
        w: any shape.
        steps: >= 0, the shape of `w`.
        within: the dimensions of `w` that run inside a group.
        charge: phi, whose slope divided by the norm must not increase with the norm.

    Returns:
        Factors in [0, 1], the shape of `w`; exactly 0 in a group that is zero, exactly 1 where phi is flat at `w`.

    Two minima in one cell of the grid, which has a width of about 1 in log(mu), are taken for one.
    """
    if w.numel() == 0:
        return torch.ones_like(w)
    problem = SecularProblem(w, steps.clamp_min(1e-30), within, charge)
    norms = norms_within(w, within)
    low = (charge.slope(norms) / norms.clamp_min(1e-30)).clamp_min(1e-12 / problem.steps.amax(within, keepdim=True))
    low = low.log() - 1e-3
    width = (math.log(1e9) - problem.steps.amin(within, keepdim=True).log() - low).clamp_min(1.0) / (GRID - 1)
    flat = charge.slope(norms) == 0
    best = torch.where(flat, charge.cost(norms), torch.inf)
    multiplier = torch.zeros_like(low)
    for start in problem.brackets(low, width):
        found = problem.bisect(start, start + width)
        objective = problem.objective(found)
        better = objective < best
        multiplier, best = torch.where(better, found, multiplier), torch.where(better, objective, best)
    zero = (problem.zero_is_stationary() & (problem.objective_of_zero() <= best)) | best.isinf()
    scale = (1 / (1 + multiplier * problem.steps)).masked_fill(zero, 0.0)
    scale = scale.masked_fill(norms.isnan(), torch.nan)
    return scale.masked_fill((steps == 0) | norms.isinf(), 1.0)


class SecularProblem:
    """The objective of each group along the curve y_i = w_i / (1 + mu t_i), as a function of log(mu)."""

    def __init__(self, w: Tensor, steps: Tensor, within: tuple[int, ...], charge: Charge) -> None:
        self.w, self.steps, self.within, self.charge = w, steps, within, charge

    def norm(self, log_multiplier: Tensor) -> Tensor:
        """Return ||y||."""
        return norms_within(self.w / (1 + log_multiplier.exp() * self.steps), self.within)

    def rises(self, log_multiplier: Tensor) -> Tensor:
        """Return whether the objective rises with the multiplier: falls as ||y|| grows."""
        norm = self.norm(log_multiplier)
        return log_multiplier.exp() * norm > self.charge.slope(norm)

    def objective(self, multiplier: Tensor) -> Tensor:
        """Return 1/2 sum (y - w)^2 / t + phi(||y||)."""
        ratio = 1 / (1 + multiplier * self.steps)
        distance = 0.5 * ((multiplier * ratio * self.w).square() * self.steps).sum(self.within, keepdim=True)
        return distance + self.charge.cost(norms_within(self.w * ratio, self.within))

    def objective_of_zero(self) -> Tensor:
        """Return 1/2 sum w^2 / t; phi(0) is 0."""
        return 0.5 * (self.w.square() / self.steps).sum(self.within, keepdim=True)

    def zero_is_stationary(self) -> Tensor:
        """Return whether ||w / t|| is at most phi's slope beside 0."""
        return norms_within(self.w / self.steps, self.within) <= self.charge.slope_at_zero

    def brackets(self, low: Tensor, width: Tensor) -> Sequence[Tensor]:
        """Return the lower ends of the most promising cells of the grid that hold a minimum."""
        points = [low + index * width for index in range(GRID)]
        rises = torch.stack([self.rises(point) for point in points])
        objectives = torch.stack([self.objective(point.exp()) for point in points])
        enclosed = ~rises[:-1] & rises[1:]
        lowest = torch.minimum(objectives[:-1], objectives[1:]).masked_fill(~enclosed, torch.inf)
        chosen = lowest.argsort(dim=0, stable=True)[:BASINS]
        # NaN where there are fewer such cells: no comparison finds it better.
        return [torch.where(enclosed.gather(0, cell[None])[0], low + cell * width, torch.nan) for cell in chosen]

    def bisect(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the multiplier in the bracket at which the objective is stationary."""
        for _ in range(BISECTIONS[low.dtype]):
            middle = (low + high) / 2
            rises = self.rises(middle)
            low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
        return ((low + high) / 2).exp()
