"""Groups that cross processes, or span several parameters: the reductions of one round are made for all together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.distributed import group_sharding
from shrinkage.distributed.all_reduce import run_all
from shrinkage.distributed.group_sharding import GroupSharding, blocks_of, gradient_across, prox_across, stays_across
from shrinkage.execution.coupled_updates import MemberTask, shrink_together_
from shrinkage.execution.single_tensor import write_
from shrinkage.execution.task import Compile
from shrinkage.optimizers.adaptive_step import Step, number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import GroupPenalty, Membership, group_penalty_of
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction


class SharedTask(NamedTuple):
    """A tensor of this process whose groups cross processes or other parameters.

    Args:
        penalty: of the full parameter.
        w: this process's shard of it.
        step: of the prox; or the factor of the derivative, or the averaged gradient: a number, or shaped like `w`.
        sharding: how its groups cross processes and parameters.
        target: the tensor that is written; None if this process had no gradient, and only adds its sums to the others'.
        generator: rounds stochastically; None rounds to the nearest number.
    """

    penalty: Penalty
    w: Tensor
    step: Step
    sharding: GroupSharding
    target: Tensor | None = None
    generator: torch.Generator | None = None


Tasks = Sequence[SharedTask]


def add_gradients_across_(tasks: Tasks) -> None:
    """Add `step` times the penalty's derivative to each target, a gradient or the weights themselves."""
    for task, slope in zip(tasks, found_together(tasks, gradients_of), strict=True):
        if task.target is not None:
            write_(task.target, upcast(task.target) + number(task.step) * slope, task.generator)


def prox_across_(tasks: Tasks, *, compile: Compile) -> None:
    """Move each tensor that has a target to the penalty's proximal point."""
    rest: list[SharedTask] = []
    for block in blocks_of(tasks, lambda task: task.sharding.block):
        if all(map(is_here, block)):
            group_penalty, parts = groups_of(block)
            members = [MemberTask(part, task.w, task.step) for task, part in zip(block, parts, strict=True)]
            shrink_together_(group_penalty, members, compile=compile)
        else:
            rest += block
    for task, moved in zip(rest, found_together(rest, prox_of), strict=True):
        if task.target is not None:
            write_(task.target, moved, task.generator)


def is_here(task: SharedTask) -> bool:
    """Return whether groups span parameters but no processes, and this one is moved, to the nearest numbers."""
    across = task.sharding.membership is None or task.sharding.block.process_groups
    return not across and task.target is not None and task.generator is None


def zeros_that_stay(tasks: Tasks) -> list[Tensor]:
    """Return where tensors are in groups that are zero and stay so by the averaged gradients, their `step`."""
    return found_together(tasks, stays_of)


def zeros_across(tasks: Tasks) -> list[Tensor]:
    """Return where tensors are zero, or in groups that are."""
    return found_together(tasks, zeros_of)


def found_together(tasks: Tasks, compute: Callable[[Tasks], Reduction[list[Tensor]]]) -> list[Tensor]:
    """Return what `compute` finds for each task, from those that share its groups, in the order given."""
    blocks = blocks_of(tasks, lambda task: task.sharding.block)
    results = run_all(list(map(compute, blocks)), [block[0].sharding.block.process_groups for block in blocks])
    pairs = (pair for block, own in zip(blocks, results, strict=True) for pair in zip(block, own, strict=True))
    found = {id(task): result for task, result in pairs}
    return [found[id(task)] for task in tasks]


def prox_of(tasks: Tasks) -> Reduction[list[Tensor]]:
    """Return a computation of the prox of tensors that share groups, or of the shard of one."""
    first, ws = tasks[0], [task.w for task in tasks]
    if first.sharding.membership is None:
        return [(yield from prox_across(first.penalty, first.w, number(first.step), first.sharding))]
    to_rest = not first.sharding.block.process_groups and all(w.device.type == "cpu" for w in ws)
    steps = [number(task.step) for task in tasks]
    return (yield from coupled_norms.prox(*groups_of(tasks), ws, steps, to_rest=to_rest))


def gradients_of(tasks: Tasks) -> Reduction[list[Tensor]]:
    """Return a computation of the derivatives of tensors that share groups, or of the shard of one."""
    first = tasks[0]
    if first.sharding.membership is None:
        return [(yield from gradient_across(first.penalty, first.w, first.sharding))]
    return (yield from coupled_norms.gradient(*groups_of(tasks), [task.w for task in tasks]))


def stays_of(tasks: Tasks) -> Reduction[list[Tensor]]:
    """Return a computation of where tensors that share groups, or the shard of one, are zero and stay so."""
    first, averages = tasks[0], [task.step for task in tasks if isinstance(task.step, Tensor)]
    if first.sharding.membership is None:
        return [stays_across(first.penalty, first.w, averages[0], first.sharding)]
    return (yield from coupled_norms.stays(*groups_of(tasks), [task.w for task in tasks], averages))


def zeros_of(tasks: Tasks) -> Reduction[list[Tensor]]:
    """Return a computation of where tensors that share groups, or the shard of one, are zero."""
    parts = [task.sharding.membership for task in tasks if task.sharding.membership is not None]
    if not parts:
        return [(yield from group_sharding.zeros_across(tasks[0].penalty, tasks[0].w, tasks[0].sharding))]
    return (yield from coupled_norms.zeros(parts, [task.w for task in tasks]))


def groups_of(tasks: Tasks) -> tuple[GroupPenalty, list[Membership]]:
    """Return what groups are penalized that span the tensors of `tasks`, and which groups each has."""
    weights = [task.sharding.block.weights for task in tasks if task.sharding.block.weights is not None]
    parts = [task.sharding.membership for task in tasks if task.sharding.membership is not None]
    return group_penalty_of(tasks[0].penalty, weights[0]), parts
