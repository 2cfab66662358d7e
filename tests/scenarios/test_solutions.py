"""Strength means strength: every optimizer solves the stated problem, as outside solvers solve it."""

import pytest
import torch
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from catalog import OPTIMIZERS, OptimizerCase
from late import celer
from problems import (
    breast_cancer_logistic_lasso,
    bundled_diabetes_lasso,
    diabetes_elastic_net,
    diabetes_lasso,
    diabetes_mcp,
    diabetes_pairs,
    digits_group_lasso,
    solve,
)
from shrinkage import L1, MCP, Blocks, Columns, ElasticNet, GroupLasso, Regularizer, Rows
from shrinkage.diagnostics.duality import lasso_gap

BUNDLED_LAMBDA_MAX = 2.148043575529


@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_lasso_is_scikit_learns(case):
    problem = diabetes_lasso()
    found = solve(problem, L1(problem.strength), case.make, case.iterations)
    assert torch.equal(found != 0, problem.solution != 0)
    assert (found - problem.solution).abs().max() <= 1e-8


GROUP_OPTIMIZERS = [
    OptimizerCase("SGD", lambda p: SGD(p, lr=0.4, momentum=0.9), 500),
    OptimizerCase("Adam", lambda p: Adam(p, lr=0.03), 600),
    OptimizerCase("AdamW", lambda p: AdamW(p, lr=0.03, weight_decay=0.0), 600),
    OptimizerCase("RMSprop", lambda p: RMSprop(p, lr=0.05), 400),
    OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=1.0), 500),
    OptimizerCase("NAdam", lambda p: NAdam(p, lr=0.03), 500),
    OptimizerCase("RAdam", lambda p: RAdam(p, lr=0.05, betas=(0.9, 0.99)), 500),
    OptimizerCase("Adamax", lambda p: Adamax(p, lr=0.1, betas=(0.9, 0.99)), 500),
    OptimizerCase("Adadelta", lambda p: Adadelta(p, lr=2.0, eps=0.01), 400),
    OptimizerCase("ASGD", lambda p: ASGD(p, lr=1.5, lambd=0.0), 400),
    OptimizerCase("Adafactor", lambda p: Adafactor(p, lr=0.1, eps=(None, 1.0), weight_decay=0.0), 500),
]


@pytest.mark.parametrize("case", GROUP_OPTIMIZERS, ids=str)
def test_group_lasso_is_scikit_learns(case):
    problem = digits_group_lasso(0.5)
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    found = solve(problem, penalty, case.make, case.iterations)
    assert int((found == 0).all(0).sum()) == 44
    assert_same(found, problem.solution)


def test_rprop_finds_the_zero_groups_and_no_more():
    """Its metric is step size / |g|, without bound where an element of a group has hardly a gradient."""
    problem = digits_group_lasso()
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    found = solve(problem, penalty, lambda p: Rprop(p, lr=0.005, step_sizes=(1e-6, 0.01)), 1000)
    assert torch.equal((found == 0).all(0), (problem.solution == 0).all(0))
    assert 1e-4 < (found - problem.solution).abs().max() < 0.02


def assert_same(found, solution):
    """The same zeros, and the rest to nine digits of the largest weight."""
    assert torch.equal(found != 0, solution != 0)
    assert (found - solution).abs().max() <= 1e-9 * solution.abs().max()


BUNDLED = {1.0: [2, 3, 8], 0.5: [2, 3, 6, 8], 0.1: [1, 2, 3, 4, 6, 8, 9], 0.01: list(range(10))}
BUNDLED_OPTIMIZERS = [
    OptimizerCase("SGD", lambda p: SGD(p, lr=200.0, momentum=0.9), 700),
    OptimizerCase("Adam", lambda p: Adam(p, lr=30.0, betas=(0.9, 0.99)), 1100),
    OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=1000.0), 600),
]


