"""The proximal operator in a diagonal metric of a function whose proximal operator in the plain metric is known."""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 2000
STILL = 4  # in units of the type's eps: a relative move that is rounding


def prox_in_metric(w: Tensor, steps: Tensor, prox: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return argmin over y of 1/2 sum (y - w)^2 / steps + R(y), by accelerated proximal gradient steps.

    The distance has curvature 1 / steps, so that the smallest step is safe for all elements. Momentum starts afresh
    whenever it points uphill. Stops when a step moves nothing, or after 2000.

    Args:
        w: any shape.
        steps: >= 0, the shape of `w`; elements whose step is 0 come back as they are.
        prox: R's proximal operator in the plain metric, a function of a point and a 0-dim step.

    Reference: Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems", section 4; O'Donoghue and Candes (2015), "Adaptive restart for accelerated gradient schemes", eq. 12.
    It takes about 15 times the square root of the largest step over the smallest; so 2000 iterations reach rounding up
    to a ratio of about 10000, and less far beyond.

    >>> from shrinkage.proximal.thresholds import soft_threshold
    >>> prox_in_metric(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 2.0]), soft_threshold)
    tensor([2.0000, 1.0000])
    """
    largest = steps.amax()
    metric = 1 / torch.where(steps > 0, steps, 1e-4 * largest).clamp_min(1e-30)
    safe = 1 / metric.amax()
    y = previous = ahead = w
    age = 1.0
    for _ in range(ITERATIONS):
        y = prox(ahead - safe * metric * (ahead - w), safe)
        move = y - previous
        if bool(move.abs().amax() <= STILL * torch.finfo(w.dtype).eps * y.abs().amax()):
            break
        if bool(((ahead - y) * move).sum() > 0):
            age = 1.0
        next_age = (1 + (1 + 4 * age**2) ** 0.5) / 2
        ahead = y + (age - 1) / next_age * move
        previous, age = y, next_age
    return torch.where(steps > 0, y, w)


def is_metric(step: float | Tensor) -> bool:
    """Return whether `step` has a value per element."""
    return isinstance(step, Tensor) and step.dim() > 0
