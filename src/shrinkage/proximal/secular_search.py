"""Proximal operators of functions of a group's norm that are not convex, in a diagonal metric: the best of all minima.

R(y) = phi(||y||). Its stationary points lie on the curve y_i = w_i / (1 + mu t_i) of `secular.py`; where there are
several, all of them are compared, by sums over each group only.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shrinkage.proximal.reductions import Reduction, alone

GRID = 64  # multipliers per group among which brackets are sought, over up to 60 powers of e
BASINS = 2  # brackets that are followed to their stationary point
BISECTIONS = {torch.float32: 26, torch.float64: 54}  # to rounding
LARGEST = {torch.float32: 1e17, torch.float64: 1e130}  # weights whose squares, and sums of them, do not overflow


class RadialFunction(NamedTuple):
    """A function phi of a group's norm; the first two take and return one value per group.

    `slope_at_zero` is its derivative beside 0, infinity if phi jumps there.
    """

    cost: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    slope_at_zero: float | Tensor


def radial_scale_in_metric(w: Tensor, steps: Tensor, within: tuple[int, ...], function: RadialFunction) -> Tensor:
    """Return what `radial_scale_by_sums` does, for whole groups."""
    return torch.ones_like(w) if w.numel() == 0 else alone(radial_scale_by_sums(w, steps, within, function))


def radial_scale_by_sums(
    w: Tensor, steps: Tensor, within: tuple[int, ...], function: RadialFunction
) -> Reduction[Tensor]:
    """Return the factor per element by which the prox of phi(||y||) in a diagonal metric scales a group.

    argmin over y of 1/2 sum_i (y_i - w_i)^2 / t_i + phi(||y||) for each group. phi need not be convex, so there can be
    several stationary points; the best of them, of 0 and of w itself is taken. Brackets of stationary points that are
    minima are sought on a grid of multipliers, and followed by bisection.

    Args:
        w: any shape; it may hold only a shard of each group.
        steps: >= 0, the shape of `w`.
        within: the dimensions of `w` that run inside a group.
        function: phi, whose slope divided by the norm must not increase with the norm.

    Returns:
        Factors in [0, 1], the shape of `w`; exactly 0 in a group that is zero, exactly 1 where phi is flat at `w`.

    Two minima in one cell of the grid, which has a width of about 1 in log(mu), are taken for one.
    """
    curve = Curve(w, steps, within)
    multiplier = yield from radial_multiplier(curve.sums, curve.at, function)
    return curve.scale(multiplier)


class Curve:
    """The curve y_i = w_i / (1 + mu t_i) of a shard of groups, as a function of one multiplier mu per group.

    Weights beyond `LARGEST` count as that large: so far out, a multiplier depends on the norm by less than a rounding.
    """

    def __init__(self, w: Tensor, steps: Tensor, within: tuple[int, ...]) -> None:
        self.w, self.steps, self.within = w, steps, within
        largest = LARGEST[w.dtype]
        self._bounded = torch.where(w.isinf(), w, w.clamp(-largest, largest))
        self._clamped = steps.clamp_min(1e-30)

    def sums(self) -> Tensor:
        """Return the sums of w^2, w^2 / t, (w / t)^2, t and 1 / t in a new first dimension."""
        square, dual = self._bounded.square(), self._bounded / self._clamped
        terms = (square, square / self._clamped, dual.square(), self._clamped, self._clamped.reciprocal())
        return torch.stack([each.sum(self.within, keepdim=True) for each in terms])

    def at(self, multiplier: Tensor, *, distance: bool) -> Tensor:
        """Return ||y||^2, and 1/2 sum (y - w)^2 / t where that is asked for, in a new first dimension."""
        ratio = 1 / (1 + multiplier * self._clamped)
        terms = [(self._bounded * ratio).square()]
        if distance:
            terms.append(0.5 * (multiplier * ratio * self._bounded).square() * self._clamped)
        return torch.stack([each.sum(self.within, keepdim=True) for each in terms])

    def scale(self, multiplier: Tensor) -> Tensor:
        """Return y / w: 0 where the multiplier is infinite, and 1 where the step is 0."""
        return (1 / (1 + multiplier * self._clamped)).masked_fill(self.steps == 0, 1.0)


class At(Protocol):
    """Returns what `Curve.at` does."""

    def __call__(self, multiplier: Tensor, *, distance: bool) -> Tensor:
        """Return sums at one multiplier per group."""


def radial_multiplier(sums: Callable[[], Tensor], at: At, function: RadialFunction) -> Reduction[Tensor]:
    """Return the multiplier of the best point of each group on its curve: infinite at 0, and 0 at w.

    Args:
        sums: returns `Curve.sums` of a shard.
        at: returns `Curve.at` of a shard.
        function: phi.
    """
    square, dual, dual_square, steps, inverse = yield sums()
    norms = square.sqrt()
    slope = function.slope(norms)
    low = (slope / norms.clamp_min(1e-30)).clamp_min(1e-12 / steps).log() - 1e-3
    width = (math.log(1e9) + inverse.log() - low).clamp_min(1.0) / (GRID - 1)
    starts, still = yield from brackets(at, function, low, width)
    best = torch.where((slope == 0) | still, function.cost(norms), torch.inf)
    multiplier = torch.where(still, slope / norms, 0.0)
    found = yield from bisected(at, function, starts, [start + width for start in starts])
    reached = yield torch.stack([at(each, distance=True) for each in found])
    for each, (squares, distance) in zip(found, reached, strict=True):
        objective = distance + function.cost(squares.sqrt())
        better = objective < best
        multiplier, best = torch.where(better, each, multiplier), torch.where(better, objective, best)
    zero = ((dual_square.sqrt() <= function.slope_at_zero) & (0.5 * dual <= best)) | best.isinf()
    multiplier = multiplier.masked_fill(zero, torch.inf)
    return multiplier.masked_fill(norms.isnan(), torch.nan).masked_fill(norms.isinf(), 0.0)


def rises(log_multiplier: Tensor, square: Tensor, function: RadialFunction) -> Tensor:
    """Return whether the objective rises with the multiplier: falls as ||y||, of which this is the square, grows."""
    norm = square.sqrt()
    return log_multiplier.exp() * norm > function.slope(norm)


def brackets(at: At, function: RadialFunction, low: Tensor, width: Tensor) -> Reduction[tuple[list[Tensor], Tensor]]:
    """Return the lower ends of the most promising cells of the grid that hold a minimum, and which groups stand still.

    Where the objective rises from the first point on, the minimum is so near `w` that the slope there gives it.
    """
    points = [low + index * width for index in range(GRID)]
    sums = yield torch.stack([at(point.exp(), distance=True) for point in points])
    rising = torch.stack([rises(point, square, function) for point, (square, _) in zip(points, sums, strict=True)])
    objectives = torch.stack([distance + function.cost(square.sqrt()) for square, distance in sums])
    enclosed = ~rising[:-1] & rising[1:]
    lowest = torch.minimum(objectives[:-1], objectives[1:]).masked_fill(~enclosed, torch.inf)
    chosen = lowest.argsort(dim=0, stable=True)[:BASINS]
    # NaN where there are fewer such cells: no comparison finds it better.
    starts = [torch.where(enclosed.gather(0, cell[None])[0], low + cell * width, torch.nan) for cell in chosen]
    return starts, rising[0]


def bisected(
    at: At, function: RadialFunction, low: Sequence[Tensor], high: Sequence[Tensor]
) -> Reduction[list[Tensor]]:
    """Return the multipliers in brackets, given by their logarithms, at which the objective is stationary."""
    for _ in range(BISECTIONS[low[0].dtype]):
        middle = [(one + other) / 2 for one, other in zip(low, high, strict=True)]
        squares = yield torch.cat([at(each.exp(), distance=False) for each in middle])
        up = [rises(each, square, function) for each, square in zip(middle, squares, strict=True)]
        low = [torch.where(rise, one, each) for rise, one, each in zip(up, low, middle, strict=True)]
        high = [torch.where(rise, each, one) for rise, one, each in zip(up, high, middle, strict=True)]
    return [((one + other) / 2).exp() for one, other in zip(low, high, strict=True)]
