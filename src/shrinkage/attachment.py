"""One optimizer and the parameters charged in it: what happens around each of its steps.

Order within one update: the user's loop unscales and clips; then penalty gradients, decoupled decay, the optimizer,
and the proximal operators. What the hooks take care of:

* a step with a closure computes its gradients inside, so the penalty's are added inside too, and its value to the loss
  that the closure returns (a line search needs it);
* a fused optimizer unscales and skips in its own kernel, so its gradients still carry the loss scale, and its hooks run
  on an overflow too: thresholds are then multiplied by 0, on the device;
* an optimizer whose `step` calls its parent's `step` runs the hooks twice: the inner pair does nothing;
* a step that raised never reached its second hook: the next first hook starts afresh;
* trainers replace parameters and parameter groups: both are looked up again when they changed.
"""

import functools
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import is_
from types import FrameType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from shrinkage.apply import Number, State, add_gradient_, decay_, prox_, wide
from shrinkage.errors import ParameterError
from shrinkage.metric import Metric, metric_of
from shrinkage.penalties import Penalty
from shrinkage.plan import How

HookType = TypeVar("HookType", bound=Callable[..., Any])
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Charge(NamedTuple):
    """One parameter of an optimizer that is charged: its name, its rule, and the index of its parameter group."""

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int

    @property
    def before(self) -> bool:
        """Whether the penalty acts before the step, through its derivative, and not after it through its prox."""
        return self.how == "gradient" or (self.how == "decoupled" and self.penalty.smooth)


@dataclass
class Updates:
    """Counts the updates that happened: a fused optimizer that met an overflow took a step, but no update."""

    steps: int = 0
    skipped: Tensor | None = None

    def record(self, overflow: Tensor | None) -> None:
        """Count one step; `overflow` is 1 on the device if it did not update anything."""
        self.steps += 1
        if overflow is not None:
            self.skipped = overflow.clone() if self.skipped is None else self.skipped + overflow

    def count(self) -> int:
        """Return the number of updates; waits for the device if loss scaling with a fused optimizer is in use."""
        return self.steps - (0 if self.skipped is None else int(self.skipped.item()))


class Attachment:
    """Applies penalties around the steps of one optimizer.

    Args:
        resolve: returns what is charged in an optimizer; called again whenever the optimizer's parameters changed.
    """

    def __init__(self, resolve: Callable[[Optimizer], Sequence[Charge]]) -> None:
        self.updates = Updates()
        self._resolve = resolve
        self._charges: Sequence[Charge] = ()
        self._scheduled = False
        self._metric: Metric | None = None
        self._seen: list[Tensor] | None = None
        self._depth = 0

    def charges(self, optimizer: Optimizer) -> Sequence[Charge]:
        """Return what is charged in `optimizer` now."""
        current = parameters_of(optimizer)
        if self._seen is None or len(current) != len(self._seen) or not all(map(is_, current, self._seen)):
            charges = self._resolve(optimizer)
            proximal = any(charge.how == "proximal" for charge in charges)
            self._metric = metric_of(optimizer) if proximal else None
            self._scheduled = any(charge.penalty.scheduled for charge in charges)
            self._charges, self._seen = charges, current
        return self._charges

    def forget(self) -> None:
        """Look everything up again before the next step."""
        self._charges, self._seen = (), None

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
        """Add gradients and decay, now or after the closure; the first hook of a step."""
        if self._depth and runs_inside_own_step(optimizer):
            self._depth += 1
            return None
        self._depth = 1
        charges = self.charges(optimizer)
        if not charges:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            check_gradients(charges)
            self._apply_before(optimizer)
            return None
        charged = self._charged_closure(optimizer, closure)
        if len(args) > 1:
            return (args[0], charged, *args[2:]), kwargs
        return args, {**kwargs, "closure": charged}

    def after_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Apply proximal operators and count the update; the last hook of a step."""
        self._depth = max(self._depth - 1, 0)
        if self._depth or self._seen is None:
            return
        overflow = overflow_of(optimizer)
        acting = [charge for charge in self._charges if not charge.before and charge.parameter.grad is not None]
        if acting:
            with without_autograd_or_autocast(acting):
                for charge in acting:
                    step = self._step(charge, optimizer, overflow)
                    prox_(self._penalty(charge), charge.parameter, optimizer.state.get(charge.parameter, {}), step)
        self.updates.record(overflow)

    def _charged_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return `closure` with the penalties of the gradient added to its gradients and to its loss."""
        decayed = False

        @functools.wraps(closure)
        def charged() -> Any:
            nonlocal decayed
            loss = closure()
            check_gradients(self._charges)
            self._apply_before(optimizer, decay=not decayed)
            decayed = True
            return loss if loss is None else loss + self._value_in_loss()

        return charged

    def _apply_before(self, optimizer: Optimizer, *, decay: bool = True) -> None:
        """Add the gradients, and decay, of the penalties that act before the step."""
        acting = [charge for charge in self._charges if charge.before and charge.parameter.grad is not None]
        if not acting:
            return
        scale = getattr(optimizer, "grad_scale", None)
        overflow = overflow_of(optimizer)
        with without_autograd_or_autocast(acting):
            for charge in acting:
                group = optimizer.param_groups[charge.group]
                if charge.how == "gradient":
                    sign = -1.0 if group.get("maximize") else 1.0
                    add_gradient_(self._penalty(charge), charge.parameter, sign if scale is None else sign * scale)
                elif decay:
                    decay_(self._penalty(charge), charge.parameter, unless(overflow, group["lr"]))

    def _value_in_loss(self) -> float | Tensor:
        """Return the value of the penalties that act through the gradient."""
        acting = [charge for charge in self._charges if charge.how == "gradient" and charge.parameter.grad is not None]
        with without_autograd_or_autocast(acting):
            values = [self._penalty(charge).value(wide(charge.parameter.detach())) for charge in acting]
        return sum_of(values) if values else 0.0

    def _step(self, charge: Charge, optimizer: Optimizer, overflow: Tensor | None) -> Callable[[State, Tensor], Number]:
        """Return the step of the proximal operator: in the optimizer's own metric, or the learning rate (decoupled)."""
        group = optimizer.param_groups[charge.group]
        metric = self._metric
        if charge.how == "decoupled" or metric is None:
            return lambda state, w: unless(overflow, group["lr"])
        return lambda state, w: unless(overflow, metric(group, state, w))

    def _penalty(self, charge: Charge) -> Penalty:
        """Return the penalty of `charge` with its strengths at this update."""
        return charge.penalty.at(self.updates.count()) if self._scheduled else charge.penalty


