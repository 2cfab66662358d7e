"""Strength means strength: every optimizer solves the stated problem, as scikit-learn solves it."""

import pytest
import torch
from torch.optim import Adam

from catalog import OPTIMIZERS
from problems import Problem, diabetes_lasso, digits_group_lasso
from shrinkage import L1, Columns, GroupLasso, Penalty, Regularizer


def solve(problem: Problem, penalty: Penalty, make, iterations: int, how="proximal") -> torch.Tensor:
    model = problem.model()
    optimizer = make(model.parameters())
    Regularizer(model, penalty, how=how).attach(optimizer)
    for _ in range(iterations):
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_lasso_is_scikit_learns(case):
    problem = diabetes_lasso()
    found = solve(problem, L1(problem.strength), case.make, case.iterations)
    assert torch.equal(found != 0, problem.solution != 0)
    assert (found - problem.solution).abs().max() <= 1e-8


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if c.name in {"SGD momentum", "Adam"}], ids=str)
def test_group_lasso_is_scikit_learns(case):
    problem = digits_group_lasso()
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    found = solve(problem, penalty, case.make, case.iterations)
    zero = (found == 0).all(0)
    assert int(zero.sum()) == 33
    assert torch.equal(zero, (problem.solution == 0).all(0))
    assert (found - problem.solution).abs().max() <= 1e-6


def test_a_threshold_in_the_plain_metric_after_adam_solves_another_problem():
    problem = diabetes_lasso()
    found = solve(problem, L1(problem.strength), lambda p: Adam(p, lr=0.01), 1500, how="decoupled")
    assert int((found == 0).sum()) == 0
    assert (found - problem.solution).abs().max() > 0.3


@pytest.mark.parametrize("name", ["SGD momentum", "Adam"])
def test_gradient_solves_the_same_problem_without_a_zero(name):
    problem = diabetes_lasso()
    (case,) = [case for case in OPTIMIZERS if case.name == name]
    found = solve(problem, L1(problem.strength), case.make, case.iterations, how="gradient")
    assert int((found == 0).sum()) == 0
    assert (found - problem.solution).abs().max() < 0.05
