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
    is_spread,
    local,
    machines_of,
    piece_like,
    spread,
    type_of_spread,
    whole,
)
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import Part
from shrinkage.proximal.precision import wide
from shrinkage.proximal.reductions import Result, Sums


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that span parameters of one optimizer.

    Args:
        weights: what the charge of each group's norm is multiplied by, shape `(groups,)`.
        machines: the process groups over which sums have to be added up, one after the other.
    """

    weights: Tensor
    machines: tuple[Any, ...]


class Crossing(NamedTuple):
    """How the groups of one parameter cross machines, or other parameters.

    Args:
        shape: of the whole parameter.
        cut: the dimensions along which machines cut it.
        machines: the process groups over which sums have to be added up, one after the other.
        family: the groups, if they span other parameters.
        part: which of them this machine's piece has, then.
    """

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    machines: tuple[Any, ...]
    family: Family | None = None
    part: Part | None = None


def crossing_of(penalty: Penalty, parameter: Any) -> Crossing | None:
    """Return how the groups of `parameter` cross machines; None if every machine can charge its piece by itself."""
    if not is_spread(parameter):
        return None
    mesh, shape, cuts = parameter.device_mesh, tuple(parameter.shape), cuts_of(parameter)
    free = penalty.cuts(shape)
    machines = tuple(mesh.get_group(index) for index, dim in cuts.items() if dim not in free)
    return Crossing(shape, tuple(sorted(set(cuts.values()))), machines) if machines else None


def part_here(part: Part, parameter: Any, machines: Sequence[Any]) -> Part:
    """Return which groups this machine's piece of `parameter` has, and whether it counts where `machines` add up.

    What several of them hold, the first counts.
    """
    own = {each.group_name for each in machines_of(parameter)}
    counts = all(each.group_name in own or dist.get_rank(each) == 0 for each in machines)
    if not is_spread(parameter):
        return replace(part, counts=counts)
    copy = sys.modules["torch.distributed.tensor"].Replicate()
    along = [copy if cuts_of(parameter).get(i) != part.dim else each for i, each in enumerate(parameter.placements)]
    column = part.groups.view([-1 if dim == part.dim else 1 for dim in range(parameter.dim())])
    numbers = type_of_spread().from_local(column, parameter.device_mesh, [copy] * len(along), run_check=False)
    own = local(numbers.redistribute(placements=along)).reshape(-1)
    return replace(part, groups=own, first=None, counts=counts)


def piece_penalty(penalty: Penalty, like: Any) -> Penalty:
    """Return `penalty` as it charges this machine's piece of a parameter."""
    return penalty.with_tensors(partial(piece_like, like=like)) if is_spread(like) else penalty


def whole_penalty(penalty: Penalty) -> Penalty:
    """Return `penalty` as it charges the whole of a parameter."""
    return penalty.with_tensors(whole)


def prox_across(penalty: Penalty, w: Any, step: float | Tensor, crossing: Crossing) -> Sums[Tensor]:
    """Return a computation of this machine's piece of the prox.

    Args:
        penalty: what is charged.
        w: the parameter.
        step: a number, or shaped like this machine's piece.
        crossing: how its groups cross machines.
    """
    piece = wide(local(w))
    computation = piece_penalty(penalty, w).prox_by_sums(piece, step, crossing.shape, crossing.cut)
    if computation is not None:
        return (yield from computation)
    steps = whole(spread(step, w)) if isinstance(step, Tensor) and step.dim() else step
    return piece_like(whole_penalty(penalty).prox(whole(spread(piece, w)), steps), w)


def gradient_across(penalty: Penalty, w: Any, crossing: Crossing) -> Sums[Tensor]:
    """Return a computation of this machine's piece of the gradient."""
    piece = wide(local(w))
    computation = piece_penalty(penalty, w).gradient_by_sums(piece, crossing.shape, crossing.cut)
    if computation is not None:
        return (yield from computation)
    return piece_like(whole_penalty(penalty).gradient(whole(spread(piece, w))), w)


def stays(penalty: Penalty, w: Any, average: Any, crossing: Crossing | None) -> Tensor:
    """Return where this machine's piece of `w` is zero and stationary for the gradient `average`."""
    if crossing is None:
        return piece_penalty(penalty, w).stays(wide(local(w)), local(average))
    return piece_like(whole_penalty(penalty).stays(wide(whole(w)), whole(average)), w)


def together(computations: Sequence[Sums[Result]], crossings: Sequence[Crossing]) -> list[Result]:
    """Run computations in step and return their results; one message a round carries what all of them ask.

    Args:
        computations: the same on all machines, in the same order.
        crossings: over which machines the sums of each are added up.
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
        for index, sums in added_up(asked, crossings).items():
            advance(index, sums)
    return [results[index] for index in range(len(computations))]


def added_up(asked: Mapping[int, Tensor], crossings: Sequence[Crossing]) -> dict[int, Tensor]:
    """Return sums over machines, with one message per process group and type."""
    sums = dict(asked)
    groups = {machines.group_name: machines for index in asked for machines in crossings[index].machines}
    for name, machines in groups.items():
        members = [index for index in asked if any(each.group_name == name for each in crossings[index].machines)]
        for dtype in dict.fromkeys(sums[index].dtype for index in members):
            alike = [index for index in members if sums[index].dtype == dtype]
            message = torch.cat([sums[index].reshape(-1) for index in alike])
            dist.all_reduce(message, group=machines)
            parts = torch.split(message, [sums[index].numel() for index in alike])
            sums |= {index: part.view_as(sums[index]) for index, part in zip(alike, parts, strict=True)}
    return sums