def uncompiled(hook: HookType) -> HookType:
    """Return `hook` in a form that `torch.compile` calls and does not trace: an update count would recompile it."""
    disabled: HookType = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return disabled


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors, on the device of the first."""
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of `optimizer`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def group_indices(optimizer: Optimizer) -> Mapping[int, int]:
    """Return the index of the parameter group of every parameter of `optimizer`, by id."""
    return {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a gradient is sparse, before anything is changed."""
    for name, _, _, parameter, _ in charges:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, while a penalty charges all of them; build the layer with sparse=False, "
                f"or leave it alone with {{{name!r}: None}}"
            )


def overflow_of(optimizer: Optimizer) -> Tensor | None:
    """Return 1 on the device if a fused optimizer skips this step because of an overflow; None outside of loss scaling.

    `found_inf` is summed over devices, so it may exceed 1.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.clamp(max=1)


def unless(overflow: Tensor | None, step: Number) -> Number:
    """Return `step`, or 0 if the update is skipped."""
    return step if overflow is None else step * (1 - overflow)


def without_autograd_or_autocast(charges: Sequence[Charge]) -> ExitStack:
    """Return a context in which nothing is recorded and every operation runs in the type of its operands."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    for device_type in {charge.parameter.device.type for charge in charges}:
        if torch.is_autocast_enabled(device_type):
            stack.enter_context(torch.autocast(device_type, enabled=False))
    return stack


def runs_inside_own_step(optimizer: Optimizer) -> bool:
    """Return whether two steps of `optimizer` are under way: one that calls its parent's, which called this hook.

    Only the stack can tell that from a step that raised and so never reached its second hook.
    """
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None and depth < 2:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == torch_optimizer.__file__:
            depth += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return depth == 2


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer that does the work, inside of wrappers that keep it as an attribute."""
    for attribute in ("optimizer", "_optimizer", "base_optimizer"):
        inner = getattr(optimizer, attribute, None)
        if getattr(inner, "param_groups", None) is not None:
            return unwrapped(inner)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


# The attachments that a `Regularizer` made, so that a declaration on a layer never charges a parameter a second time.
explicit_attachments: MutableMapping[Optimizer, list[Attachment]] = WeakKeyDictionary()
