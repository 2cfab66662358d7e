"""What popular ways to penalize weights really solve: all data at every step, compared with outside solutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.experiments.problems import Problem, diabetes_lasso, digits_group_lasso
from benchmarks.experiments.training import Recipe, adam, sgd, to_zero, train
from shrinkage import Regularizer
from shrinkage.selection.plan import How
from shrinkage.tables import table

Way = tuple[Recipe, How | Literal["sign decay"]]

LASSO_WAYS: tuple[Way, ...] = (
    (sgd(0.1), "gradient"),
    (sgd(0.1, to_zero), "gradient"),
    (sgd(0.1), "proximal"),
    (sgd(0.01, momentum=0.9), "proximal"),
    (sgd(0.01, momentum=0.9), "decoupled"),
    (sgd(0.1, momentum=0.9, dampening=0.9), "proximal"),
    (sgd(0.1, momentum=0.9, dampening=0.9), "decoupled"),
    (adam(0.01, to_zero), "gradient"),
    (adam(0.01), "sign decay"),
    (adam(0.01), "decoupled"),
    (adam(0.01), "proximal"),
)
GROUP_WAYS: tuple[Way, ...] = (
    (sgd(0.1), "proximal"),
    (adam(0.01, to_zero), "gradient"),
    (adam(0.01), "decoupled"),
    (adam(0.01), "proximal"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where one way leads.

    Args:
        recipe: in words.
        how: how the penalty acts; "sign decay" is w <- w - lr * strength * sign(w) after the step, by hand.
        zeros: weights, or groups, that are exactly zero.
        wrong: weights, or groups, that are zero here and not in the outside solution, or the other way round.
        gap: objective above that of the outside solution.
        distance: largest difference to a weight of the outside solution.
    """

    recipe: str
    how: str
    zeros: int
    wrong: int
    gap: float
    distance: float


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """Ways to penalize weights, and where they lead."""

    about: str
    exact: int
    units: int
    steps: int
    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        header = ["recipe", "how", "zeros", "wrong", "gap", "distance"]
        rows = [
            [each.recipe, each.how, str(each.zeros), str(each.wrong), f"{each.gap:.1e}", f"{each.distance:.1e}"]
            for each in self.outcomes
        ]
        title = f"{self.about}; {self.exact} of {self.units} are zero in the solution; all data, {self.steps} steps"
        return f"{title}\n{table(header, rows, right=range(2, 6))}"


def lasso_shortcuts(steps: int = 10_000, ways: Sequence[Way] = LASSO_WAYS) -> Shortcuts:
    """The lasso on diabetes data."""
    return shortcuts("diabetes lasso, weights", diabetes_lasso(), steps, ways)


def group_shortcuts(steps: int = 5_000, ways: Sequence[Way] = GROUP_WAYS) -> Shortcuts:
    """The group lasso on digits; 3 pixels are blank in every image, and stay at the zero that they start from."""
    return shortcuts("digits group lasso, pixels", digits_group_lasso(), steps, ways)


def shortcuts(about: str, problem: Problem, steps: int, ways: Sequence[Way]) -> Shortcuts:
    """Train from zero weights in every way."""
    zero = (problem.solution == 0).all(0)
    outcomes = tuple(outcome(problem, recipe, how, steps) for recipe, how in ways)
    return Shortcuts(about, int(zero.sum()), len(zero), steps, outcomes)


def outcome(problem: Problem, recipe: Recipe, how: How | Literal["sign decay"], steps: int) -> Outcome:
    """Train from zero weights in one way."""
    model = problem.model()
    optimizer = recipe.make(model.parameters())
    if how != "sign decay":
        Regularizer(model, {"weight": problem.penalty}, how=how).attach(optimizer)

    @torch.no_grad()
    def decay(step: int) -> None:
        if how == "sign decay":
            model.weight.sub_(optimizer.param_groups[0]["lr"] * problem.strength * model.weight.sign())

    train(optimizer, lambda step: problem.mean_loss(model), steps, schedule=recipe.schedule, after_step=decay)
    zero = (model.weight == 0).all(0)
    return Outcome(
        recipe.name,
        how,
        zeros=int(zero.sum()),
        wrong=int((zero != (problem.solution == 0).all(0)).sum()),
        gap=problem.gap(model),
        distance=float((model.weight.detach() - problem.solution).abs().max()),
    )
