"""One update: what happens to the penalized parameters of one optimizer before and after its step.

Order: the user's loop unscales and clips; then penalty gradients, decoupled decay, the optimizer, and the proximal
operators. A fused optimizer unscales and skips in its own kernel, so that its gradients still carry the loss scale
here, and it comes here on an overflow too: steps are then multiplied by 0, on the device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.diagnostics.evaluation import sum_of, value_of
from shrinkage.distributed.all_reduce import stays
from shrinkage.distributed.dtensor import is_dtensor, local, local_gradient, local_state, spread
from shrinkage.execution.buckets import Shrink
from shrinkage.execution.collective import Move, add_gradients_across_, prox_across_, stay_in_families
from shrinkage.execution.compiled import Compile, pays
from shrinkage.execution.single_tensor import (
    Number,
    State,
    add_gradient_,
    decay_,
    follow_,
    prox_,
    restore_,
    shrink_all_,
)
from shrinkage.optimizers.adaptive_step import number
from shrinkage.optimizers.introspection import overflow_of, sign_of
from shrinkage.optimizers.registry import Metric, learning_rate
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import NARROW, upcast
from shrinkage.selection.how import decides
from shrinkage.training.coupled_parameters import blocks_of
from shrinkage.training.gradient_averages import Averages
from shrinkage.training.gradients import Gradients, dense
from shrinkage.training.half_precision import Rounding
from shrinkage.training.intervals import Intervals
from shrinkage.training.options import Options
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.preconditions import check_unscaled
from shrinkage.training.step_sizes import (
    StepOf,
    is_deferred,
    iterate_of,
    noted_of,
    shrink_of,
    state_of,
    step_here,
    step_of,
)
from shrinkage.training.update_count import Updates

Pairs = Sequence[tuple[PenalizedParameter, Penalty]]


class Lasting:
    """What lasts from one update of an optimizer to the next.

    Args:
        options: how penalties are applied.
    """

    def __init__(self, options: Options) -> None:
        self.compile: Compile = options.compile
        self.updates = Updates()
        self.gradients = Gradients()
        self.averages = None if options.hold_zeros is None else Averages(options.hold_zeros)
        self.rounding = Rounding(options.stochastic_rounding)
        self.intervals = Intervals()
        self.metric: Metric | None = None  # how the optimizer steps; None if that is not known, and not asked


class Update:
    """Penalties around one step of one optimizer, at the strengths of that step.

    Args:
        optimizer: what steps.
        penalized: what is penalized in it, with the penalty at this update.
        lasting: what lasts beyond this update.
    """

    def __init__(self, optimizer: Optimizer, penalized: Pairs, lasting: Lasting) -> None:
        self._optimizer, self._penalized, self._lasting = optimizer, penalized, lasting
        self._metric, self._steps = lasting.metric, lasting.updates.steps
        self._moved: set[str] = set()  # by name, what has a gradient
        self._noted: dict[str, State] = {}  # by name, what the metric needs of before the step
        self._held: dict[str, Tensor] = {}  # by name, the elements that are zero and have to stay so

    def before(self, *, first: bool = True) -> None:
        """Add the gradients of the penalties that act before the step; decay, and hold zeros, the `first` time."""
        self._moved = {target.name for target, _ in self._penalized if target.parameter.grad is not None}
        scale = getattr(self._optimizer, "grad_scale", None)
        in_gradient = self._acting(lambda target: target.how == "gradient")
        if scale is not None:
            check_unscaled(target for target, _ in in_gradient if self._has_early(target))
        with without_autograd_or_autocast(target for target, _ in self._penalized):
            if first and self._metric is not None and self._metric.before is not None:
                self._noted = {each.name: noted_of(each, self._metric, self._optimizer) for each, _ in self._penalized}
            if first and self._lasting.averages is not None:
                self._hold_zeros(self._lasting.averages, scale)
            self._add_gradients(in_gradient, scale)
            if first:
                self._decay()

    @property
    def moves(self) -> bool:
        """Whether something that is penalized has a gradient."""
        return bool(self._moved)

    def after(self) -> None:
        """Apply the proximal operators, and hold zeros."""
        self._lasting.gradients.end_step()
        acting = self._acting(lambda target: not target.before)
        self._lasting.intervals.align([target for target, _ in acting])
        overflow = overflow_of(self._optimizer)
        across: list[Move] = []
        shrinks: list[Shrink] = []
        with without_autograd_or_autocast(target for target, _ in acting):
            for target, penalty in acting:
                step = step_of(target, self._metric, self._optimizer, overflow)
                noted = self._noted.get(target.name, {})
                plain = target.every == 1 and self._is_plain(target)
                if plain and target.parameter.dtype not in NARROW:
                    shrinks += shrink_of(target, penalty, step, self._optimizer, noted)
                    continue
                state = state_of(target, self._optimizer, noted)
                if target.every > 1:
                    gathered = self._lasting.intervals.gathered(target, step, local_state(state), self._lr(target))
                    if gathered is None:
                        continue
                    step, state = gathered
                generator = self._lasting.rounding.generator(target, penalty, state, step, self._steps)
                if plain and generator is None:
                    shrinks += shrink_of(target, penalty, step, self._optimizer, noted)
                elif target.group_sharding is None:
                    self._move(target, penalty, state, step, generator)
                else:
                    factor = step_here(target.group_sharding, step, state, target.parameter.detach(), self._lr(target))
                    moves = self._has_gradient(target)
                    across.append(Move(penalty, target.parameter, factor, target.group_sharding, generator, moves))
            shrink_all_(shrinks, compile=pays(shrinks) if self._lasting.compile == "auto" else self._lasting.compile)
            prox_across_(across, self._lasting.compile)
            for target, penalty in acting:
                if target.name in self._held:
                    restore_(target.parameter, self._held[target.name], penalty)

    def _lr(self, target: PenalizedParameter) -> Number:
        group = self._optimizer.param_groups[target.group]
        return learning_rate(self._metric, group) if "lr" in group else 0.0

    def _is_plain(self, target: PenalizedParameter) -> bool:
        """Return whether the parameter itself is moved, here, by a step that is known without a pass over it."""
        iterates = self._metric is not None and self._metric.iterate is not None
        return target.group_sharding is None and not iterates and is_deferred(target, self._metric, self._optimizer)

    def _move(
        self,
        target: PenalizedParameter,
        penalty: Penalty,
        state: State,
        step: StepOf,
        generator: torch.Generator | None,
    ) -> None:
        """Apply one proximal operator, to the parameter or to the iterate that it follows."""
        elementwise = self._metric is None or self._metric.elementwise
        iterate, share = iterate_of(target, self._metric, self._optimizer)
        if iterate is target.parameter:
            prox_(penalty, iterate, state, step, generator, elementwise=elementwise)
            return
        before = iterate.clone()
        prox_(penalty, iterate, state, step, generator, elementwise=elementwise)
        if target.name in self._held:
            restore_(iterate, self._held.pop(target.name), penalty)
        follow_(target.parameter, iterate - before, share)

    def add_early(self) -> None:
        """Add the gradients of the penalties now, for good, and let the step leave them as they are then."""
        in_gradient = self._acting(lambda target: target.how == "gradient")
        with without_autograd_or_autocast(target for target, _ in in_gradient):
            self._add(in_gradient, None)
        for target, _ in in_gradient:
            self._lasting.gradients.note_early(target.name, target.parameter)

    def value(self) -> Tensor | None:
        """Return what the penalties in the gradient add to the loss that the optimizer works on; None if none does."""
        # All processes have to ask for the value of what is spread over them, whatever their gradients hold.
        in_gradient = [
            (target, penalty)
            for target, penalty in self._penalized
            if target.how == "gradient" and (is_dtensor(target.parameter) or self._takes_part(target))
        ]
        with without_autograd_or_autocast(target for target, _ in in_gradient):
            values = [
                value_of(block[0][1], {target.name: target.parameter for target, _ in block}) * self._sign(block[0][0])
                for block in blocks_of(in_gradient)
            ]
        return sum_of(values) if values else None

    def _acting(self, chosen: Callable[[PenalizedParameter], bool]) -> Pairs:
        """Return the `chosen` penalties that this process takes part in, with their penalties at this update."""
        # An optimizer may clear the gradients itself, so that they are gone after its step.
        return [pair for pair in self._penalized if chosen(pair[0]) and self._takes_part(pair[0])]

    def _takes_part(self, target: PenalizedParameter) -> bool:
        return (target.group_sharding is not None and target.parameter.requires_grad) or self._has_gradient(target)

    def _has_gradient(self, target: PenalizedParameter) -> bool:
        return target.parameter.grad is not None or target.name in self._moved

    def _has_early(self, target: PenalizedParameter) -> bool:
        return self._lasting.gradients.holds(target.name, target.parameter)

    def _sign(self, target: PenalizedParameter) -> float:
        return sign_of(self._optimizer, target.group)

    def _add_gradients(self, pairs: Pairs, scale: Tensor | None) -> None:
        """Let sums stand in `.grad` until the step is over, except where the loop had the penalty added."""
        # A fused optimizer divides gradients by the loss scale in place, so they are not kept as they were anyway.
        parameters = [target.parameter for target, _ in pairs if scale is None and not self._has_early(target)]
        with self._lasting.gradients.held_aside(parameters):
            self._add(pairs, scale)

    def _add(self, pairs: Pairs, scale: Tensor | None) -> None:
        across: list[Move] = []
        for target, penalty in pairs:
            factor = self._sign(target) if scale is None else self._sign(target) * scale
            added = self._has_early(target)
            if target.group_sharding is not None:  # all processes take part in the sums, whatever their gradients hold
                across.append(Move(penalty, target.parameter, 0.0 if added else factor, target.group_sharding))
            elif not added:
                add_gradient_(penalty, target.parameter, factor)
        add_gradients_across_(across)

    def _decay(self) -> None:
        """Move weights by the derivatives of penalties that are decoupled and smooth."""
        overflow = overflow_of(self._optimizer)
        across: list[Move] = []
        for target, penalty in self._acting(lambda target: target.before and target.how == "decoupled"):
            step = step_of(target, self._metric, self._optimizer, overflow)
            generator = self._lasting.rounding.generator(target, penalty, {}, step, self._steps)
            size = number(step({}, target.parameter))
            if target.group_sharding is None:
                decay_(penalty, target.parameter, size, generator)
            else:
                across.append(Move(penalty, target.parameter, -size, target.group_sharding, generator))
        add_gradients_across_(across, to_weights=True)

    def _hold_zeros(self, averages: Averages, scale: Tensor | None) -> None:
        """Average the gradients of the data, and note the zeros for which the average is stationary."""
        overflow = overflow_of(self._optimizer)
        coupled: dict[str, Move] = {}
        for target, penalty in self._acting(lambda target: decides(target.penalty, target.how)):
            w = iterate_of(target, self._metric, self._optimizer)[0].detach()
            grad = local_gradient(target.parameter)
            if grad is None:  # others wait
                unscaled = torch.zeros_like(upcast(local(w)))
                skipped: Tensor | None = unscaled.new_ones(())
            else:
                sign = self._sign(target)
                unscaled, skipped = upcast(dense(grad)) * (sign if scale is None else sign / scale), overflow
            average = averages.update(target.name, spread(unscaled, w), skipped)
            if target.group_sharding is not None and target.group_sharding.family is not None:
                coupled[target.name] = Move(penalty, target.parameter, local(average), target.group_sharding)
            else:
                self._held[target.name] = stays(penalty, w, average, target.group_sharding)
        self._held |= zip(coupled, stay_in_families(list(coupled.values())), strict=True)


@contextmanager
def without_autograd_or_autocast(targets: Iterable[PenalizedParameter]) -> Iterator[None]:
    """Hold a context in which nothing is recorded and every operation runs in the type of its operands."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # its tensors do not count how often they are written
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device_type in {target.parameter.device.type for target in targets}:
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
