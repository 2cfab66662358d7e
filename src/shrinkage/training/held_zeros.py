"""Which zeros stay zero in a step: those that are stationary for the averaged gradient (`gradient_averages.py`)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.distributed.dtensor import local, local_gradient, spread
from shrinkage.execution.collective import SharedTask, zeros_that_stay
from shrinkage.execution.native_zeros import Zeros, hold_
from shrinkage.optimizers.adaptive_step import Number, item_if_on_cpu
from shrinkage.optimizers.introspection import sign_of
from shrinkage.optimizers.overflow import overflow_of
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import upcast
from shrinkage.selection.how import decides
from shrinkage.training.gradient_averages import Average, Averages, following_weight
from shrinkage.training.gradients import dense
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.step_sizes import Steps, shard_of


def held_zeros(
    optimizer: Optimizer,
    acting: Iterable[tuple[PenalizedParameter, Penalty]],
    averages: Averages,
    steps: Steps,
    scale: Tensor | None,
    *,
    by_kernels: bool = False,
) -> dict[str, Tensor]:
    """Average the gradients of the data, and return the elements that have to stay zero, by the parameter's name.

    Args:
        optimizer: what steps next.
        acting: what is penalized after that step, with the penalty at this update.
        averages: what the gradients are taken in.
        steps: of that update.
        scale: the loss scale that the gradients still carry; None if they carry none.
        by_kernels: use native kernels where there are some.
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
        sign = sign_of(optimizer, target.group)
        factor = item_if_on_cpu(sign if scale is None else sign / scale)
        if by_kernels and not (target.group_sharding is not None or skips(overflow)):
            mask = mask_by_kernel(target.name, own, w, grad, factor, averages)
            if mask is not None:
                held[target.name] = mask
                continue
        if grad is None:  # others wait
            unscaled = torch.zeros_like(upcast(w))
            skipped: Tensor | None = unscaled.new_ones(())
        else:
            unscaled, skipped = upcast(dense(grad)) * factor, overflow
        average = local(averages.update(target.name, spread(unscaled, iterate), skipped))
        if target.group_sharding is None:
            held[target.name] = own.stays(upcast(w), average)
        else:
            shared[target.name] = SharedTask(penalty, w, average, target.group_sharding)
    return held | dict(zip(shared, zeros_that_stay(list(shared.values())), strict=True))


def skips(overflow: Tensor | None) -> bool:
    """Return whether a step is skipped, or cannot be known to take place without waiting for a device."""
    return overflow is not None and (overflow.device.type != "cpu" or bool(overflow > 0))


def mask_by_kernel(
    name: str, penalty: Penalty, w: Tensor, grad: Tensor | None, factor: Number, averages: Averages
) -> Tensor | None:
    """Average a gradient, times a factor, and return the elements that have to stay zero; None if no kernel can."""
    average = averages.of(name)
    if average is None or grad is None or not w.is_cpu or isinstance(factor, Tensor):
        return None
    weight = item_if_on_cpu(average.weight)
    if isinstance(weight, Tensor):
        return None
    total, mask = torch.empty_like(average.total), torch.empty(w.shape, dtype=torch.bool)
    if not hold_(penalty, [Zeros(w, grad, average.total, total, mask, weight, factor)], averages.decay):
        return None
    averages.take_in({name: Average(total, following_weight(weight, 1 - averages.decay, total))})
    return mask
