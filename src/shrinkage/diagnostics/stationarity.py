"""Does a training run solve the problem that was stated? Residuals, and the strength at which zero is a solution.

minimize L(w) + R(w) is solved, to first order, where -grad L(w) lies in the subdifferential of R at w.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shrinkage.diagnostics.evaluation import residual_of, slope_of, strength_max_of, sum_of, value_of
from shrinkage.diagnostics.residuals import ParameterResidual, Residuals
from shrinkage.diagnostics.side_effects import restored
from shrinkage.diagnostics.zero_layers import dead_layers
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.distributed.flattened import check_has_value
from shrinkage.errors import ParameterError, shown
from shrinkage.execution.single_tensor import at_origin
from shrinkage.optimizers.adaptive_step import Number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.box import Box
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.fused import FusedLasso
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.matrix import Orthogonal
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted
from shrinkage.proximal.precision import upcast
from shrinkage.selection.coupled_rules import block_text
from shrinkage.selection.plan import Entry, Plan, resolve
from shrinkage.selection.rules import Rules
from shrinkage.selection.selectors import named_parameters

Closure = Callable[..., Tensor]


def residuals(
    model: nn.Module,
    plan: Plan,
    iteration: int,
    steps: Mapping[str, Number],
    maximized: Set[str],
    closure: Closure,
    data: Iterable[Any] | None,
    tolerance: float,
) -> Residuals:
    """Return the residuals of `model`; see `Regularizer.residuals`.

    Args:
        model: whose parameters are penalized.
        plan: what they are penalized.
        iteration: the update at which strengths are taken.
        steps: the optimizer's step of each parameter, for penalties that need one; 1 where it is missing.
        maximized: parameters whose optimizer climbs instead of descending.
        closure: returns the loss, of one batch of `data` or of everything.
        data: batches.
        tolerance: see `Residuals`.
    """
    found = penalized_parameters(model, plan)
    check_not_sharded(found)
    planned = {id(parameter): entry.name for entry, parameter in found}
    held = {planned.get(id(parameter), name): parameter for name, parameter in trained(model)}
    if not held:
        raise ValueError("no parameter of the model takes a gradient (requires_grad): there is nothing to solve")
    gradients = dict(zip(held, mean_gradients(model, list(held.values()), closure, data), strict=True))
    points = {name: upcast(parameter.detach()) for name, parameter in held.items()}
    descents = {name: -grad if name in maximized else grad for name, grad in gradients.items()}
    blocks = [(names, penalty.at(iteration)) for names, penalty in plan.blocks(held)]
    slopes = [slope_of(penalty, points[first].shape) for (first, *_), penalty in blocks]
    unit = min((slope for slope in slopes if 0 < slope < math.inf), default=1.0)
    penalized = []
    with torch.no_grad():
        for names, penalty in blocks:
            ws = {name: penalty.unrounded(held[name].detach()) for name in names}
            grads = {name: descents[name] for name in names}
            measure, values = residual_of(penalty, ws, grads, steps)
            each = summary(block_text(names), penalty, measure, list(ws.values()), values, unit)
            penalized.append(each._replace(members=tuple(names)))
    known = {name for names, _ in blocks for name in names}
    others = [
        summary(name, None, "gradient", [w], gradients[name].abs(), unit)
        for name, w in points.items()
        if name not in known
    ]
    decoupled = tuple(entry.name for entry in plan if entry.how == "decoupled")
    return Residuals(tuple(penalized), tuple(others), tolerance, decoupled, dead=_dead(model, points))


def _dead(model: nn.Module, points: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return which `points` are zero as a whole and silence their layer, which frozen weights may keep alive."""
    frozen = [(name, each.detach()) for name, each in model.named_parameters() if not each.requires_grad]
    found = dead_layers((name, tuple(w.shape), not w.any()) for name, w in (*points.items(), *frozen))
    return tuple(name for name in found if name in points)


