"""How long does a weight that has to leave zero wait for its averaged gradient?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.experiments.minibatches import minibatch_loss, models_for, penalty_of
from benchmarks.experiments.problems import Problem, breast_cancer_lasso
from benchmarks.experiments.training import ENTRIES, Recipe, SideBySide, adam, hold_zeros_text, in_turn, sgd, train
from shrinkage import Regularizer
from shrinkage.tables import table

RECIPES = (sgd(0.1), adam(0.003))
BATCH = 32
CLOSE = 0.01  # of the objective that zero weights are above the solution
EVERY = 10  # steps between two looks at the objective


@dataclass(frozen=True, slots=True)
class Wait:
    """Steps that one recipe takes, a number per seed; the number of all steps if it never comes to that.

    Args:
        recipe: in words.
        hold_zeros: decay of the averaged gradients that hold zeros; None without.
        start: "zero": all weights are; "other problem": after training on data with features exchanged, optimizer and
            averages included.
        entered: until every weight of the true support has left zero, whether or not it stays.
        close: until the objective of all data is within 1 % of what zero weights lack.
    """

    recipe: str
    hold_zeros: float | None
    start: str
    entered: tuple[int, ...]
    close: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Delay:
    """What waiting for averaged gradients costs at the beginning of training, and when the data changes."""

    steps: int
    waits: tuple[Wait, ...]

    def __str__(self) -> str:
        header = ["recipe", "start", "hold_zeros", "support entered", "objective within 1%"]
        rows = [
            [wait.recipe, wait.start, hold_zeros_text(wait.hold_zeros), in_turn(wait.entered), in_turn(wait.close)]
            for wait in self.waits
        ]
        return f"logistic lasso, steps until (at most {self.steps})\n{table(header, rows)}"


def delay(
    seeds: int = 3,
    steps: int = 6_000,
    before: int = 4_000,
    entries: Sequence[float | None] = ENTRIES,
    recipes: Sequence[Recipe] = RECIPES,
) -> Delay:
    """Count steps from zero weights, and from the solution of another problem that took `before` steps."""
    waits = [
        wait(recipe, hold_zeros, seeds, steps, earlier)
        for recipe in recipes
        for earlier in (0, before)
        for hold_zeros in entries
    ]
    return Delay(steps, tuple(waits))


def wait(recipe: Recipe, hold_zeros: float | None, seeds: int, steps: int, before: int) -> Wait:
    """Train `before` steps on data whose features are exchanged, then count steps on the data."""
    problem = breast_cancer_lasso()
    models = models_for(problem, seeds)
    optimizer = recipe.make(models.parameters())
    Regularizer(models, {"weight": penalty_of(problem)}, hold_zeros=hold_zeros).attach(optimizer)
    other = replace(problem, x=problem.x.roll(problem.x.shape[1] // 2, dims=1))
    train(optimizer, minibatch_loss(other, models, before, BATCH), before)
    watch = Arrival(problem, models, steps)
    train(optimizer, minibatch_loss(problem, models, steps, BATCH), steps, after_step=watch)
    start = "other problem" if before else "zero"
    return Wait(recipe.name, hold_zeros, start, tuple(watch.entered.tolist()), tuple(watch.close.tolist()))


class Arrival:
    """Notes the first step after which the true support has entered, and that after which the objective is close."""

    def __init__(self, problem: Problem, models: SideBySide, steps: int) -> None:
        self._problem = problem
        self._models = models
        self._support = problem.solution != 0
        solved = problem.objective(problem.model(problem.solution, problem.solution_bias))
        self._enough = solved + CLOSE * problem.gap(problem.model())
        self._missing = self._support.expand(models.shape).clone()
        self._steps = steps
        self.entered = torch.full((models.shape[0],), steps)
        self.close = self.entered.clone()

    def __call__(self, step: int) -> None:
        self._missing &= self._models.weights() == 0
        there = ~self._missing.any(-1).any(-1)
        self._note(self.entered, there, step)
        if step % EVERY == EVERY - 1 and bool((self.close == self._steps).any()):
            self._note(self.close, self._objectives() <= self._enough, step)

    def _note(self, first: Tensor, reached: Tensor, step: int) -> None:
        first[reached & (first == self._steps)] = step + 1

    @torch.no_grad()
    def _objectives(self) -> Tensor:
        losses = self._problem.loss(self._models(self._problem.x), self._problem.y.expand(len(self.close), -1, -1))
        return losses + torch.stack([self._problem.penalty.value(weight) for weight in self._models.weights()])
