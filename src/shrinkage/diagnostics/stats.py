"""What a trainer logs of a regularized model, as numbers. Of a sharded model, all processes have to ask for them.

* `shrinkage/penalty`: the sum of all penalties now, in units of the loss;
* `shrinkage/zeros`: the share of the penalized weights that are exactly zero;
* `shrinkage/zero_groups`: the share of groups that are zero as a whole, if a penalty or a budget has groups;
* `shrinkage/dead_layers`: how many of the penalized layers are zero as a whole;
* `shrinkage/strength/<rule>`: the strength at this update, by the rule's selector, or by the kind of its penalty if it
  has none; `<rule>/l1` and so on where there are several;
* `shrinkage/budget/wanted` and `shrinkage/budget/reached`: how far a `Budget` has come, as of its last ranking;
  `shrinkage/budget/0/wanted` and so on where there are several.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.evaluation import sum_of, value_of
from shrinkage.diagnostics.zero_layers import dead_layers
from shrinkage.distributed.dtensor import whole
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.base import Penalty, strengths_of
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.membership import membership_in
from shrinkage.penalties.per_group import PerGroup
from shrinkage.penalties.schedules import at
from shrinkage.proximal.reductions import alone
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan

Tensors = Mapping[str, Tensor]


class ZeroGroups(NamedTuple):
    """How many groups are zero as a whole, a 0-dim tensor, and how many there are."""

    zero: Tensor
    of: int


def stats(model: nn.Module, plan: Plan, update: int) -> dict[str, float]:
    """Return what is logged of `model` at an update, but for the progress of budgets, without the prefix."""
    with torch.no_grad():
        parameters = ruled_parameters(model, plan)
        tensors = {name: whole(parameter.detach()) for name, parameter in parameters.items()}
        names = list(tensors)
        zeros = [(w == 0).sum() for w in tensors.values()]
        groups = list(zero_groups(plan, parameters, tensors))
        stage = [(penalty.at(update), each) for each, penalty in plan.at(update).blocks(parameters)]
        penalty = [value_of(each, {name: tensors[name] for name in found}) for each, found in stage]
        measured = [*zeros, *(each.zero for each in groups), sum_of(penalty) if penalty else torch.zeros(())]
        numbers = torch.stack([each.double().cpu() for each in measured]).tolist()
    counts = dict(zip(names, numbers, strict=False))
    sizes = {name: w.numel() for name, w in tensors.items()}
    found = {"penalty": numbers[-1], "zeros": share(sum(counts.values()), sum(sizes.values()))}
    if groups:
        found["zero_groups"] = share(sum(numbers[len(names) : -1]), sum(each.of for each in groups))
    dead = dead_layers((name, w.shape, counts[name] == w.numel()) for name, w in tensors.items())
    return {**found, "dead_layers": float(len(dead)), **strengths(plan, update)}


def ruled_parameters(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """Return the parameters that have a penalty or a budget and a value, by name, and each of them once."""
    wanted = {entry.name for entry in plan} | {entry.name for budget in plan.budgets for entry in budget.entries}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for candidate in named_parameters(model):
        parameter = candidate.parameter
        if candidate.name in wanted and parameter is not None and not nn.parameter.is_lazy(parameter):
            found.setdefault(id(parameter), (candidate.name, parameter))
    return dict(found.values())


def zero_groups(plan: Plan, parameters: Tensors, tensors: Tensors) -> Iterator[ZeroGroups]:
    """Yield the zero groups of each parameter that falls into groups, or of all that share them."""
    for names, penalty in plan.blocks(parameters):
        groups = penalty.groups if isinstance(penalty, PerGroup) else penalty.zero_groups
        yield from zero_among(groups, {name: tensors[name] for name in names})
    for planned in plan.budgets:
        yield from zero_among(planned.budget.groups, {each.name: tensors[each.name] for each in planned.entries})


def zero_among(groups: Groups | None, tensors: Tensors) -> Iterator[ZeroGroups]:
    """Yield how many of `groups` are zero, in each of `tensors` or, where they span them, in all together."""
    if isinstance(groups, Coupled):
        parts = [membership_in(groups, name, w.device) for name, w in tensors.items()]
        marks = [(w != 0).float() for w in tensors.values()]
        norms = alone(coupled_norms.norms_of(parts, coupled_norms.split_by(parts, marks)))
        own = {number for part in parts for number in part.groups.tolist() if number < part.count}
        yield ZeroGroups((norms[sorted(own)] == 0).sum(), len(own))
    elif groups is not None:
        for w in tensors.values():
            zero = groups.view(w).eq(0).all(1)
            yield ZeroGroups(zero.sum(), zero.numel())


def strengths(plan: Plan, update: int) -> dict[str, float]:
    """Return the strengths of each rule at an update, by the rule's selector."""
    found: dict[str, float] = {}
    for entry in plan.at(update):
        numbers = list(strengths_in(entry.penalty, update))
        for name, number in numbers:
            key = f"strength/{entry.rule or entry.name}" + f"/{name}" * (len(numbers) > 1)
            found.setdefault(key, number)
    return found


def strengths_in(penalty: Penalty, update: int) -> Iterator[tuple[str, float]]:
    """Yield the strengths of a penalty, and of those inside of it, each with its name.

    >>> from shrinkage import L1, ElasticNet, Grouped, Rows
    >>> list(strengths_in(ElasticNet(0.1, 0.2), 0)), list(strengths_in(Grouped(L1(lambda update: 0.5), Rows()), 0))
    ([('l1', 0.1), ('l2', 0.2)], [('strength', 0.5)])
    """
    own = strengths_of(type(penalty))
    for name, value in penalty.arguments().items():
        if name in own:
            yield name, float(at(value, update))
        elif isinstance(value, Penalty):
            yield from strengths_in(value, update)


def share(part: float, whole: float) -> float:
    """Return `part / whole`, 0 of nothing."""
    return part / whole if whole else 0.0


def in_logs(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return numbers under the names that they have in every log.

    >>> in_logs({"zeros": 0.5})
    {'shrinkage/zeros': 0.5}
    """
    return {f"shrinkage/{name}": number for name, number in numbers.items()}
