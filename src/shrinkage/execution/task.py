"""One tensor and what a step does to it: the part of a parameter that this process holds, and nothing else."""

from typing import Literal, NamedTuple

from torch import Tensor

from shrinkage.optimizers.adaptive_step import Step
from shrinkage.penalties.base import Penalty

Compile = bool | Literal["auto"]  # whether kernels move tensors; "auto" where that saves more than building them takes


class Task(NamedTuple):
    """A tensor that moves to its proximal point, in place.

    Args:
        penalty: of this tensor.
        w: this process's shard of a parameter, or all of it.
        step: of the proximal operator.
    """

    penalty: Penalty
    w: Tensor
    step: Step
