"""Zeros that averaged gradients hold, by the native kernels: one pass over weights and gradients before a step."""

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from shrinkage.execution import native_build
from shrinkage.execution.native import threads_for
from shrinkage.execution.native_layout import TYPES, Fold, folded, in_one_type, is_plain
from shrinkage.execution.native_structs import Held
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1, ElasticNet
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.nonconvex import MCP, SCAD, LogSum
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.schedules import fixed
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.proximal.precision import at_least_float32

KINKED = (L1, ElasticNet, MCP, SCAD, LogSum)  # penalties of elements whose slope beside 0 is one number
NOTHING = -1.0  # the slope of a penalty that holds no element by itself


class Slopes(NamedTuple):
    """The sizes of averaged gradients that zeros withstand.

    Args:
        element: what an element withstands.
        group: what a group's norm withstands, times its weight.
        groups: which elements belong together; None if each is by itself.
        weigh_by_size: whether the weight of a group is the square root of its size.
        most: larger averages count as 0.
    """

    element: float
    group: float = 0.0
    groups: Groups | None = None
    weigh_by_size: bool = False
    most: float = math.inf


class Zeros(NamedTuple):
    """A parameter whose zeros may be held.

    Args:
        w: the parameter, before the step.
        grad: its gradient.
        total: the running sum of gradients.
        following: is written: the sum with this gradient in it; shaped like `total`, and not the same.
        mask: is written: True where an element stays 0; bool, shaped like `w`.
        weight: of all gradients in `following`: the running sum of their weights.
        sign: of the gradient: -1 where the optimizer maximizes.
    """

    w: Tensor
    grad: Tensor
    total: Tensor
    following: Tensor
    mask: Tensor
    weight: float
    sign: float = 1.0


def slopes_of(penalty: Penalty) -> Slopes | None:
    """Return which averages hold a penalty's zeros; None if there is no kernel for it."""
    match penalty:
        case Elementwise() if type(penalty) in KINKED:
            return Slopes(float(penalty.slope_at_zero))
        case Grouped(inner, groups) if type(penalty) is Grouped and type(inner) in KINKED:
            return Slopes(NOTHING, float(inner.slope_at_zero), groups, penalty.weigh_by_size)
        case SparseGroupLasso(l1, group, groups) if type(penalty) is SparseGroupLasso:
            return Slopes(fixed(l1), fixed(group), groups, penalty.weigh_by_size)
        case Ridged(inner):  # squares are flat at 0
            return slopes_of(inner)
        case NonNegative(Penalty() as inner):
            found = slopes_of(inner)
            return None if found is None else found._replace(most=0.0)
    return None


def hold_(penalty: Penalty, zeros: Sequence[Zeros], decay: float) -> bool:
    """Average gradients and note the zeros that they hold, and return True.

    next = total + (1 - decay) (sign * grad - total);  the mask is where w is 0 and stationary for next / weight

    False, and nothing is done, where there is no kernel for one of them.
    """
    library, slopes = native_build.library(), slopes_of(penalty)
    if library is None or slopes is None or not all(map(can_hold, zeros)):
        return False
    folds = [fold_of(slopes, each.w) for each in zeros]
    if None in folds:
        return False
    rooms = [torch.empty(2 * found.batch * found.slices, dtype=torch.float64) for found in folds if found]
    entries = (Held * len(zeros))()
    for entry, each, found, room in zip(entries, zeros, folds, rooms, strict=True):
        fill(entry, each, slopes, found or Fold(1, 1, 1, 0), room, 1 - decay)
    wide = bool(zeros) and zeros[0].w.dtype is torch.float64
    alike = all((each.w.dtype is torch.float64) == wide for each in zeros)
    if alike:
        size = sum(each.w.numel() for each in zeros)
        library.shrinkage_hold(entries, ctypes.c_int64(len(zeros)), int(wide), threads_for(size))
        increment_version([tensor for each in zeros for tensor in (each.following, each.mask)])
    return alike


def can_hold(zeros: Zeros) -> bool:
    """Return whether all tensors of a parameter lie in memory in one order, and none is written that is read."""
    w, grad, total, following, mask = zeros[:5]
    computed = at_least_float32(w.dtype)
    plain = all(map(is_plain, (w, grad, total, following))) and in_one_type(w, grad) and mask.is_cpu
    alike = all(each.shape == w.shape and each.is_contiguous() for each in (w, grad, total, following, mask))
    types = total.dtype is computed and following.dtype is computed and mask.dtype is torch.bool
    return plain and alike and types and type(mask) is Tensor and following.data_ptr() != total.data_ptr()


def fold_of(slopes: Slopes, w: Tensor) -> Fold | None:
    """Return how a contiguous tensor falls into groups."""
    if slopes.groups is None:
        return Fold(1, 1, 1, w.numel())
    return folded(slopes.groups, w.shape, tuple(range(w.dim())))


def fill(entry: Held, zeros: Zeros, slopes: Slopes, found: Fold, room: Tensor, share: float) -> None:
    """Write down one parameter."""
    w, grad, total, following, mask, weight, sign = zeros
    entry.w, entry.grad, entry.total = w.data_ptr(), grad.data_ptr(), total.data_ptr()
    entry.next, entry.mask = following.data_ptr(), mask.data_ptr()
    entry.sums = None if slopes.groups is None else room.data_ptr()
    entry.batch, entry.outer, entry.slices, entry.inner = found
    entry.share, entry.sign = share, sign
    entry.sum_of_shares = max(weight, torch.finfo(total.dtype).tiny)
    entry.slope, entry.group_slope, entry.most = slopes.element, slopes.group, slopes.most
    entry.group_weight = math.sqrt(max(found.outer * found.inner, 1)) if slopes.weigh_by_size else 1.0
    entry.type, entry.grad_type = TYPES[w.dtype], TYPES[grad.dtype]


def restore_(held: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Set tensors to 0 where their masks are True, and return True; False, and nothing is done, if one cannot be."""
    library = native_build.library()
    if library is None or not all(can_restore(w, mask) for w, mask in held):
        return False
    entries = (Held * len(held))()
    for entry, (w, mask) in zip(entries, held, strict=True):
        entry.w, entry.mask, entry.size, entry.type = w.data_ptr(), mask.data_ptr(), w.numel(), TYPES[w.dtype]
    library.shrinkage_restore(entries, ctypes.c_int64(len(held)))
    increment_version([w for w, _ in held])
    return True


def can_restore(w: Tensor, mask: Tensor) -> bool:
    """Return whether a mask lies in memory as the tensor does."""
    plain = is_plain(w) and type(mask) is Tensor and mask.is_cpu and mask.dtype is torch.bool
    return plain and mask.shape == w.shape and w.is_contiguous() and mask.is_contiguous()
