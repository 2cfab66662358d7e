"""Duality gaps of linear models: a certificate that weights solve their problem, whoever trained them.

A gap is P(w) - D(theta), where P is the objective, D its dual and theta the residual of `w`, scaled until the dual's
constraint holds. No weights have an objective below D(theta), so that P(w) is within the gap of the optimum; the gap
falls to 0 with it. Losses are means over samples, as in all strengths of this package.

Every gap here is a sum of Fenchel-Young gaps, each of them >= 0, instead of the difference of P and D: close to the
optimum the difference would be all rounding.
"""

import torch
from torch import Tensor

from shrinkage.penalties.groups import Groups
from shrinkage.penalties.schedules import check_positive, check_strength
from shrinkage.proximal.precision import at_least_float32


def lasso_gap(x: Tensor, y: Tensor, w: Tensor, strength: float) -> Tensor:
    """Return by how much the lasso's objective at `w` may exceed its least value, a 0-dim tensor.

    P(w) = |y - x w|^2 / (2 n) + strength * sum |w|
    D(theta) = y theta - n/2 |theta|^2,  theta = (y - x w) / n * min(1, strength / max |x' (y - x w) / n|)

    Args:
        x: samples, `(n, features)`.
        y: targets, `(n,)`, or `(n, outputs)`, each output a lasso of its own.
        w: weights, `(features,)`, or `(outputs, features)` as in `Linear`.
        strength: > 0, the strength of `L1`.

    Raises:
        ValueError: the shapes do not fit, or the strength is not a finite number > 0.

    Computed in the widest type of the arguments: a gap below about 1e-7 of the objective says nothing in float32.

    Reference: Fercoq, Gramfort and Salmon (2015), "Mind the duality gap: safer rules for the lasso", eq. 2, there with
    the sum of squares in place of its mean.

    >>> x, y = torch.eye(2), torch.tensor([4.0, 0.5])
    >>> lasso_gap(x, y, torch.tensor([2.0, 0.0]), strength=1.0)
    tensor(0.)
    >>> lasso_gap(x, y, torch.tensor([1.0, 0.0]), strength=1.0)  # 0.25 above the optimum
    tensor(0.2569)
    """
    check_positive("lasso_gap", "strength", strength)
    return elastic_net_gap(x, y, w, strength, 0.0)


def elastic_net_gap(x: Tensor, y: Tensor, w: Tensor, l1: float, l2: float) -> Tensor:
    """Return by how much the elastic net's objective at `w` may exceed its least value, a 0-dim tensor.

    P(w) = |y - x w|^2 / (2 n) + l1 * sum |w| + l2 / 2 * sum w^2

    It is the lasso of x over sqrt(n l2) I, of y over 0, and so is its dual.

    Args:
        x: samples, `(n, features)`.
        y: targets, `(n,)`, or `(n, outputs)`, each output an elastic net of its own.
        w: weights, `(features,)`, or `(outputs, features)` as in `Linear`.
        l1: > 0, the l1 of `ElasticNet`.
        l2: >= 0, the l2 of `ElasticNet`.

    Raises:
        ValueError: the shapes do not fit, or a strength is negative or not finite, or l1 is 0.

    Computed in the widest type of the arguments: a gap below about 1e-7 of the objective says nothing in float32.

    Reference: Zou and Hastie (2005), "Regularization and variable selection via the elastic net", lemma 1, for the
    lasso; Fercoq, Gramfort and Salmon (2015), "Mind the duality gap: safer rules for the lasso", eq. 2, for its dual.

    >>> x, y = torch.eye(2), torch.tensor([4.0, 0.5])
    >>> elastic_net_gap(x, y, torch.tensor([1.0, 0.0]), l1=1.0, l2=0.5)
    tensor(0.)
    """
    check_positive("elastic_net_gap", "l1", l1)
    check_strength("elastic_net_gap", "l2", l2)
    x, y, w = checked("elastic_net_gap", x, y, w)
    residual = y - predictions(x, w)
    correlations = correlated(x, residual) - l2 * w
    scale = feasible_scale(correlations.abs(), l1)
    energy = residual.square().sum() / len(x) + l2 * w.square().sum()
    return squares_gap(energy, scale) + norm_gap(l1 * w.abs(), scale * correlations * w)


