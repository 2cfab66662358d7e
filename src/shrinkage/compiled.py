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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from shrinkage import kernels, radial
from shrinkage.batches import Shrink
from shrinkage.errors import first_line
from shrinkage.folding import Folded, folded_by, memory_order
from shrinkage.inplace import touches_once
from shrinkage.metrics import AdaptiveStep, Number, Step, is_captured
from shrinkage.penalties import Grouped, Penalty, SparseGroupLasso
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.per_group import Parts, PerGroup
from shrinkage.schedules import Strength, fixed

Kernel = Callable[..., Any]
Compile = bool | Literal["auto"]

MANY = 1 << 21  # weights charged in one step, from which the seconds of compilation are saved in a thousand steps
LEAST = 1 << 14  # weights in one tensor, below which calling a kernel costs more than it saves
LEAST_IN_GROUPS = 1 << 8  # of those in groups that are charged in a metric
SLOW = 8  # times as much is saved where weights are in groups that are charged in a metric
READ_TWICE = 1 / 16  # of it is saved where groups are scaled in place, but a second pass comes from memory again
LARGE = 1 << 22  # weights in one tensor, which no cache holds from one pass over all of it to the next
CACHED = 1 << 16  # weights in one group, which a cache holds
# Nothing of a parameter's size is written down between its first use and its last.
ONE_PASS: dict[str, Any] = {
    "realize_opcount_threshold": 10_000,
    "realize_reads_threshold": 10_000,
    "realize_acc_reads_threshold": 10_000,
}
# Shapes of examples to compile with: as large as what follows, and no two sizes alike, which would be taken for a rule.
EXAMPLES = {1: (1_000_003,), 2: (1009, 1013), 3: (101, 103, 107), 4: (29, 31, 37, 41), 5: (13, 17, 19, 23, 29)}

_log = logging.getLogger("shrinkage")
_compiles: dict[tuple[object, ...], bool] = {}  # by kind of kernel: whether it could be compiled


def check_compile(compile: object) -> None:
    """Raise `ValueError` unless `compile` is True, False or "auto"."""
    if compile is not True and compile is not False and compile != "auto":
        raise ValueError(f'compile must be True, False or "auto", got {compile!r}')


def pays(shrinks: Sequence[Shrink]) -> bool:
    """Return whether compilation pays: for many weights, and where each call starts kernels on a device."""
    if any(w.device.type != "cpu" for _, w, _ in shrinks):
        return True
    return sum(gain(*shrink) * shrink.w.numel() for shrink in shrinks) >= MANY


def gain(penalty: Penalty, w: Tensor, step: Step) -> float:
    """Return what a kernel saves per weight, in units of what it saves where elements are charged in a metric.

    What torch does in place as fast saves nothing.
    """
    if not touches_once(penalty, w, step):
        return SLOW if isinstance(penalty, PerGroup) else 1
    return READ_TWICE if isinstance(penalty, PerGroup) and w.numel() >= LARGE else 0


def compiled_shrink_(penalty: Penalty, w: Tensor, step: Step) -> bool:
    """Move `w` to the proximal point and return True; False, and nothing is done, where there is no kernel for it."""
    least = LEAST_IN_GROUPS if isinstance(penalty, PerGroup) else LEAST
    if gain(penalty, w, step) == 0 or w.numel() < least or penalty.with_tensors(Tensor.detach) is not penalty:
        return False
    moments = [step.moment] if isinstance(step, AdaptiveStep) else []
    order = memory_order(w, *moments)
    if order is None or (isinstance(step, Tensor) and step.dim()):
        return False
    if isinstance(penalty, Elementwise):
        tensors = [tensor.permute(order).view(-1) for tensor in (w, *moments)]
        return run(type(penalty).__name__, partial(shrink_elements_, traced(penalty)), tensors, step)
    folded = folded_by(penalty.groups, w.shape, order) if isinstance(penalty, PerGroup) else None
    found = None if folded is None else of_groups(penalty, w, folded, in_metric=isinstance(step, AdaptiveStep))
    if folded is None or found is None:
        return False
    shape, within = folded
    view = "".join("w" if dim in within else "g" for dim in range(len(shape)))
    tensors = [tensor.permute(order).view(shape) for tensor in (w, *moments)]
    return run(f"{found.kind} {view}", partial(found.shrink_, within), tensors, step)


class OfGroups(NamedTuple):
    """How groups are moved, given the dimensions within them, and the kind of kernel that does it."""

    kind: str
    shrink_: Kernel