def summary(
    name: str, penalty: Penalty | None, measure: str, ws: Sequence[Tensor], values: Tensor, unit: float
) -> ParameterResidual:
    """Return the largest and the mean of residuals, in the penalty's own unit or else in `unit`."""
    shape = tuple(ws[0].shape) if coupled_of(penalty) is None else None
    text, strength, _ = ("none", "-", "-") if penalty is None else penalty.describe(shape)
    slope = 0.0 if penalty is None else slope_of(penalty, ws[0].shape)
    largest = float(values.max()) if values.numel() else 0.0
    largest = largest if all(bool(w.isfinite().all()) for w in ws) else math.nan
    mean = float(values.mean()) if values.numel() else 0.0
    zeros = sum(int((w == 0).sum()) for w in ws) / max(sum(w.numel() for w in ws), 1)
    relative = largest / (slope if 0 < slope < math.inf else unit)
    return ParameterResidual(name, text, strength, measure, largest, mean, relative, zeros)


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
    strengths = []
    for names, scheduled in plan.blocks(trained):
        penalty, grads = scheduled.at(0), {name: gradients[name] for name in names}
        for name, grad in grads.items():
            if not grad.isfinite().all():
                raise ValueError(f"the gradient of {name!r} is not finite where what {penalty} penalizes is zero")
        if slope_of(penalty, grads[names[0]].shape) == math.inf:
            raise ValueError(f"zero is stationary at every strength of {penalty}: it withstands every gradient")
        strengths.append(float(strength_max_of(penalty, grads)))
        if not math.isfinite(strengths[-1]):
            raise ValueError(
                f"no strength of {penalty} makes all parameters zero, the least is {strengths[-1]}: {cause(penalty)}"
            )
    return max(strengths)


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


def value(model: nn.Module, plan: Plan, iteration: int) -> Tensor:
    """Return the sum of all penalties of `plan` at the parameters of `model`, at one update."""
    held = {entry.name: parameter for entry, parameter in penalized_parameters(model, plan)}
    with torch.no_grad():
        values = [
            value_of(penalty.at(iteration), {name: held[name] for name in names})
            for names, penalty in plan.blocks(held)
        ]
    return sum_of(values) if values else torch.zeros(())


def penalized_parameters(model: nn.Module, plan: Plan) -> list[tuple[Entry, nn.Parameter]]:
    """Return the entries of `plan` with their parameters in `model`; raise `ParameterError` if one has no value yet.

    Two that were tied since the plan was made are one.
    """
    held = {candidate.name: candidate.parameter for candidate in named_parameters(model)}
    found: dict[int, tuple[Entry, nn.Parameter]] = {}
    for entry in plan:
        parameter = held.get(entry.name)
        if parameter is not None and is_lazy(parameter):
            raise ParameterError(f"{entry.name!r} is lazy and has no value yet; run one forward pass first")
        if parameter is not None:
            check_has_value(entry.name, parameter)
            found.setdefault(id(parameter), (entry, parameter))
    return list(found.values())


def check_not_sharded(penalized: Iterable[tuple[Entry, nn.Parameter]]) -> None:
    """Raise `ParameterError` if a parameter is sharded: its gradient exists only after backward."""
    for entry, parameter in penalized:
        if is_dtensor(parameter):
            raise ParameterError(
                f"{entry.name!r} of shape {entry.shape} is sharded over processes, and no gradient can be asked for; "
                "gather a full state_dict, load it into a model on one process, and ask there"
            )


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter of `model` that takes a gradient, once, under the name that a plan gives it."""
    seen: set[int] = set()
    for candidate in named_parameters(model):
        parameter = candidate.parameter
        if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            yield candidate.name, parameter


def mean_gradients(
    model: nn.Module, parameters: list[nn.Parameter], closure: Closure, data: Iterable[Any] | None
) -> list[Tensor]:
    """Return the gradient of the mean loss for each parameter, and leave `model` as it was, `.grad` included."""
    totals, count = [torch.zeros_like(upcast(parameter.detach())) for parameter in parameters], 0
    with restored(model, closure, data):  # a loader draws random numbers as soon as it begins
        batches: Iterable[tuple[Any, ...]] = [()] if data is None else ((batch,) for batch in data)
        for arguments in batches:
            size = length(arguments[0]) if arguments else 1
            with torch.enable_grad():
                loss = closure(*arguments)
            for total, grad in zip(totals, gradients_of(loss, parameters), strict=True):
                if grad is not None:
                    total.add_(upcast(grad), alpha=size)
            count += size
    if not count:
        raise ValueError("there are no batches in the data; an iterator can be used once only")
    return [total / count for total in totals]


def gradients_of(loss: object, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return the gradient of `loss` for each parameter; raise `TypeError` if it has none to give."""
    if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
        constant = " without a graph" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise TypeError(
            f"the closure has to return the loss, one number that can be differentiated, got {shown(loss)}{constant}"
        )
    try:
        return torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)
    except RuntimeError as error:
        if all(parameter.grad is None for parameter in parameters):
            raise
        raise TypeError("the closure calls backward(): it has to return the loss, and to leave that out") from error


def length(batch: Any) -> int:
    """Return the length of the first tensor in a batch, 1 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return length(batch[0]) if isinstance(batch, list | tuple) and batch else 1