def group_lasso_gap(
    x: Tensor, y: Tensor, w: Tensor, strength: float, groups: Groups, weigh_by_size: bool = True
) -> Tensor:
    """Return by how much the group lasso's objective at `w` may exceed its least value, a 0-dim tensor.

    P(w) = |y - x w'|^2 / (2 n) + strength * sum over groups g of  weight_g * ||w_g||,  weight_g the square root of the
    group's size
    D(theta) = sum of y theta - n/2 theta^2,  theta = (y - x w') / n * min(1, strength / max ||c_g|| / weight_g),
    c = (y - x w')' x / n

    Args:
        x: samples, `(n, features)`.
        y: targets, `(n, outputs)`.
        w: weights, `(outputs, features)` as in `Linear`.
        strength: > 0, the strength of `GroupLasso`.
        groups: which weights belong together, such as `Columns()`.
        weigh_by_size: as in `GroupLasso`; without it, weight_g is 1.

    Raises:
        ValueError: the shapes do not fit, or the strength is not a finite number > 0.
        GroupError: `w` cannot be divided into these groups.

    Computed in the widest type of the arguments: a gap below about 1e-7 of the objective says nothing in float32.

    Reference: Ndiaye, Fercoq, Gramfort and Salmon (2017), "Gap safe screening rules for sparsity enforcing penalties",
    section 2.

    >>> from shrinkage import Columns
    >>> x, y = torch.eye(2), torch.tensor([[6.0, 8.0], [0.5, 0.5]])
    >>> w = torch.tensor([[4.5, 0.0], [6.0, 0.0]])
    >>> group_lasso_gap(x, y, w, 1.25, Columns(), weigh_by_size=False)
    tensor(0.)
    """
    check_positive("group_lasso_gap", "strength", strength)
    x, y, w = checked("group_lasso_gap", x, y, w)
    strength_of_norm = strength * (max(groups.layout(w.shape).size, 1) ** 0.5 if weigh_by_size else 1.0)
    residual = y - predictions(x, w)
    correlations = correlated(x, residual)
    scale = feasible_scale(groups.norms(correlations), strength_of_norm)
    inner = groups.view(correlations * w).sum(1)
    return squares_gap(residual.square().sum() / len(x), scale) + norm_gap(
        strength_of_norm * groups.norms(w), scale * inner
    )


def logistic_lasso_gap(
    x: Tensor, labels: Tensor, w: Tensor, strength: float, intercept: float | Tensor | None = None
) -> Tensor:
    """Return by how much the objective of the logistic lasso at `w` may exceed its least value, a 0-dim tensor.

    P(w) = mean log(1 + exp(-m)) + strength * sum |w|,  m = labels * (x w + intercept)
    D(theta) = -mean of q log q + (1 - q) log(1 - q),  q = n labels theta
    theta = labels / (1 + exp(m)) / n * min(1, strength / max |x' labels / (1 + exp(m)) / n|)

    Args:
        x: samples, `(n, features)`.
        labels: -1 or 1, `(n,)`.
        w: weights, `(features,)`.
        strength: > 0, the strength of `L1`.
        intercept: the bias, which is not penalized; None for a model without.

    Raises:
        ValueError: the shapes do not fit, a label is not -1 or 1, the strength is not a finite number > 0, or the
            intercept is not optimal for `w`: the sum of theta is not 0.

    Computed in the widest type of the arguments: a gap below about 1e-7 of the objective says nothing in float32.

    Reference: Koh, Kim and Boyd (2007), "An interior-point method for large-scale l1-regularized logistic regression",
    section 2.

    >>> x, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, -1.0])
    >>> logistic_lasso_gap(x, labels, torch.zeros(1), strength=0.5, intercept=0.0)
    tensor(0.)
    """
    check_positive("logistic_lasso_gap", "strength", strength)
    x, labels, w = checked("logistic_lasso_gap", x, labels, w)
    if w.dim() != 1:
        raise ValueError(f"logistic_lasso_gap: expected w (features,), the weights of one output, got {tuple(w.shape)}")
    if not bool((labels.abs() == 1).all()):
        raise ValueError("logistic_lasso_gap: labels must be -1 or 1; of labels 0 and 1, take 2 * labels - 1")
    margins = labels * (predictions(x, w) + (0.0 if intercept is None else single(intercept)))
    wrong = torch.sigmoid(-margins)  # the probability of the other label
    if intercept is not None:
        check_optimal_intercept(labels * wrong)
    correlations = correlated(x, labels * wrong)
    scale = feasible_scale(correlations.abs(), strength)
    # The divergence of scale * wrong from wrong, which is all that the loss contributes: 0 where scale is 1.
    kept = scale * wrong
    divergence = kept * scale.log() + (1 - kept) * torch.logaddexp(torch.zeros_like(wrong), (-scale).log1p() - margins)
    return divergence.mean().clamp_min(0) + norm_gap(strength * w.abs(), scale * correlations * w)


