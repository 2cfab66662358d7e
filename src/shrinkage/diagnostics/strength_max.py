"""The smallest strength at which an all-zero parameter is stationary."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.evaluation import penalized_parameters, slope_of, strength_max_of
from shrinkage.diagnostics.loss_gradients import (
    Closure,
    check_not_sharded,
    mean_gradients,
)
from shrinkage.execution.at_origin import at_origin
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.box import Box
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.fused import FusedLasso
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.matrix import Orthogonal
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted
from shrinkage.selection.plan import resolve
from shrinkage.selection.rules import Rules


def strength_max(model: nn.Module, closure: Closure, rules: Rules, data: Iterable[Any] | None = None) -> float:
    """Return the smallest strength at which zero is stationary for all parameters of a rule, with the others unchanged.

    max over the rule's parameters of the penalty's dual norm of their gradient, where they are all zero

    For a linear model and a convex penalty nothing is left from there on: search below it, at 0.1 or 0.01 of it there
    usually is enough. For a layer of a network it is no upper bound: other layers train on, and with them it changes,
    often to many times as much. For a penalty that is not convex, zero is not the only solution from there on.

    Args:
        model: is as it was when this returns, as is what `closure` changes: see `Regularizer.residuals`.
        closure: returns the loss of all training data, or of one batch of `data`, as in `Regularizer.residuals`.
        rules: a penalty, whose strength plays no part, or a `Rule` or mapping that says which parameters.
        data: batches.

    Raises:
        SelectionError, GroupError, ParameterError: as in `Regularizer`.
        ValueError: a penalty has no such strength; the message says why.

    Reference: Ndiaye et al. (2017), "Gap safe screening rules for sparsity enforcing penalties", eq. 10.
    Setting hidden layers of a network to zero blocks the gradients of what lies behind them, which are not asked here.

    >>> import shrinkage
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    >>> strength_max(layer, lambda: layer(x).sum(), shrinkage.L1(1.0))
    1.0
    """
    plan = resolve(model, rules)
    found = penalized_parameters(model, plan)
    check_not_sharded(found)
    trained = {entry.name: parameter for entry, parameter in found if parameter.requires_grad}
    if not trained:
        raise ValueError("the rules penalize no parameter that takes a gradient")
    with at_origin([(entry.penalty.at(0), parameter) for entry, parameter in found if parameter.requires_grad]):
        gradients = dict(zip(trained, mean_gradients(model, list(trained.values()), closure, data), strict=True))
    return max(
        least_strength(scheduled.at(0), {name: gradients[name] for name in names})
        for names, scheduled in plan.blocks(trained)
    )


def least_strength(penalty: Penalty, grads: Mapping[str, Tensor]) -> float:
    """Return the smallest strength at which one parameter, or all that share its groups, can be zero.

    Raises:
        ValueError: there is none; the message says why.
    """
    for name, grad in grads.items():
        if not grad.isfinite().all():
            raise ValueError(f"the gradient of {name!r} is not finite where what {penalty} penalizes is zero")
    if slope_of(penalty, next(iter(grads.values())).shape) == math.inf:
        raise ValueError(f"zero is stationary at every strength of {penalty}: it withstands every gradient")
    strength = float(strength_max_of(penalty, grads))
    if not math.isfinite(strength):
        raise ValueError(
            f"no strength of {penalty} makes all parameters zero, the least is {strength}: {cause(penalty)}"
        )
    return strength


def cause(penalty: Penalty) -> str:
    """Return why no strength of `penalty` makes parameters zero."""
    if isinstance(penalty, Box) and penalty.penalty is not None and penalty.value(torch.zeros(())).isinf():
        return "zero is outside of its bounds"
    if isinstance(penalty, Box | Grouped | NonNegative | Ridged | Toward | Weighted) and penalty.penalty is not None:
        return cause(penalty.penalty)
    if isinstance(penalty, Constraint):
        return "it is a constraint, which has no strength"
    if isinstance(penalty, FusedLasso):
        return "it penalizes differences alone, and here a constant is better than zero"
    if isinstance(penalty, SparseGroupLasso):
        return "both of its strengths are 0, which tells no proportion"
    if isinstance(penalty, Orthogonal):
        return "it draws rows to be orthogonal, not to zero"
    if penalty.smooth:
        return "it is smooth, so that it makes weights small and never zero"
    return "its `strength_max` is infinite for this gradient"