@pytest.mark.parametrize("case", BUNDLED_OPTIMIZERS, ids=str)
@pytest.mark.parametrize("alpha", BUNDLED)
def test_a_path_of_lassos_is_scikit_learns(alpha, case):
    if (alpha, case.name) == (0.01, "Adagrad"):
        pytest.skip("its steps fall with the sum of squared gradients: tens of thousands of iterations")
    problem = bundled_diabetes_lasso(alpha)
    found = solve(problem, L1(alpha), case.make, case.iterations)
    assert found.nonzero()[:, 1].tolist() == BUNDLED[alpha]
    assert_same(found, problem.solution)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1])
def test_lasso_is_celers(alpha):
    problem = bundled_diabetes_lasso(alpha, celer.Lasso)
    found = solve(problem, L1(alpha), lambda p: SGD(p, lr=200.0, momentum=0.9), 700)
    assert_same(found, problem.solution)


@pytest.mark.parametrize("case", BUNDLED_OPTIMIZERS, ids=str)
def test_the_first_feature_enters_at_the_largest_strength(case):
    problem = bundled_diabetes_lasso(1.0)
    gradient = -problem.y.T @ problem.x / len(problem.x)
    assert L1(1.0).strength_max(gradient) == pytest.approx(BUNDLED_LAMBDA_MAX, rel=1e-12)
    assert (solve(problem, L1(1.0001 * BUNDLED_LAMBDA_MAX), case.make, 400) == 0).all()
    below = solve(problem, L1(0.9999 * BUNDLED_LAMBDA_MAX), case.make, 400)
    assert below.nonzero()[:, 1].tolist() == [2]
    expected = 1e-4 * BUNDLED_LAMBDA_MAX * len(problem.x)  # the column has norm 1
    assert float(below[0, 2]) == pytest.approx(expected, rel=1e-6)


SPARSE = [
    (diabetes_lasso, OptimizerCase("SGD", lambda p: SGD(p, lr=0.3), 400)),
    (diabetes_lasso, OptimizerCase("SGD momentum", lambda p: SGD(p, lr=0.1, momentum=0.8), 400)),
    (diabetes_lasso, OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=0.3), 400)),
    (diabetes_lasso, OptimizerCase("SparseAdam", lambda p: SparseAdam(p, lr=0.03), 600)),
    (lambda: digits_group_lasso(0.5), OptimizerCase("SGD, groups", lambda p: SGD(p, lr=2.0), 400)),
    (lambda: digits_group_lasso(0.5), OptimizerCase("SparseAdam, groups", lambda p: SparseAdam(p, lr=0.03), 500)),
]


@pytest.mark.parametrize(("problem", "case"), SPARSE, ids=[str(case) for _, case in SPARSE])
def test_rows_of_an_embedding_with_sparse_gradients_are_scikit_learns(problem, case):
    problem = problem()
    features, outputs = problem.solution.T.shape
    table = torch.nn.Embedding(features, outputs, sparse=True, dtype=torch.float64)
    torch.nn.init.zeros_(table.weight)
    penalty = GroupLasso(problem.strength, Rows(), weigh_by_size=False)
    optimizer = case.make(table.parameters())
    Regularizer(table, {"weight": penalty}).attach(optimizer)
    for _ in range(case.iterations):
        optimizer.zero_grad()
        problem.loss(lambda x: x @ table(torch.arange(features))).backward()
        with torch.sparse.check_sparse_tensor_invariants():
            optimizer.step()
    found = table.weight.detach().T
    assert torch.equal(found != 0, problem.solution != 0)
    assert (found - problem.solution).abs().max() <= 1e-8


@pytest.mark.parametrize("foreach", [False, True])
def test_the_lambd_of_asgd_is_the_ridge_of_an_elastic_net(foreach):
    problem = diabetes_elastic_net(1.0, 0.5)
    found = solve(problem, L1(0.5), lambda p: ASGD(p, lr=0.3, lambd=0.5, alpha=0.3, foreach=foreach), 600)
    assert_same(found, problem.solution)


