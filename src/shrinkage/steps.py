"""The step of one charged parameter's proximal operator, and the tensor that it moves."""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.apply import Number, State
from shrinkage.charge import Charge, unless
from shrinkage.metric import Metric, learning_rate
from shrinkage.metrics import at_hand
from shrinkage.prox import wide
from shrinkage.sharding import local, local_gradient, local_state

Step = Callable[[State, Tensor], Number]


def noted_of(charge: Charge, metric: Metric | None, optimizer: Optimizer) -> State:
    """Return what the metric needs of `charge` as it is before a step."""
    if charge.how != "proximal" or metric is None or metric.before is None:
        return {}
    state = optimizer.state.get(charge.parameter, {})
    with torch.no_grad():
        return metric.before(optimizer.param_groups[charge.group], state, charge.parameter)


def state_of(charge: Charge, optimizer: Optimizer, noted: State) -> State:
    """Return what the metric sees: what the optimizer keeps, what was `noted` before the step, and the gradient."""
    grad = local_gradient(charge.parameter)
    return {**optimizer.state.get(charge.parameter, {}), **noted, **({} if grad is None else {"grad": grad})}


def iterate_of(charge: Charge, metric: Metric | None, optimizer: Optimizer) -> tuple[Tensor, Number]:
    """Return the tensor that the optimizer's gradients move, and the share of its moves in the parameter's."""
    state = optimizer.state.get(charge.parameter)
    if metric is None or metric.iterate is None or not state:
        return charge.parameter, 1.0
    return metric.iterate(optimizer.param_groups[charge.group], state, charge.parameter)


def step_of(charge: Charge, metric: Metric | None, optimizer: Optimizer, overflow: Tensor | None) -> Step:
    """Return the step of the proximal operator: in the optimizer's own metric, or the learning rate (decoupled)."""
    group = optimizer.param_groups[charge.group]
    if charge.how == "decoupled" or metric is None:
        return lambda state, w: unless(overflow, at_hand(learning_rate(metric, group)))
    return lambda state, w: unless(overflow, metric.eta(group, state, w))


def step_of_piece(step: Step, state: State, w: Tensor, lr: Number) -> Number:
    """Return the step of this machine's piece of `w`: a number on all machines, or a tensor on all of them.

    A metric that reads the optimizer's state may give either, and nothing on a machine that never had a gradient: there
    elements step by `lr`, as do elements elsewhere that never had one.
    """
    piece = local(w)
    with suppress(KeyError):
        return step({}, piece)
    found = step(local_state(state), piece) if state else lr
    return torch.as_tensor(found, dtype=wide(piece).dtype, device=piece.device).expand_as(piece)
