"""Zeros that averaged gradients hold, by the native kernels: one pass over weights and gradients before a step."""

import ctypes
import math
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from shrinkage.execution import native_build
from shrinkage.execution.native import threads_for
from shrinkage.execution.native_layout import TYPES, Fold, folded, in_one_type, is_plain
from shrinkage.execution.native_structs import Held
from shrinkage.execution.same_tensors import SameTensors
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
WORDS = ctypes.sizeof(Held) // 8  # of one parameter, from the start of one to that of the next
SHARES = Held.share.offset // 8  # the word of the first of three numbers that change
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


class Holding:
    """Parameters whose zeros one call holds, and another one restores; what stays from step to step.

    Args:
        penalties: one for each parameter; all of them have `slopes_of`, and must not change.
        ws: the parameters, whose gradients and averages lie in memory as they do.
        grads: their gradients.
        totals: the running sums of their gradients.

    Attributes:
        masks: True where an element stays 0.
    """

    def __init__(
        self, penalties: Sequence[Penalty], ws: Sequence[Tensor], grads: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        self._penalties, self._ws, self._count = list(penalties), list(ws), len(ws)
        self._same_ws, self._same_grads, self._same_totals = map(SameTensors, (ws, grads, totals))
        self.masks = [torch.zeros(w.shape, dtype=torch.bool) for w in ws]
        self._held = (Held * self._count)()
        self._rooms = []
        given = zip(self._held, penalties, ws, grads, totals, self.masks, strict=True)
        for entry, penalty, w, grad, total, mask in given:
            slopes = slopes_of(penalty)
            found = None if slopes is None else fold_of(slopes, w)
            if slopes is None or found is None:
                raise ValueError(f"no kernel holds the zeros of {penalty} in a tensor of shape {tuple(mask.shape)}")
            self._rooms.append(torch.empty(2 * found.batch * found.slices, dtype=torch.float64))
            fill(entry, Zeros(w, grad, total, total, mask, 1.0), slopes, found, self._rooms[-1], 0.0)
            entry.size = mask.numel()
        self._words = (ctypes.c_uint64 * (WORDS * self._count)).from_buffer(self._held)
        self._numbers = (ctypes.c_double * (WORDS * self._count)).from_buffer(self._held)
        self._wide = int(ws[0].dtype is torch.float64)
        self._size = sum(w.numel() for w in ws)

    @staticmethod
    def of(
        penalties: Sequence[Penalty], ws: Sequence[Tensor], grads: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> "Holding | None":
        """Return what holds the zeros of these parameters, at least one; None where there is no kernel for one."""
        for penalty, w, grad, total in zip(penalties, ws, grads, totals, strict=True):
            slopes = slopes_of(penalty)
            zeros = Zeros(w, grad, total, torch.empty_like(total), torch.empty(w.shape, dtype=torch.bool), 1.0)
            if slopes is None or not can_hold(zeros) or fold_of(slopes, w) is None:
                return None
        return Holding(penalties, ws, grads, totals) if len({w.dtype is torch.float64 for w in ws}) == 1 else None

    def adopts(self, penalties: Sequence[Penalty]) -> bool:
        """Let other penalties, with the same groups, take the place of these, and return whether they have."""
        if all(map(is_, penalties, self._penalties)):
            return True
        found = [slopes for slopes in map(slopes_of, penalties) if slopes is not None]
        own = [slopes_of(penalty) for penalty in self._penalties]
        kinds = [(slopes.groups, slopes.weigh_by_size) for slopes in found]
        if kinds != [(slopes.groups, slopes.weigh_by_size) for slopes in own if slopes is not None]:
            return False
        for entry, slopes in zip(self._held, found, strict=True):
            entry.slope, entry.group_slope, entry.most = slopes.element, slopes.group, slopes.most
        self._penalties = list(penalties)
        return True

    def hold_(
        self,
        library: ctypes.CDLL,
        grads: Sequence[Tensor],
        totals: Sequence[Tensor],
        followings: Sequence[Tensor],
        numbers: tuple[list[Any], list[Any], list[Any]],
        *,
        known: bool = False,
    ) -> bool:
        """Average gradients into `followings`, note the zeros that they hold, and return True.

        False, and nothing is done, unless the tensors are as they were.

        Args:
            library: of native kernels.
            grads: of the parameters.
            totals: the running sums of gradients.
            followings: written: like `totals`, not the same, and nobody else's.
            numbers: the shares of gradients, their signs, and the running sums of all shares.
            known: the totals are followings of an earlier call, and nobody else's.
        """
        if not (self._same_ws(self._ws) and self._same_grads(grads) and (known or self._same_totals(totals))):
            return False
        words = self._words
        words[0::WORDS] = [w.data_ptr() for w in self._ws]
        words[1::WORDS] = [grad.data_ptr() for grad in grads]
        words[2::WORDS] = [total.data_ptr() for total in totals]
        words[3::WORDS] = [following.data_ptr() for following in followings]
        for place, values in enumerate(numbers, SHARES):
            self._numbers[place::WORDS] = values
        library.shrinkage_hold(self._held, ctypes.c_int64(self._count), self._wide, threads_for(self._size))
        increment_version(followings)
        return True

    def restore_(self, library: ctypes.CDLL) -> None:
        """Set parameters to 0 where masks are True; they must be as they were, as a call before has checked."""
        self._words[0::WORDS] = [w.data_ptr() for w in self._ws]
        library.shrinkage_restore(self._held, ctypes.c_int64(self._count))
        increment_version(self._ws)


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