@pytest.mark.parametrize(
    "case",
    [
        OptimizerCase("SGD", lambda p: SGD(p, lr=0.2, momentum=0.9), 400),
        OptimizerCase("Adam", lambda p: Adam(p, lr=1.0), 600),
        OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=10.0), 600),
    ],
    ids=str,
)
@pytest.mark.parametrize(("alpha", "l1_ratio", "count"), [(1.0, 0.5, 10), (5.0, 0.9, 7)])
def test_elastic_net_is_scikit_learns(alpha, l1_ratio, count, case):
    problem = diabetes_elastic_net(alpha, l1_ratio)
    found = solve(problem, ElasticNet(alpha * l1_ratio, alpha * (1 - l1_ratio)), case.make, case.iterations)
    assert int((found != 0).sum()) == count
    assert_same(found, problem.solution)


@pytest.mark.parametrize(
    "case",
    [
        OptimizerCase("SGD", lambda p: SGD(p, lr=0.4, momentum=0.9), 800),
        OptimizerCase("Adam", lambda p: Adam(p, lr=0.03), 600),
        pytest.param(OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=1.0), 1800), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(("fraction", "count"), [(0.5, 20), (0.2, 31), (0.05, 44)])
def test_a_path_of_group_lassos_is_scikit_learns(fraction, count, case):
    problem = digits_group_lasso(fraction)
    assert problem.strength / fraction == pytest.approx(0.098124671, rel=1e-8)
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    found = solve(problem, penalty, case.make, case.iterations)
    assert int((found != 0).any(0).sum()) == count
    assert_same(found, problem.solution)


PAIRS_OPTIMIZERS = [
    OptimizerCase("SGD", lambda p: SGD(p, lr=0.1, momentum=0.9), 700),
    OptimizerCase("Adam", lambda p: Adam(p, lr=0.03), 700),
    OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=0.3), 500),
]


@pytest.mark.parametrize("case", PAIRS_OPTIMIZERS, ids=str)
@pytest.mark.parametrize(
    ("strength", "count", "penalty"),
    [
        (0.05, 10, GroupLasso(0.05 / 2**0.5, Blocks(1, 2))),
        (0.1, 6, GroupLasso(0.1, Blocks(1, 2), weigh_by_size=False)),
    ],
    ids=["weighed by size", "not weighed"],
)
def test_group_lasso_is_celers(strength, count, penalty, case):
    problem = diabetes_pairs(strength)
    found = solve(problem, penalty, case.make, case.iterations)
    assert int((found != 0).sum()) == count
    assert_same(found, problem.solution)


LOGISTIC = [
    (0.5, 3, 0.57274164, OptimizerCase("SGD", lambda p: SGD(p, lr=1.0, momentum=0.96), 1500)),
    (0.5, 3, 0.57274164, OptimizerCase("Adam", lambda p: Adam(p, lr=3.8, betas=(0.96, 0.999)), 1500)),
    (0.1, 5, 0.29258409, OptimizerCase("SGD", lambda p: SGD(p, lr=1.0, momentum=0.96), 1400)),
    (0.1, 5, 0.29258409, OptimizerCase("Adam", lambda p: Adam(p, lr=0.3), 1400)),
    (0.1, 5, 0.29258409, OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=10.0), 1500)),
    (0.01, 13, 0.10748301, OptimizerCase("SGD", lambda p: SGD(p, lr=1.0, momentum=0.96), 2200)),
    (0.01, 13, 0.10748301, OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=10.0), 4000)),
]
LONG = [pytest.param(*row, marks=pytest.mark.slow if row[3].iterations > 2000 else ()) for row in LOGISTIC]


@pytest.mark.parametrize(("fraction", "count", "least", "case"), LONG, ids=str)
def test_logistic_lasso_is_scikit_learns(fraction, count, least, case):
    problem = breast_cancer_logistic_lasso(fraction, intercept=True)
    assert problem.strength / fraction == pytest.approx(0.383683244478, rel=1e-10)
    model = problem.model()
    found = solve(problem, L1(problem.strength), case.make, case.iterations, model=model)
    assert int((found != 0).sum()) == count
    assert_same(found, problem.solution)
    assert model.bias.item() == pytest.approx(problem.intercept, abs=1e-8)
    objective = problem.loss(model).detach() + L1(problem.strength).value(found)
    assert float(objective) == pytest.approx(least, abs=1e-8)


