"""Proximal operators that `torch.compile` turns into few passes over memory: in place, without scratch of that size.

A kernel (`kernels.py`) is compiled once for each kind of rule and type of number, whatever the shapes, learning rates
and strengths are.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from shrinkage.errors import first_line
from shrinkage.execution import kernels
from shrinkage.execution.in_place import touches_once
from shrinkage.execution.memory_layout import folded_by, memory_order
from shrinkage.execution.task import Compile, Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, MetricStep, Number, Step
from shrinkage.optimizers.introspection import is_captured
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.per_group import Parts, PerGroup
from shrinkage.penalties.schedules import Strength, fixed
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.proximal import secular
from shrinkage.proximal.precision import at_least_float32

Kernel = Callable[..., Any]
KernelStep = Number | AdaptiveStep
StepT = TypeVar("StepT", bound=KernelStep)

MANY = 1 << 21  # weights penalized in one step, from which the seconds of compilation are saved in a thousand steps
LEAST = 1 << 14  # weights in one tensor, below which calling a kernel costs more than it saves
LEAST_IN_GROUPS = 1 << 8  # of those in groups that are penalized in a metric
SLOW = 8  # times as much is saved where weights are in groups that are penalized in a metric
READ_TWICE = 1 / 16  # of it is saved where groups are scaled in place, but a second pass comes from memory again
LARGE = 1 << 22  # weights in one tensor, which no cache holds from one pass over all of it to the next
CACHED = 1 << 16  # weights in one group, which a cache holds
# Nothing of a parameter's size is written down between its first use and its last.
ONE_PASS: dict[str, Any] = {f"realize_{each}_threshold": 10_000 for each in ("opcount", "reads", "acc_reads")}
# Shapes of examples to compile with: as large as what follows, and no two sizes alike, which would be taken for a rule.
EXAMPLES = {1: (1_000_003,), 2: (1009, 1013), 3: (101, 103, 107), 4: (29, 31, 37, 41), 5: (13, 17, 19, 23, 29)}

_log = logging.getLogger("shrinkage")
_compiles: dict[tuple[object, ...], bool] = {}  # by kind of kernel: whether it could be compiled


def is_wanted(compile: Compile, tasks: Sequence[Task]) -> bool:
    """Return whether `tasks`, which are done in one step, are done by kernels as far as there are kernels for them."""
    return pays(tasks) if compile == "auto" else compile


def pays(tasks: Sequence[Task]) -> bool:
    """Return whether compilation pays: for many weights, and where each call starts kernels on a device."""
    if any(w.device.type != "cpu" for _, w, _ in tasks):
        return True
    return sum(gain(*task) * task.w.numel() for task in tasks) >= MANY


def gain(penalty: Penalty, w: Tensor, step: Step) -> float:
    """Return what a kernel saves per weight, in units of what it saves where elements are penalized in a metric.

    What torch does in place as fast saves nothing.
    """
    if isinstance(step, MetricStep):  # no kernel computes it
        return 0
    if not touches_once(penalty, w, step):
        return SLOW if isinstance(penalty, PerGroup) else 1
    return READ_TWICE if isinstance(penalty, PerGroup) and w.numel() >= LARGE else 0


def compiled_shrink_(penalty: Penalty, w: Tensor, step: Step) -> bool:
    """Move `w` to the proximal point and return True; False, and nothing is done, where there is no kernel for it."""
    if isinstance(step, MetricStep) or gain(penalty, w, step) == 0:
        return False
    least = LEAST_IN_GROUPS if isinstance(penalty, PerGroup) else LEAST
    if w.numel() < least or penalty.with_tensors(Tensor.detach) is not penalty:
        return False
    shaped = [number for number in numbers_in(step) if isinstance(number, Tensor) and number.dim() > 0]
    order = memory_order(w, *shaped)
    if order is None or (shaped and not isinstance(step, AdaptiveStep)):
        return False
    found = kernel_of(penalty, w, order, in_metric=isinstance(step, AdaptiveStep))
    if found is None:
        return False
    kind, shape, shrink_ = found

    def view(tensor: Tensor) -> Tensor:
        return tensor.permute(order).view(shape)

    return run(kind, shrink_, view(w), with_tensors(step, view))


class Found(NamedTuple):
    """A kind of kernel, the shape in which it takes tensors, and the call of it."""

    kind: str
    shape: tuple[int, ...]
    shrink_: Kernel


def kernel_of(penalty: Penalty, w: Tensor, order: tuple[int, ...], *, in_metric: bool) -> Found | None:
    """Return the kernel for a tensor that lies in memory in this order of dimensions; None if there is none."""
    if isinstance(penalty, Elementwise):
        return Found(type(penalty).__name__, (-1,), partial(shrink_elements_, traced(penalty)))
    folded = folded_by(penalty.groups, w.shape, order) if isinstance(penalty, PerGroup) else None
    if folded is None:
        return None
    shape, within = folded
    view = "".join("w" if dim in within else "g" for dim in range(len(shape)))
    if in_metric:
        parts = penalty.parts(w.shape) if isinstance(penalty, PerGroup) else None
        if parts is None or not parts.linear:
            return None
        names = (name for name, part in parts._asdict().items() if part)
        return Found(" ".join(("Grouped", *names, view)), shape, partial(shrink_groups_, parts, within))
    size = math.prod(shape[dim] for dim in within)
    # Sums over what is not next to each other are faster in place.
    if w.numel() < LARGE or size > CACHED or within[-1:] != (len(shape) - 1,):
        return None
    if type(penalty) is SparseGroupLasso:
        scale_ = partial(scale_groups_, penalty.of_groups, w.shape, fixed(penalty.l1), within)
        return Found(f"Scaled l1 {view}", shape, scale_)
    if type(penalty) is Grouped:
        scale_ = partial(scale_groups_, penalty, w.shape, None, within)
        return Found(f"Scaled {type(penalty.penalty).__name__} {view}", shape, scale_)
    return None


def run(kind: str, shrink_: Kernel, w: Tensor, step: KernelStep) -> bool:
    """Call `shrink_` with tensors in one order of memory, and return whether it could be compiled.

    Compilation comes before anything is written, also when torch was reset in between and compiles once more.
    """
    if not can_compile(kind, shrink_, w, step):
        return False
    key = key_of(kind, w, step)
    _compiles[key] = attempted(kind, partial(shrink_, kind, w, step))
    return _compiles[key]


def can_compile(kind: str, shrink_: Kernel, w: Tensor, step: KernelStep) -> bool:
    """Return whether `shrink_` can be compiled for such tensors; the first time it is called with an example.

    Not while a CUDA graph is recorded.
    """
    key = key_of(kind, w, step)
    if key not in _compiles:
        if is_captured(w):
            return False

        def example(tensor: Tensor) -> Tensor:
            return torch.ones(EXAMPLES[w.dim()], dtype=tensor.dtype, device=tensor.device)

        _compiles[key] = attempted(kind, partial(shrink_, kind, example(w), with_tensors(step, example)))
    return _compiles[key]


def key_of(kind: str, w: Tensor, step: KernelStep) -> tuple[object, ...]:
    """Return a key that is equal for all tensors that one compilation serves."""
    numbers = numbers_in(step)
    tensors = ((each.device, each.dtype, each.dim()) if isinstance(each, Tensor) else None for each in numbers)
    return kind, w.device, w.dtype, *tensors


def numbers_in(step: KernelStep) -> tuple[Number, ...]:
    """Return the numbers of which `step` is made."""
    return tuple(step) if isinstance(step, AdaptiveStep) else (step,)


def with_tensors(step: StepT, change: Callable[[Tensor], Tensor]) -> StepT:
    """Return `step` with a `change` of each tensor in it that has one number per element."""
    if not isinstance(step, AdaptiveStep):
        return step
    shaped = {name: each for name, each in step._asdict().items() if isinstance(each, Tensor) and each.dim() > 0}
    return step._replace(**{name: change(each) for name, each in shaped.items()})


def attempted(kind: str, call: Callable[[], None]) -> bool:
    """Return whether `call` could be compiled; it is made then."""
    from torch._dynamo.exc import TorchDynamoException  # not imported before it is needed: it takes long

    try:
        call()
    except TorchDynamoException as error:
        _log.warning("%s goes on without torch.compile, which failed: %s", kind, first_line(error))
        return False
    return True


@cache
def compiled(kernel: FunctionType, kind: str) -> Kernel:
    """Return `kernel`, compiled for one kind of rule: torch counts compilations by code, so each kind has its own."""
    name = "".join(letter if letter.isalnum() else "_" for letter in f"{kernel.__name__}{kind}")
    own = FunctionType(kernel.__code__.replace(co_name=name), kernel.__globals__, name, kernel.__defaults__)
    found: Kernel = torch.compile(own, dynamic=True, fullgraph=True, options=known({**ONE_PASS, **width(kernel)}))
    return found


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the inductor's `options` that this version of torch has: they change how fast a kernel is."""
    from torch._inductor import list_options  # not imported before it is needed: it takes long

    gone = sorted(set(options) - set(list_options()))
    if gone:
        _log.warning("torch %s has no option %s: kernels may be slower", torch.__version__, ", ".join(gone))
    return {name: value for name, value in options.items() if name not in gone}


