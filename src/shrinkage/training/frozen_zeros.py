"""Zeros that stay zero whatever an optimizer does: no penalty, no averages, and nothing that is saved.

The zeros are the mask: what is exactly zero before a step is zero after it. Gradients are 0 there during the step, so
that no other weight moves because of them. Momentum, a decay or a preconditioner may still move such a weight; after
the step it is written back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shrinkage.distributed.dtensor import local, local_gradient
from shrinkage.execution.collective import SharedTask, zeros_across
from shrinkage.execution.single_tensor import clear_, restore_
from shrinkage.training.gradients import Gradients
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.step_sizes import Steps, shard_of


class FrozenZeros:
    """The zeros of some parameters of one optimizer, for one of its steps.

    Args:
        targets: the parameters, as they are before the step. The penalty of each says what a zero is, an element or a
            group; its strength plays no part. All processes that hold shards of them have to name the same.
        steps: of the optimizer. Where gradients move another tensor, which the parameter follows, that one is zero.
    """

    def __init__(self, targets: Sequence[PenalizedParameter], steps: Steps) -> None:
        self._targets = [target for target in targets if target.parameter.requires_grad and not target.lazy]
        masks = zeros_of(self._targets, steps)
        self._masks = [masks[target.name] for target in self._targets]

    def clear_gradients(self, gradients: Gradients, *, for_good: bool) -> None:
        """Set gradients to 0 at zeros, until `gradients` are restored or `for_good`.

        Sparse gradients stay as they are: optimizers that take them move each element by its own gradient alone.
        """
        found = [
            (target.parameter, mask)
            for target, mask in zip(self._targets, self._masks, strict=True)
            if target.parameter.grad is not None and target.parameter.grad.layout == torch.strided
        ]
        with gradients.held_aside([] if for_good else [parameter for parameter, _ in found]):
            for parameter, mask in found:
                grad = local_gradient(parameter)
                if grad is not None:
                    clear_(grad, mask)

    def restore(self, steps: Steps) -> None:
        """Write zeros back, into the parameters and into the tensors that they follow."""
        for target, mask in zip(self._targets, self._masks, strict=True):
            own, w = shard_of(target.penalty, target.parameter)
            restore_(own, w, mask)
            iterate, _ = steps.iterate(target)
            if iterate is not target.parameter:
                restore_(own, local(iterate.detach()), mask)


def zeros_of(targets: Sequence[PenalizedParameter], steps: Steps) -> dict[str, Tensor]:
    """Return where this process's shards of parameters, or of what they follow, are zero, as masks by name."""
    masks: dict[str, Tensor] = {}
    shared: dict[str, SharedTask] = {}
    for target in targets:
        own, w = shard_of(target.penalty, steps.iterate(target)[0])
        if target.group_sharding is None:
            masks[target.name] = own.zeros(w)
        else:
            shared[target.name] = SharedTask(target.penalty, w, 0.0, target.group_sharding)
    return masks | dict(zip(shared, zeros_across(list(shared.values())), strict=True))
