"""The budgets of a regularizer in one optimizer: when they act around each of its steps.

They come first before a step and last after it: penalties, the optimizer and proximal operators see the dense weights,
and everybody else the sparse ones. A step with a closure is made sparse again for each evaluation after the first.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shrinkage.distributed.group_sharding import group_sharding_of
from shrinkage.optimizers.hooks import hook_around
from shrinkage.optimizers.introspection import runs_inside_own_step, steps_for_a_checkpoint
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.convex import L1
from shrinkage.penalties.grouped import GroupLasso
from shrinkage.training.penalized import PenalizedParameter, RankedParameter
from shrinkage.training.progress import BudgetProgress
from shrinkage.training.update_count import Updates

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
State = Mapping[str, Any]


class Ranking(Protocol):
    """One budget in one optimizer. `update` is the number of updates made before the step."""

    budget: Budget
    keeps_aside: bool = False  # whether zeros are final from the update `freeze` on, and not before

    def keep(self, parameters: Sequence[RankedParameter]) -> None:
        """Rank these parameters from now on: called first of all, and whenever they were looked up anew."""

    def check(self, optimizer: Optimizer) -> None:
        """Raise `AttachmentError` if the budget cannot act in `optimizer`."""

    def before(self, update: int) -> None:
        """Do what comes first before a step, or after an evaluation of its closure."""

    def read_gradients(self, update: int, optimizer: Optimizer) -> None:
        """Look at the gradients of a step, once they are there."""

    def between(self, update: int) -> None:
        """Let a closure evaluate the sparse model, after its first evaluation."""

    def after(self, update: int, *, made: bool) -> None:
        """Do what comes last after a step, when `update` updates are made; `made` tells if it was one of them."""

    def progress(self, update: int) -> BudgetProgress:
        """Return how far it has come, from the last ranking: without a look at weights."""

    def state_dict(self, update: int) -> dict[str, Any]:
        """Return what has to be saved."""

    def check_state(self, state: State, update: int) -> None:
        """Raise `ValueError` unless `load_state_dict` can go on from `state`."""

    def load_state_dict(self, state: State, update: int) -> None:
        """Go on from a state that was saved after so many updates."""


class Budgets:
    """The budgets of a regularizer in one optimizer.

    Args:
        rankings: one for each budget of the plan.
        updates: of the optimizer, counted by somebody else before `after_step`.
    """

    def __init__(self, rankings: Sequence[Ranking], updates: Updates) -> None:
        self.rankings = list(rankings)
        self.parameters: list[RankedParameter] = []
        self.held: list[PenalizedParameter] = []  # whose zeros are final from an update on
        self.updates = updates
        self._made = 0  # updates when the step that is under way began
        self._depth = 0
        self._acts = False  # whether a step is under way, and is no checkpoint's

    def keep(self, parameters: Sequence[Sequence[RankedParameter]], optimizer: Optimizer) -> None:
        """Rank these parameters from now on, of each budget."""
        parameters = parameters or [()] * len(self.rankings)
        for ranking, own in zip(self.rankings, parameters, strict=True):
            if own:
                ranking.check(optimizer)
        for ranking, own in zip(self.rankings, parameters, strict=True):
            ranking.keep(own)
        self.parameters = [each for own in parameters for each in own]
        pairs = zip(self.rankings, parameters, strict=True)
        self.held = [held_later(ranking.budget, each) for ranking, own in pairs for each in own if ranking.keeps_aside]

    def hooks(self, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        """Let the budgets act around the steps of `optimizer`: outside of hooks that are registered after these."""
        return hook_around(optimizer, self.before_step, self.after_step) if self.rankings else ()

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
        """Bring back what was cut; the first hook of a step."""
        if self._depth and runs_inside_own_step(optimizer):
            self._depth += 1
            return None
        self._depth, self._acts = 1, not steps_for_a_checkpoint(optimizer)
        if not self._acts:
            return None
        self._made = self.updates.count()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._before()
            self._read_gradients(optimizer)
            return None
        sparse = self._sparse_closure(optimizer, closure)
        return ((args[0], sparse, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": sparse})

    def after_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Rank and cut; the last hook of a step."""
        self._depth = max(self._depth - 1, 0)
        if self._depth or not self._acts:
            return
        self._acts = False
        update = self.updates.count()
        with torch.no_grad():
            for ranking in self.rankings:
                ranking.after(update, made=update > self._made)

    def _before(self) -> None:
        with torch.no_grad():
            for ranking in self.rankings:
                ranking.before(self._made)

    def _read_gradients(self, optimizer: Optimizer) -> None:
        with torch.no_grad():
            for ranking in self.rankings:
                ranking.read_gradients(self._made, optimizer)

    def _sparse_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return `closure`, which evaluates the sparse model and leaves the dense one to the optimizer."""
        first = True

        @functools.wraps(closure)
        def sparse() -> Any:
            nonlocal first
            if not first:
                with torch.no_grad():
                    for ranking in self.rankings:
                        ranking.between(self._made)
            loss = closure()
            self._before()
            if first:
                self._read_gradients(optimizer)
            first = False
            return loss

        return sparse

    def progress(self) -> list[BudgetProgress]:
        """Return how far each budget has come."""
        update = self.updates.count()
        return [ranking.progress(update) for ranking in self.rankings]

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved, by the number of the budget in the plan."""
        update = self.updates.count()
        states = {str(i): ranking.state_dict(update) for i, ranking in enumerate(self.rankings)}
        texts = {str(i): repr(ranking.budget) for i, ranking in enumerate(self.rankings)}
        return {key: {"budget": texts[key], **state} for key, state in states.items()}

    def check_state(self, state: State, update: int) -> None:
        """Raise `ValueError` unless `state` was saved with these budgets."""
        for i, ranking in enumerate(self.rankings):
            own = state.get(str(i))
            if own is None:
                continue
            if own["budget"] != repr(ranking.budget):
                raise ValueError(
                    f"the state was saved with {own['budget']}, this one is {ranking.budget}; use the one that it was "
                    "saved with"
                )
            ranking.check_state(own, update)

    def load_state_dict(self, state: State, update: int) -> None:
        """Go on from `state_dict`, which was saved after so many updates."""
        for i, ranking in enumerate(self.rankings):
            ranking.load_state_dict(state.get(str(i), {}), update)


def held_later(budget: Budget, ranked: RankedParameter) -> PenalizedParameter:
    """Return a parameter whose zeros stay from the update on at which those of a budget are final.

    With groups, those that are zero as a whole: a single zero in another group is trained on, as by `freeze_zeros`.
    """
    name, parameter, group, places, lazy = ranked
    penalty = L1(0.0) if budget.groups is None else GroupLasso(0.0, budget.groups)
    held = PenalizedParameter(name, penalty, "proximal", parameter, group, places, lazy, until=budget.freeze_update)
    return held if lazy else held._replace(group_sharding=group_sharding_of(penalty, parameter))
