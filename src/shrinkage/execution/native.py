"""Proximal operators by the native kernels: which tensors there is a kernel for, and calls that are checked.

One call moves all tensors of a penalty. What stays from step to step is kept in a `Batch`: the operations, and how each
tensor falls into groups. Before each call every tensor is asked whether it is still what the batch was made for, since
nothing else keeps a kernel from writing beside it.
"""

import ctypes
import os
from collections.abc import Sequence
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
from shrinkage.execution.native_structs import Call, Code, Form, Job, Op, Pointers, Step
from shrinkage.execution.same_tensors import SameTensors
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
        if batch is not None and batch.adopts(members[0].penalty):
            if batch.move_(library, *tensors_and_steps(members)):
                continue
        taken, others = sorted_out(members)
        left += others
        batch = Batch.of(taken)
        if len(_batches) >= MOST_BATCHES:
            _batches.clear()
        if batch is not None and batch.program.extra is None:  # which may be as large as a model
            _batches[key] = batch
        if batch is not None and not batch.move_(library, *tensors_and_steps(taken)):
            left += taken
    return left


def tensors_and_steps(tasks: Sequence[Task]) -> tuple[list[Tensor], JointSteps]:
    """Return what tasks move, and their steps."""
    return [task.w for task in tasks], JointSteps.of([task.step for task in tasks])


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
        self._same, self._wide = SameTensors([task.w for task in tasks]), tasks[0].w.dtype is torch.float64
        moments = [task.step.moment for task in tasks if isinstance(task.step, AdaptiveStep)]
        self._same_moments = SameTensors(moments)
        self._jobs = (Job * count)(*map(self._job, tasks))
        self._pointers, self._steps = (Pointers * count)(), (Step * count)()
        self._words = (ctypes.c_uint64 * (2 * count)).from_buffer(self._pointers)
        self._numbers = (ctypes.c_double * (3 * count)).from_buffer(self._steps)
        self._last: list[Any] = []
        self._in_tensors = False
        norms = program.norms
        self._ops, self._norm_ops = program_in_memory(program.ops), program_in_memory(norms.ops if norms else ())
        self.size = sum(task.w.numel() for task in tasks)
        self._call = self._made_call(count)
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
        call.jobs, call.pointers = ctypes.addressof(self._jobs), ctypes.addressof(self._pointers)
        call.steps, call.ops = ctypes.addressof(self._steps), ctypes.addressof(self._ops)
        call.norm_ops = ctypes.addressof(self._norm_ops)
        call.form = Form.ELEMENTS if norms is None else Form.GROUPS
        call.wide = int(self._wide)
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
        """Move tensors, tell autograd that they were written to, and return True.

        False, and nothing is done, unless these are the tensors that the batch was made for, as they were.
        """
        moments, numbers = steps
        if len(numbers) != len(ws) or not self._same(ws):
            return False
        if bool(moments) != self._adaptive:
            return False
        if self._extra is not None and self._extra.data_ptr() != self._jobs[0].extra:
            return False
        if self._adaptive:
            if not self._same_moments(moments):
                return False
            self._words[1::2] = [moment.data_ptr() for moment in moments]
        if (self._in_tensors or numbers != self._last) and not self._take(numbers):
            return False
        self._words[0::2] = [w.data_ptr() for w in ws]
        self._call.threads = threads_for(self.size)
        library.shrinkage_prox(self._reference)
        increment_version(ws)
        return True

    def _take(self, numbers: list[Numbers]) -> bool:
        """Write down the numbers of all steps; False, and nothing is done, if one is not a number that kernels take."""
        flat = [number for each in numbers for number in each]
        self._in_tensors = not FLOATS.issuperset(map(type, flat))
        if self._in_tensors and not all(map(is_number, flat)):
            return False
        self._numbers[:] = list(map(float, flat))
        self._last = numbers
        return True


def threads_for(size: int) -> int:
    """Return how many threads move so many elements."""
    return min(torch.get_num_threads(), _threads["most"]) if size >= SERIAL else 1
