"""Parameters whose groups cross processes or other parameters: found in an optimizer, and measured together."""

from collections.abc import Sequence

from torch.nn.parameter import is_lazy

from shrinkage.distributed.all_reduce import Family, GroupSharding, group_sharding_of, membership_here
from shrinkage.distributed.dtensor import machines_of
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.membership import coupled_of, membership_of, weights_of
from shrinkage.training.penalized import PenalizedParameter


def located(targets: Sequence[PenalizedParameter]) -> list[PenalizedParameter]:
    """Return `targets` with how their groups cross processes and other parameters."""
    families: dict[Coupled, list[PenalizedParameter]] = {}
    for target in targets:
        groups = coupled_of(target.penalty)
        if groups is not None:
            families.setdefault(groups, []).append(target)
    found = {groups: family_of(members) for groups, members in families.items()}
    return [
        located_in(found.get(groups) if (groups := coupled_of(target.penalty)) else None, target) for target in targets
    ]


def family_of(targets: Sequence[PenalizedParameter]) -> Family:
    """Return the groups that `targets` share: their weights, and all processes that hold pieces of them."""
    first, *_ = targets
    machines = {each.group_name: each for target in targets for each in machines_of(target.parameter)}
    return Family(weights_of(first.penalty, first.parameter.device), tuple(machines.values()))


def located_in(family: Family | None, target: PenalizedParameter) -> PenalizedParameter:
    """Return `target` with how its groups cross processes, and other parameters of `family`."""
    parameter = target.parameter
    if is_lazy(parameter):
        return target
    part = membership_of(target.penalty, target.name, parameter.device)
    if family is None or part is None:
        return target._replace(group_sharding=group_sharding_of(target.penalty, parameter))
    own = membership_here(part, parameter, family.machines)
    return target._replace(group_sharding=GroupSharding(tuple(parameter.shape), (), family.machines, family, own))


def blocks_of(
    penalized: Sequence[tuple[PenalizedParameter, Penalty]],
) -> list[list[tuple[PenalizedParameter, Penalty]]]:
    """Return what shares groups together, and every other penalize by itself."""
    found: dict[object, list[tuple[PenalizedParameter, Penalty]]] = {}
    for target, penalty in penalized:
        family = None if target.group_sharding is None else target.group_sharding.family
        found.setdefault(family or target.name, []).append((target, penalty))
    return list(found.values())
