"""Proximal operators of single elements as functions of tensors: out of place, no state, no penalty, no optimizer.

Each solves argmin over y of 1/2 (y - w)^2 / step + R(y) for every element. Where R is a multiple of a fixed function,
R and `step` contribute only their product, a `threshold`. A penalty that is not convex has textbook formulas for small
steps only; these hold for every step, because an adaptive optimizer takes large ones as a matter of course. Where two
points are equally good, zero is chosen.

Where the step or the strength is 0 the element comes back bit for bit. NaN and infinities stay where they are.
Everything is computed in float32 at least and returned in the type of `w`.
"""

import math

import torch
from torch import Tensor

from shrinkage.proximal.precision import as_tensor, computed_in_float32


@computed_in_float32
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


@computed_in_float32
def scale_down(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Divide every element by 1 + `threshold`: the prox of t / 2 y^2.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.1.1.

    >>> scale_down(torch.tensor([-3.0, 0.5]), 2.0)
    tensor([-1.0000,  0.1667])
    """
    return w / (1 + threshold)


@computed_in_float32
def hard_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Set every element of size `threshold` or less to zero, and leave the others as they are.

    prox of u [y != 0] at the threshold sqrt(2 u).

    Reference: Blumensath and Davies (2009), "Iterative hard thresholding for compressed sensing", eq. 10.

    >>> hard_threshold(torch.tensor([-3.0, 0.5, 1.0]), 1.0)
    tensor([-3.,  0.,  0.])
    """
    return torch.where(w.abs() <= threshold, 0.0, w)


@computed_in_float32
def firm_threshold(w: Tensor, step: float | Tensor, strength: float, gamma: float) -> Tensor:
    """Return the prox of the minimax concave penalty: zero, a steeper line, and the identity beyond gamma * strength.

    step < gamma:  0 up to step * strength;  (|w| - step * strength) / (1 - step / gamma) up to gamma * strength.
    step >= gamma: the penalty is more concave than the distance is convex, and a hard threshold at
    strength * sqrt(step * gamma) is left.

    Args:
        w: any shape.
        step: >= 0; a number or a tensor that broadcasts against `w`.
        strength: >= 0, the slope beside 0.
        gamma: > 0, concavity: the penalty is constant beyond gamma * strength.

    Reference: Zhang (2010), "Nearly unbiased variable selection under minimax concave penalty", eq. 2.8, for step 1;
    Gong et al. (2013), "A general iterative shrinkage and thresholding algorithm", table 1, for every step.

    >>> firm_threshold(torch.tensor([0.5, 2.0, 4.0]), 1.0, 1.0, 3.0)
    tensor([0.0000, 1.5000, 4.0000])
    """
    step = as_tensor(step, w)
    convex = step < gamma
    size = w.abs()
    line = w - w.sign() * step * (gamma * strength - size) / torch.where(convex, gamma - step, 1.0)
    threshold = strength * torch.where(convex, step, (step * gamma).sqrt())
    y = torch.where(convex & (size <= gamma * strength), line, w)
    return torch.where(size <= threshold, 0.0, y)


@computed_in_float32
def clipped_threshold(w: Tensor, step: float | Tensor, strength: float, a: float) -> Tensor:
    """Return the prox of the smoothly clipped absolute deviation penalty, for every step.

    step < a - 1:  soft threshold up to strength * (1 + step);  |w| - step * (a * strength - |w|) / (a - 1 - step) up to
    a * strength;  the identity beyond.
    a - 1 <= step <= a + 1:  soft threshold up to strength * (a + 1 + step) / 2, the identity beyond.
    step > a + 1:  hard threshold at strength * sqrt(step * (a + 1)).

    Args:
        w: any shape.
        step: >= 0; a number or a tensor that broadcasts against `w`.
        strength: >= 0, the slope beside 0.
        a: > 2; the penalty is constant beyond a * strength.

    Reference: Fan and Li (2001), "Variable selection via nonconcave penalized likelihood", eq. 2.8, for step 1; Gong et
    al. (2013), "A general iterative shrinkage and thresholding algorithm", table 1, for every step.

    >>> clipped_threshold(torch.tensor([1.5, 3.0, 4.0]), 1.0, 1.0, 3.7)
    tensor([0.5000, 2.5882, 4.0000])
    """
    step = as_tensor(step, w)
    size = w.abs()
    convex, hard = step < a - 1, step > a + 1
    line = w - w.sign() * step * (a * strength - size) / torch.where(convex, a - 1 - step, 1.0)
    y = torch.where(size <= a * strength, line, w)
    end_of_soft = strength * torch.where(convex, 1 + step, (a + 1 + step) / 2)
    y = torch.where(size <= end_of_soft, soft_threshold(w, step * strength), y)
    return torch.where(hard, hard_threshold(w, strength * (step * (a + 1)).sqrt()), y)


@computed_in_float32
def half_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the prox of u |y|^(1/2): zero up to 3/2 u^(2/3), else the largest root of a cubic in sqrt(|y|).

    2/3 |w| (1 + cos(2 pi / 3 - 2 phi / 3)),  cos(phi) = u / 4 (|w| / 3)^(-3/2)

    Args:
        w: any shape.
        threshold: u >= 0, a number or a tensor that broadcasts against `w`.

    Reference: Xu et al. (2012), "L1/2 regularization: a thresholding representation theory and a fast solver", eq. 11,
    there with |y - w|^2 in place of its half.

    >>> half_threshold(torch.tensor([1.0, 4.0]), 1.0)
    tensor([0.0000, 3.7415])
    """
    size, u = w.abs(), as_tensor(threshold, w)
    angle = torch.acos(u / 4 * (size / 3) ** -1.5)
    y = 2 / 3 * size * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    return placed(w, y, zero=size <= 1.5 * u ** (2 / 3), unchanged=u == 0)


@computed_in_float32
def two_thirds_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the prox of u |y|^(2/3): zero up to 2 (2 u / 3)^(3/4), else the root of a quartic in |y|^(1/3).

    ((A + sqrt(2 |w| / A - A^2)) / 2)^3,  A = 2 / sqrt(3) (2 u)^(1/4) sqrt(cosh(phi / 3)),
    cosh(phi) = 27 / 16 w^2 (2 u)^(-3/2)

    Args:
        w: any shape.
        threshold: u >= 0, a number or a tensor that broadcasts against `w`.

    Reference: Cao, Sun and Xu (2013), "Fast image deconvolution using closed-form thresholding formulas of Lq
    (q = 1/2, 2/3) regularization", eq. 11, there with |y - w|^2 in place of its half.

    >>> two_thirds_threshold(torch.tensor([1.0, 4.0]), 1.0)
    tensor([0.0000, 3.5635])
    """
    size, u = w.abs(), as_tensor(threshold, w)
    # In units of u^(3/4), in which u is 1. Beyond so many of them an element keeps its size to rounding, and a compiled
    # arcosh, which squares its argument, overflows.
    most = 1e14 if w.dtype == torch.float64 else 1e9
    scaled = (size / u**0.75).clamp(2 * (2 / 3) ** 0.75, most)
    angle = torch.acosh(27 / 16 * 2**-1.5 * scaled.square())
    root = 2 / math.sqrt(3) * 2**0.25 * torch.cosh(angle / 3).sqrt()
    share = ((root + (2 * scaled / root - root.square()).clamp_min(0).sqrt()) / 2) ** 3 / scaled
    return placed(w, size * share, zero=size <= 2 * (2 / 3 * u) ** 0.75, unchanged=u == 0)


@computed_in_float32
def log_threshold(w: Tensor, threshold: float | Tensor, epsilon: float) -> Tensor:
    """Return the prox of u log(1 + |y| / epsilon): the larger root of a quadratic, if it is better than zero.

    (|w| - epsilon + sqrt((|w| + epsilon)^2 - 4 u)) / 2,  written as |w| less a step, lest it be lost to rounding

    Args:
        w: any shape.
        threshold: u >= 0, a number or a tensor that broadcasts against `w`.
        epsilon: > 0, in units of `w`.

    Reference: Prater-Bennette, Shen and Tripp (2022), "The proximity operator of the log-sum penalty", theorem 1.

    >>> log_threshold(torch.tensor([0.5, 4.0]), 1.0, 0.5)
    tensor([0.0000, 3.7656])
    """
    size, u = w.abs(), as_tensor(threshold, w)
    shifted, least = size + epsilon, 2 * u.sqrt()
    # sqrt(shifted^2 - least^2), whose squares would overflow
    root = (shifted - least).clamp_min(0).sqrt() * (shifted + least).sqrt()
    y = (size - 2 * u / (shifted + root)).clamp_min(0)
    gain = 0.5 * y * (2 * size - y) - u * torch.log1p(y / epsilon)
    return placed(w, y, zero=(shifted < least) | (gain <= 0), unchanged=u == 0)


@computed_in_float32
def huber_scale(w: Tensor, step: float | Tensor, strength: float, delta: float) -> Tensor:
    """Return the prox of Huber's function: shrink by a factor near zero, by a constant beyond.

    w delta / (u + delta) up to u + delta,  w - sign(w) u beyond,  u = step * strength

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.5.1, by the Moreau envelope of |y|.

    >>> huber_scale(torch.tensor([0.4, 4.0]), 1.0, 1.0, 1.0)
    tensor([0.2000, 3.0000])
    """
    u = as_tensor(step, w) * strength
    return torch.where(w.abs() <= u + delta, w * (delta / (u + delta)), w - u.copysign(w))


def placed(w: Tensor, size: Tensor, *, zero: Tensor, unchanged: Tensor) -> Tensor:
    """Return `size` with the signs of `w`: 0 where `zero`, `w` itself where `unchanged` or not finite."""
    y = torch.where(zero, 0.0, size.copysign(w))
    return torch.where(unchanged | ~w.isfinite(), w, y)
