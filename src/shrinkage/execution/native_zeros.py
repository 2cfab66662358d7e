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
from shrinkage.execution.native import SERIAL, threads_for
from shrinkage.execution.native_layout import TYPES, Fold, folded, in_one_type, is_plain
from shrinkage.execution.native_structs import Held
from shrinkage.execution.native_structs import Holding as Call
from shrinkage.execution.same_tensors import Addresses, SameTensors
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
        weight: of all gradients in `total`: the running sum of their weights.
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
    wide = bool(zeros) and zeros[0].w.dtype is torch.float64
    if any((each.w.dtype is torch.float64) != wide for each in zeros):
        return False
    rooms = [torch.empty(2 * found.batch * found.slices, dtype=torch.float64) for found in folds if found]
    entries, ws, grads = (
        (Held * len(zeros))(),
        addresses_of([each.w for each in zeros]),
        addresses_of([each.grad for each in zeros]),
    )
    for place, (entry, each, found, room) in enumerate(zip(entries, zeros, folds, rooms, strict=True)):
        fill(entry, each, slopes, found or Fold(1, 1, 1, 0), room)
        take_up(entry, each.total, each.following, each.weight)
        entry.place, entry.share, entry.sign = place, 1 - decay, each.sign
    call = Call(*map(ctypes.addressof, (entries, ws, grads)), count=len(zeros), wide=int(wide))
    call.threads = threads_for(sum(each.w.numel() for each in zeros))
    library.shrinkage_hold(ctypes.byref(call))
    increment_version([tensor for each in zeros for tensor in (each.following, each.mask)])
    return True


