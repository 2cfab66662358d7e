"""One update: what happens to the penalized parameters of one optimizer before and after its step.

Order: the user's loop unscales and clips; then penalty gradients, decoupled decay, the optimizer, and the proximal
operators. A fused optimizer unscales and skips in its own kernel, so that its gradients still carry the loss scale
here, and it comes here on an overflow too: steps are then multiplied by 0, on the device.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.diagnostics.evaluation import sum_of, value_of
from shrinkage.distributed.dtensor import is_dtensor, local, local_gradient
from shrinkage.distributed.group_sharding import blocks_of
from shrinkage.execution.collective import SharedTask, add_gradients_across_, prox_across_
from shrinkage.execution.single_tensor import (
    add_gradient_,
    cautious_decay_,
    decay_,
    follow_,
    prox_,
    restore_,
    shrink_all_,
)
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import MetricStep, State
from shrinkage.optimizers.introspection import sign_of
from shrinkage.optimizers.overflow import overflow_of
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L2
from shrinkage.proximal.precision import NARROW
from shrinkage.training.checks_before_step import check_unscaled
from shrinkage.training.frozen_zeros import FrozenZeros
from shrinkage.training.held_zeros import held_zeros
from shrinkage.training.lasting import Lasting
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.stages import Stage
from shrinkage.training.step_sizes import Steps, shard_of

Pairs = Sequence[tuple[PenalizedParameter, Penalty]]


class Update:
    """Penalties around one step of one optimizer, at the strengths of that step.

    Args:
        optimizer: what steps.
        stage: what is penalized in it, with the penalty at this update, and whose zeros stay.
        lasting: what lasts beyond this update.
    """

    def __init__(self, optimizer: Optimizer, stage: Stage, lasting: Lasting) -> None:
        self.stage = stage
        self._optimizer, self._penalized, self._lasting = optimizer, stage.penalized, lasting
        self._targets = [*(target for target, _ in stage.penalized), *stage.frozen]
        self._frozen = stage.frozen
        self._zeros: FrozenZeros | None = None  # that stay, whatever gradients are
        self._made = lasting.updates.steps  # so many steps came before this one
        self._before = [pair for pair in stage.penalized if pair[0].before]
        self._cautious = [pair for pair in stage.penalized if pair[0].how == "cautious"]
        self._after = [pair for pair in stage.penalized if not pair[0].before and pair[0].how != "cautious"]
        self._old: dict[str, Tensor] = {}  # by name, weights before the step that decay cautiously
        self._moved: set[str] = set()  # by name, what has a gradient
        self._noted: dict[str, State] = {}  # by name, what the metric needs of before the step
        self._held: dict[str, Tensor] = {}  # by name, the elements that are zero and have to stay so

    @property
    def freezes(self) -> bool:
        """Whether zeros of some parameters stay."""
        return bool(self._frozen)

    def freeze(self) -> None:
        """Note which zeros stay, before anything of the step happens."""
        if self._frozen:
            with without_autograd_or_autocast(self._frozen):
                self._zeros = FrozenZeros(self._frozen, Steps(self._optimizer, self._lasting.metric))

    def before(self, *, first: bool = True) -> None:
        """Add the gradients of the penalties that act before the step; decay, and hold zeros, the `first` time."""
        self._moved = {target.name for target in self._targets if target.parameter.grad is not None}
        scale = getattr(self._optimizer, "grad_scale", None)
        in_gradient = self._in_gradient()
        if scale is not None:
            check_unscaled(target for target, _ in in_gradient if self._has_early(target))
        metric, averages = self._lasting.metric, self._lasting.averages
        with without_autograd_or_autocast(self._targets):
            steps = Steps(self._optimizer, metric, overflow_of(self._optimizer))
            if first and metric is not None and metric.before is not None:
                self._noted = {target.name: steps.before(target) for target, _ in self._penalized}
            if first and averages is not None:
                acting, kernels = self._taking_part(self._after), self._lasting.compile is not False
                self._held = held_zeros(self._optimizer, acting, averages, steps, scale, by_kernels=kernels)
            self._add_gradients(in_gradient, scale)
            if self._zeros is not None:
                self._zeros.clear_gradients(self._lasting.gradients, for_good=scale is not None)
            if first:
                self._decay(steps)
                cautious = [target for target, _ in self._taking_part(self._cautious)]
                self._old = {target.name: local(target.parameter.detach()).clone() for target in cautious}

    @property
    def moves(self) -> bool:
        """Whether something that is penalized has a gradient."""
        return bool(self._moved)

    def after(self) -> None:
        """Apply the proximal operators, and hold zeros."""
        metric = self._lasting.metric
        iterates = metric is not None and metric.iterate is not None
        overflow = overflow_of(self._optimizer)
        self._lasting.gradients.end_step()
        steps = Steps(self._optimizer, metric, overflow)
        acting = self._taking_part(self._after)
        seldom = [target for target, _ in acting if target.every > 1]
        if seldom:
            self._lasting.intervals.align(seldom)
        tasks: list[Task] = []
        shared: list[SharedTask] = []
        with without_autograd_or_autocast(self._targets):
            for target, penalty in acting:
                task = self._task(target, penalty, steps)
                if task is None:
                    continue
                generator = self._generator(target, task)
                if target.group_sharding is not None:
                    step = steps.agreed(target, task) if target.group_sharding.block.process_groups else task.step
                    moved = task.w if self._has_gradient(target) else None
                    shared.append(SharedTask(penalty, task.w, step, target.group_sharding, moved, generator))
                elif not task.w.numel():  # an empty shard
                    continue
                elif iterates or generator is not None or target.every > 1:
                    self._move(target, task, generator, steps)
                else:
                    tasks.append(task)
            self._decay_cautiously(steps)
            shrink_all_(tasks, compile=self._lasting.compile)
            if shared:
                prox_across_(shared, compile=self._lasting.compile)
            for target, penalty in acting if self._held else ():
                if target.name in self._held:
                    restore_(*shard_of(penalty, target.parameter), self._held[target.name])
            if self._zeros is not None:
                self._zeros.restore(steps)

    def _task(self, target: PenalizedParameter, penalty: Penalty, steps: Steps) -> Task | None:
        """Return what the proximal operator of one parameter does here; None while it waits for more steps."""
        task = steps.task(target, penalty, self._noted.get(target.name, {}))
        if target.every == 1:
            return task
        total = self._lasting.intervals.total(target, task.step)
        return None if total is None else task._replace(step=total)

    def _generator(self, target: PenalizedParameter, task: Task) -> torch.Generator | None:
        """Return what rounds the result stochastically to a narrow type; None rounds to the nearest number."""
        narrow = target.parameter.dtype in NARROW
        return self._lasting.rounding.generator(target, task, self._made) if narrow else None

    def _move(self, target: PenalizedParameter, task: Task, generator: torch.Generator | None, steps: Steps) -> None:
        """Apply one proximal operator, to the parameter or to the iterate that it follows."""
        iterate, share = steps.iterate(target)
        if iterate is target.parameter:
            prox_(*task, generator)
            return
        w = local(iterate.detach())
        before, step = w.clone(), task.step
        prox_(task.penalty, w, step._replace(w=w) if isinstance(step, MetricStep) else step, generator)
        if target.name in self._held:
            restore_(task.penalty, w, self._held.pop(target.name))
        follow_(task.w, w - before, share)

    def add_early(self) -> None:
        """Add the gradients of the penalties now, for good, and let the step leave them as they are then."""
        in_gradient = self._in_gradient()
        with without_autograd_or_autocast(target for target, _ in in_gradient):
            self._add(in_gradient, None)
        for target, _ in in_gradient:
            self._lasting.gradients.note_early(target.name, target.parameter)

    def value(self) -> Tensor | None:
        """Return what the penalties in the gradient add to the loss that the optimizer works on; None if none does."""
        # All processes have to ask for the value of what is sharded, whatever their gradients hold.
        in_gradient = [
            (target, penalty)
            for target, penalty in self._before
            if target.how == "gradient" and (is_dtensor(target.parameter) or self._takes_part(target))
        ]
        with without_autograd_or_autocast(target for target, _ in in_gradient):
            values = [
                value_of(block[0][1], {target.name: target.parameter for target, _ in block}) * self._sign(block[0][0])
                for block in blocks_of(in_gradient, lambda pair: pair[0].block)
            ]
        return sum_of(values) if values else None

    def _in_gradient(self) -> Pairs:
        """Return the penalties that this process adds to gradients."""
        return self._taking_part([pair for pair in self._before if pair[0].how == "gradient"])

    def _taking_part(self, pairs: Pairs) -> Pairs:
        """Return those of the penalties that this process takes part in."""
        return [pair for pair in pairs if self._takes_part(pair[0])]

    def _takes_part(self, target: PenalizedParameter) -> bool:
        return (target.group_sharding is not None and target.parameter.requires_grad) or self._has_gradient(target)

    def _has_gradient(self, target: PenalizedParameter) -> bool:
        # An optimizer may clear the gradients itself, so that they are gone after its step.
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
        shared: list[SharedTask] = []
        for target, penalty in pairs:
            factor = self._sign(target) if scale is None else self._sign(target) * scale
            added, grad = self._has_early(target), local_gradient(target.parameter)
            if target.group_sharding is not None:  # all processes take part in the sums, whatever their gradients hold
                w = local(target.parameter.detach())
                shared.append(SharedTask(penalty, w, 0.0 if added else factor, target.group_sharding, grad))
            elif not added and grad is not None:
                own, w = shard_of(penalty, target.parameter)
                add_gradient_(own, grad, w, factor)
        if shared:
            add_gradients_across_(shared)

    def _decay(self, steps: Steps) -> None:
        """Move weights by the derivatives of penalties that are decoupled and smooth."""
        shared: list[SharedTask] = []
        for target, penalty in self._taking_part([pair for pair in self._before if pair[0].how == "decoupled"]):
            own, w = shard_of(penalty, target.parameter)
            size = steps.constant(target)
            generator = self._generator(target, Task(own, w, size))
            if target.group_sharding is None:
                decay_(own, w, size, generator)
            else:
                moved = None if target.parameter.grad is None else w
                shared.append(SharedTask(penalty, w, -size, target.group_sharding, moved, generator))
        if shared:
            add_gradients_across_(shared)

    def _decay_cautiously(self, steps: Steps) -> None:
        """Decay weights that the step moved towards 0."""
        for target, penalty in self._cautious:
            if target.name in self._old and isinstance(penalty, L2):
                task = Task(penalty, local(target.parameter.detach()), steps.constant(target))
                cautious_decay_(
                    penalty, task.w, self._old[target.name], steps.constant(target), self._generator(target, task)
                )


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
