"""What a node of a graph gives in several runs, and which elements of it depend on the inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.dataflow.dependence import SPREAD, apart
from shrinkage.compression.plans.tensors import zero_slices
from shrinkage.compression.tracing.export import lines


@dataclass(frozen=True, eq=False)
class Value:
    """What a node gives for the example, then in each of the runs with noise.

    `depends` has a truth value for each element: whether it depends on the inputs of the model. It is None if none
    does, a list for several outputs, and True for what is no tensor in rows and columns.
    """

    runs: list[Any]
    depends: Any = None

    @property
    def is_free(self) -> bool:
        """Whether nothing of it depends on the inputs."""
        return all(mask is None for mask in (self.depends if isinstance(self.depends, list) else [self.depends]))


def is_dense(value: Any) -> bool:
    """Return whether `value` is no tensor of a sparse kind."""
    return not isinstance(value, Tensor) or value.layout == torch.strided


def is_stirrable(value: Any) -> bool:
    """Return whether `value` may be noise: whole numbers may not, which could be indices."""
    if not isinstance(value, Tensor):
        return False
    return value.is_floating_point() or value.is_complex() or value.dtype == torch.bool


def changing(runs: Sequence[Any], untold: bool) -> Any:
    """Return which elements change from run to run; all, if that is `untold` or they are whole numbers."""
    example = runs[0]
    if isinstance(example, tuple | list):
        return [changing([run[place] for run in runs], untold) for place in range(len(example))]
    if not isinstance(example, Tensor):
        return None if example is None else True
    numbers = example.is_floating_point() or example.is_complex()
    if untold or not numbers or not is_dense(example) or any(run.shape != example.shape for run in runs):
        return True
    mask = torch.zeros_like(example, dtype=torch.bool)
    for run in runs[1:]:
        mask |= apart(example, run)
    return mask


def constants_along(data: Value, axis: int) -> Tensor:
    """Return the value at each index along `axis` that is one at all places whatever the inputs are; NaN elsewhere."""
    example = data.runs[0]
    length = example.shape[axis]
    numbers = example.is_floating_point() and example.numel() > 0
    if not numbers or not is_dense(example) or data.depends is True:
        return torch.full((length,), float("nan"), dtype=torch.double, device=example.device)
    values = lines(example, axis)
    low, high = values.amin(1).double(), values.amax(1).double()
    same = high - low <= SPREAD * torch.maximum(low.abs(), high.abs())
    if data.depends is not None:
        same &= ~lines(data.depends, axis).any(1)
    return torch.where(same, (low + high) / 2, float("nan"))


def zeros_along(data: Value, axis: int) -> Tensor:
    """Return at which indices along `axis` all is zero whatever the inputs are."""
    if data.depends is True:
        return torch.zeros(data.runs[0].shape[axis], dtype=torch.bool, device=data.runs[0].device)
    zero = zero_slices(data.runs[0], axis)
    return zero if data.depends is None else zero & ~lines(data.depends, axis).any(1)
