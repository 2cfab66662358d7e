"""How much of what is penalized is zero: weights, and groups."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.distributed.dtensor import whole
from shrinkage.distributed.group_sharding import full_penalty
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.membership import coupled_of, membership_in
from shrinkage.penalties.per_group import PerGroup
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan


class Counts(NamedTuple):
    """How many of the penalized weights are zero, and how many groups; `groups` is 0 if no penalty has groups."""

    zeros: int
    size: int
    zero_groups: int
    groups: int


def counts(model: nn.Module, plan: Plan) -> Counts:
    """Return how much of what `plan` penalizes, or ranks by a budget, is zero in `model`.

    Weights with a smooth penalty count only if all have one. Of `Toward`, what is at the reference counts as zero. If
    the model is sharded over processes, all of them have to call this.
    """
    penalties: dict[str, Penalty | None] = {entry.name: entry.penalty for entry in plan}
    groups = {name: groups_of(penalty) for name, penalty in penalties.items()}
    for planned in plan.budgets:
        penalties |= {entry.name: None for entry in planned.entries}
        groups |= {entry.name: planned.budget.groups for entry in planned.entries}
    kinked = {name for name, penalty in penalties.items() if penalty is None or not penalty.smooth} or set(penalties)
    there = {
        candidate.name: nonzero(whole(candidate.parameter.detach()), penalties[candidate.name])
        for candidate in named_parameters(model)
        if candidate.name in kinked and candidate.parameter is not None
    }
    size, left = sum(mask.numel() for mask in there.values()), sum(int(mask.sum()) for mask in there.values())
    alive = list(live_groups({name: (mask, groups[name]) for name, mask in there.items()}))
    count, live = sum(mask.numel() for mask in alive), sum(int(mask.sum()) for mask in alive)
    return Counts(size - left, size, count - live, count)


def groups_of(penalty: Penalty | None) -> Groups | None:
    """Return the groups that a penalty can make zero as a whole."""
    if penalty is None:
        return None
    return penalty.groups if isinstance(penalty, PerGroup) else coupled_of(penalty) or penalty.zero_groups


def nonzero(w: Tensor, penalty: Penalty | None) -> Tensor:
    """Return where a full tensor is not zero, or not where its penalty draws it to."""
    return w != 0 if penalty is None else full_penalty(penalty).nonzero(w)


def live_groups(there: Mapping[str, tuple[Tensor, Groups | None]]) -> Iterator[Tensor]:
    """Yield which groups are not zero, given where each parameter is not; of groups that span several, once."""
    spanning: dict[int, tuple[Coupled, dict[str, Tensor]]] = {}
    for name, (mask, groups) in there.items():
        if isinstance(groups, Coupled):
            spanning.setdefault(id(groups), (groups, {}))[1][name] = mask
        elif groups is not None:
            yield groups.view(mask).any(1)
    for coupled, members in spanning.values():
        yield live_coupled(coupled, members)


def live_coupled(coupled: Coupled, there: Mapping[str, Tensor]) -> Tensor:
    """Return which of the groups that span parameters are not zero, shape `(groups,)`."""
    total = torch.zeros(1, coupled.count + 1)
    for name, mask in there.items():
        member = membership_in(coupled, name, mask.device)
        split = member.split(mask)
        member.add_(total, split.any(member.within(split)).float()[None])
    return total[0, :-1] > 0
