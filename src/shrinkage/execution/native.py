"""Proximal operators by the native kernels: which tensors there is a kernel for, and calls that are checked.

One call moves all tensors of a penalty. What stays from step to step is kept in a `Batch`: the operations, and how each
tensor falls into groups. Before each call every tensor is asked whether it is still what the batch was made for, since
nothing else keeps a kernel from writing beside it.
"""

import ctypes
import os
from collections.abc import Sequence
from itertools import repeat
from operator import is_
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from shrinkage.execution import native_build
from shrinkage.execution.memory_layout import memory_order
from shrinkage.execution.native_layout import (
    TYPES,
    Fold,
    folded,
    is_number,
    is_plain,
    moment_fits,
    stands_beside,
)
from shrinkage.execution.native_programs import Operation, Program, program_of, weight_of
from shrinkage.execution.native_structs import Call, Code, Form, Job, Op, Step
from shrinkage.execution.same_tensors import Addresses
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, JointSteps, Number
from shrinkage.penalties.base import Penalty

MOST_BATCHES = 256  # that are kept
Numbers = tuple[Number, Number, Number]
FLOATS = frozenset({float, int})
SERIAL = 1 << 15  # elements that one thread moves sooner
ROBUST = (Code.SOFT, Code.DIVIDE)  # operations whose results a rounding of the step changes by no more than one

_batches: dict[object, "Batch"] = {}
_threads = {"most": 1 << 30}  # in a process that was forked the threads of the parent are gone
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _threads.update(most=1))


def shrink_all_(tasks: Sequence[Task]) -> list[Task]:
    """Move all tensors that there is a kernel for to their proximal points, and return the others, left as they are."""
    library = native_build.library()
    if library is None:
        return list(tasks)
    alike: dict[tuple[int, type, type, bool], list[Task]] = {}
    thread = get_ident()  # calls of other threads go on meanwhile, and have batches of their own
    for task in tasks:
        penalty, w, step = task
        alike.setdefault((id(penalty), type(penalty), type(step), w.dtype is torch.float64), []).append(task)
    left: list[Task] = []
    for (_, *kind), members in alike.items():  # a strength that changes makes another penalty at each step
        key = (*kind, thread, len(members), members[0].w.shape)
        batch = _batches.get(key)
        if batch is not None and batch.adopts(members[0].penalty) and move_(batch, library, members):
            continue
        taken, others = sorted_out(members)
        left += others
        batch = Batch.of(taken)
        if len(_batches) >= MOST_BATCHES:
            _batches.clear()
        if batch is not None and batch.program.extra is None:  # which may be as large as a model
            _batches[key] = batch
        if batch is not None and not move_(batch, library, taken):
            left += taken
    return left


def move_(batch: "Batch", library: ctypes.CDLL, tasks: Sequence[Task]) -> bool:
    """Let a batch do what tasks say, tell autograd, and return True; False, and nothing is done, if it cannot."""
    ws = [task.w for task in tasks]
    moved = batch.move_(library, ws, JointSteps.of([task.step for task in tasks]))
    if moved:
        increment_version(ws)
    return moved


