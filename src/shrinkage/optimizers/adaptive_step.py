"""The step of an optimizer in its metric: a number, a tensor, or one that is computed where it is used."""

from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.proximal.precision import at_least_float32

Number = float | Tensor


class AdaptiveStep(NamedTuple):
    """The step lr / (sqrt(moment / correction) + eps) of each element, computed only where it is used.

    Where the moment is exactly 0 the step is lr.

    Args:
        lr: a number or a 0-dim tensor.
        moment: the second moment, shaped like the parameter.
        eps: a number or a 0-dim tensor.
        correction: of the moment's bias; a number or a 0-dim tensor.
    """

    lr: Number
    moment: Tensor
    eps: Number
    correction: Number = 1.0

    def tensor(self) -> Tensor:
        """Return the steps, in float32 at least."""
        denominator = self.denominator()
        # Between 1, where the moment is 0, and the denominator, where it is positive: several times faster than a mask.
        steps = denominator.new_ones(()).lerp(denominator, self.moment.sign().to(denominator.dtype))
        return steps.reciprocal_().mul_(self.lr)

    def denominator(self) -> Tensor:
        """Return sqrt(moment / correction) + eps."""
        corrected = self.moment.to(at_least_float32(self.moment.dtype)) / self.correction
        return corrected.sqrt_().add_(self.eps).clamp_(max=torch.finfo(corrected.dtype).max)


Step = Number | AdaptiveStep


def number(step: Step) -> Number:
    """Return `step` as a number, or as a tensor with one number per element."""
    return step.tensor() if isinstance(step, AdaptiveStep) else step


def item_if_on_cpu(number: Number) -> Number:
    """Return a tensor's number where reading it does not wait for a device, as optimizers read it; else the tensor."""
    return number.item() if isinstance(number, Tensor) and number.device.type == "cpu" else number
