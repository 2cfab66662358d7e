"""Minibatches: does the noise of gradients keep zeros from being found, and do averaged gradients hold them?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.experiments.problems import Problem, breast_cancer_lasso, digits_group_lasso
from benchmarks.experiments.training import (
    ENTRIES,
    Recipe,
    SideBySide,
    adam,
    extremes,
    hold_zeros_text,
    in_turn,
    rows_of_batches,
    sgd,
    to_zero,
    train,
)
from shrinkage import Blocks, GroupLasso, Penalty, Regularizer
from shrinkage.tables import table

LASSO_RECIPES = (
    sgd(0.1),
    sgd(0.1, to_zero),
    sgd(0.01, momentum=0.9),
    sgd(0.01, to_zero, momentum=0.9),
    adam(0.003),
    adam(0.003, to_zero),
)
GROUP_RECIPES = (adam(0.003), adam(0.003, to_zero))
LAST = 0.1  # share of steps in which switching is counted


@dataclass(frozen=True, slots=True)
class Runs:
    """What one recipe gives, a number per seed.

    Args:
        recipe: in words.
        hold_zeros: decay of the averaged gradients that hold zeros; None without.
        nonzero: weights, or groups, that are not zero at the end.
        switching: weights, or groups, that leave or enter zero in the last tenth of the steps.
        gap: objective of all data above that of the outside solution.
        residual: largest residual of the weight, relative to the strength.
        mismatch: weights, or groups, that are zero here and not in the outside solution, or the other way round.
    """

    recipe: str
    hold_zeros: float | None
    nonzero: tuple[int, ...]
    switching: tuple[int, ...]
    gap: tuple[float, ...]
    residual: tuple[float, ...]
    mismatch: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Identification:
    """How well minibatch training finds the zeros of an outside solution."""

    about: str
    exact: int
    units: int
    steps: int
    batch: int
    runs: tuple[Runs, ...]

    def __str__(self) -> str:
        header = ["recipe", "hold_zeros", "not zero", "wrong", "switching", "gap", "residual / strength"]
        rows = [
            [
                runs.recipe,
                hold_zeros_text(runs.hold_zeros),
                in_turn(runs.nonzero),
                in_turn(runs.mismatch),
                in_turn(runs.switching),
                extremes(runs.gap),
                extremes(runs.residual, ".2g"),
            ]
            for runs in self.runs
        ]
        title = f"{self.about}; {self.exact} of {self.units} are not zero in the solution; batch {self.batch}"
        return f"{title}, {self.steps} steps\n{table(header, rows)}"


def minibatch_lasso(
    seeds: int = 3,
    steps: int = 20_000,
    entries: Sequence[float | None] = ENTRIES,
    recipes: Sequence[Recipe] = LASSO_RECIPES,
) -> Identification:
    """Logistic regression on breast cancer data with L1 at 0.1 of the largest strength, from zero weights."""
    problem = breast_cancer_lasso()
    return identification("logistic lasso, weights", problem, seeds, steps, 32, entries, recipes)


def minibatch_group_lasso(
    seeds: int = 3,
    steps: int = 15_000,
    entries: Sequence[float | None] = ENTRIES,
    recipes: Sequence[Recipe] = GROUP_RECIPES,
) -> Identification:
    """One-hot regression on digits with a group per pixel, in Adam's metric, from zero weights."""
    problem = digits_group_lasso()
    return identification("digits group lasso, pixels", problem, seeds, steps, 64, entries, recipes)


def identification(
    about: str,
    problem: Problem,
    seeds: int,
    steps: int,
    batch: int,
    entries: Sequence[float | None],
    recipes: Sequence[Recipe],
) -> Identification:
    """Train with every recipe and every hold_zeros rule."""
    alive = (problem.solution != 0).any(0)
    runs = tuple(run(problem, recipe, hold_zeros, seeds, steps, batch) for recipe in recipes for hold_zeros in entries)
    return Identification(about, int(alive.sum()), len(alive), steps, batch, runs)


def run(problem: Problem, recipe: Recipe, hold_zeros: float | None, seeds: int, steps: int, batch: int) -> Runs:
    """Train one model per seed, side by side."""
    models = models_for(problem, seeds)
    optimizer = recipe.make(models.parameters())
    Regularizer(models, {"weight": penalty_of(problem)}, hold_zeros=hold_zeros).attach(optimizer)
    watch = Switching(models, after=round((1 - LAST) * steps))
    loss = minibatch_loss(problem, models, steps, batch)
    train(optimizer, loss, steps, schedule=recipe.schedule, after_step=watch)
    singles = [problem.model(w, b) for w, b in zip(models.weights(), models.biases(), strict=True)]
    alive = (models.weights() != 0).any(1)
    return Runs(
        recipe.name,
        hold_zeros,
        nonzero=tuple(alive.sum(1).tolist()),
        switching=tuple(watch.switched.sum(1).tolist()),
        gap=tuple(problem.gap(model) for model in singles),
        residual=tuple(problem.residuals(model).penalized[0].relative for model in singles),
        mismatch=tuple((alive != (problem.solution != 0).any(0)).sum(1).tolist()),
    )


def models_for(problem: Problem, count: int) -> SideBySide:
    """Return models of the problem's shape, all zero."""
    return SideBySide(count, problem.y.shape[1], problem.x.shape[1], bias=problem.bias)


def penalty_of(problem: Problem) -> Penalty:
    """Return the problem's penalty for models side by side: a group stays within one model."""
    outputs = problem.y.shape[1]
    if outputs == 1:
        return problem.penalty
    return GroupLasso(problem.strength, Blocks(outputs, 1), weigh_by_size=False)


def minibatch_loss(problem: Problem, models: SideBySide, steps: int, batch: int) -> Callable[[int], Tensor]:
    """Return the sum of the models' losses at each step; model k gets the batches of seed k."""
    count, examples = models.shape[0], len(problem.x)
    rows = torch.stack([rows_of_batches(seed, steps, batch, examples) for seed in range(count)])
    return lambda step: problem.loss(models(problem.x[rows[:, step]]), problem.y[rows[:, step]]).sum()


class Switching:
    """Notes which weights, or groups, enter or leave zero after a step."""

    def __init__(self, models: SideBySide, after: int) -> None:
        self._models = models
        self._after = after
        self._alive = (models.weights() != 0).any(1)
        self.switched = torch.zeros_like(self._alive)

    def __call__(self, step: int) -> None:
        if step >= self._after - 1:
            alive = (self._models.weights() != 0).any(1)
            if step >= self._after:
                self.switched |= alive != self._alive
            self._alive = alive
