"""Penalized parameters that share groups with each other, or with shards on other processes: found when attaching."""

from collections.abc import Mapping, Sequence

from torch.nn.parameter import is_lazy

from shrinkage.distributed.dtensor import process_groups_of
from shrinkage.distributed.group_sharding import Block, GroupSharding, group_sharding_of, membership_here
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.membership import coupled_of, membership_of, weights_of
from shrinkage.training.penalized import PenalizedParameter


def located(targets: Sequence[PenalizedParameter]) -> list[PenalizedParameter]:
    """Return `targets` with how their groups cross processes and other parameters."""
    coupled: dict[Coupled, list[PenalizedParameter]] = {}
    for target in targets:
        groups = coupled_of(target.penalty)
        if groups is not None:
            coupled.setdefault(groups, []).append(target)
    blocks = {groups: block_of(members) for groups, members in coupled.items()}
    later = iter(located([target.second for target in targets if target.second is not None]) if targets else ())
    found = [target if target.second is None else target._replace(second=next(later)) for target in targets]
    return [
        target if is_lazy(target.parameter) else target._replace(group_sharding=sharding_of(target, blocks))
        for target in found
    ]


def block_of(targets: Sequence[PenalizedParameter]) -> Block:
    """Return the block of parameters that share groups: the weights of groups, and all processes that hold shards."""
    first, *_ = targets
    process_groups = {each.group_name: each for target in targets for each in process_groups_of(target.parameter)}
    return Block(tuple(process_groups.values()), weights_of(first.penalty, first.parameter.device))


def sharding_of(target: PenalizedParameter, blocks: Mapping[Coupled, Block]) -> GroupSharding | None:
    """Return how the groups of `target` cross processes, and the other parameters of its block."""
    parameter, groups = target.parameter, coupled_of(target.penalty)
    membership = membership_of(target.penalty, target.name, parameter.device)
    if groups is None or membership is None:
        return group_sharding_of(target.penalty, parameter)
    own = membership_here(membership, parameter, blocks[groups].process_groups)
    return GroupSharding(blocks[groups], parameter, membership=own)
