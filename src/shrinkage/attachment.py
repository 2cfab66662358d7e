"""One optimizer and the parameters charged in it: what happens around each of its steps.

Order within one update: the user's loop unscales and clips; then penalty gradients, decoupled decay, the optimizer,
and the proximal operators. What the hooks take care of:

* a step with a closure computes its gradients inside, so the penalty's are added inside too, and its value to the loss
  that the closure returns (a line search needs it);
* a fused optimizer unscales and skips in its own kernel, so its gradients still carry the loss scale, and its hooks run
  on an overflow too: thresholds are then multiplied by 0, on the device;
* an optimizer whose `step` calls its parent's `step` runs the hooks twice: the inner pair does nothing;
* a step that raised never reached its second hook: the next first hook starts afresh;
* trainers replace parameters and parameter groups: both are looked up again when they changed, in the optimizer or in
  the model.
"""

import functools
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from shrinkage.apply import (
    Move,
    Number,
    State,
    add_gradient_,
    add_gradients_across_,
    decay_,
    prox_,
    prox_across_,
    restore_,
)
from shrinkage.averages import Averages, decides
from shrinkage.charge import (
    Charge,
    Updates,
    at_update,
    check_gradients,
    check_kept,
    sum_of,
    unless,
    value_of,
    without_autograd_or_autocast,
)
from shrinkage.errors import AttachmentError, MetricError
from shrinkage.flattened import is_piece
from shrinkage.metric import Metric, metric_of
from shrinkage.narrow import Rounding
from shrinkage.optimizers import overflow_of, parameters_of, runs_inside_own_step
from shrinkage.penalties import Penalty
from shrinkage.prox import wide
from shrinkage.sharding import crossing_of, is_spread, local, local_gradient, local_state, spread, stays

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Attachment:
    """Applies penalties around the steps of one optimizer.

    Args:
        resolve: returns what is charged in an optimizer; called again whenever the optimizer's parameters changed.
        averages: the averaged gradients that hold zeros; None lets every gradient move them.
        rounding: how bfloat16 and float16 parameters are written; None rounds to the nearest number.
        whole: returns the optimizer of whose work this is a part; an update of that is counted.
    """

    def __init__(
        self,
        resolve: Callable[[Optimizer], Sequence[Charge]],
        averages: Averages | None = None,
        rounding: Rounding | None = None,
        whole: Callable[[], Optimizer | None] = lambda: None,
    ) -> None:
        self.updates = Updates()
        self.averages = averages
        self._rounding = rounding or Rounding()
        self._resolve = resolve
        self._whole = whole
        self._charges: Sequence[Charge] = ()
        self._penalties: Sequence[Penalty] = ()  # those of the charges, with the strengths of this update
        self._metric: Metric | None = None
        self._held: dict[str, Tensor] = {}  # by name, the elements that are zero and have to stay so in this step
        self._seen: list[list[Tensor]] | None = None
        self._depth = 0

    def charges(self, optimizer: Optimizer) -> Sequence[Charge]:
        """Return what is charged in `optimizer` now."""
        current = [group["params"] for group in optimizer.param_groups]
        stale = any(charge.stale for charge in self._charges)
        if stale or self._seen is None or not same_objects(current, self._seen):
            charges = self._resolve(optimizer)
            check_kept(self._charges, charges, optimizer)
            self._check(charges, optimizer)
            proximal = any(charge.how == "proximal" for charge in charges)
            self._metric = metric_of(optimizer) if proximal else None
            self._charges = [located(charge) for charge in charges]
            self._penalties = [charge.penalty for charge in charges]
            self._seen = [list(parameters) for parameters in current]
            if self.averages is not None:
                self.averages.keep(averaged(charges))
        return self._charges

    def _check(self, charges: Sequence[Charge], optimizer: Optimizer) -> None:
        """Raise if another attachment charges one of the parameters, or a learning rate is needed and there is none."""
        others = [other for other in explicit_attachments.get(optimizer, ()) if other is not self]
        taken = {id(charge.parameter) for other in others for charge in other._charges}
        for charge in charges:
            if id(charge.parameter) in taken:
                raise AttachmentError(
                    f"{charge.name!r} of shape {tuple(charge.parameter.shape)} is charged by another Regularizer "
                    f"that is attached to this {type(optimizer).__name__}; detach() that one first"
                )
            if charge.how == "decoupled" and "lr" not in optimizer.param_groups[charge.group]:
                raise MetricError(
                    f'how="decoupled" multiplies by the learning rate, but the group of {charge.name!r} in this '
                    f"{type(optimizer).__name__} has no 'lr'; choose how=\"gradient\" or register_metric(...)"
                )

    def forget(self) -> None:
        """Look everything up again before the next step."""
        self._charges, self._seen = (), None

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
        """Add gradients and decay, now or after the closure; the first hook of a step."""
        if self._depth and runs_inside_own_step(optimizer):
            self._depth += 1
            return None
        self._depth = 1
        self._held = {}
        charges = self.charges(optimizer)
        if not charges:
            return None
        self._set_strengths()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
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
        acting = self._acting(lambda charge: not charge.before)
        if acting:
            with without_autograd_or_autocast(self._charges):
                self._apply_after(acting, optimizer, overflow)
        # Without any gradient nothing was updated; of a model that is spread over machines, others may have had one.
        if any(p.grad is not None or is_spread(p) or is_piece(p) for p in parameters_of(self._whole() or optimizer)):
            self.updates.record(overflow)

    def _apply_after(
        self, acting: Sequence[tuple[Charge, Penalty]], optimizer: Optimizer, overflow: Tensor | None
    ) -> None:
        """Apply the proximal operators of the penalties that are `acting`, and hold zeros."""
        across: list[Move] = []
        for charge, penalty in acting:
            step, state = self._step(charge, optimizer, overflow), optimizer.state.get(charge.parameter, {})
            generator = self._rounding.generator(charge, penalty, state, step, self.updates.steps)
            if charge.crossing is None:
                prox_(penalty, charge.parameter, state, step, generator)
            else:
                lr = optimizer.param_groups[charge.group]["lr"]
                factor = step_of_piece(step, state, charge.parameter.detach(), lr)
                across.append(Move(penalty, charge.parameter, factor, charge.crossing, generator))
        prox_across_(across)
        for charge, penalty in acting:
            if charge.name in self._held:
                restore_(charge.parameter, self._held.pop(charge.name), penalty)

    def _acting(self, chosen: Callable[[Charge], bool]) -> list[tuple[Charge, Penalty]]:
        """Return the `chosen` charges that this machine takes part in, with their penalties at this update."""
        pairs = zip(self._charges, self._penalties, strict=True)
        return [(charge, penalty) for charge, penalty in pairs if chosen(charge) and charge.takes_part]

    def _set_strengths(self) -> None:
        """Evaluate the schedules of this update, before anything is changed."""
        if any(charge.penalty.scheduled for charge in self._charges):
            update = self.updates.count()
            self._penalties = [at_update(charge, update) for charge in self._charges]

    def _charged_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return `closure` with the penalties of the gradient added to its gradients and to its loss."""
        first = True

        @functools.wraps(closure)
        def charged() -> Any:
            nonlocal first
            loss = closure()
            check_gradients(self._charges)
            self._apply_before(optimizer, first=first)
            first = False
            in_gradient = self._acting(lambda charge: charge.how == "gradient")
            return loss + self._value(in_gradient) if loss is not None and in_gradient else loss

        return charged

    def _apply_before(self, optimizer: Optimizer, *, first: bool = True) -> None:
        """Add the gradients of the penalties that act before the step; decay, and hold zeros, the `first` time."""
        if first and self.averages is not None:
            self._hold_zeros(optimizer, self.averages)
        acting = self._acting(lambda charge: charge.before)
        if not acting:
            return
        scale = getattr(optimizer, "grad_scale", None)
        overflow = overflow_of(optimizer)
        across: dict[str, list[Move]] = {"gradient": [], "decoupled": []}
        with without_autograd_or_autocast(self._charges):
            for charge, penalty in acting:
                group = optimizer.param_groups[charge.group]
                sign = -1.0 if group.get("maximize") else 1.0
                factor = sign if scale is None else sign * scale
                if charge.how == "decoupled":
                    factor = -unless(overflow, group["lr"])
                if charge.crossing is not None:
                    across[charge.how].append(Move(penalty, charge.parameter, factor, charge.crossing))
                elif charge.how == "gradient":
                    add_gradient_(penalty, charge.parameter, factor)
                elif first:
                    step = self._step(charge, optimizer, overflow)
                    generator = self._rounding.generator(charge, penalty, {}, step, self.updates.steps)
                    decay_(penalty, charge.parameter, -factor, generator)
            add_gradients_across_(across["gradient"])
            if first:
                add_gradients_across_(across["decoupled"], to_weights=True)

    def _hold_zeros(self, optimizer: Optimizer, averages: Averages) -> None:
        """Average the gradients of the data, and note the zeros for which the average is stationary."""
        scale, overflow = getattr(optimizer, "grad_scale", None), overflow_of(optimizer)
        with without_autograd_or_autocast(self._charges):
            for charge, penalty in self._acting(lambda charge: decides(charge.penalty, charge.how)):
                sign = -1.0 if optimizer.param_groups[charge.group].get("maximize") else 1.0
                w, grad = charge.parameter.detach(), local_gradient(charge.parameter)
                unscaled = (
                    torch.zeros_like(wide(local(w)))
                    if grad is None
                    else wide(grad) * (sign if scale is None else sign / scale)
                )
                skipped = unscaled.new_ones(()) if grad is None else overflow
                average = averages.update(charge.name, spread(unscaled, w), skipped)
                self._held[charge.name] = stays(penalty, w, average, charge.crossing)

    def steps(self, optimizer: Optimizer) -> dict[str, Number]:
        """Return the step of each charged parameter's proximal operator now, as far as it has made one."""
        found: dict[str, Number] = {}
        for charge in self.charges(optimizer) if self.updates.steps else ():
            state = local_state(optimizer.state.get(charge.parameter, {}))
            with torch.no_grad(), suppress(KeyError):  # a parameter that never had a gradient has no state
                found[charge.name] = self._step(charge, optimizer, None)(state, local(charge.parameter.detach()))
        return found

    def maximized(self, optimizer: Optimizer) -> set[str]:
        """Return the names of the charged parameters for which `optimizer` climbs."""
        groups = optimizer.param_groups
        return {charge.name for charge in self.charges(optimizer) if groups[charge.group].get("maximize")}

    def _value(self, acting: Sequence[tuple[Charge, Penalty]]) -> Tensor:
        """Return the value of the penalties that are `acting`, at least one."""
        with without_autograd_or_autocast(self._charges):
            return sum_of([value_of(penalty, charge.parameter) for charge, penalty in acting])

    def _step(self, charge: Charge, optimizer: Optimizer, overflow: Tensor | None) -> Callable[[State, Tensor], Number]:
        """Return the step of the proximal operator: in the optimizer's own metric, or the learning rate (decoupled)."""
        group = optimizer.param_groups[charge.group]
        metric = self._metric
        if charge.how == "decoupled" or metric is None:
            return lambda state, w: unless(overflow, group["lr"])
        return lambda state, w: unless(overflow, metric(group, state, w))


