"""Groups that span parameters by the native kernels: one call for all parameters that share groups."""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from threading import get_ident

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from shrinkage.execution import native_build
from shrinkage.execution.memory_layout import memory_order
from shrinkage.execution.native import program_in_memory, threads_for
from shrinkage.execution.native_layout import TYPES, folded, is_number, is_plain, moment_fits
from shrinkage.execution.native_programs import numbers_of, program_of
from shrinkage.execution.native_structs import Call, Form, Job, Op, Step
from shrinkage.execution.same_tensors import Known, all_fit
from shrinkage.optimizers.adaptive_step import AdaptiveStep, MetricStep
from shrinkage.optimizers.adaptive_step import Step as AnyStep
from shrinkage.penalties.coupled_groups import Slices
from shrinkage.penalties.membership import GroupPenalty, Membership

Member = tuple[Membership, Tensor, AnyStep]
MOST_FAMILIES = 1024  # that are kept
MOST_TOGETHER = 1024  # groups that kernels move together

_families: dict[tuple[int, int], "Family | None"] = {}


def shrink_together_(group_penalty: GroupPenalty, members: Sequence[Member]) -> bool:
    """Move all members to the proximal point of all of them together, and return True.

    False, and nothing is done, where there is no kernel for them.
    """
    library = native_build.library()
    if library is None or not all(is_number(step) for _, _, step in members):
        return False
    key = (id(group_penalty.weights), get_ident())  # calls of other threads go on meanwhile
    family = _families.get(key)
    if family is None or not family.fits(group_penalty, members):
        family = Family(group_penalty, members) if have_kernel(group_penalty, members) else None
        if len(_families) >= MOST_FAMILIES:
            _families.clear()
        _families[key] = family
    if family is not None:
        family.move_(library, members)
    return family is not None


def have_kernel(group_penalty: GroupPenalty, members: Sequence[Member]) -> bool:
    """Return whether there is a kernel for these parameters as they are."""
    penalty, weights = group_penalty
    program = program_of(penalty)
    if program is None or program.extra is not None or not weights.is_cpu or not members:
        return False
    if in_metric(members) and numbers_of(penalty) is None:
        return False
    wide = {w.dtype is torch.float64 for _, w, _ in members}
    counts = {part.count for part, _, _ in members}
    return len(wide) == 1 and counts == {weights.numel()} and all(map(member_fits, members))


def member_fits(member: Member) -> bool:
    """Return whether a parameter can be read by a kernel."""
    part, w, step = member
    if not is_plain(w) or not part.counts or not part.groups.is_cpu or not w.numel():
        return False
    if part.dim >= w.dim() or len(part.groups) != w.shape[part.dim]:
        return False
    return (
        memory_order(w) is not None
        and moment_fits(w, step)
        and folded(Slices(part.dim), w.shape, memory_order(w) or ()) is not None
    )


def in_metric(members: Sequence[Member]) -> bool:
    """Return whether more than one number is the step of all members."""
    steps = [step for _, _, step in members]
    return any(isinstance(step, AdaptiveStep) for step in steps) or len(set(map(as_number, steps))) > 1


def as_number(step: AnyStep) -> float:
    """Return a step that is a number, and the rate of another."""
    found = step.lr if isinstance(step, AdaptiveStep) else step
    if isinstance(found, MetricStep):
        raise TypeError("a step that is a function has to be computed first")
    return float(found)


