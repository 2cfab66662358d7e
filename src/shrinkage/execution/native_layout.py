"""Tensors as native kernels read them: which they can read, and how those fall into groups."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.execution.native_structs import Type
from shrinkage.execution.native_tensors import KINDS
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Step
from shrinkage.penalties.groups import Groups, Layout

TYPES = {
    torch.float32: Type.FLOAT32,
    torch.float64: Type.FLOAT64,
    torch.bfloat16: Type.BFLOAT16,
    torch.float16: Type.FLOAT16,
}


class Fold(NamedTuple):
    """A tensor in the order of memory, where `batch` and `slices` tell groups apart."""

    batch: int
    outer: int
    slices: int
    inner: int


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has numbers in the memory of the host, of a type that kernels read, as they are."""
    return (
        type(tensor) in KINDS
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dtype in TYPES
        and not tensor.is_neg()
        and not tensor.is_inference()
    )


def moment_fits(w: Tensor, step: Step) -> bool:
    """Return whether the moment of a step, if it has one, lies in memory as `w` does, and is computed in one type."""
    if not isinstance(step, AdaptiveStep):
        return True
    moment = step.moment
    if not is_plain(moment) or moment.shape != w.shape or not in_one_type(w, moment):
        return False
    return moment.stride() == w.stride() or (moment.is_contiguous() and w.is_contiguous())


def is_number(step: Step) -> bool:
    """Return whether a step is one number, or is computed from numbers and a moment.

    Of a number in a tensor products are rounded to its type; numbers of Python have double precision.
    """
    if isinstance(step, AdaptiveStep):
        rest = (step.lr, step.eps, step.correction)
        return all(not isinstance(each, Tensor) or (each.numel() == 1 and each.device.type == "cpu") for each in rest)
    if isinstance(step, Tensor):
        return step.dim() == 0 and step.dtype == torch.float64 and step.is_cpu
    return isinstance(step, int | float)


def in_one_type(w: Tensor, other: Tensor) -> bool:
    """Return whether both are computed in the same type."""
    return (w.dtype is torch.float64) == (other.dtype is torch.float64)


def stands_beside(extra: Tensor, w: Tensor) -> bool:
    """Return whether weights, or a reference, stand in memory as the elements do, in a type that is not narrower."""
    contiguous = is_plain(extra) and extra.shape == w.shape and w.is_contiguous() and extra.is_contiguous()
    return contiguous and in_one_type(w, extra) and extra.dtype in (w.dtype, torch.float32, torch.float64)


@lru_cache(maxsize=4096)
def folded(groups: Groups, shape: torch.Size, order: tuple[int, ...]) -> Fold | None:
    """Return the fold of a tensor whose dimensions have this order in memory."""
    layout = groups.layout(shape)
    if layout.split and list(order) != sorted(order):
        return None
    return fold(layout, range(len(layout.shape)) if len(layout.shape) != len(order) else order)


def fold(layout: Layout, order: Sequence[int]) -> Fold | None:
    """Return a layout as at most four dimensions, neighbours of one kind as one; None if it has more.

    >>> fold(Layout((8, 3, 5, 5), (1,)), range(4)), fold(Layout((8, 3, 5, 5), (1,)), (0, 2, 3, 1))
    (Fold(batch=1, outer=8, slices=3, inner=25), Fold(batch=1, outer=200, slices=3, inner=1))
    """
    sizes = [[1, False]]
    for dim in order:
        size, between = layout.shape[dim], dim in layout.between
        if size == 1:
            continue
        if sizes[-1][1] == between:
            sizes[-1][0] *= size
        else:
            sizes.append([size, between])
    kinds = [bool(between) for _, between in sizes]
    found = [size for size, _ in sizes]
    # Dimensions within groups and between them take turns, from one within on.
    if kinds in ([False], [False, True], [False, True, False]):
        outer, slices, inner = (*found, 1, 1)[:3]
        return Fold(1, 1, 1, outer) if slices == 1 and inner == 1 else Fold(1, outer, slices, inner)
    if found[0] == 1 and len(found) in (4, 5):
        batch, outer, slices, inner = (*found[1:], 1)[:4]
        return Fold(batch, outer, slices, inner)
    return None