def averaged(charges: Sequence[Charge]) -> dict[str, Tensor]:
    """Return the parameters whose averaged gradients decide about their zeros, by name."""
    return {charge.name: charge.parameter for charge in charges if decides(charge.penalty, charge.how)}


def located(charge: Charge) -> Charge:
    """Return `charge` with how its groups cross machines."""
    if is_lazy(charge.parameter):
        return charge
    return charge._replace(crossing=crossing_of(charge.penalty, charge.parameter))


def step_of_piece(step: Callable[[State, Tensor], Number], state: State, w: Tensor, lr: Number) -> Number:
    """Return the step of this machine's piece of `w`: a number on all machines, or a tensor on all of them.

    A metric that reads the optimizer's state may give either, and nothing on a machine that never had a gradient: there
    elements step by `lr`, as do elements elsewhere that never had one.
    """
    piece = local(w)
    with suppress(KeyError):
        return step({}, piece)
    found = step(local_state(state), piece) if state else lr
    return torch.as_tensor(found, dtype=wide(piece).dtype, device=piece.device).expand_as(piece)


def same_objects(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    """Return whether two lists of lists hold the very same tensors."""
    lengths = list(map(len, one)) == list(map(len, other))
    return lengths and all(all(map(is_, a, b)) for a, b in zip(one, other, strict=True))


# The attachments that a `Regularizer` made, so that a declaration on a layer never charges a parameter a second time.
explicit_attachments: MutableMapping[Optimizer, list[Attachment]] = WeakKeyDictionary()