class Family:
    """Parameters that share groups, and what stays of their call from step to step.

    Args:
        group_penalty: what groups are penalized.
        members: which groups the slices of each tensor belong to, the tensor, and its step.
    """

    def __init__(self, group_penalty: GroupPenalty, members: Sequence[Member]) -> None:
        self._penalty, self._weights = group_penalty
        self._in_metric = in_metric(members)
        self._known = [(part, Known.of(w), known_moment(step)) for part, w, step in members]
        self._doubles = self._weights.detach().to(torch.float64).contiguous()
        self._version = self._weights._version
        self._orders = [order_of(part) for part, _, _ in members]
        self._blocks = blocks_of([part for part, _, _ in members])
        count = len(members)
        self._jobs, self._steps = (Job * count)(), (Step * count)()
        self._ws, self._moments = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)()
        for job, (part, w, step), order in zip(self._jobs, members, self._orders, strict=True):
            fill(job, part, w, step, order)
        program = program_of(self._penalty)
        self._ops = program_in_memory(program.ops if program else ())
        self._call = self._made_call(len(program.ops) if program else 0)
        self._size = sum(w.numel() for _, w, _ in members)

    def _made_call(self, operations: int) -> Call:
        call = Call(count=len(self._jobs), norm_op_count=operations, form=Form.COUPLED)
        call.blocks, call.block_count = self._blocks.data_ptr(), len(self._blocks) - 1
        call.jobs, call.steps = ctypes.addressof(self._jobs), ctypes.addressof(self._steps)
        call.ws, call.moments = ctypes.addressof(self._ws), ctypes.addressof(self._moments)
        call.norm_ops = ctypes.addressof(self._ops)
        call.ops = ctypes.addressof((Op * 1).from_buffer(self._ops))
        call.weights, call.metric = self._doubles.data_ptr(), int(self._in_metric)
        call.linear, call.quadratic = numbers_of(self._penalty) or (0.0, 0.0)
        call.wide = int(self._known[0][1].dtype is torch.float64)
        return call

    def fits(self, group_penalty: GroupPenalty, members: Sequence[Member]) -> bool:
        """Return whether these are the parameters that this was made for, as they were."""
        penalty, weights = group_penalty
        if len(members) != len(self._known) or weights is not self._weights or weights._version != self._version:
            return False
        if (penalty is not self._penalty and penalty != self._penalty) or in_metric(members) != self._in_metric:
            return False
        for (own, known, moment), (part, w, step) in zip(self._known, members, strict=True):
            if part is not own or not all_fit([known], [w]):
                return False
            adaptive = isinstance(step, AdaptiveStep)
            if adaptive != (moment is not None):
                return False
            if moment is not None and isinstance(step, AdaptiveStep) and not all_fit([moment], [step.moment]):
                return False
        return True

    def move_(self, library: ctypes.CDLL, members: Sequence[Member]) -> None:
        """Move members that fit, and tell autograd that they were written to."""
        for index, (numbers, (_, w, step)) in enumerate(zip(self._steps, members, strict=True)):
            self._ws[index] = w.data_ptr()
            numbers.lr, numbers.correction = as_number(step), 1.0
            if isinstance(step, AdaptiveStep):
                self._moments[index] = step.moment.data_ptr()
                numbers.eps, numbers.correction = float(step.eps), float(step.correction)
        self._call.threads = threads_for(self._size)
        library.shrinkage_prox(ctypes.byref(self._call))
        increment_version([w for _, w, _ in members])


def fill(job: Job, part: Membership, w: Tensor, step: AnyStep, order: tuple[Tensor, Tensor] | None) -> None:
    """Write down how the slices of a tensor lie in memory, and which groups they belong to."""
    found = folded(Slices(part.dim), w.shape, memory_order(w) or ())
    if found is None:
        raise ValueError(f"there is no kernel for a tensor of shape {tuple(w.shape)}, strides {w.stride()}")
    job.batch, job.outer, job.slices, job.inner = found
    job.type, job.weight = TYPES[w.dtype], 1.0
    if isinstance(step, AdaptiveStep):
        job.moment_type = TYPES[step.moment.dtype]
    if order is None:
        job.begin = part.first or 0
    else:
        job.order, job.starts = (each.data_ptr() for each in order)


def blocks_of(parts: Sequence[Membership]) -> Tensor:
    """Return where blocks of groups begin, and where the last ends.

    Each is moved by one thread, and has rows or columns of the same tensors throughout, where those follow each other.
    """
    count = parts[0].count
    ranges = [(part.first, part.first + len(part.groups)) for part in parts if part.first is not None]
    cuts = sorted({0, count, *(end for pair in ranges for end in pair)})
    size = min(MOST_TOGETHER, max(64, count // 32 // 64 * 64))
    begins = [begin for start, end in pairwise(cuts) for begin in range(start, end, size)]
    return torch.tensor([*begins, count])


def known_moment(step: AnyStep) -> Known | None:
    """Return what a step's moment is now; None if it has none."""
    return Known.of(step.moment) if isinstance(step, AdaptiveStep) else None


def order_of(part: Membership) -> tuple[Tensor, Tensor] | None:
    """Return the slices by their group's number, and where each group begins; None if those follow each other."""
    if part.first is not None:
        return None
    found, order = part.groups.sort(stable=True)
    starts = torch.searchsorted(found, torch.arange(part.count + 1))
    return order.contiguous(), starts.contiguous()
