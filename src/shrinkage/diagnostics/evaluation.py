"""Value, residual and largest strength of a penalty on its parameters."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shrinkage.distributed.dtensor import whole
from shrinkage.distributed.flat_parameters import check_has_value
from shrinkage.distributed.group_sharding import full_penalty
from shrinkage.errors import ParameterError
from shrinkage.optimizers.adaptive_step import Number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.membership import (
    GroupPenalty,
    Membership,
    coupled_of,
    group_penalty_of,
    membership_of,
    weights_of,
)
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import alone
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Entry, Plan


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors, on the device of the first."""
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def value_of(penalty: Penalty, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the value of `penalty` at one parameter, or at all that share its groups, given by name.

    This process may hold shards of them only.
    """
    tensors = {name: whole(parameter.detach()) for name, parameter in parameters.items()}
    if coupled_of(penalty) is None:
        (w,) = tensors.values()
        full = full_penalty(penalty)
        value: Tensor = full.value(full.unrounded(w))
        return value
    tensors = {name: upcast(w) for name, w in tensors.items()}
    return alone(coupled_norms.value(*all_of(penalty, tensors), list(tensors.values())))


def residual_of(
    penalty: Penalty, ws: Mapping[str, Tensor], grads: Mapping[str, Tensor], steps: Mapping[str, Number]
) -> tuple[str, Tensor]:
    """Return the residual of one parameter, or of all that share its groups, and what it measures."""
    points, slopes = list(ws.values()), list(grads.values())
    sizes = [positive(steps.get(name, 1.0), w) for name, w in ws.items()]
    if slope_of(penalty, points[0].shape) < math.inf:
        if coupled_of(penalty) is None:
            return "KKT", penalty.residual(points[0], slopes[0])
        penalized, parts = all_of(penalty, ws)
        values = alone(coupled_norms.residual(penalized, parts, points, slopes))
        own = {number for part in parts for number in part.groups.tolist() if number < part.count}
        return "KKT", values[sorted(own)]
    moved = [w - step * grad for w, step, grad in zip(points, sizes, slopes, strict=True)]
    if coupled_of(penalty) is None:
        found = [penalty.prox(moved[0], sizes[0])]
    else:
        found = alone(coupled_norms.prox(*all_of(penalty, ws), moved, sizes, to_rest=True))
    fixed = [(w - y).abs() / step for w, y, step in zip(points, found, sizes, strict=True)]
    return "fixed point", fixed[0] if len(fixed) == 1 else torch.cat([each.reshape(-1) for each in fixed])


def strength_max_of(penalty: Penalty, grads: Mapping[str, Tensor]) -> Tensor:
    """Return the least strength at which one parameter, or all that share its groups, can be zero."""
    slopes = list(grads.values())
    if coupled_of(penalty) is None:
        return penalty.strength_max(slopes[0])
    return alone(coupled_norms.strength_max(*all_of(penalty, grads), slopes))


def slope_of(penalty: Penalty, shape: Sequence[int]) -> float:
    """Return the size of gradient that zero withstands, the largest of all elements or groups."""
    groups = coupled_of(penalty)
    if groups is None or not isinstance(penalty, Grouped):
        return penalty.slope(shape)
    return float(weights_of(penalty, torch.device("cpu")).max()) * penalty.penalty.slope((groups.count,))


def all_of(penalty: Penalty, tensors: Mapping[str, Tensor]) -> tuple[GroupPenalty, list[Membership]]:
    """Return the penalty of groups that span full `tensors`, and which of the groups each tensor has."""
    device = next(iter(tensors.values())).device
    parts = [membership_of(penalty, name, w.device) for name, w in tensors.items()]
    return group_penalty_of(penalty, weights_of(penalty, device)), [part for part in parts if part is not None]


def positive(step: Number, w: Tensor) -> Tensor:
    """Return `step` in the type of `w`; 1 in place of 0, at which a schedule may have ended."""
    size = torch.as_tensor(step, dtype=w.dtype, device=w.device)
    return torch.where(size > 0, size, 1.0)


def value(model: nn.Module, plan: Plan, iteration: int) -> Tensor:
    """Return the sum of all penalties of `plan` at the parameters of `model`, at one update."""
    held = {entry.name: parameter for entry, parameter in penalized_parameters(model, plan)}
    with torch.no_grad():
        values = [
            value_of(penalty.at(iteration), {name: held[name] for name in names})
            for names, penalty in plan.at(iteration).blocks(held)
        ]
    return sum_of(values) if values else torch.zeros(())


def frozen_zeros(plan: Plan, held: Mapping[str, nn.Parameter], iteration: int) -> dict[str, Tensor]:
    """Return where parameters are zero and stay so, by the rules that are over at an update or by budgets, by name."""
    ranked = [entry.name for planned in plan.budgets for entry in planned.entries if entry.name in held]
    masks = {name: held[name].detach() == 0 for name in ranked}
    for names, penalty in plan.frozen(iteration).blocks(held):
        ws = {name: upcast(held[name].detach()) for name in names}
        if coupled_of(penalty) is None:
            masks |= {name: penalty.zeros(w) for name, w in ws.items()}
        else:
            found = alone(coupled_norms.zeros(all_of(penalty, ws)[1], list(ws.values())))
            masks |= dict(zip(names, found, strict=True))
    return masks


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
