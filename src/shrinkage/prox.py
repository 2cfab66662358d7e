"""Proximal operators as functions of tensors: out of place, no state, no penalty, no optimizer.

Each solves argmin over y of 1/2 sum (y - w)^2 / step + R(y). What R and `step` contribute arrives here as their
product, a threshold in units of `w`.
"""

import torch
from torch import Tensor

from shrinkage.groups import norms_within

# 3 iterations reach rounding where the steps of a group differ by e^1, 8 where they differ by e^30.
NEWTON_ITERATIONS = 10
ROUNDING = 16  # in units of the type's eps: below it a Newton step is noise


def soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Move every element towards zero by `threshold`, and to exactly zero within it.

    prox of t |y|:  sign(w) max(|w| - t, 0), written as w - clamp(w, -t, t), which gives +0.0 for every zero.

    Args:
        w: any shape.
        threshold: >= 0; a number, a 0-dim tensor or one that broadcasts against `w`.

    Reference: Donoho and Johnstone (1994), "Ideal spatial adaptation by wavelet shrinkage", eq. 8.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    """
    if isinstance(threshold, Tensor):  # clamp's signatures for numbers and for tensors are two
        return w - w.clamp(-threshold, threshold)
    return w - w.clamp(-threshold, threshold)


def block_scale(norms: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the factor per group by which a group soft threshold scales it.

    prox of t ||y||:  max(1 - t / ||w||, 0) w. A zero threshold gives factor 1, to a zero group too, and nothing is
    divided by zero; NaN stays NaN.

    Args:
        norms: Euclidean norm of each group, >= 0.
        threshold: >= 0; a number or a tensor that broadcasts against `norms`.

    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables", eq. 2.4.

    >>> block_scale(torch.tensor([4.0, 1.0, 0.0]), 2.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    tiny = torch.finfo(norms.dtype).tiny
    return 1 - (threshold / norms.clamp_min(tiny)).clamp(max=1)


def block_scale_in_metric(w: Tensor, thresholds: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return the factor per element by which a group soft threshold in a diagonal metric scales it.

    argmin over y of 1/2 sum_i (y_i - w_i)^2 / t_i + ||y|| for each group. The group is zero if and only if
    sum (w_i / t_i)^2 <= 1; else y_i = w_i theta / (theta + t_i), where theta = ||y|| is the root of the secular
    equation  sum (w_i / (theta + t_i))^2 = 1.

    Newton's method on  S(theta)^(-1/2) - 1, which increases and is concave, rises to the root from any point below it
    (Moré and Hebden), so a fixed number of iterations serves all groups and nothing is read back from the device.

    Args:
        w: any shape.
        thresholds: step times strength, >= 0, the shape of `w`.
        within: the dimensions of `w` that run inside a group, at least one; the others tell groups apart.

    Returns:
        Factors in [0, 1], the shape of `w`; exactly 0 in a group that is zero, exactly 1 where the threshold is 0.

    Reference: Deleu and Bengio (2021), "Structured sparsity inducing adaptive optimizers", theorem 1.
    An element with a zero threshold that is no larger than the type's smallest normal number may become zero.

    >>> block_scale_in_metric(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), within=(1,))
    tensor([[0.8000, 0.8000]])
    """
    if w.numel() == 0:
        return torch.ones_like(w)
    tiny = torch.finfo(w.dtype).tiny
    size = w.abs()
    dual_norm = norms_within(size / thresholds.clamp_min(tiny), within)
    zero = dual_norm <= 1
    start = secular_lower_bound(size, thresholds, dual_norm, within).clamp_min(tiny)
    theta = start
    for _ in range(NEWTON_ITERATIONS):
        shifted = theta + thresholds
        squares = (size / shifted).square_()
        total = squares.sum(within, keepdim=True)
        slope = squares.div_(shifted).sum(within, keepdim=True).clamp_min(tiny)
        rise = ((total.sqrt() - 1) * total / slope).clamp_min(0)  # a group that is zero has no root above
        theta = theta + rise
        if theta.device.type == "cpu" and bool((rise <= ROUNDING * torch.finfo(w.dtype).eps * theta).all()):
            break  # elsewhere reading the answer would wait for the device
    theta = torch.where(start.isinf(), start, theta).masked_fill(zero, 1.0)
    return (1 / (1 + thresholds / theta)).mul_((~zero).to(w.dtype))


def secular_lower_bound(size: Tensor, thresholds: Tensor, dual_norm: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return a point below the root of each group's secular equation, close enough for every ratio to be at most 1.

    Three bounds: the largest |w_i| - t_i (one term of the sum can not exceed 1), ||w|| - max t, and
    (||w / t|| - 1) min t.
    """
    largest, smallest = thresholds.amax(within, keepdim=True), thresholds.amin(within, keepdim=True)
    by_element = (size - thresholds).amax(within, keepdim=True)
    by_norm = norms_within(size, within) - largest
    by_dual_norm = torch.where(smallest > 0, (dual_norm - 1) * smallest, 0.0)
    return torch.maximum(by_element, torch.maximum(by_norm, by_dual_norm))
