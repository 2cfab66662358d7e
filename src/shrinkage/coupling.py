"""Parameters whose groups cross machines or other parameters: found in an optimizer, and measured together."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from shrinkage.charge import Charge
from shrinkage.coupled import Coupled
from shrinkage.errors import AttachmentError, MetricError
from shrinkage.metric import Metric
from shrinkage.metrics import Number
from shrinkage.optimizers import group_indices
from shrinkage.penalties import Grouped, Penalty, coupled
from shrinkage.penalties.coupled import Charged, Part, charged_by, coupled_of, part_of, weights_of
from shrinkage.plan import Plan
from shrinkage.prox import wide
from shrinkage.select import named_parameters
from shrinkage.sharding import Crossing, Family, crossing_of, machines_of, part_here, whole, whole_penalty
from shrinkage.sums import alone


def located(charges: Sequence[Charge]) -> list[Charge]:
    """Return `charges` with how their groups cross machines and other parameters."""
    families: dict[Coupled, list[Charge]] = {}
    for charge in charges:
        groups = coupled_of(charge.penalty)
        if groups is not None:
            families.setdefault(groups, []).append(charge)
    found = {groups: family_of(members) for groups, members in families.items()}
    return [
        located_in(found.get(groups) if (groups := coupled_of(charge.penalty)) else None, charge) for charge in charges
    ]


def family_of(charges: Sequence[Charge]) -> Family:
    """Return the groups that `charges` share: their weights, and all machines that hold pieces of them."""
    first, *_ = charges
    machines = {each.group_name: each for charge in charges for each in machines_of(charge.parameter)}
    return Family(weights_of(first.penalty, first.parameter.device), tuple(machines.values()))


def located_in(family: Family | None, charge: Charge) -> Charge:
    """Return `charge` with how its groups cross machines, and other parameters of `family`."""
    parameter = charge.parameter
    if is_lazy(parameter):
        return charge
    part = part_of(charge.penalty, charge.name, parameter.device)
    if family is None or part is None:
        return charge._replace(crossing=crossing_of(charge.penalty, parameter))
    own = part_here(part, parameter, family.machines)
    return charge._replace(crossing=Crossing(tuple(parameter.shape), (), family.machines, family, own))


def blocks_of(charged: Sequence[tuple[Charge, Penalty]]) -> list[list[tuple[Charge, Penalty]]]:
    """Return what shares groups together, and every other charge by itself."""
    found: dict[object, list[tuple[Charge, Penalty]]] = {}
    for charge, penalty in charged:
        family = None if charge.crossing is None else charge.crossing.family
        found.setdefault(family or charge.name, []).append((charge, penalty))
    return list(found.values())


def check_together(model: nn.Module, plan: Plan, optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if `optimizer` steps a part of a family, and the rest takes gradients elsewhere."""
    families = [entries for entries in plan.families() if coupled_of(entries[0].penalty) is not None]
    held = {each.name: each.parameter for each in named_parameters(model)} if families else {}
    stepped = group_indices(optimizer)
    for entries in families:
        trained = [entry.name for entry in entries if takes_gradient(held.get(entry.name))]
        inside = [name for name in trained if id(held[name]) in stepped]
        outside = [name for name in trained if id(held[name]) not in stepped]
        if inside and outside:
            raise AttachmentError(
                f"{inside[0]!r} and {outside[0]!r} share groups, and this optimizer steps the first only; groups that "
                "span parameters are charged in one step, so give them to one optimizer, or leave one out of the groups"
            )


def check_moved(charge: Charge, metric: Metric | None, optimizer: Optimizer) -> None:
    """Raise `MetricError` if `optimizer` moves another tensor than a parameter whose groups span others."""
    iterates = metric is not None and metric.iterate is not None
    if charge.how != "gradient" and coupled_of(charge.penalty) is not None and iterates:
        raise MetricError(
            f"{charge.name!r} of shape {tuple(charge.parameter.shape)} shares groups with other parameters, and "
            f'{type(optimizer).__name__} moves other tensors, which parameters follow; choose how="gradient"'
        )


def takes_gradient(parameter: Tensor | None) -> bool:
    """Return whether there is a parameter that takes a gradient."""
    return parameter is not None and parameter.requires_grad


def value_of(penalty: Penalty, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the value of `penalty` at one parameter, or at all that share its groups, given by name.

    This machine may hold pieces of them only.
    """
    tensors = {name: wide(whole(parameter.detach())) for name, parameter in parameters.items()}
    if coupled_of(penalty) is None:
        (w,) = tensors.values()
        value: Tensor = whole_penalty(penalty).value(w)
        return value
    return alone(coupled.value(*all_of(penalty, tensors), list(tensors.values())))


def residual_of(
    penalty: Penalty, ws: Mapping[str, Tensor], grads: Mapping[str, Tensor], steps: Mapping[str, Number]
) -> tuple[str, Tensor]:
    """Return the residual of one parameter, or of all that share its groups, and what it measures."""
    points, slopes = list(ws.values()), list(grads.values())
    sizes = [positive(steps.get(name, 1.0), w) for name, w in ws.items()]
    if slope_of(penalty, points[0].shape) < math.inf:
        if coupled_of(penalty) is None:
            return "KKT", penalty.residual(points[0], slopes[0])
        charged, parts = all_of(penalty, ws)
        values = alone(coupled.residual(charged, parts, points, slopes))
        own = {number for part in parts for number in part.groups.tolist() if number < part.count}
        return "KKT", values[sorted(own)]
    moved = [w - step * grad for w, step, grad in zip(points, sizes, slopes, strict=True)]
    if coupled_of(penalty) is None:
        found = [penalty.prox(moved[0], sizes[0])]
    else:
        found = alone(coupled.prox(*all_of(penalty, ws), moved, sizes, to_rest=True))
    fixed = [(w - y).abs() / step for w, y, step in zip(points, found, sizes, strict=True)]
    return "fixed point", fixed[0] if len(fixed) == 1 else torch.cat([each.reshape(-1) for each in fixed])


def strength_max_of(penalty: Penalty, grads: Mapping[str, Tensor]) -> Tensor:
    """Return the least strength at which one parameter, or all that share its groups, can be zero."""
    slopes = list(grads.values())
    if coupled_of(penalty) is None:
        return penalty.strength_max(slopes[0])
    return alone(coupled.strength_max(*all_of(penalty, grads), slopes))


def slope_of(penalty: Penalty, shape: Sequence[int]) -> float:
    """Return the size of gradient that zero withstands, the largest of all elements or groups."""
    groups = coupled_of(penalty)
    if groups is None or not isinstance(penalty, Grouped):
        return penalty.slope(shape)
    return float(weights_of(penalty, torch.device("cpu")).max()) * penalty.penalty.slope((groups.count,))


def all_of(penalty: Penalty, tensors: Mapping[str, Tensor]) -> tuple[Charged, list[Part]]:
    """Return what the groups that span whole `tensors` are charged, and which of them each has."""
    device = next(iter(tensors.values())).device
    parts = [part_of(penalty, name, w.device) for name, w in tensors.items()]
    return charged_by(penalty, weights_of(penalty, device)), [part for part in parts if part is not None]


def positive(step: Number, w: Tensor) -> Tensor:
    """Return `step` in the type of `w`; 1 in place of 0, at which a schedule may have ended."""
    size = torch.as_tensor(step, dtype=w.dtype, device=w.device)
    return torch.where(size > 0, size, 1.0)