def checked(owner: str, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments in one type, without a graph, or raise `ValueError` if their shapes do not fit."""
    fits = x.dim() == 2 and len(x) > 0 and w.dim() in (1, 2) and w.shape[-1] == x.shape[1]
    if not (fits and y.shape == (len(x), *w.shape[:-1])):
        raise ValueError(
            f"{owner}: expected x (n, features) with n >= 1, y (n,) and w (features,), or y (n, outputs) and "
            f"w (outputs, features), got x {tuple(x.shape)}, y {tuple(y.shape)}, w {tuple(w.shape)}"
        )
    dtype = at_least_float32(torch.promote_types(torch.promote_types(x.dtype, y.dtype), w.dtype))
    return x.detach().to(dtype), y.detach().to(dtype), w.detach().to(dtype)


def single(intercept: float | Tensor) -> float:
    """Return the one number that an intercept is, or raise `ValueError`."""
    if not isinstance(intercept, Tensor):
        return float(intercept)
    if intercept.numel() != 1:
        raise ValueError(
            f"logistic_lasso_gap: the intercept must be one number, got a tensor of shape {tuple(intercept.shape)}"
        )
    return float(intercept.detach())


def check_optimal_intercept(residual: Tensor) -> None:
    """Raise `ValueError` unless `residual` adds up to 0.

    The gap is wrong by the sum times the distance to the optimal intercept, which is itself of the size of the sum: a
    sum within the root of rounding leaves an error within rounding.
    """
    total, size = float(residual.sum()), float(residual.abs().sum())
    if not abs(total) <= torch.finfo(residual.dtype).eps ** 0.5 * size:
        raise ValueError(
            "logistic_lasso_gap: the intercept must be optimal for w, so that the residuals add up to 0; they add up "
            f"to {total:.1e}, their sizes to {size:.1e}; minimise over the intercept first"
        )


def predictions(x: Tensor, w: Tensor) -> Tensor:
    """Return x w', shape `(n,)` or `(n, outputs)`."""
    return torch.nn.functional.linear(x, w)


def correlated(x: Tensor, residual: Tensor) -> Tensor:
    """Return the mean of residual times x over the samples, in the shape of the weights."""
    return residual.mT @ x / len(x) if residual.dim() == 2 else residual @ x / len(x)


def feasible_scale(dual_norms: Tensor, strength: float) -> Tensor:
    """Return the largest scale <= 1 that brings every norm down to `strength`, a 0-dim tensor."""
    if dual_norms.numel() == 0:
        return dual_norms.new_ones(())
    return (strength / dual_norms.max()).clamp(max=1)


def squares_gap(energy: Tensor, scale: Tensor) -> Tensor:
    """Return the gap of half the mean of squares `energy` when the residual is scaled."""
    return 0.5 * (1 - scale).square() * energy


def norm_gap(penalties: Tensor, inner: Tensor) -> Tensor:
    """Return the sum of penalties minus inner products; what is below 0 is rounding, by the inequality of Hoelder."""
    return (penalties - inner).clamp_min(0).sum()
