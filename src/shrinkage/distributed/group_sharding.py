"""Groups that are sharded over processes: which processes share them, and what each computes for its own shard.

No communication is needed if shards do not cut groups. If they do, the sums of groups are added up over the processes
that share them (`all_reduce.py`). A penalty that needs more than sums gets the full tensor on every process.

Which of the three cases holds, and how often processes communicate, follows from shapes and placements alone. All
processes know these, so that none of them waits for a message that nobody sends.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from shrinkage.distributed.dtensor import (
    cuts_of,
    is_dtensor,
    local,
    process_groups_of,
    shard_like,
    spread,
    type_of_spread,
    whole,
)
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import Membership
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction

Item = TypeVar("Item")


@value_class
class Block:
    """Parameters of one optimizer that share groups, or a single one whose groups cross processes.

    Args:
        process_groups: over which the sums of groups have to be added up, one after the other.
        weights: what the penalty of each group's norm is multiplied by, shape `(groups,)`; None for a single parameter.
    """

    process_groups: tuple[Any, ...]
    weights: Tensor | None = None


class GroupSharding(NamedTuple):
    """How the groups of one parameter cross processes, or other parameters.

    Args:
        block: the parameters that share the groups.
        parameter: one of them; shards are cut as it is.
        cut: the dimensions along which processes cut it.
        membership: which groups this process's shard has, if they span other parameters.
    """

    block: Block
    parameter: Any
    cut: tuple[int, ...] = ()
    membership: Membership | None = None


def group_sharding_of(penalty: Penalty, parameter: Any) -> GroupSharding | None:
    """Return how the groups of `parameter` cross processes; None if every process can penalize its own shard."""
    if not is_dtensor(parameter):
        return None
    mesh, cuts = parameter.device_mesh, cuts_of(parameter)
    free = penalty.cuts(tuple(parameter.shape))
    process_groups = tuple(mesh.get_group(index) for index, dim in cuts.items() if dim not in free)
    cut = tuple(sorted(set(cuts.values())))
    return GroupSharding(Block(process_groups), parameter, cut) if process_groups else None


def membership_here(part: Membership, parameter: Any, process_groups: Sequence[Any]) -> Membership:
    """Return which groups this process's shard of `parameter` has, and whether it counts where sums are added up.

    A shard that several processes hold is counted on the first of them only.
    """
    own = {each.group_name for each in process_groups_of(parameter)}
    counts = all(each.group_name in own or dist.get_rank(each) == 0 for each in process_groups)
    if not is_dtensor(parameter):
        return replace(part, counts=counts)
    copy = sys.modules["torch.distributed.tensor"].Replicate()
    along = [copy if cuts_of(parameter).get(i) != part.dim else each for i, each in enumerate(parameter.placements)]
    column = part.groups.view([-1 if dim == part.dim else 1 for dim in range(parameter.dim())])
    numbers = type_of_spread().from_local(column, parameter.device_mesh, [copy] * len(along), run_check=False)
    own = local(numbers.redistribute(placements=along)).reshape(-1)
    return replace(part, groups=own, first=None, counts=counts)


def shard_penalty(penalty: Penalty, like: Any) -> Penalty:
    """Return `penalty` as it penalizes this process's shard of a parameter."""
    return penalty.with_tensors(partial(shard_like, like=like)) if is_dtensor(like) else penalty


def full_penalty(penalty: Penalty) -> Penalty:
    """Return `penalty` as it penalizes the full tensor of a parameter."""
    return penalty.with_tensors(whole)


def prox_across(penalty: Penalty, w: Tensor, step: float | Tensor, sharding: GroupSharding) -> Reduction[Tensor]:
    """Return a computation of the prox of this process's shard.

    Args:
        penalty: of the full tensor.
        w: the shard.
        step: a number, or shaped like the shard.
        sharding: how the groups of the parameter cross processes.
    """
    like, shard = sharding.parameter, upcast(w)
    computation = shard_penalty(penalty, like).prox_by_sums(shard, step, tuple(like.shape), sharding.cut)
    if computation is not None:
        return (yield from computation)
    steps = whole(spread(step, like)) if isinstance(step, Tensor) and step.dim() else step
    return shard_like(full_penalty(penalty).prox(whole(spread(shard, like)), steps), like)


def gradient_across(penalty: Penalty, w: Tensor, sharding: GroupSharding) -> Reduction[Tensor]:
    """Return a computation of the gradient of this process's shard."""
    like, shard = sharding.parameter, upcast(w)
    computation = shard_penalty(penalty, like).gradient_by_sums(shard, tuple(like.shape), sharding.cut)
    if computation is not None:
        return (yield from computation)
    return shard_like(full_penalty(penalty).gradient(whole(spread(shard, like))), like)


def stays_across(penalty: Penalty, w: Tensor, average: Tensor, sharding: GroupSharding) -> Tensor:
    """Return where this process's shard is zero and stationary for its averaged gradient."""
    like = sharding.parameter
    full, averages = whole(spread(w, like)), whole(spread(average, like))
    return shard_like(full_penalty(penalty).stays(upcast(full), averages), like)


def zeros_across(penalty: Penalty, w: Tensor, sharding: GroupSharding) -> Reduction[Tensor]:
    """Return a computation of where this process's shard is zero; of groups, whether all their shards are."""
    like, groups = sharding.parameter, penalty.zero_groups
    found = shard_penalty(penalty, like).nonzero(w)
    if groups is None:
        return ~found
    layout = groups.layout(w.shape)
    if set(sharding.cut) & set(groups.layout(tuple(like.shape)).split):  # a shard has other groups
        return shard_like(groups.without(whole(spread(found, like))), like)
    mine = found.reshape(layout.shape).any(layout.within, keepdim=True)
    counts = yield mine.to(torch.float32)
    return (counts == 0).expand(layout.shape).reshape(w.shape)


def blocks_of(items: Iterable[Item], block: Callable[[Item], object]) -> list[list[Item]]:
    """Return `items` in lists of those that have one `block`, in the order of the first of each."""
    found: dict[object, list[Item]] = {}
    for item in items:
        found.setdefault(block(item), []).append(item)
    return list(found.values())
