"""The optimizers that one regularizer is attached to, and how far it came in each.

It keeps none of them alive. Copies and pickles are attached to none, and go on counting when they are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ref

from torch import nn
from torch.optim import Optimizer

from shrinkage.optimizers.hooks import hook_around
from shrinkage.optimizers.parameter_state import Plan as ShrinkPlan
from shrinkage.optimizers.parameter_state import before_shrink
from shrinkage.selection.plan import Plan
from shrinkage.training.attachment import Attachment, explicit_attachments
from shrinkage.training.orphaned import Removable, follow
from shrinkage.training.progress import BudgetProgress
from shrinkage.training.saved_state import Progress
from shrinkage.training.state_hooks import Kept, Planned, leave, register_state_hooks, resume, resume_all

Pairs = list[tuple[Optimizer, Attachment]]


class Held(NamedTuple):
    """One optimizer that is attached to, by weak reference, what applies the rules there, and how to take it off."""

    optimizer: ref[Optimizer]
    attachment: Attachment
    handles: list[Removable]


class Attachments:
    """Which optimizers a regularizer is attached to, and what it came to in those that are gone or detached."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._kept: list[Kept] = []  # for what is attached to next
        self._last: dict[str, Attachment] = {}  # by name of a parameter, what penalized it last
        self._iteration = 0  # reached by an optimizer that may be gone

    def add(self, optimizer: Optimizer, attachment: Attachment, regularizer: Planned, model: nn.Module) -> None:
        """Let `attachment` act around the steps of `optimizer`, and go on from a state that was loaded before."""
        names = attachment.names(optimizer)
        attachment.go_on_from([self._last[name] for name in names if name in self._last])
        resume(optimizer, attachment, regularizer, self._kept)
        self._last |= dict.fromkeys(names, attachment)
        handles: list[Removable] = [
            *attachment.budgets.hooks(optimizer),
            *hook_around(optimizer, attachment.before_step, attachment.after_step),
            *register_state_hooks(optimizer, attachment, regularizer),
            *follow(regularizer, model, optimizer, attachment),
        ]
        explicit_attachments[optimizer] = [*explicit_attachments.get(optimizer, []), attachment]
        self._held.append(Held(ref(optimizer), attachment, handles))

    def remove(self, regularizer: Planned) -> None:
        """Take all hooks off the optimizers, and keep what was reached in them."""
        self._kept = [leave(optimizer, each, regularizer) for optimizer, each in self.pairs()] + self._kept
        for optimizer, attachment in self.pairs():
            explicit_attachments[optimizer].remove(attachment)
        for handle in [each for held in self._held for each in held.handles]:
            handle.remove()
        self._held = []

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers that are attached to, after forgetting those that are gone."""
        self._iteration = [self._iteration, *(each.attachment.updates.count() for each in self._held)][-1]
        self._held = [each for each in self._held if each.optimizer() is not None]
        return [optimizer for each in self._held if (optimizer := each.optimizer()) is not None]

    def pairs(self) -> Pairs:
        """Return the same, each with what applies the rules there."""
        return list(zip(self.optimizers(), (each.attachment for each in self._held), strict=True))

    def updates(self) -> int | None:
        """Return the number of updates made; None if there never was an optimizer."""
        made = [each.updates.count() for optimizer, each in self.pairs() if each.concerned_left(optimizer)]
        reached = [*made, *(each.progress.updates for each in self._kept), self._iteration][0]
        return reached if self._last or self._kept else None

    def budgets(self) -> tuple[BudgetProgress, ...]:
        """Return how far each budget has come, in each optimizer."""
        return tuple(found for _, each in self.pairs() for found in each.budgets.progress())

    def progress(self) -> list[Progress]:
        """Return how far each attachment has come, and what waits for others."""
        return [Progress.of(each) for _, each in self.pairs()] + [each.progress for each in self._kept]

    def go_on_from(self, state: Mapping[str, Any], shrunk: ShrinkPlan | None, plan: Plan) -> Plan:
        """Go on from a state of `Regularizer.state_dict`, and return `plan` with the references in it."""
        newer, self._kept = resume_all(self.pairs(), plan, *before_shrink(state, shrunk))
        self._last = {name: each for own, each in self.pairs() for name in each.names(own)}
        return newer

    def __getstate__(self) -> dict[str, Any]:
        made = [Kept(Progress.of(each), None, frozenset(each.names(own))) for own, each in self.pairs()]
        return {**vars(self), "_held": [], "_last": {}, "_kept": [*made, *self._kept]}
