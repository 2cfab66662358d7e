"""Which values are constant: the same in several runs of a graph, along an axis, and up to rounding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.compression.dataflow.values import Value, is_dense
from shrinkage.compression.plans.tensors import zero_slices
from shrinkage.compression.tracing.export import lines

SPREAD = 1e-5  # relative; sums of the same numbers in another order differ by less


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
        if mask.all():
            break
    return mask


def constants_along(data: Value, axis: int) -> Tensor:
    """Return the value at each index along `axis` that is one at all places whatever the inputs are; NaN elsewhere.

    Of complex numbers only zeros are told, since no bias takes up others.
    """
    example = data.runs[0]
    length = example.shape[axis]
    if example.is_complex():
        return torch.where(zeros_along(data, axis), 0.0, torch.nan).double()
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


def differing(value: Tensor, axes: Sequence[int]) -> Tensor:
    """Return which elements are not those at the first index along `axes`."""
    first = value
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    return apart(value, first.expand_as(value))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return which elements of two tensors are not the same number, up to rounding.

    >>> apart(torch.tensor([1.0, 2.0, float("inf")]), torch.tensor([1.0 + 1e-7, 3.0, float("inf")]))
    tensor([False,  True, False])
    """
    same = one == other
    if one.is_floating_point() or one.is_complex():
        same |= (one - other).abs() <= torch.maximum(one.abs(), other.abs()).mul_(SPREAD)
    return ~same
