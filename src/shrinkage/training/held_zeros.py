"""Which zeros stay zero in a step: those that are stationary for the averaged gradient (`gradient_averages.py`)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.distributed.dtensor import local, local_gradient, spread
from shrinkage.execution.collective import SharedTask, zeros_that_stay
from shrinkage.optimizers.introspection import sign_of
from shrinkage.optimizers.overflow import overflow_of
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import upcast
from shrinkage.selection.how import decides
from shrinkage.training.gradient_averages import Averages
from shrinkage.training.gradients import dense
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.step_sizes import Steps, shard_of


def held_zeros(
    optimizer: Optimizer,
    acting: Iterable[tuple[PenalizedParameter, Penalty]],
    averages: Averages,
    steps: Steps,
    scale: Tensor | None,
) -> dict[str, Tensor]:
    """Average the gradients of the data, and return the elements that have to stay zero, by the parameter's name.

    Args:
        optimizer: what steps next.
        acting: what is penalized after that step, with the penalty at this update.
        averages: what the gradients are taken in.
        steps: of that update.
        scale: the loss scale that the gradients still carry; None if they carry none.
    """
    overflow = overflow_of(optimizer)
    held: dict[str, Tensor] = {}
    shared: dict[str, SharedTask] = {}
    for target, penalty in acting:
        if not decides(target.penalty, target.how):
            continue
        iterate = steps.iterate(target)[0].detach()
        grad = local_gradient(target.parameter)
        own, w = shard_of(penalty, iterate)
        if grad is None:  # others wait
            unscaled = torch.zeros_like(upcast(w))
            skipped: Tensor | None = unscaled.new_ones(())
        else:
            sign = sign_of(optimizer, target.group)
            unscaled, skipped = upcast(dense(grad)) * (sign if scale is None else sign / scale), overflow
        average = local(averages.update(target.name, spread(unscaled, iterate), skipped))
        if target.group_sharding is None:
            held[target.name] = own.stays(upcast(w), average)
        else:
            shared[target.name] = SharedTask(penalty, w, average, target.group_sharding)
    return held | dict(zip(shared, zeros_that_stay(list(shared.values())), strict=True))
