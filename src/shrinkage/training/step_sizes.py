"""What a step of an optimizer makes of one parameter on this process: here shards leave their distributed tensors.

What follows sees plain tensors only: the shard, the penalty of the shard, and the step of its proximal operator.
"""

from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.distributed.dtensor import is_dtensor, local, local_gradient, local_state
from shrinkage.distributed.group_sharding import shard_penalty
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import (
    AdaptiveStep,
    Number,
    State,
    Step,
    item_if_on_cpu,
    number,
    zero_on_overflow,
)
from shrinkage.optimizers.registry import Metric, learning_rate
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import upcast
from shrinkage.training.penalized import PenalizedParameter


def shard_of(penalty: Penalty, tensor: Tensor) -> tuple[Penalty, Tensor]:
    """Return this process's shard of a parameter, or of a tensor like it, and the penalty of the shard."""
    w = tensor.detach()
    return (shard_penalty(penalty, w), local(w)) if is_sharded(w) else (penalty, w)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process holds a shard of `tensor`."""
    return type(tensor) not in (nn.Parameter, Tensor) and is_dtensor(tensor)


class Steps:
    """The steps that proximal operators take in one update of an optimizer.

    Args:
        optimizer: what steps.
        metric: how it steps; None if that is not known, and not asked.
        overflow: 1 if the update is skipped; None outside of loss scaling.
    """

    def __init__(self, optimizer: Optimizer, metric: Metric | None, overflow: Tensor | None = None) -> None:
        self._optimizer, self._metric, self._overflow = optimizer, metric, overflow

    def before(self, target: PenalizedParameter) -> State:
        """Return what the metric needs of `target` as it is before a step."""
        if target.how != "proximal" or self._metric is None or self._metric.before is None:
            return {}
        state = self._optimizer.state.get(target.parameter, {})
        with torch.no_grad():
            return self._metric.before(self._optimizer.param_groups[target.group], state, target.parameter)

    def iterate(self, target: PenalizedParameter) -> tuple[Tensor, Number]:
        """Return the tensor that the optimizer's gradients move, and the share of its moves in the parameter's."""
        state = self._optimizer.state.get(target.parameter)
        if self._metric is None or self._metric.iterate is None or not state:
            return target.parameter, 1.0
        return self._metric.iterate(self._optimizer.param_groups[target.group], state, target.parameter)

    def task(self, target: PenalizedParameter, penalty: Penalty, noted: State) -> Task:
        """Return what the proximal operator of one parameter does on this process.

        Args:
            target: what is penalized.
            penalty: at this update; where groups cross processes, the task has it as it is for the full tensor.
            noted: what `before` returned.
        """
        if target.group_sharding is None:
            own, w = shard_of(penalty, target.parameter)
            return Task(own, w, self._step(target, self._state(target, noted), w))
        w = local(target.parameter.detach())
        return Task(penalty, w, self._shared_step(target, self._state(target, noted), w))

    def now(self, target: PenalizedParameter) -> Number:
        """Return the step of a parameter, as it is outside of an update.

        Raises:
            KeyError: the metric reads a state that the optimizer does not have: there never was a gradient.
        """
        return number(self._step(target, self._state(target, self.before(target)), local(target.parameter.detach())))

    def constant(self, target: PenalizedParameter) -> Number:
        """Return the step of a penalty that acts before the optimizer: the learning rate."""
        return number(self._step(target, {}, target.parameter))

    def agreed(self, target: PenalizedParameter, task: Task) -> Number:
        """Return the step as a number on all processes that share groups, or as a tensor on all of them.

        A metric that reads the optimizer's state may give either.
        """
        with suppress(KeyError):
            constant = number(self._step(target, {}, task.w))
            return constant if target.every == 1 else number(task.step)
        return torch.as_tensor(number(task.step), dtype=upcast(task.w).dtype, device=task.w.device).expand_as(task.w)

    def _state(self, target: PenalizedParameter, noted: State) -> State:
        """Return what the metric sees: what the optimizer keeps, what was `noted` before the step, and the gradient."""
        parameter = target.parameter
        state = {**self._optimizer.state.get(parameter, {}), **noted}
        sharded = is_sharded(parameter)
        grad = local_gradient(parameter) if sharded else parameter.grad
        if grad is not None:
            state["grad"] = grad
        return local_state(state) if sharded else state

    def _step(self, target: PenalizedParameter, state: State, w: Tensor) -> Step:
        """Return the step of the shard `w`: in the optimizer's own metric, or the learning rate (decoupled)."""
        group = self._optimizer.param_groups[target.group]
        if target.how in ("decoupled", "cautious") or self._metric is None:
            return zero_on_overflow(item_if_on_cpu(learning_rate(self._metric, group)), self._overflow)
        return zero_on_overflow(self._metric.eta(group, state, w), self._overflow)

    def _shared_step(self, target: PenalizedParameter, state: State, w: Tensor) -> Step:
        """Return the step of a shard that may never have had a gradient on this process.

        Elements step by the learning rate then, as do others that never had a gradient.
        """
        with suppress(KeyError):
            step = self._step(target, state, w)
            return step if isinstance(step, AdaptiveStep) else number(step)
        group = self._optimizer.param_groups[target.group]
        return learning_rate(self._metric, group) if "lr" in group else 0.0


def steps_made(targets: Iterable[PenalizedParameter], optimizer: Optimizer, metric: Metric | None) -> dict[str, Number]:
    """Return the step of each parameter's proximal operator now, as far as it has made one."""
    found: dict[str, Number] = {}
    steps = Steps(optimizer, metric)
    for target in targets:
        with torch.no_grad(), suppress(KeyError):  # a parameter that never had a gradient has no state
            found[target.name] = steps.now(target)
    return found
