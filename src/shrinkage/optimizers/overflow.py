"""Updates that a loss scaler skips: found in the optimizer, and steps that are then 0."""

from torch import Tensor
from torch.optim import Optimizer

from shrinkage.optimizers.adaptive_step import LATER, Step, zero_if


def overflow_of(optimizer: Optimizer) -> Tensor | None:
    """Return 1 on the device if a fused optimizer skips this step because of an overflow; None outside of loss scaling.

    `found_inf` is summed over devices, so it may exceed 1.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.clamp(max=1)


def zero_on_overflow(step: Step, overflow: Tensor | None) -> Step:
    """Return `step`, or 0 if `overflow` is 1, because the update is skipped; None outside of loss scaling."""
    if overflow is None:
        return step
    return step.zero_if(overflow) if isinstance(step, LATER) else zero_if(overflow, step)
