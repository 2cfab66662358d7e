"""How tensors lie in memory: views in which sums over groups are loops over neighbours, for compilers."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from shrinkage.penalties.groups import Groups, Layout

Folded = tuple[tuple[int, ...], tuple[int, ...]]

ROWS = 16  # of memory that sums over rows add up at a time: streams of two tensors that a processor can foresee


def memory_order(*tensors: Tensor) -> tuple[int, ...] | None:
    """Return the order of dimensions in which all of `tensors` lie in memory without gaps; None if there is none."""
    strides = tensors[0].stride()
    order = tuple(sorted(range(len(strides)), key=lambda dim: -strides[dim]))
    return order if all(tensor.permute(order).is_contiguous() for tensor in tensors) else None


@lru_cache(maxsize=4096)
def folded_by(groups: Groups, shape: torch.Size, order: tuple[int, ...]) -> Folded | None:
    """Return `fold` of the layout that `groups` give a tensor of `shape`."""
    return fold(groups.layout(shape), order)


def fold(layout: Layout, order: Sequence[int]) -> Folded | None:
    """Return the shape and the dimensions within of `layout` in an order of memory, neighbours of one kind as one.

    None if dimensions are split and not in their own order.
    """
    if layout.split and list(order) != sorted(order):
        return None
    dims = range(len(layout.shape)) if len(layout.shape) != len(order) else order
    shape: list[int] = []
    kinds: list[bool] = []
    for dim in dims:
        if layout.shape[dim] == 1:
            continue
        between = dim in layout.between
        if kinds and kinds[-1] == between:
            shape[-1] *= layout.shape[dim]
        else:
            shape.append(layout.shape[dim])
            kinds.append(between)
    if all(kinds):
        return None
    rows = divisor(shape[0]) if kinds == [False, True] else None
    if rows is not None:
        shape, kinds = [shape[0] // rows, rows, shape[1]], [False, False, True]
    return tuple(shape), tuple(dim for dim, between in enumerate(kinds) if not between)


def divisor(length: int) -> int | None:
    """Return the divisor of `length` next to `ROWS`, from half to twice that; None if there is no such part of it.

    >>> divisor(768), divisor(50257), divisor(30522)
    (16, 29, None)
    """
    parts = (rows for rows in range(ROWS // 2, 2 * ROWS + 1) if length % rows == 0 and length > rows)
    return min(parts, key=lambda rows: abs(rows - ROWS), default=None)
