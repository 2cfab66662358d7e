"""The step of one penalized parameter's proximal operator, and the tensor that it moves."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.distributed.all_reduce import GroupSharding, shard_penalty
from shrinkage.distributed.dtensor import is_dtensor, local, local_gradient, local_state
from shrinkage.execution.buckets import Shrink
from shrinkage.execution.single_tensor import Number, State
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Step, item_if_on_cpu, number
from shrinkage.optimizers.registry import Metric, learning_rate
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import upcast
from shrinkage.training.penalized import PenalizedParameter

StepOf = Callable[[State, Tensor], Step]


def noted_of(target: PenalizedParameter, metric: Metric | None, optimizer: Optimizer) -> State:
    """Return what the metric needs of `target` as it is before a step."""
    if target.how != "proximal" or metric is None or metric.before is None:
        return {}
    state = optimizer.state.get(target.parameter, {})
    with torch.no_grad():
        return metric.before(optimizer.param_groups[target.group], state, target.parameter)


def state_of(target: PenalizedParameter, optimizer: Optimizer, noted: State) -> State:
    """Return what the metric sees: what the optimizer keeps, what was `noted` before the step, and the gradient."""
    grad = local_gradient(target.parameter)
    return {**optimizer.state.get(target.parameter, {}), **noted, **({} if grad is None else {"grad": grad})}


def iterate_of(target: PenalizedParameter, metric: Metric | None, optimizer: Optimizer) -> tuple[Tensor, Number]:
    """Return the tensor that the optimizer's gradients move, and the share of its moves in the parameter's."""
    if metric is None or metric.iterate is None:
        return target.parameter, 1.0
    state = optimizer.state.get(target.parameter)
    if not state:
        return target.parameter, 1.0
    return metric.iterate(optimizer.param_groups[target.group], state, target.parameter)


def is_deferred(target: PenalizedParameter, metric: Metric | None, optimizer: Optimizer) -> bool:
    """Return whether the step costs nothing to ask for: a number, or an `AdaptiveStep` that is computed later."""
    if target.how == "decoupled" or metric is None:
        return True
    return metric.deferred(optimizer.param_groups[target.group])


def step_of(target: PenalizedParameter, metric: Metric | None, optimizer: Optimizer, overflow: Tensor | None) -> StepOf:
    """Return the step of the proximal operator: in the optimizer's own metric, or the learning rate (decoupled)."""
    group = optimizer.param_groups[target.group]
    if target.how == "decoupled" or metric is None:
        return lambda state, w: zero_on_overflow(overflow, item_if_on_cpu(learning_rate(metric, group)))
    eta = partial(metric.eta, group)
    return eta if overflow is None else lambda state, w: skipped(eta(state, w), overflow)


def skipped(step: Step, overflow: Tensor) -> Step:
    """Return `step`, or one of 0 if the update is skipped."""
    if isinstance(step, AdaptiveStep):
        return step._replace(lr=zero_on_overflow(overflow, step.lr))
    return zero_on_overflow(overflow, step)


def shrink_of(
    target: PenalizedParameter, penalty: Penalty, step: StepOf, optimizer: Optimizer, noted: State
) -> Sequence[Shrink]:
    """Return what is to be done to this process's piece of a parameter whose step is deferred; nothing if empty."""
    state = {} if target.how == "decoupled" else optimizer.state.get(target.parameter, {})
    w = target.parameter.detach()
    if is_dtensor(w):
        penalty, state, w = shard_penalty(penalty, w), local_state(state), local(w)
    return [Shrink(penalty, w, step({**state, **noted} if noted else state, w))] if w.numel() else []


def step_of_shard(step: StepOf, state: State, w: Tensor, lr: Number) -> Number:
    """Return the step of this process's piece of `w`: a number on all processes, or a tensor on all of them.

    A metric that reads the optimizer's state may give either, and nothing on a process that never had a gradient: there
    elements step by `lr`, as do elements elsewhere that never had one.
    """
    piece = local(w)
    with suppress(KeyError):
        return number(step({}, piece))
    found = number(step(local_state(state), piece)) if state else lr
    return torch.as_tensor(found, dtype=upcast(piece).dtype, device=piece.device).expand_as(piece)


def step_here(group_sharding: GroupSharding, step: StepOf, state: State, w: Tensor, lr: Number) -> Step:
    """Return the step of this process's piece of `w`, not yet computed where no processes have to agree."""
    if group_sharding.machines:
        return step_of_shard(step, state, w, lr)
    with suppress(KeyError):
        return step(local_state(state), local(w))
    return lr


def zero_on_overflow(overflow: Tensor | None, step: Number) -> Number:
    """Return `step`, or 0 if the update is skipped."""
    if overflow is None:
        return step
    happens = 1 - overflow
    # A number has double precision, and thresholds that are rounded otherwise are others.
    return step * (happens if isinstance(step, Tensor) or happens.device.type == "mps" else happens.double())