def of_groups(penalty: Penalty, w: Tensor, folded: Folded, *, in_metric: bool) -> OfGroups | None:
    """Return how the groups of `penalty`, folded so, are moved; None if there is no kernel for it."""
    if in_metric:
        parts = penalty.parts(w.shape) if isinstance(penalty, PerGroup) else None
        if parts is None or not parts.linear:
            return None
        names = (name for name, part in parts._asdict().items() if part)
        return OfGroups(" ".join(("Grouped", *names)), partial(shrink_groups_, parts))
    shape, within = folded
    size = math.prod(shape[dim] for dim in within)
    # Sums over what is not next to each other are faster in place.
    if w.numel() < LARGE or size > CACHED or within[-1:] != (len(shape) - 1,):
        return None
    if type(penalty) is SparseGroupLasso:
        return OfGroups("Scaled l1", partial(scale_groups_, penalty.of_groups, w.shape, fixed(penalty.l1)))
    if type(penalty) is Grouped:
        return OfGroups(f"Scaled {type(penalty.penalty).__name__}", partial(scale_groups_, penalty, w.shape, None))
    return None


def run(kind: str, shrink_: Kernel, tensors: Sequence[Tensor], step: Step) -> bool:
    """Call `shrink_` with tensors in one order of memory, and return whether it could be compiled.

    Compilation comes before anything is written, also when torch was reset in between and compiles once more.
    """
    numbers = numbers_of(step)
    if not can_compile(kind, shrink_, tensors, numbers):
        return False
    key = key_of(kind, tensors, numbers)
    _compiles[key] = attempted(kind, partial(shrink_, kind, *tensors, *numbers))
    return _compiles[key]


def can_compile(kind: str, shrink_: Kernel, tensors: Sequence[Tensor], numbers: Sequence[Tensor]) -> bool:
    """Return whether `shrink_` can be compiled for such tensors; the first time it is called with an example.

    Not while a CUDA graph is recorded.
    """
    key, w = key_of(kind, tensors, numbers), tensors[0]
    if key not in _compiles:
        if is_captured(w):
            return False
        example = [torch.ones(EXAMPLES[w.dim()], dtype=tensor.dtype, device=tensor.device) for tensor in tensors]
        _compiles[key] = attempted(kind, partial(shrink_, kind, *example, *numbers))
    return _compiles[key]


def key_of(kind: str, tensors: Sequence[Tensor], numbers: Sequence[Tensor]) -> tuple[object, ...]:
    """Return what one compilation serves."""
    return kind, tensors[0].device, *(tensor.dtype for tensor in tensors), *(number.device for number in numbers)


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
    found: Kernel = torch.compile(own, dynamic=True, fullgraph=True, options=ONE_PASS)
    return found


def numbers_of(step: Step) -> list[Tensor]:
    """Return the numbers in `step` as tensors, on a CPU where they are at hand, so that no device is waited for."""
    numbers = (step.lr, step.eps, step.correction) if isinstance(step, AdaptiveStep) else (step,)
    return [as_scalar(number) for number in numbers]


def as_scalar(number: Number) -> Tensor:
    """Return `number` as a 0-dim tensor of its own, in double precision as Python's numbers are."""
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)


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


def shrink_elements_(penalty: Penalty, kind: str, w: Tensor, *arguments: Tensor) -> None:
    """Move elements, given (step) or (moment, lr, eps, correction)."""
    if len(arguments) == 1:
        compiled(kernels.in_plain_metric, kind)(penalty, w, *arguments)
    else:
        *others, correction = arguments
        compiled(kernels.in_metric, kind)(penalty, w, *others, correction.rsqrt())


def scale_groups_(
    penalty: Grouped, shape: torch.Size, l1: float | None, within: tuple[int, ...], kind: str, w: Tensor, step: Tensor
) -> None:
    """Move groups in a plain metric, after the soft threshold of `l1`; `shape` is the parameter's."""
    threshold = None if l1 is None else as_scalar(l1)
    weight = as_scalar(penalty.weight(shape))
    compiled(kernels.scale_groups_, kind)(traced(penalty.penalty), weight, threshold, within, w, step)


def shrink_groups_(parts: Parts, within: tuple[int, ...], kind: str, w: Tensor, *arguments: Tensor) -> None:
    """Move groups, given (moment, lr, eps, correction), by the secular equation of each."""
    *others, correction = arguments
    given = (w, *others, correction.rsqrt(), *(as_scalar(part) if part else None for part in parts), within)
    theta, zero = compiled(kernels.first_pass, kind)(*given)
    resting = zero
    for _ in range(radial.NEWTON_ITERATIONS):
        theta, resting = compiled(kernels.newton_pass, kind)(theta, resting, *given)
        # Elsewhere a look at it would wait for the device.
        if w.device.type == "cpu" and bool(resting.all()):
            break
    compiled(kernels.last_pass_, kind)(radial.settled(theta, zero), *given)