def width(kernel: FunctionType) -> dict[str, int]:
    """Return the option for vectors of 256 bits, where a processor has longer ones and `kernel` looks for zero moments.

    Masks of longer vectors are not vectors, and turned into them again and again.
    """
    in_metric = kernel not in (kernels.in_plain_metric, kernels.scale_groups_)
    return {"cpp.simdlen": 256} if in_metric and torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


def as_scalar(number: Number, dtype: torch.dtype | None = None) -> Tensor:
    """Return `number` as a tensor of this type, by default of its own: double precision for Python's numbers.

    A number of Python becomes a tensor on the CPU, so that no device is waited for.
    """
    if isinstance(number, Tensor):
        return number if dtype is None else number.to(dtype)
    return torch.tensor(number, dtype=dtype or torch.float64)


def traced(penalty: Penalty) -> Penalty:
    """Return `penalty` with tensors for strengths, which a compiled kernel takes as arguments, not as constants."""
    copy = object.__new__(type(penalty))  # its checks are for numbers
    for field in dataclasses.fields(penalty):
        value: Any = getattr(penalty, field.name, None)
        if field.type == Strength:
            value = as_scalar(value)
        elif isinstance(value, Penalty):
            value = traced(value)
        object.__setattr__(copy, field.name, value)
    return copy


