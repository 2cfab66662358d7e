"""What is compiled: pure functions of tensors, hyperparameters included, whose last pass writes into the parameter."""

import math
from typing import Any

import torch
from torch import Tensor

from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.group_norms import scales
from shrinkage.proximal import secular
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.thresholds import soft_threshold

# Elements


def in_plain_metric(penalty: Penalty, w: Tensor, step: Tensor) -> None:
    """w <- prox(w)."""
    w.copy_(penalty.prox(upcast(w), step))


def in_metric(penalty: Penalty, w: Tensor, moment: Tensor, lr: Tensor, eps: Tensor, scale: Tensor) -> None:
    """w <- prox(w) in the metric of an `AdaptiveStep`."""
    w.copy_(penalty.prox(upcast(w), lr / denominator(moment, eps, scale)))


def denominator(moment: Tensor, eps: Tensor, scale: Tensor) -> Tensor:
    """Return sqrt(moment) * scale + eps, and 1 where the moment is exactly 0: one square root serves an element."""
    return torch.where(moment == 0, 1.0, upcast(moment).sqrt() * scale + eps)


# Groups in a plain metric


def scale_groups_(
    function: Elementwise, weight: Tensor, l1: Tensor | None, within: tuple[int, ...], w: Tensor, step: Tensor
) -> None:
    """Scale each group by what `function`, times `weight`, leaves of its norm, after the soft threshold of `l1`."""
    inner = upcast(w) if l1 is None else soft_threshold(upcast(w), step * l1)
    squares = added_up(inner.square().sum(within[-1:], keepdim=True)[None], within[:-1])[0]
    w.copy_(inner * scales(squares.sqrt(), step, function, weight))


# Groups in a metric


def first_pass(*given: Any) -> tuple[Tensor, Tensor]:
    """Return where to start, and which groups are zero.

    The first iteration is not made here: for it a compiler would materialize the metric.
    """
    w, metric, within = left_for_norms(*given)
    return secular.secular_start(added_up(secular.secular_sums(w, metric, within[-1:]), within[:-1]))


def newton_pass(theta: Tensor, resting: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """Return the multipliers after one more iteration, and which groups are at rest."""
    w, metric, within = left_for_norms(*given)
    terms = added_up(secular.secular_terms(w, metric, theta, within[-1:]), within[:-1])
    moved = secular.secular_step(theta, terms)
    return torch.where(resting, theta, moved), resting | secular.at_rest(theta, moved)


def added_up(parts: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return sums that were taken over the last dimension within groups, added up over the others."""
    return parts.sum([dim + 1 for dim in dims], keepdim=True) if dims else parts


def last_pass_(root: Tensor, w: Tensor, *given: Any) -> None:
    """Scale each element, unless the step or the strength is 0."""
    inner, metric, _ = left_for_norms(w, *given)
    unit = given[3]
    w.copy_(torch.where(unit == math.inf, inner, inner * secular.secular_scale(metric, root)))


def left_for_norms(
    w: Tensor,
    moment: Tensor,
    eps: Tensor,
    scale: Tensor,
    unit: Tensor,
    l1: Tensor | None,
    quadratic: Tensor | None,
    within: tuple[int, ...],
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return what the penalty of norms sees: elements, the metric in units of its strength, and `within`.

    The soft threshold of `l1` goes first, then the division by 1 + step * quadratic, as in `group_norms`. All strengths
    are times lr, and `unit` is 1 / that of norms.
    """
    inner, divisor = upcast(w), denominator(moment, eps, scale)
    if l1 is not None:
        inner = soft_threshold(inner, l1 / divisor)
    if quadratic is not None:
        shrunk = divisor + quadratic
        inner, divisor = inner * (divisor / shrunk), shrunk
    return inner, (divisor * unit).clamp_max(secular.largest(inner.dtype)), within
