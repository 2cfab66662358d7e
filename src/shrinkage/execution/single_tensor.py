"""The three ways in which a penalty enters an optimizer's step: through its derivative, as decay, and by its prox.

Everything is computed in float32 at least and written back in the type of the parameter, rounded to the nearest number
or, with a generator, stochastically. The plain form takes any penalty. A penalty that torch's own optimizers know is
registered beside it with the operation that they use, so that results agree with theirs bit for bit.

Large tensors are penalized in chunks, each so small that its temporaries stay in a processor's cache. `prox_` is the
plain form of what `shrink_all_` does faster: by native kernels (`native.py`), small tensors joined (`buckets.py`), in
place where torch touches each weight once (`in_place.py`), and compiled (`compiled.py`).
"""

from collections.abc import Iterator, Sequence
from functools import partial, singledispatch

import torch
from torch import Tensor

from shrinkage.execution import native
from shrinkage.execution.buckets import LARGEST, LARGEST_COMPILED, Joined, batched
from shrinkage.execution.compiled import compiled_shrink_, is_wanted
from shrinkage.execution.in_place import shrink_, touches_once
from shrinkage.execution.task import Compile, Task
from shrinkage.optimizers.adaptive_step import MetricStep, Number, Step, StepT, can_be_cut, narrowed, number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1, L2
from shrinkage.penalties.schedules import fixed
from shrinkage.proximal.precision import stochastic_round, stuck, upcast

CHUNK = 1 << 16  # elements: four temporaries of that size are 1 MiB