class Holding:
    """Parameters whose zeros one call holds, and another one restores; what stays from step to step.

    Each has two running sums of gradients, which take turns: one is read, and the next one is written to the other.

    Args:
        penalties: one for each parameter; all of them have `slopes_of`, and must not change.
        zeros: the parameters; gradients and averages that follow lie in memory as these do.
        decay: of the averages.

    Attributes:
        masks: True where an element stays 0.
    """

    def __init__(
        self,
        penalties: Sequence[Penalty],
        zeros: Sequence[Zeros],
        decay: float,
    ) -> None:
        self._penalties, self._ws = list(penalties), Addresses([each.w for each in zeros])
        self._grads = Addresses([each.grad for each in zeros])
        self.masks = [each.mask for each in zeros]
        self._held, self._rooms = (Held * len(zeros))(), []
        for place, (entry, penalty, each) in enumerate(zip(self._held, penalties, zeros, strict=True)):
            slopes = slopes_of(penalty)
            found = None if slopes is None else fold_of(slopes, each.w)
            if slopes is None or found is None:
                raise ValueError(f"no kernel holds the zeros of {penalty} in a tensor of shape {tuple(each.w.shape)}")
            self._rooms.append(torch.empty(2 * found.batch * found.slices, dtype=torch.float64))
            fill(entry, each, slopes, found, self._rooms[-1])
            entry.place, entry.share = place, 1 - decay
        self._call = Call(ctypes.addressof(self._held), self._ws.start, self._grads.start, count=len(zeros))
        self._call.searches[:] = self._ws.search, self._grads.search
        self._call.wide, self._call.threads = int(zeros[0].w.dtype is torch.float64), 1
        self._reference = ctypes.byref(self._call)
        self._size = sum(each.w.numel() for each in zeros)
        self._totals = SameTensors([each.total for each in zeros])
        self._sums = [(each.total, each.following) for each in zeros]

    @staticmethod
    def of(
        penalties: Sequence[Penalty],
        zeros: Sequence[Zeros],
        decay: float,
    ) -> "Holding | None":
        """Return what holds the zeros of these parameters, at least one; None where there is no kernel for one."""
        for penalty, each in zip(penalties, zeros, strict=True):
            slopes = slopes_of(penalty)
            if slopes is None or not can_hold(each) or fold_of(slopes, each.w) is None:
                return None
        alike = len({each.w.dtype is torch.float64 for each in zeros}) == 1
        return Holding(penalties, zeros, decay) if alike else None

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

    def take_up(self, totals: Sequence[Tensor], weights: Sequence[float], *, lent: bool) -> bool:
        """Go on from other running sums, and return True; False, and nothing is done, if they lie otherwise in memory.

        Args:
            totals: the sums.
            weights: of all gradients in each.
            lent: somebody else may have them, or those that there were; then new memory is written to.
        """
        if not self._totals(totals):
            return False
        own = [total.clone() if lent else total for total in totals]
        rooms = [pair[1 - self._call.turn] for pair in self._sums]
        rooms = [torch.empty_like(total) if lent else room for total, room in zip(own, rooms, strict=True)]
        self._sums = list(zip(own, rooms, strict=True))
        for entry, pair, weight in zip(self._held, self._sums, weights, strict=True):
            take_up(entry, *pair, weight)
        self._call.turn = 0
        return True

    def averages(self) -> list[tuple[Tensor, float]]:
        """Return the running sums, and those of the weights of gradients in them."""
        turn = self._call.turn
        return [(pair[turn], entry.weights[turn]) for entry, pair in zip(self._held, self._sums, strict=True)]

    def flip(self) -> None:
        """Let the sums that were written last be the running ones."""
        self._call.turn = 1 - self._call.turn

    def set_signs(self, signs: Sequence[float]) -> None:
        """Set the signs of gradients: -1 where the optimizer maximizes."""
        for entry, sign in zip(self._held, signs, strict=True):
            entry.sign = sign

    def hold_(self, library: ctypes.CDLL, ws: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
        """Average gradients, note the zeros that they hold, and return True.

        False, and nothing is done, unless parameters and gradients are as they were.
        """
        if not (self._ws.take(ws) and self._grads.take(grads)):
            return False
        if self._size >= SERIAL:
            self._call.threads = threads_for(self._size)
        return bool(library.shrinkage_hold(self._reference))

    def restore_(self, library: ctypes.CDLL, ws: Sequence[Tensor]) -> bool:
        """Set parameters to 0 where masks are True, and return True; the caller tells autograd.

        False, and nothing is done, unless they are as they were.
        """
        return self._ws.take(ws) and bool(library.shrinkage_restore(self._reference))


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


def fill(entry: Held, zeros: Zeros, slopes: Slopes, found: Fold, room: Tensor) -> None:
    """Write down one parameter, but for its sums and where it is."""
    entry.mask, entry.room = zeros.mask.data_ptr(), None if slopes.groups is None else room.data_ptr()
    entry.batch, entry.outer, entry.slices, entry.inner = found
    entry.slope, entry.group_slope, entry.most = slopes.element, slopes.group, slopes.most
    entry.group_weight = math.sqrt(max(found.outer * found.inner, 1)) if slopes.weigh_by_size else 1.0
    entry.size, entry.type, entry.grad_type = zeros.w.numel(), TYPES[zeros.w.dtype], TYPES[zeros.grad.dtype]


def take_up(entry: Held, total: Tensor, following: Tensor, weight: float) -> None:
    """Write down the two sums of one parameter, the first of which is the running one."""
    entry.sums[:] = total.data_ptr(), following.data_ptr()
    entry.weights[0] = weight


def addresses_of(tensors: Sequence[Tensor]) -> Any:
    """Return where tensors are, as an array, one at least."""
    return (ctypes.c_void_p * max(len(tensors), 1))(*(tensor.data_ptr() for tensor in tensors))


def restore_(held: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Set tensors to 0 where their masks are True, and return True; False, and nothing is done, if one cannot be."""
    library = native_build.library()
    if library is None or not all(can_restore(w, mask) for w, mask in held):
        return False
    entries, ws = (Held * len(held))(), addresses_of([w for w, _ in held])
    for place, (entry, (w, mask)) in enumerate(zip(entries, held, strict=True)):
        entry.place, entry.mask, entry.size, entry.type = place, mask.data_ptr(), w.numel(), TYPES[w.dtype]
    library.shrinkage_restore(ctypes.byref(Call(ctypes.addressof(entries), ctypes.addressof(ws), count=len(held))))
    increment_version([w for w, _ in held])
    return True


def can_restore(w: Tensor, mask: Tensor) -> bool:
    """Return whether a mask lies in memory as the tensor does."""
    plain = is_plain(w) and type(mask) is Tensor and mask.is_cpu and mask.dtype is torch.bool
    return plain and mask.shape == w.shape and w.is_contiguous() and mask.is_contiguous()
