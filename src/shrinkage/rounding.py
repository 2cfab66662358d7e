"""Rounding to bfloat16 and float16: what is too small to move a weight, and how to move it in the mean nevertheless."""

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
