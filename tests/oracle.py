"""The answer by brute force: minimisers found on grids that are refined, and directions in which nothing improves."""

import torch
from torch import Tensor

from shrinkage import Penalty


def objectives(penalty: Penalty, candidates: Tensor, w: Tensor, step: Tensor) -> Tensor:
    """Return 1/2 sum (y - w)^2 / step + R(y) of every candidate y, stacked along dimension 0."""
    distances = 0.5 * ((candidates - w).square() / step).flatten(1).sum(1)
    return distances + torch.func.vmap(penalty.value)(candidates)


def minimiser_on_grid(penalty: Penalty, w: Tensor, step: Tensor) -> Tensor:
    """Return the minimiser over a tensor of one to four elements: a grid, refined around its best point.

    Zero is always among the candidates, and so are points with one element at zero. Where the objective is not convex,
    the minimum has to be wider than a cell of the first grid: at least 1/100 of the largest element.
    """
    points = {1: 4001, 2: 201, 3: 41, 4: 15}[w.numel()]
    best, radius = torch.zeros_like(w), float(w.abs().max()) + 1
    while radius > 1e-10:
        axis = torch.linspace(-radius, radius, points, dtype=w.dtype)
        offsets = torch.cartesian_prod(*[axis] * w.numel()).reshape(-1, *w.shape)
        near = best + offsets
        on_axes = [near * (1 - axis) for axis in torch.eye(w.numel(), dtype=w.dtype).reshape(-1, *w.shape)]
        candidates = torch.cat([torch.zeros_like(w)[None], best[None], near, *on_axes])
        best = candidates[objectives(penalty, candidates, w, step).argmin()]
        radius *= 4 / points
        points = {1: 4001, 2: 41, 3: 15, 4: 9}[w.numel()]
    return best


def best_improvement(penalty: Penalty, y: Tensor, w: Tensor, step: Tensor) -> float:
    """Return by how much the objective falls from y to the best of many points around it: 0 at a minimiser.

    The points lie along every coordinate, towards zero and `w`, and in random directions, at distances of 1 to 1e-6.
    """
    coordinates = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    random = torch.randn(50, *y.shape, dtype=y.dtype)
    support = random * (y != 0)
    directions = torch.cat([coordinates, -coordinates, random, support, -y[None], (w - y)[None]])
    candidates = torch.cat([y + 10.0**-k * directions for k in range(7)])
    return float(objectives(penalty, y[None], w, step)[0] - objectives(penalty, candidates, w, step).min())
