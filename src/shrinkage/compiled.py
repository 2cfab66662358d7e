"""Proximal operators that `torch.compile` turns into few passes over memory: in place, without scratch of that size.

A kernel is a pure function of tensors, hyperparameters included, whose last pass writes into the parameter. It is
compiled once for each kind of rule and type of number, whatever the shapes, learning rates and strengths are.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from shrinkage import radial
from shrinkage.batches import Shrink
from shrinkage.folding import folded_by, memory_order
from shrinkage.inplace import touches_once
from shrinkage.metrics import AdaptiveStep, Number, Step, is_captured
from shrinkage.penalties import Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.per_group import Parts, PerGroup
from shrinkage.prox import soft_threshold, wide
from shrinkage.schedules import Strength

Kernel = Callable[..., Any]
Compile = bool | Literal["auto"]

MANY = 1 << 21  # weights charged in one step, from which the seconds of compilation are saved in a thousand steps
LEAST = 1 << 14  # weights in one tensor, below which calling a kernel costs more than it saves
SLOW = 8  # times as much is saved where weights are in groups that are charged in a metric
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
    """Return whether compilation pays: for many weights, and where each call starts kernels on a device.

    What torch does in place as fast saves nothing.
    """
    if any(w.device.type != "cpu" for _, w, _ in shrinks):
        return True
    slow = (shrink for shrink in shrinks if not touches_once(*shrink))
    return sum(w.numel() * (SLOW if isinstance(penalty, PerGroup) else 1) for penalty, w, _ in slow) >= MANY


def compiled_shrink_(penalty: Penalty, w: Tensor, step: Step) -> bool:
    """Move `w` to the proximal point and return True; False, and nothing is done, where there is no kernel for it."""
    least = LEAST // SLOW if isinstance(penalty, PerGroup) else LEAST
    if w.numel() < least or touches_once(penalty, w, step) or penalty.with_tensors(Tensor.detach) is not penalty:
        return False
    moments = [step.moment] if isinstance(step, AdaptiveStep) else []
    order = memory_order(w, *moments)
    if order is None or (isinstance(step, Tensor) and step.dim()):
        return False
    if isinstance(penalty, Elementwise):
        tensors = [tensor.permute(order).view(-1) for tensor in (w, *moments)]
        return run(type(penalty).__name__, partial(shrink_elements_, traced(penalty)), tensors, step)
    parts = penalty.parts(w.shape) if isinstance(penalty, PerGroup) else None
    folded = folded_by(penalty.groups, w.shape, order) if isinstance(penalty, PerGroup) else None
    if parts is None or not parts.linear or folded is None or not isinstance(step, AdaptiveStep):
        return False
    shape, within = folded
    tensors = [tensor.permute(order).view(shape) for tensor in (w, *moments)]
    view = "".join("w" if dim in within else "g" for dim in range(len(shape)))
    kind = " ".join(("Grouped", view, *(name for name, part in parts._asdict().items() if part)))
    return run(kind, partial(shrink_groups_, parts, within), tensors, step)


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
        _log.warning("%s goes on without torch.compile, which failed: %s", kind, str(error).strip().splitlines()[0])
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


# Elements


def shrink_elements_(penalty: Penalty, kind: str, w: Tensor, *arguments: Tensor) -> None:
    """Move elements, given (step) or (moment, lr, eps, correction)."""
    if len(arguments) == 1:
        compiled(in_plain_metric, kind)(penalty, w, *arguments)
    else:
        *others, correction = arguments
        compiled(in_metric, kind)(penalty, w, *others, correction.rsqrt())


def in_plain_metric(penalty: Penalty, w: Tensor, step: Tensor) -> None:
    """w <- prox(w)."""
    w.copy_(penalty.prox(wide(w), step))


def in_metric(penalty: Penalty, w: Tensor, moment: Tensor, lr: Tensor, eps: Tensor, scale: Tensor) -> None:
    """w <- prox(w) in the metric of an `AdaptiveStep`."""
    w.copy_(penalty.prox(wide(w), lr / denominator(moment, eps, scale)))


def denominator(moment: Tensor, eps: Tensor, scale: Tensor) -> Tensor:
    """Return sqrt(moment) * scale + eps, and 1 where the moment is exactly 0: one square root serves an element."""
    return torch.where(moment == 0, 1.0, wide(moment).sqrt() * scale + eps)


# Groups


def shrink_groups_(parts: Parts, within: tuple[int, ...], kind: str, w: Tensor, *arguments: Tensor) -> None:
    """Move groups, given (moment, lr, eps, correction), by the secular equation of each."""
    *others, correction = arguments
    given = (w, *others, correction.rsqrt(), *(as_scalar(part) if part else None for part in parts), within)
    theta, zero = compiled(first_pass, kind)(*given)
    resting = zero
    for _ in range(radial.NEWTON_ITERATIONS):
        theta, resting = compiled(newton_pass, kind)(theta, resting, *given)
        # Elsewhere a look at it would wait for the device.
        if w.device.type == "cpu" and bool(resting.all()):
            break
    compiled(last_pass_, kind)(radial.settled(theta, zero), *given)


def first_pass(*given: Any) -> tuple[Tensor, Tensor]:
    """Return where to start, and which groups are zero.

    The first iteration is not made here: a compiler would write the metric down for it.
    """
    w, metric, within = left_for_norms(*given)
    return radial.secular_start(added_up(radial.secular_sums(w, metric, within[-1:]), within[:-1]))


def newton_pass(theta: Tensor, resting: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """Return the multipliers after one more iteration, and which groups are at rest."""
    w, metric, within = left_for_norms(*given)
    terms = added_up(radial.secular_terms(w, metric, theta, within[-1:]), within[:-1])
    moved = radial.secular_step(theta, terms)
    return torch.where(resting, theta, moved), resting | radial.at_rest(theta, moved)


def added_up(parts: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return sums that were taken over the last dimension within groups, added up over the others."""
    return parts.sum([dim + 1 for dim in dims], keepdim=True) if dims else parts


def last_pass_(root: Tensor, w: Tensor, *given: Any) -> None:
    """Scale each element, unless the step or the strength is 0."""
    inner, metric, _ = left_for_norms(w, *given)
    _, lr, _, _, _, linear, _, _ = given
    w.copy_(torch.where(lr * linear == 0, inner, inner * radial.secular_scale(metric, root)))


def left_for_norms(
    w: Tensor,
    moment: Tensor,
    lr: Tensor,
    eps: Tensor,
    scale: Tensor,
    l1: Tensor | None,
    linear: Tensor,
    quadratic: Tensor | None,
    within: tuple[int, ...],
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return what is left for the penalty of norms: elements, the metric in units of its strength, and `within`.

    The soft threshold of `l1` goes first, then the division by 1 + step * quadratic, as in `by_sums`.
    """
    inner, divisor = wide(w), denominator(moment, eps, scale)
    if l1 is not None:
        inner = soft_threshold(inner, lr * l1 / divisor)
    if quadratic is not None:
        shrunk = divisor + lr * quadratic
        inner, divisor = inner * (divisor / shrunk), shrunk
    return inner, (divisor * (1 / (lr * linear))).clamp_max(radial.LARGEST[inner.dtype]), within