def chunks(penalty: Penalty, w: Tensor, step: StepT, *, share: int = 1) -> Iterator[tuple[Penalty, Tensor, StepT]]:
    """Yield views of `w`, cut where `penalty` penalizes each chunk by itself, with the penalty and step of the chunk.

    A chunk has at most a `share` of CHUNK elements. `step` may be any tensor of the shape of `w`.
    """
    size = CHUNK // share
    # What is written into a slice of another kind of tensor may be lost; a device other than a CPU has no such cache.
    may_cut = w.numel() > size and type(w) is Tensor and w.device.type == "cpu"
    # The first dimension that is long enough for many chunks.
    dims = penalty.cuts(w.shape) if may_cut and can_be_cut(step) else ()
    dim = max(dims, key=lambda dim: min(w.shape[dim], 64), default=None)
    if dim is None:
        yield penalty, w, step
        return
    longest = max(size * w.shape[dim] // w.numel(), 1)
    for start in range(0, w.shape[dim], longest):
        part = {"dim": dim, "start": start, "length": min(longest, w.shape[dim] - start)}
        yield penalty.with_tensors(partial(torch.narrow, **part)), w.narrow(**part), narrowed(step, **part)


def add_gradient_(penalty: Penalty, grad: Tensor, w: Tensor, factor: Number) -> None:
    """Add `factor` times the penalty's derivative at `w` to a gradient."""
    for part, at, own in chunks(penalty, w, grad):
        add_derivative_(part, own, at, factor)


@singledispatch
def add_derivative_(penalty: Penalty, grad: Tensor, w: Tensor, factor: Number) -> None:
    """grad <- grad + factor * R'(w), rounded once."""
    widened = upcast(grad)
    widened.add_(penalty.gradient(upcast(w).to(widened.dtype)) * factor)
    if widened is not grad:
        grad.copy_(widened)


@add_derivative_.register
def _(penalty: L2, grad: Tensor, w: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor) or grad.dtype != w.dtype:
        add_plainly_(penalty, grad, w, factor)
    else:  # the sum of a product, rounded once, that optimizers ask for
        grad.add_(w, alpha=factor * fixed(penalty.strength))


add_plainly_ = add_derivative_.dispatch(Penalty)


def decay_(penalty: Penalty, w: Tensor, step: Number, generator: torch.Generator | None = None) -> None:
    """Move `w` by -step * R'(w): the decoupled form of a smooth penalty."""
    for part, chunk, _ in chunks(penalty, w, 0.0):
        widened = upcast(chunk)
        decay_by_derivative_(part, widened, step)
        if widened is not chunk:
            write_(chunk, widened, generator)


@singledispatch
def decay_by_derivative_(penalty: Penalty, w: Tensor, step: Number) -> None:
    """w <- w - step * R'(w)."""
    w.sub_(penalty.gradient(w) * step)


@decay_by_derivative_.register
def _(penalty: L2, w: Tensor, step: Number) -> None:
    w.mul_(1 - step * fixed(penalty.strength))


def cautious_decay_(
    penalty: L2, w: Tensor, before: Tensor, step: Number, generator: torch.Generator | None = None
) -> None:
    """Decay the weights that have moved towards 0 since `before`, or stayed: w <- w - step * strength * before."""
    old, widened = upcast(before), upcast(w)
    decayed = widened - old * (step * fixed(penalty.strength)) * ((old - widened) * old >= 0)
    write_(w, decayed, generator)


def prox_(penalty: Penalty, w: Tensor, step: Step, generator: torch.Generator | None = None) -> None:
    """Move `w` to the penalty's proximal point.

    Args:
        penalty: what is penalized.
        w: what is moved.
        step: of the proximal operator.
        generator: rounds stochastically to bfloat16 and float16; None rounds to the nearest number.
    """
    for part, chunk, own in chunks(penalty, w, step):
        write_(chunk, part.prox(upcast(chunk), number(own)), generator)


def shrink_all_(tasks: Sequence[Task], *, compile: Compile) -> None:
    """Do what `prox_` does for many tensors: by native kernels, joined, in place, or compiled."""
    if compile is not False:
        tasks = native.shrink_all_([with_number(task) for task in tasks])
    kernels = is_wanted(compile, tasks)
    for batch in batched(tasks, LARGEST_COMPILED if kernels else LARGEST):
        joined = Joined(batch) if len(batch) > 1 else None
        task = batch[0] if joined is None else joined.task
        if not (kernels and compiled_shrink_(*task)):
            shrink_in_chunks_(*task)
        if joined is not None:
            joined.write_back()


def with_number(task: Task) -> Task:
    """Return a task whose step is computed now, where that needs no more memory than one chunk does."""
    small = isinstance(task.step, MetricStep) and task.w.numel() <= CHUNK
    return task._replace(step=number(task.step)) if small else task


def shrink_in_chunks_(penalty: Penalty, w: Tensor, step: Step) -> None:
    """Move `w` in place, with scratch memory for one chunk only."""
    if touches_once(penalty, w, step):
        shrink_(penalty, w, step)
        return
    share = 1 if isinstance(penalty, L1) else 2  # others need up to eight temporaries
    for part, chunk, own in chunks(penalty, w, step, share=share):
        shrink_(part, chunk, own)


def write_(w: Tensor, moved: Tensor, generator: torch.Generator | None) -> None:
    """Write `moved` into `w`, rounded to the nearest number of its type, or stochastically."""
    w.copy_(moved if generator is None else stochastic_round(moved, w.dtype, generator))


def stuck_share(penalty: Penalty, w: Tensor, step: Step, *, prox: bool) -> float:
    """Return the share of the elements that a prox, or decay, is to move which rounding brings back; waits for it."""
    widened, size = upcast(w), number(step)
    return float(stuck(w, penalty.prox(widened, size) if prox else widened - size * penalty.gradient(widened)))


def follow_(w: Tensor, moved: Tensor, share: Number) -> None:
    """Move `w` by a share of what was `moved`."""
    w.add_(moved * share)


def restore_(penalty: Penalty, w: Tensor, mask: Tensor) -> None:
    """Set `w` to the penalty's origin where `mask` is true."""
    if type(penalty).origin is Penalty.origin:
        w.masked_fill_(mask, 0.0)
    else:
        w.copy_(torch.where(mask, penalty.origin(w), w))


def clear_(grad: Tensor, mask: Tensor) -> None:
    """Set a gradient to 0 where `mask` is true."""
    grad.masked_fill_(mask, 0.0)
