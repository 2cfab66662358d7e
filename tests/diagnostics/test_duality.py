"""Certificates: a gap bounds how far weights are from the optimum, and vanishes there and nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from problems import (
    LogisticProblem,
    Problem,
    breast_cancer_logistic_lasso,
    bundled_diabetes_lasso,
    diabetes_elastic_net,
    diabetes_pairs,
    digits_group_lasso,
    solve,
)
from shrinkage import L1, Blocks, Columns, ElasticNet, GroupError, GroupLasso, Penalty
from shrinkage.diagnostics.duality import elastic_net_gap, group_lasso_gap, lasso_gap, logistic_lasso_gap


@dataclass(frozen=True)
class GapCase:
    """A problem that scikit-learn or celer solves, and its gap at weights, with a strength like its own.

    Args:
        dual_norm: of what the residual is correlated with, `(outputs, features)`: at most the strength if feasible.
        lr: of SGD with a momentum of 0.95, which solves the problem in `iterations`.
    """

    name: str
    problem: Callable[[], Problem]
    penalty: Callable[[float], Penalty]
    gap: Callable[[Problem, Tensor, float], Tensor]
    dual_norm: Callable[[Tensor], Tensor]
    lr: float
    iterations: int = 1000

    def objective(self, w: Tensor) -> float:
        problem = self.problem()
        model = problem.model()
        with torch.no_grad():
            model.weight.copy_(w)
            if isinstance(problem, LogisticProblem) and problem.intercept is not None:
                model.bias.fill_(optimal_intercept(problem, w))
            return float(problem.loss(model) + self.penalty(problem.strength).value(w))

    def __str__(self) -> str:
        return self.name


def optimal_intercept(problem: Problem, w: Tensor) -> float:
    """The intercept at which the residuals of the logistic loss add up to 0, by bisection."""
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        residuals = problem.y * torch.sigmoid(-problem.y * (problem.x @ w.T + middle))
        low, high = (middle, high) if residuals.sum() > 0 else (low, middle)
    return low


def logistic_gap(problem: Problem, w: Tensor, strength: float) -> Tensor:
    intercept = optimal_intercept(problem, w) if problem.intercept is not None else None
    return logistic_lasso_gap(problem.x, problem.y[:, 0], w[0], strength, intercept)


CASES = [
    GapCase(
        "lasso",
        lambda: bundled_diabetes_lasso(0.5),
        L1,
        lambda p, w, strength: lasso_gap(p.x, p.y[:, 0], w[0], strength),
        dual_norm=lambda c: c.abs().max(),
        lr=200.0,
    ),
    GapCase(
        "elastic net",
        lambda: diabetes_elastic_net(5.0, 0.9),
        lambda strength: ElasticNet(0.9 * strength, 0.1 * strength),
        lambda p, w, strength: elastic_net_gap(p.x, p.y, w, 0.9 * strength, 0.1 * strength),
        dual_norm=lambda c: c.abs().max() / 0.9,
        lr=0.2,
    ),
    GapCase(
        "group lasso of columns",
        lambda: digits_group_lasso(0.2),
        lambda strength: GroupLasso(strength, Columns(), weigh_by_size=False),
        lambda p, w, strength: group_lasso_gap(p.x, p.y, w, strength, Columns(), weigh_by_size=False),
        dual_norm=lambda c: c.norm(dim=0).max(),
        lr=0.2,
    ),
    GapCase(
        "group lasso of pairs",
        lambda: diabetes_pairs(0.1),
        lambda strength: GroupLasso(strength / 2**0.5, Blocks(1, 2)),
        lambda p, w, strength: group_lasso_gap(p.x, p.y, w, strength / 2**0.5, Blocks(1, 2)),
        dual_norm=lambda c: c.reshape(5, 2).norm(dim=1).max(),
        lr=0.1,
    ),
    GapCase(
        "logistic lasso",
        lambda: breast_cancer_logistic_lasso(0.1, intercept=False),
        L1,
        logistic_gap,
        dual_norm=lambda c: c.abs().max(),
        lr=0.8,
        iterations=3000,
    ),
    GapCase(
        "logistic lasso with intercept",
        lambda: breast_cancer_logistic_lasso(0.1, intercept=True),
        L1,
        logistic_gap,
        dual_norm=lambda c: c.abs().max(),
        lr=0.8,
        iterations=3000,
    ),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_at_a_solvers_solution_the_gap_is_0_to_rounding(case):
    problem = case.problem()
    gap = case.gap(problem, problem.solution, problem.strength)
    assert gap.shape == ()
    assert 0 <= gap <= 1e-12 * case.objective(problem.solution)


@cases
def test_at_a_trained_solution_the_gap_is_0_to_rounding(case):
    problem = case.problem()
    found = solve(problem, case.penalty(problem.strength), lambda p: SGD(p, lr=case.lr, momentum=0.95), case.iterations)
    assert case.gap(problem, found, problem.strength) <= 1e-12 * case.objective(found)


@cases
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_strength_that_is_wrong_by_a_percent_shows(case, factor):
    problem = case.problem()
    gap = case.gap(problem, problem.solution, factor * problem.strength)
    assert gap > 1e-6 * case.objective(problem.solution)  # grows as the square of what is wrong


@cases
def test_the_gap_is_never_less_than_what_is_missing(case):
    problem = case.problem()
    least = case.objective(problem.solution)
    size = problem.solution.abs().max()
    for scale in (1e-6, 1e-3, 0.03, 0.3, 1.0, 3.0):
        for kept in (problem.solution != 0, torch.ones_like(problem.solution)):
            w = problem.solution + scale * size * torch.randn_like(problem.solution) * kept
            gap, missing = float(case.gap(problem, w, problem.strength)), case.objective(w) - least
            assert gap >= missing - 1e-12 * least
            assert gap >= 0


@cases
def test_the_gap_is_the_primal_less_the_dual(case):
    """Both from their definitions, at points where their difference is not all rounding."""
    problem = case.problem()
    for scale in (0.0, 0.3, 3.0):
        w = problem.solution + scale * problem.solution.abs().max() * torch.randn_like(problem.solution)
        expected = case.objective(w) - dual(case, problem, w)
        found = float(case.gap(problem, w, problem.strength))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * case.objective(w))


def dual(case: GapCase, problem: Problem, w: Tensor) -> float:
    """D(theta) at the scaled residual, from its definition: nothing of the package is in here."""
    x, y, n = problem.x, problem.y, len(problem.x)
    if isinstance(problem, LogisticProblem):
        bias = 0.0 if problem.intercept is None else optimal_intercept(problem, w)
        theta = y * torch.sigmoid(-y * (x @ w.T + bias)) / n
        theta = theta * min(1.0, problem.strength / float(case.dual_norm(theta.T @ x)))
        q = n * y * theta
        return -float((torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)).sum() / n)
    penalty = case.penalty(problem.strength)
    if isinstance(penalty, ElasticNet):
        x = torch.cat([x, (n * penalty.l2) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
        y = torch.cat([y, y.new_zeros(x.shape[1], y.shape[1])])
    theta = (y - x @ w.T) / n
    theta = theta * min(1.0, problem.strength / float(case.dual_norm(theta.T @ x)))
    return float(y.square().sum() / (2 * n) - n / 2 * (y / n - theta).square().sum())


def test_nothing_is_missing_where_zero_is_the_solution():
    problem = bundled_diabetes_lasso(0.5)
    zero = torch.zeros(10, dtype=torch.float64)
    assert lasso_gap(problem.x, problem.y[:, 0], zero, 2.148043575529 * 1.0001) == 0
    assert lasso_gap(problem.x, problem.y[:, 0], zero, 2.148043575529 * 0.9999) > 0


def test_rounding_makes_no_gap_negative():
    """One sample and one feature have a solution in closed form, where the gap is rounding and nothing else."""
    x = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(300):
        y = 3 * torch.randn(1, 5, dtype=torch.float64)
        w = GroupLasso(0.3, Columns()).prox(y.T, 1.0)
        objective_at_zero = 0.5 * y.square().sum()
        assert 0 <= group_lasso_gap(x, y, w, 0.3, Columns()) <= 1e-14 * objective_at_zero


def test_several_outputs_add_up():
    x, y, w = torch.randn(20, 4), torch.randn(20, 3), torch.randn(3, 4)
    one_by_one = sum(lasso_gap(x, y[:, k], w[k], 100.0) for k in range(3))
    torch.testing.assert_close(lasso_gap(x, y, w, 100.0), one_by_one)


def test_types_are_widened_and_no_graph_is_kept():
    x, y, layer = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3).bfloat16(), nn.Linear(4, 3)
    gap = lasso_gap(x, y, layer.weight, 0.1)
    assert gap.dtype == torch.float64
    assert not gap.requires_grad
    assert lasso_gap(x.bfloat16(), y, layer.weight.bfloat16(), 0.1).dtype == torch.float32
    labels, bias = torch.tensor([1, -1]), nn.Parameter(torch.zeros(1))
    assert not logistic_lasso_gap(torch.eye(2), labels, layer.weight[0, :2] * 0, 0.1, bias).requires_grad


def test_margins_of_any_size_give_finite_gaps():
    x, labels = torch.tensor([[1e4], [-1e4]], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    for weight in (-5.0, -1e-3, 0.0, 1e-3, 5.0):
        w = torch.tensor([weight], dtype=torch.float64)
        missing = nn.functional.softplus(-labels * (x @ w)).mean() + 0.1 * w.abs()
        gap = logistic_lasso_gap(x, labels, w, 0.1)
        assert gap.isfinite()
        assert gap >= missing - 0.01


X, Y, W = torch.randn(6, 3), torch.tensor([-1.5, 0.5, 1.0, -0.3, 2.0, -0.7]), torch.randn(3)


@pytest.mark.parametrize(
    ("x", "y", "w"),
    [
        (X, Y[:5], W),
        (X, Y, W[:2]),
        (X, Y[:, None], W),
        (X, Y, W[None]),
        (X[0], Y, W),
        (X[:0], Y[:0], W),
        (X, Y, torch.tensor(1.0)),
        (X, torch.randn(6, 2), torch.randn(3, 3)),
    ],
)
@pytest.mark.parametrize(
    "gap",
    [
        lambda x, y, w: lasso_gap(x, y, w, 0.1),
        lambda x, y, w: elastic_net_gap(x, y, w, 0.1, 0.1),
        lambda x, y, w: group_lasso_gap(x, y, w, 0.1, Columns()),
        lambda x, y, w: logistic_lasso_gap(x, y.sign(), w, 0.1),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, y, w, gap):
    with pytest.raises(ValueError, match=r"expected x \(n, features\) .* got x \(") as caught:
        gap(x, y, w)
    assert str(tuple(w.shape)) in str(caught.value)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(GroupError, match=r"Blocks\(rows=1, columns=2\)"):
        group_lasso_gap(X, Y[:, None], W[None], 0.1, Blocks(1, 2))


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf"), float("nan")])
def test_strengths_without_a_dual_are_refused(strength):
    for owner, call in {
        "lasso_gap": lambda: lasso_gap(X, Y, W, strength),
        "elastic_net_gap": lambda: elastic_net_gap(X, Y, W, strength, 0.1),
        "group_lasso_gap": lambda: group_lasso_gap(X, Y[:, None], W[None], strength, Columns()),
        "logistic_lasso_gap": lambda: logistic_lasso_gap(X, Y.sign(), W, strength),
    }.items():
        with pytest.raises(ValueError, match=f"{owner}: .* must be a finite number > 0"):
            call()
    with pytest.raises(ValueError, match="elastic_net_gap: l2 must be a finite number >= 0"):
        elastic_net_gap(X, Y, W, 0.1, -1.0)


def test_what_is_no_label_or_no_intercept_is_refused():
    with pytest.raises(ValueError, match="labels must be -1 or 1"):
        logistic_lasso_gap(X, (Y > 0).float(), W, 0.1)
    with pytest.raises(ValueError, match="expected w \\(features,\\), the weights of one output, got \\(1, 3\\)"):
        logistic_lasso_gap(X, Y.sign()[:, None], W[None], 0.1)
    with pytest.raises(ValueError, match="the intercept must be one number"):
        logistic_lasso_gap(X, Y.sign(), W, 0.1, torch.zeros(6))


@pytest.mark.parametrize("off", [1e-6, -1e-6, 1.0, float("nan")])
def test_an_intercept_that_is_not_optimal_is_refused(off):
    problem = breast_cancer_logistic_lasso(0.1, intercept=True)
    intercept = optimal_intercept(problem, problem.solution)
    arguments = (problem.x, problem.y[:, 0], problem.solution[0], problem.strength)
    assert logistic_lasso_gap(*arguments, intercept) < 1e-12
    with pytest.raises(ValueError, match="the intercept must be optimal"):
        logistic_lasso_gap(*arguments, intercept + off)
