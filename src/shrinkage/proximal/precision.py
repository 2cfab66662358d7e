"""Rounding to bfloat16 and float16: what is too small to move a weight, and how to move it in the mean nevertheless."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)


def stochastic_round(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round `values` to one of the two neighbours in `dtype`, so that the mean over many draws is `values`.

    x between neighbours low and high becomes high with probability (x - low) / (high - low), by size. What `dtype` can
    hold stays as it is: zeros, NaN and infinities too.

    Args:
        values: any shape, float32 or float64.
        dtype: bfloat16 or float16.
        generator: draws one uniform number per element; on the device of `values`.

    Reference: Gupta, Agrawal, Gopalakrishnan and Narayanan (2015), "Deep learning with limited numerical precision",
    section 3.

    >>> generator = torch.Generator().manual_seed(0)
    >>> stochastic_round(torch.tensor([1.0, 1.002, 1.002, 1.002, 1.002]), torch.bfloat16, generator)
    tensor([1.0000, 1.0000, 1.0078, 1.0078, 1.0000], dtype=torch.bfloat16)
    """
    size = values.abs()
    nearest = size.to(dtype)
    # The bit patterns of positive numbers are in the order of the numbers, so neighbours are one apart.
    low_bits = nearest.view(torch.int16) - (nearest > size).to(torch.int16)
    low, high = low_bits.view(dtype), (low_bits + 1).view(dtype)
    share = (size - low) / (high.to(values.dtype) - low)
    drawn = torch.empty_like(values).uniform_(generator=generator)
    rounded = torch.where(drawn < share, high, low)
    return torch.where(nearest.isfinite(), rounded, nearest).copysign(values.to(dtype))


def stuck(w: Tensor, moved: Tensor) -> Tensor:
    """Return the share of those elements that differ in `w` and `moved` which do not once `moved` has the type of `w`.

    0 where nothing differs; a 0-dim tensor.

    >>> stuck(torch.tensor([1.0, 0.01], dtype=torch.bfloat16), torch.tensor([0.999, 0.009]))
    tensor(0.5000)
    """
    differs = moved != w
    stays = differs & (moved.to(w.dtype) == w)
    return stays.sum() / differs.sum().clamp_min(1)


Arguments = ParamSpec("Arguments")


Operator = Callable[Concatenate[Tensor, Arguments], Tensor]


def computed_in_float32(operator: Operator[Arguments]) -> Operator[Arguments]:
    """Return `operator` with its tensor widened to float32 at least, and its result in the type of that tensor."""

    @functools.wraps(operator)
    def widened(w: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        return operator(upcast(w), *args, **kwargs).to(w.dtype)

    return widened


def as_tensor(number: float | Tensor, like: Tensor) -> Tensor:
    """Return `number` as a tensor of the type and device of `like`; a number is written there without a wait."""
    return number.to(like.dtype) if isinstance(number, Tensor) else like.new_full((), number)


def upcast(w: Tensor) -> Tensor:
    """Return `w` itself, or a copy in float32 if it is narrower."""
    return w.to(at_least_float32(w.dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type that a tensor of `dtype` is computed in.

    >>> at_least_float32(torch.bfloat16), at_least_float32(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def widest_float(device: torch.device) -> torch.dtype:
    """Return the type with the widest range of numbers that `device` can compute in.

    >>> widest_float(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64