def sorted_out(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Return those that there is a kernel for, and the others."""
    taken = [has_kernel(task) for task in tasks]
    pairs = list(zip(tasks, taken, strict=True))
    return [task for task, known in pairs if known], [task for task, known in pairs if not known]


def has_kernel(task: Task) -> bool:
    """Return whether there is a kernel for a tensor as it is."""
    penalty, w, step = task
    program = program_of(penalty)
    if program is None or not is_plain(w) or not is_number(step) or not moment_fits(w, step):
        return False
    if program.norms is not None and program.norms.radial is None and isinstance(step, AdaptiveStep):
        return False
    return (program.extra is None or stands_beside(program.extra, w)) and fold_of(program, w) is not None


def fold_of(program: Program, w: Tensor) -> Fold | None:
    """Return how a tensor falls into groups; None if kernels cannot read it so."""
    order = memory_order(w)
    if order is None:
        return None
    return Fold(1, 1, 1, w.numel()) if program.norms is None else folded(program.norms.groups, w.shape, order)


def program_in_memory(ops: Sequence[Operation]) -> Any:
    """Return operations as an array of structs, one at least."""
    return (Op * max(len(ops), 1))(*(Op(int(code), *numbers) for code, *numbers in ops))


class Batch:
    """Tensors of one penalty that one call moves.

    Args:
        penalty: what is penalized; its program must not change while the batch lives.
        program: of the penalty.
        tasks: the tensors, all of which have a kernel.
    """

    def __init__(self, penalty: Penalty, program: Program, tasks: Sequence[Task]) -> None:
        count = len(tasks)
        self.penalty, self.program, self._extra = penalty, program, program.extra
        self._adaptive = isinstance(tasks[0].step, AdaptiveStep)
        self._addresses, self._wide = Addresses([task.w for task in tasks]), tasks[0].w.dtype is torch.float64
        self._moments = Addresses([task.step.moment for task in tasks if isinstance(task.step, AdaptiveStep)])
        self._jobs, self._steps = (Job * count)(*map(self._job, tasks)), (Step * count)()
        self._numbers = (ctypes.c_double * (3 * count)).from_buffer(self._steps)
        self._last: Numbers | None = None  # the step of all tensors, if it is one
        norms = program.norms
        self._ops, self._norm_ops = program_in_memory(program.ops), program_in_memory(norms.ops if norms else ())
        self.size = sum(task.w.numel() for task in tasks)
        self._count, self._call = count, self._made_call(count)
        self._reference = ctypes.byref(self._call)

    @staticmethod
    def of(tasks: Sequence[Task]) -> "Batch | None":
        """Return the batch of tensors that have one penalty and a kernel; None if there are none."""
        if not tasks:
            return None
        penalty = tasks[0].penalty
        program = program_of(penalty)
        return None if program is None else Batch(penalty, program, tasks)

    def _job(self, task: Task) -> Job:
        w, step, extra = task.w, task.step, self.program.extra
        found = fold_of(self.program, w)
        if found is None:
            raise ValueError(f"there is no kernel for a tensor of shape {tuple(w.shape)}, strides {w.stride()}")
        job = Job(batch=found.batch, outer=found.outer, slices=found.slices, inner=found.inner, weight=1.0)
        job.type = TYPES[w.dtype]
        if isinstance(step, AdaptiveStep):
            job.moment_type = TYPES[step.moment.dtype]
        if extra is not None:
            job.extra, job.extra_type = extra.data_ptr(), TYPES[extra.dtype]
        if self.program.norms is not None:
            job.weight = weight_of(self.program.norms, found.outer * found.inner)
        return job

    def _made_call(self, count: int) -> Call:
        norms = self.program.norms
        call = Call(count=count, op_count=len(self.program.ops), norm_op_count=len(norms.ops) if norms else 0)
        call.jobs, call.steps, call.ops = map(ctypes.addressof, (self._jobs, self._steps, self._ops))
        call.ws, call.moments = self._addresses.start, self._moments.start if self._adaptive else None
        call.searches[:] = self._addresses.search, self._moments.search if self._adaptive else 0
        call.norm_ops = ctypes.addressof(self._norm_ops)
        call.form = Form.ELEMENTS if norms is None else Form.GROUPS
        call.wide, call.threads = int(self._wide), 1
        call.metric = int(norms is not None and self._adaptive)
        call.exact = int(any(code not in ROBUST for code, *_ in self.program.ops))
        if norms is not None and norms.radial is not None:
            call.linear, call.quadratic = norms.radial
        return call

    def adopts(self, penalty: Penalty) -> bool:
        """Let another penalty that differs in numbers take the place of this one, and return whether it has."""
        if penalty is self.penalty:
            return True
        program = program_of(penalty)
        if program is None or not program.differs_in_numbers(self.program):
            return False
        self.penalty, self.program, norms = penalty, program, program.norms
        written = [*zip(self._ops, program.ops, strict=False)]
        written += zip(self._norm_ops, norms.ops if norms else (), strict=False)
        for each, (_, *numbers) in written:
            each.a, each.b, each.c = numbers
        if norms is not None and norms.radial is not None:
            self._call.linear, self._call.quadratic = norms.radial
        return True

    def move_(self, library: ctypes.CDLL, ws: Sequence[Tensor], steps: JointSteps) -> bool:
        """Move tensors, and return True; the caller tells autograd that they were written to.

        False, and nothing is done, unless these are the tensors that the batch was made for, as they were.
        """
        moments, numbers = steps
        if len(numbers) != self._count or bool(moments) != self._adaptive:
            return False
        if self._extra is not None and self._extra.data_ptr() != self._jobs[0].extra:
            return False
        if not self._addresses.take(ws) or (self._adaptive and not self._moments.take(moments)):
            return False
        if not self._take(numbers):
            return False
        if self.size >= SERIAL:
            self._call.threads = threads_for(self.size)
        return bool(library.shrinkage_prox(self._reference))

    def _take(self, numbers: list[Numbers]) -> bool:
        """Write down the numbers of all steps; False, and nothing is done, if one is not a number that kernels take."""
        first = numbers[0]
        alike = all(map(is_, numbers, repeat(first)))
        if alike and first == self._last:
            return True
        flat = first if alike else [number for each in numbers for number in each]
        floats = FLOATS.issuperset(map(type, flat))
        if not floats and not all(map(is_number, flat)):
            return False
        self._numbers[: len(flat)] = list(map(float, flat))
        self._call.alike, self._last = alike, first if alike and floats else None
        return True


def threads_for(size: int) -> int:
    """Return how many threads move so many elements."""
    return min(torch.get_num_threads(), _threads["most"]) if size >= SERIAL else 1