def shrink_elements_(penalty: Penalty, kind: str, w: Tensor, step: KernelStep) -> None:
    """Move elements."""
    if isinstance(step, AdaptiveStep):
        lr = as_scalar(step.lr, at_least_float32(w.dtype))
        compiled(kernels.in_metric, kind)(penalty, w, step.moment, lr, *of_denominator(step, w))
    else:
        compiled(kernels.in_plain_metric, kind)(penalty, w, as_scalar(step))


def scale_groups_(
    penalty: Grouped, shape: torch.Size, l1: float | None, within: tuple[int, ...], kind: str, w: Tensor, step: Number
) -> None:
    """Move groups in a plain metric, after the soft threshold of `l1`; `shape` is the parameter's."""
    threshold = None if l1 is None else as_scalar(l1)
    weight = as_scalar(penalty.weight(shape))
    compiled(kernels.scale_groups_, kind)(traced(penalty.penalty), weight, threshold, within, w, as_scalar(step))


def shrink_groups_(parts: Parts, within: tuple[int, ...], kind: str, w: Tensor, step: AdaptiveStep) -> None:
    """Move groups by the secular equation of each."""
    given = (w, *given_to_groups(step, w, *parts), within)
    theta, zero = compiled(kernels.first_pass, kind)(*given)
    resting = zero
    for _ in range(secular.NEWTON_ITERATIONS):
        theta, resting = compiled(kernels.newton_pass, kind)(theta, resting, *given)
        # Elsewhere a look at it would wait for the device.
        if w.device.type == "cpu" and bool(resting.all()):
            break
    compiled(kernels.last_pass_, kind)(secular.settled(theta, zero), *given)


def of_denominator(step: AdaptiveStep, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return eps and 1 / sqrt(correction), in the type that is computed in.

    A kernel would turn numbers of another type into that, and into each other, anew for every few elements.
    """
    correction, dtype = step.correction, at_least_float32(w.dtype)
    scale = correction.rsqrt() if isinstance(correction, Tensor) else correction**-0.5
    return as_scalar(step.eps, dtype), as_scalar(scale, dtype)


def given_to_groups(
    step: AdaptiveStep, w: Tensor, l1: float, linear: Number, quadratic: Number
) -> tuple[Tensor | None, ...]:
    """Return what `kernels.left_for_norms` takes beside `w` and `within`; tensors have one number per group."""
    strength = step.lr * linear
    unit = strength.reciprocal() if isinstance(strength, Tensor) else 1 / strength if strength else math.inf
    rest = (step.lr * part if isinstance(part, Tensor) or part else None for part in (l1, quadratic))
    numbers = (None if each is None else as_scalar(each, at_least_float32(w.dtype)) for each in (unit, *rest))
    return step.moment, *of_denominator(step, w), *numbers
