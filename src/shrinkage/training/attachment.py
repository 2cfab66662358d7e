"""One optimizer and the parameters penalized in it: when something happens around each of its steps.

What happens is in `update.py`. What the hooks take care of:

* a step with a closure computes its gradients inside, so the penalty's are added inside too, and its value to the loss
  that the closure returns (a line search needs it);
* an optimizer whose `step` calls its parent's `step` runs the hooks twice: the inner pair does nothing;
* a step that raised never reached its second hook: the next first hook starts afresh;
* a distributed checkpoint steps an optimizer that has no state: that is no update;
* a penalty is in `.grad` during the step only, so that stepping twice on the same gradients penalizes as torch's
  `weight_decay` does;
* trainers replace parameters and parameter groups: both are looked up again when they changed, in the optimizer or in
  the model.
"""

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from shrinkage.errors import AttachmentError
from shrinkage.optimizers.adaptive_step import Number
from shrinkage.optimizers.introspection import (
    group_indices,
    may_move,
    parameters_of,
    runs_inside_own_step,
    same_objects,
    steps_for_a_checkpoint,
)
from shrinkage.optimizers.overflow import overflow_of
from shrinkage.optimizers.per_optimizer import PerOptimizer
from shrinkage.optimizers.registry import known_metric, metric_of
from shrinkage.training.budgets import Arguments, Budgets, Keywords, Ranking
from shrinkage.training.checks_before_step import (
    check_added_once,
    check_captured,
    check_gradients,
    check_kept,
    check_native,
    check_steps,
)
from shrinkage.training.coupled_parameters import located
from shrinkage.training.double_decay import warn_of_double_decay
from shrinkage.training.gradient_averages import averaged
from shrinkage.training.lasting import Lasting, Looked
from shrinkage.training.options import Options
from shrinkage.training.penalized import (
    Found,
    PenalizedParameter,
    Place,
    RankedParameter,
    with_shared_penalties,
)
from shrinkage.training.stages import Stage, Stages

if TYPE_CHECKING:  # what acts at steps is imported when there are some: it is a third of the package
    from shrinkage.training.update import Update

Targets = Sequence[PenalizedParameter]


