"""Counts over shards: which processes hold the other shards of a parameter, and the sums of what all of them count."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from shrinkage.distributed.all_reduce import added_up
from shrinkage.distributed.dtensor import cuts_of, is_dtensor
from shrinkage.penalties.groups import Groups
from shrinkage.proximal.reductions import Reduction, Result


class ShardPlace(NamedTuple):
    """The shard of a parameter that this process holds.

    Args:
        process_groups: over which counts are added up.
        number: of shards in all.
        at: which of them this is, in the order of the mesh.
        gathered: whether groups are cut, so that every process looks at all of the parameter.
    """

    process_groups: tuple[Any, ...] = ()
    number: int = 1
    at: int = 0
    gathered: bool = False


def shard_place_of(parameter: Any, groups: Groups | None) -> ShardPlace:
    """Return which shard of a parameter this process has; `groups` tell what belongs together in it."""
    if not is_dtensor(parameter):
        return ShardPlace()
    mesh, cuts = parameter.device_mesh, cuts_of(parameter)
    if groups is not None and not set(cuts.values()) <= set(groups.cuts(tuple(parameter.shape))):
        return ShardPlace(gathered=True)
    place = mesh.get_coordinate()
    at = 0
    for index in cuts:
        at = at * mesh.size(index) + place[index]
    number = math.prod(mesh.size(index) for index in cuts)
    return ShardPlace(tuple(mesh.get_group(index) for index in cuts), number, at)


def summed(computation: Reduction[Result], process_groups: Sequence[Sequence[Any]]) -> Result:
    """Return the result of a computation of which each row is added up over process groups of its own."""
    try:
        rows = next(computation)
        while True:
            sums = added_up(dict(enumerate(rows.unbind(0))), process_groups) if any(process_groups) else None
            rows = computation.send(rows if sums is None else torch.stack([sums[i] for i in range(len(sums))]))
    except StopIteration as end:
        result: Result = end.value
        return result
