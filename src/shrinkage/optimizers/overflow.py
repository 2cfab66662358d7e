"""Updates that a loss scaler skips. `zero_on_overflow` of `adaptive_step.py` makes their steps 0."""

from torch import Tensor
from torch.optim import Optimizer


def overflow_of(optimizer: Optimizer) -> Tensor | None:
    """Return 1 on the device if a fused optimizer skips this step because of an overflow; None outside of loss scaling.

    `found_inf` is summed over devices, so it may exceed 1.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.clamp(max=1)
