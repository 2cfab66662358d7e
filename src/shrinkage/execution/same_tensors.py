"""Whether tensors still are what they were: asked before every native call, as nothing else keeps a kernel from writing
beside a tensor."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KINDS = (Tensor, nn.Parameter)  # of tensors: others may keep their numbers elsewhere


class Known(NamedTuple):
    """What a tensor was when its batch was made."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...] | None  # None: it lies in memory in its own order

    @staticmethod
    def of(tensor: Tensor) -> "Known":
        """Return what `tensor` is now."""
        return Known(tensor.dtype, tensor.shape, None if tensor.is_contiguous() else tensor.stride())


class SameTensors:
    """Tells whether tensors have the types, shapes and strides that others had, in the memory of the host.

    torch's own guards ask that of all tensors in one call; where they say no, or there are none, a plain loop decides.

    Args:
        tensors: those others, which are not kept.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._known = [Known.of(tensor) for tensor in tensors]
        self._guards = guards_of(tensors) if guards_are_right() else None

    def __call__(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether as many tensors are so now."""
        if len(tensors) != len(self._known):
            return False
        return (self._guards is not None and self._guards(*tensors)) or all_fit(self._known, tensors)


def all_fit(known: Sequence[Known], tensors: Sequence[Tensor]) -> bool:
    """Return whether all tensors are what they were, and have their numbers in the memory of the host."""
    for (dtype, shape, stride), tensor in zip(known, tensors, strict=True):
        if tensor.dtype is not dtype or type(tensor) not in KINDS or not tensor.is_cpu or tensor.shape != shape:
            return False
        if not (tensor.is_contiguous() if stride is None else tensor.stride() == stride):
            return False
    return True


def guards_of(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Return torch's check of tensors against what these are, in one call; None if they are of other kinds."""
    if not tensors or any(type(tensor) not in KINDS or not tensor.is_cpu for tensor in tensors):
        return None
    sizes, strides = [list(tensor.shape) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
    guards: Any = torch._C._dynamo.guards  # whose types torch tells otherwise
    check: Callable[..., bool] = guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check


@functools.cache
def guards_are_right() -> bool:
    """Return whether this version of torch has these guards, and they see each change that all_fit sees."""
    w = torch.zeros(2, 3)
    others = [w.double(), torch.zeros(3, 2), torch.zeros(3, 2).t(), torch.zeros(6), torch.zeros(2, 6)[:, ::2]]
    others += [w.to("meta"), w.to_sparse(), torch._neg_view(w), nn.Parameter(w)]
    try:
        check = guards_of([w, nn.Parameter(w)])
        if check is None or not check(torch.ones(2, 3), nn.Parameter(w)):
            return False
        return not any(check(other, nn.Parameter(w)) for other in others)
    except Exception:  # a private name, of which nothing is promised
        return False