@pytest.mark.parametrize("fraction", [0.5, 0.1])
def test_logistic_lasso_without_intercept_is_liblinears(fraction):
    problem = breast_cancer_logistic_lasso(fraction, intercept=False)
    found = solve(problem, L1(problem.strength), lambda p: SGD(p, lr=1.0, momentum=0.96), 1500)
    assert_same(found, problem.solution)


@pytest.mark.slow
class TestSkglm:
    """Marked slow because its solvers are compiled first."""

    @pytest.mark.parametrize(
        "case",
        [
            # The prox stretches where the penalty is concave; momentum stays stable if lr < gamma (1 - momentum)^2.
            OptimizerCase("SGD", lambda p: SGD(p, lr=0.02, momentum=0.9), 1500),
            OptimizerCase("Adam", lambda p: Adam(p, lr=0.01), 1500),
            OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=0.3), 600),
        ],
        ids=str,
    )
    def test_mcp_from_zero_is_skglms(self, case):
        skglm = pytest.importorskip("skglm")
        problem = diabetes_mcp(0.1, 3.0, skglm.MCPRegression)
        penalty = MCP(0.1, gamma=3.0)
        found = solve(problem, penalty, case.make, case.iterations)
        for w in (found, problem.solution):
            gradient = (problem.x @ w.T - problem.y).T @ problem.x / len(problem.x)
            assert penalty.residual(w, gradient).max() <= 1e-12
        assert found.nonzero()[:, 1].tolist() == [2, 3, 8]
        assert_same(found, problem.solution)

    @pytest.mark.parametrize("case", PAIRS_OPTIMIZERS, ids=str)
    def test_group_lasso_is_skglms(self, case):
        skglm = pytest.importorskip("skglm")
        problem = diabetes_pairs(0.1, skglm.GroupLasso)
        found = solve(problem, GroupLasso(0.1, Blocks(1, 2), weigh_by_size=False), case.make, case.iterations)
        assert_same(found, problem.solution)


def test_a_threshold_in_the_plain_metric_after_adam_solves_another_problem():
    problem = diabetes_lasso()
    found = solve(problem, L1(problem.strength), lambda p: Adam(p, lr=0.01), 1500, how="decoupled")
    assert int((found == 0).sum()) == 0
    assert (found - problem.solution).abs().max() > 0.3


def test_a_threshold_in_the_plain_metric_after_momentum_solves_the_problem_of_a_tenth():
    problem, tenth = diabetes_lasso(), diabetes_lasso(0.005)
    found = solve(problem, L1(problem.strength), lambda p: SGD(p, lr=0.05, momentum=0.9), 1500, how="decoupled")
    assert_same(found, tenth.solution)
    assert int((found == 0).sum()) == 2
    assert (found - problem.solution).abs().max() > 0.1


@pytest.mark.parametrize("name", ["SGD momentum", "Adam"])
def test_gradient_solves_the_same_problem_without_a_zero(name):
    problem = diabetes_lasso()
    (case,) = [case for case in OPTIMIZERS if case.name == name]
    found = solve(problem, L1(problem.strength), case.make, case.iterations, how="gradient")
    assert int((found == 0).sum()) == 0
    assert (found - problem.solution).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "how", "zeros", "gap_above", "gap_below"),
    [
        ("SGD", "proximal", 4, 0, 1e-12),
        ("SGD momentum", "proximal", 4, 0, 1e-12),
        ("Adam", "proximal", 4, 0, 1e-12),
        ("SGD", "decoupled", 4, 0, 1e-12),
        ("SGD", "gradient", 0, 1e-6, 1e-2),
        ("SGD momentum", "gradient", 0, 1e-6, 1e-1),
        ("SGD momentum", "decoupled", 2, 1e-2, 1),
        ("Adam", "decoupled", 0, 5e-2, 1),
    ],
)
def test_what_each_way_in_solves(name, how, zeros, gap_above, gap_below):
    problem = diabetes_lasso()
    (case,) = [case for case in OPTIMIZERS if case.name == name]
    found = solve(problem, L1(problem.strength), case.make, case.iterations, how=how)
    gap = float(lasso_gap(problem.x, problem.y, found, problem.strength))
    assert int((found == 0).sum()) == zeros
    assert gap_above <= gap <= gap_below
