"""Reductions of many parameters over processes: the all-reduces of one round are sent together."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from shrinkage.distributed.dtensor import (
    cuts_of,
    is_dtensor,
    local,
    machines_of,
    shard_like,
    spread,
    type_of_spread,
    whole,
)
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import Membership
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction, Result


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that span parameters of one optimizer.

    Args:
        weights: what the penalty of each group's norm is multiplied by, shape `(groups,)`.
        processes: the process groups over which sums have to be added up, one after the other.
    """

    weights: Tensor
    machines: tuple[Any, ...]


class GroupSharding(NamedTuple):
    """How the groups of one parameter cross processes, or other parameters.

    Args:
        shape: of the whole parameter.
        cut: the dimensions along which processes cut it.
        processes: the process groups over which sums have to be added up, one after the other.
        family: the groups, if they span other parameters.
        part: which of them this process's piece has, then.
    """

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    machines: tuple[Any, ...]
    family: Family | None = None
    part: Membership | None = None


def group_sharding_of(penalty: Penalty, parameter: Any) -> GroupSharding | None:
    """Return how the groups of `parameter` cross processes; None if every process can penalize its piece by itself."""
    if not is_dtensor(parameter):
        return None
    mesh, shape, cuts = parameter.device_mesh, tuple(parameter.shape), cuts_of(parameter)
    free = penalty.cuts(shape)
    machines = tuple(mesh.get_group(index) for index, dim in cuts.items() if dim not in free)
    return GroupSharding(shape, tuple(sorted(set(cuts.values()))), machines) if machines else None


def membership_here(part: Membership, parameter: Any, machines: Sequence[Any]) -> Membership:
    """Return which groups this process's piece of `parameter` has, and whether it counts where `processes` add up.

    What several of them hold, the first counts.
    """
    own = {each.group_name for each in machines_of(parameter)}
    counts = all(each.group_name in own or dist.get_rank(each) == 0 for each in machines)
    if not is_dtensor(parameter):
        return replace(part, counts=counts)
    copy = sys.modules["torch.distributed.tensor"].Replicate()
    along = [copy if cuts_of(parameter).get(i) != part.dim else each for i, each in enumerate(parameter.placements)]
    column = part.groups.view([-1 if dim == part.dim else 1 for dim in range(parameter.dim())])
    numbers = type_of_spread().from_local(column, parameter.device_mesh, [copy] * len(along), run_check=False)
    own = local(numbers.redistribute(placements=along)).reshape(-1)
    return replace(part, groups=own, first=None, counts=counts)


def shard_penalty(penalty: Penalty, like: Any) -> Penalty:
    """Return `penalty` as it penalizes this process's piece of a parameter."""
    return penalty.with_tensors(partial(shard_like, like=like)) if is_dtensor(like) else penalty


def full_penalty(penalty: Penalty) -> Penalty:
    """Return `penalty` as it penalizes the whole of a parameter."""
    return penalty.with_tensors(whole)


def prox_across(penalty: Penalty, w: Any, step: float | Tensor, group_sharding: GroupSharding) -> Reduction[Tensor]:
    """Return a computation of this process's piece of the prox.

    Args:
        penalty: what is penalized.
        w: the parameter.
        step: a number, or shaped like this process's piece.
        crossing: how its groups cross processes.
    """
    piece = upcast(local(w))
    computation = shard_penalty(penalty, w).prox_by_sums(piece, step, group_sharding.shape, group_sharding.cut)
    if computation is not None:
        return (yield from computation)
    steps = whole(spread(step, w)) if isinstance(step, Tensor) and step.dim() else step
    return shard_like(full_penalty(penalty).prox(whole(spread(piece, w)), steps), w)


def gradient_across(penalty: Penalty, w: Any, group_sharding: GroupSharding) -> Reduction[Tensor]:
    """Return a computation of this process's piece of the gradient."""
    piece = upcast(local(w))
    computation = shard_penalty(penalty, w).gradient_by_sums(piece, group_sharding.shape, group_sharding.cut)
    if computation is not None:
        return (yield from computation)
    return shard_like(full_penalty(penalty).gradient(whole(spread(piece, w))), w)


def stays(penalty: Penalty, w: Any, average: Any, group_sharding: GroupSharding | None) -> Tensor:
    """Return where this process's piece of `w` is zero and stationary for the gradient `average`."""
    if group_sharding is None:
        return shard_penalty(penalty, w).stays(upcast(local(w)), local(average))
    return shard_like(full_penalty(penalty).stays(upcast(whole(w)), whole(average)), w)


def together(computations: Sequence[Reduction[Result]], group_shardings: Sequence[GroupSharding]) -> list[Result]:
    """Run computations in step and return their results; one message a round carries what all of them ask.

    Args:
        computations: the same on all processes, in the same order.
        crossings: over which processes the sums of each are added up.
    """
    results: dict[int, Result] = {}
    asked: dict[int, Tensor] = {}

    def advance(index: int, sums: Tensor | None) -> None:
        try:
            asked[index] = next(computations[index]) if sums is None else computations[index].send(sums)
        except StopIteration as end:
            asked.pop(index, None)
            results[index] = end.value

    for index in range(len(computations)):
        advance(index, None)
    while asked:
        for index, sums in added_up(asked, group_shardings).items():
            advance(index, sums)
    return [results[index] for index in range(len(computations))]


def added_up(asked: Mapping[int, Tensor], group_shardings: Sequence[GroupSharding]) -> dict[int, Tensor]:
    """Return sums over processes, with one message per process group and type."""
    sums = dict(asked)
    groups = {machines.group_name: machines for index in asked for machines in group_shardings[index].machines}
    for name, machines in groups.items():
        members = [index for index in asked if any(each.group_name == name for each in group_shardings[index].machines)]
        for dtype in dict.fromkeys(sums[index].dtype for index in members):
            alike = [index for index in members if sums[index].dtype == dtype]
            message = torch.cat([sums[index].reshape(-1) for index in alike])
            dist.all_reduce(message, group=machines)
            parts = torch.split(message, [sums[index].numel() for index in alike])
            sums |= {index: part.view_as(sums[index]) for index, part in zip(alike, parts, strict=True)}
    return sums
