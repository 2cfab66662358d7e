"""Reductions of many parameters over processes: the all-reduces of one round are sent together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from shrinkage.proximal.reductions import Reduction, Result


def run_all(computations: Sequence[Reduction[Result]], process_groups: Sequence[Sequence[Any]]) -> list[Result]:
    """Run computations side by side and return their results; the reductions of one round are one message.

    Args:
        computations: the same on all processes, in the same order.
        process_groups: over which the sums of each are added up, one after the other.
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
        for index, sums in added_up(asked, process_groups).items():
            advance(index, sums)
    return [results[index] for index in range(len(computations))]


def added_up(asked: Mapping[int, Tensor], process_groups: Sequence[Sequence[Any]]) -> dict[int, Tensor]:
    """Return sums over processes, with one message per process group and type."""
    sums = dict(asked)
    groups = {each.group_name: each for index in asked for each in process_groups[index]}
    for name, group in groups.items():
        members = [index for index in asked if any(each.group_name == name for each in process_groups[index])]
        for dtype in dict.fromkeys(sums[index].dtype for index in members):
            alike = [index for index in members if sums[index].dtype == dtype]
            message = torch.cat([sums[index].reshape(-1) for index in alike])
            dist.all_reduce(message, group=group)
            parts = torch.split(message, [sums[index].numel() for index in alike])
            sums |= {index: part.view_as(sums[index]) for index, part in zip(alike, parts, strict=True)}
    return sums
