"""Whether tensors still are what they were, and where they are: asked before every native call, as nothing else keeps a
kernel from writing beside a tensor."""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.execution import native_build
from shrinkage.execution.native_tensors import KINDS, Sought, others


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


class Addresses:
    """Where tensors lie in memory, found anew in each native call, or before it where kernels cannot.

    Args:
        tensors: what is looked for has their types, shapes and strides.

    Attributes:
        start: where the list of addresses is, which kernels read.
        search: what kernels look for themselves; 0 if Python does.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        library = native_build.library()
        searches = library is not None and library.shrinkage_searches()
        self._sought = Sought(tensors) if searches else None
        self._same = None if searches else SameTensors(tensors)
        self._found = (ctypes.c_uint64 * max(len(tensors), 1))() if self._sought is None else self._sought.found
        self.start, self.search = ctypes.addressof(self._found), 0 if self._sought is None else self._sought.address

    def take(self, tensors: Sequence[Tensor]) -> bool:
        """Let tensors be found, which have to live until the call is over, and return True.

        False if they are not as many, or one is not what was looked for, as far as Python looks.
        """
        if self._sought is not None:
            return self._sought.take(tensors)
        if self._same is None or not self._same(tensors):
            return False
        self._found[: len(tensors)] = list(map(Tensor.data_ptr, tensors))
        return True


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
    try:
        check = guards_of([w, nn.Parameter(w)])
        if check is None or not check(torch.ones(2, 3), nn.Parameter(w)):
            return False
        changed = [*others(w), torch._neg_view(w), nn.Parameter(w)]
        return not any(check(other, nn.Parameter(w)) for other in changed)
    except Exception:  # a private name, of which nothing is promised
        return False