class Attachment(Lasting):
    """Applies penalties around the steps of one optimizer.

    Args:
        resolve: returns what is penalized in an optimizer; called again whenever the optimizer's parameters changed.
        options: how they are applied.
        whole: returns the optimizer whose work this one does in part; updates of that optimizer are counted.
        rankings: one for each budget of the plan.
    """

    def __init__(
        self,
        resolve: Callable[[Optimizer], Found],
        options: Options,
        whole: Callable[[], Optimizer | None] = lambda: None,
        rankings: Sequence[Ranking] = (),
    ) -> None:
        from shrinkage.training.looks import Looks
        from shrinkage.training.prepared import UsualSteps

        super().__init__(options)
        self.lookups = 0  # how often what is penalized was found anew
        self.budgets = Budgets(rankings, self.updates)
        self.looks = Looks()
        self._resolve, self._whole = resolve, whole
        self._targets: Targets = ()
        self._stages = Stages(())
        self._changes = False  # whether steps differ in what they do
        self._elsewhere: Sequence[Place] = ()
        self._held: Container[int] = ()
        self._seen: list[list[Tensor]] | None = None
        self._update: Update | None = None  # the one that is under way
        self._usual = UsualSteps()
        self._depth = 0

    def targets(self, optimizer: Optimizer) -> Targets:
        """Return what is penalized in `optimizer` now."""
        current = [group["params"] for group in optimizer.param_groups]
        if self._stale() or self._seen is None or not same_objects(current, self._seen):
            found = self._resolve(optimizer)
            targets = with_shared_penalties(located(found.targets))
            stages = [stage for target in targets for stage in target.stages]
            check_kept(self._targets, targets, optimizer)
            self._check([*targets, *(each for own in found.ranked for each in own)], stages, optimizer)
            proximal = any(stage.how == "proximal" for stage in stages)
            self.metric = metric_of(optimizer) if proximal else known_metric(optimizer)
            self.looks.keep(targets, optimizer, self._whole() or optimizer, self.metric)
            self.budgets.keep(found.ranked, optimizer)
            self._targets, self._elsewhere, self._held = targets, found.elsewhere, group_indices(optimizer)
            self._stages = Stages(targets, self.budgets.held)
            seldom = any(target.every > 1 for target in targets)
            self._changes = self._stages.change or seldom or self.averages is not None
            self._seen = [list(parameters) for parameters in current]
            if not self.lookups:
                warn_of_double_decay(targets, optimizer)
            self.lookups += 1
            self.intervals.keep(targets)
            if self.averages is not None:
                self.averages.keep(averaged(targets))
        return self._targets

    def concerned(self, optimizer: Optimizer) -> list[PenalizedParameter | RankedParameter]:
        """Return what is penalized in `optimizer` now, and what budgets rank."""
        self.targets(optimizer)
        return self._concerned

    @property
    def _concerned(self) -> list[PenalizedParameter | RankedParameter]:
        return [*self._targets, *self.budgets.parameters]

    def targets_left(self, optimizer: Optimizer) -> Targets:
        """Return what is penalized in `optimizer` now; nothing if its next step is refused, as after a replacement."""
        with suppress(AttachmentError):
            return self.targets(optimizer)
        return ()

    def concerned_left(self, optimizer: Optimizer) -> list[PenalizedParameter | RankedParameter]:
        """Return the same with what budgets rank."""
        with suppress(AttachmentError):
            return self.concerned(optimizer)
        return []

    def names(self, optimizer: Optimizer) -> list[str]:
        """Return the names of what is penalized or ranked in `optimizer`; none if its next step is refused."""
        return [each.name for each in self.concerned_left(optimizer)]

    def go_on_from(self, others: Iterable["Attachment"]) -> None:
        """Count on with others that penalize some of the same parameters in other optimizers, from their averages."""
        for other in sorted(others, key=lambda each: each.updates.steps):  # the one that is furthest comes last
            self.updates = self.budgets.updates = other.updates
            if self.averages is not None and other.averages is not None:
                self.averages.go_on_from(other.averages)
            self.budgets.load_state_dict(other.budgets.state_dict(), self.updates.count())

    def _stale(self) -> bool:
        """Return whether the model changed where rules penalize it."""
        for place in self._elsewhere:  # a plain loop: this is asked before every step
            if place.holds_any(self._held):
                return True
        return any(each.stale for each in self._targets) or any(each.stale for each in self.budgets.parameters)

    def _check(
        self, concerned: Sequence[PenalizedParameter | RankedParameter], stages: Targets, optimizer: Optimizer
    ) -> None:
        """Raise if another attachment penalizes one of the parameters, or a learning rate is needed and missing."""
        targets = [each for each in concerned if isinstance(each, PenalizedParameter)]
        if self.compile is True:
            check_native(targets)
        others = [other for other in explicit_attachments.get(optimizer, []) if other is not self]
        taken = {id(each.parameter) for other in others for each in other._concerned}
        for each in concerned:
            if id(each.parameter) in taken:
                raise AttachmentError(
                    f"{each.name!r} of shape {tuple(each.parameter.shape)} is penalized by another Regularizer "
                    f"that is attached to this {type(optimizer).__name__}; detach() that one first"
                )
        check_steps(stages, optimizer)

    @property
    def under_way(self) -> bool:
        """Whether a step of the optimizer is under way."""
        return self._depth > 0

    def forget(self) -> None:
        """Look everything up again before the next step."""
        self._targets, self._seen = (), None
        self._usual.forget()

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
        """Add gradients and decay, now or after the closure; the first hook of a step."""
        usual = not self._depth and len(args) == 1 and not kwargs and not self._stages.freeze(self.updates)
        if usual and self._usual.before(optimizer, lambda: self._now(optimizer).penalties):
            self._depth = 1
            return None
        if self._depth and runs_inside_own_step(optimizer):
            self._depth += 1
            return None
        self._depth = 1
        self._end_step()  # the last one may have raised
        if steps_for_a_checkpoint(optimizer):
            return None
        targets = self.targets(optimizer)
        if self._changes:
            check_captured(targets, averaged=self.averages is not None)
        # It counts, even if only other processes step what is penalized.
        update = self._update = self._started(optimizer)
        if not (targets or update.freezes):
            return None
        update.freeze()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            check_gradients(targets)
            update.before()
            return None
        penalized = self._penalized_closure(update, closure)
        if len(args) > 1:
            return (args[0], penalized, *args[2:]), kwargs
        return args, {**kwargs, "closure": penalized}

    def after_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Apply proximal operators and count the update; the last hook of a step."""
        self._depth = max(self._depth - 1, 0)
        if self._depth == 0 and self._usual.after():
            self.updates.record(None)
        if self._depth or self._update is None:
            return
        stage = self._update.stage
        self._update.after()
        # Without any gradient nothing was updated; of a sharded model, other processes may have had one.
        if self._update.moves or any(map(may_move, parameters_of(self._whole() or optimizer))):
            self.updates.record(overflow_of(optimizer))
        if self.averages is not None:
            self.averages.commit()
        self._end_step()
        if not self._stages.freeze(self.updates):
            found = Looked(self._targets, stage.penalties, self._elsewhere, self._held, self.lookups)
            self._usual.prepare(optimizer, found, self)

    def _end_step(self) -> None:
        """Leave nothing behind that belongs to one step only."""
        self.gradients.restore()
        self._update = None
        self._usual.end()
        if self.averages is not None:
            self.averages.discard()

    def _started(self, optimizer: Optimizer) -> "Update":
        """Return the update of the next step, its schedules evaluated, before anything is changed."""
        from shrinkage.training.update import Update

        return Update(optimizer, self._now(optimizer), self)

    def _now(self, optimizer: Optimizer) -> Stage:
        """Return what happens in the next step, after controls have seen what there is before it."""
        if self.looks:
            self.looks.look(optimizer, self.metric, self.updates)
        return self._stages.now(self.updates)

    def _penalized_closure(self, update: "Update", closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return `closure` with the penalties of the gradient added to its gradients and to its loss."""
        first = True

        @functools.wraps(closure)
        def penalized() -> Any:
            nonlocal first
            self.gradients.restore()  # those of the last call, to which a closure may add
            loss = closure()
            check_gradients(self._targets)
            update.before(first=first)
            first = False
            value = None if loss is None else update.value()
            return loss if value is None else loss + value

        return penalized

    def add_gradients(self, optimizer: Optimizer) -> None:
        """Add the gradients of the penalties now, and let the next step leave them as they are then."""
        self._started(optimizer).add_early()

    def check_addition(self, optimizer: Optimizer) -> None:
        """Raise if the gradients cannot take the penalties now."""
        targets = self.targets(optimizer)
        check_gradients(targets)
        check_added_once(target for target in targets if self.gradients.holds(target.name, target.parameter))

    def steps(self, optimizer: Optimizer, targets: Targets | None = None) -> dict[str, Number]:
        """Return the step of the proximal operator of each of `targets` now, all if left out, as far as it made one."""
        from shrinkage.training.step_sizes import steps_made

        found = self.targets_left(optimizer) if targets is None else targets
        return steps_made(found if self.updates.steps else (), optimizer, self.metric)


# The attachments that a `Regularizer` made, so that a declaration on a layer never penalizes a parameter a second time.
explicit_attachments: PerOptimizer[list[Attachment]] = PerOptimizer("attachments")
