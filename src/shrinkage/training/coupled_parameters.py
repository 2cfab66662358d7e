"""Parameters whose groups cross machines or other parameters: found in an optimizer, and measured together."""

from collections.abc import Sequence

from torch.nn.parameter import is_lazy

from shrinkage.distributed.all_reduce import Crossing, Family, crossing_of, part_here
from shrinkage.distributed.dtensor import machines_of
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.membership import coupled_of, part_of, weights_of
from shrinkage.training.penalized import Charge


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
