"""Problems with outside solutions: what a penalty's strength has to mean."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from late import celer, datasets, linear_model
from models import train_step
from shrinkage import Penalty, Regularizer

LASSO_STRENGTH = 0.05
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Least squares |x @ W.T - y|^2 / (2 n), without intercept, and the weights that an outside solver finds."""

    x: Tensor
    y: Tensor
    solution: Tensor
    strength: float

    def loss(self, model: nn.Linear) -> Tensor:
        return (model(self.x) - self.y).square().sum() / (2 * len(self.x))

    def model(self) -> nn.Linear:
        model = nn.Linear(self.x.shape[1], self.y.shape[1], bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        return model


@dataclass(frozen=True)
class LogisticProblem(Problem):
    """The mean logistic loss of labels -1 and 1; with `intercept`, the model has a bias that nothing penalizes."""

    intercept: float | None = None

    def loss(self, model: nn.Linear) -> Tensor:
        return nn.functional.softplus(-self.y * model(self.x)).mean()

    def model(self) -> nn.Linear:
        model = nn.Linear(self.x.shape[1], 1, bias=self.intercept is not None, dtype=torch.float64)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return model


def least_squares(x: Array, y: Array, solution: Array, strength: float) -> Problem:
    """A problem of one output."""
    return Problem(torch.tensor(x), torch.tensor(y)[:, None], torch.tensor(solution)[None], strength)


def standardised_diabetes() -> tuple[Array, Array]:
    x, y = datasets.load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def centred_diabetes() -> tuple[Array, Array]:
    """As scikit-learn bundles it: columns of norm 1, targets of 25 to 346."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return x - x.mean(0), y - y.mean()


def standardised_breast_cancer() -> tuple[Array, Array]:
    x, labels = datasets.load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), 2.0 * labels - 1


@cache
def diabetes_lasso(strength: float = LASSO_STRENGTH) -> Problem:
    """The lasso on standardised diabetes data, solved by scikit-learn: 6 of 10 weights are not zero."""
    x, y = standardised_diabetes()
    solver = linear_model.Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(x, y)
    return least_squares(x, y, solver.coef_, strength)


@cache
def bundled_diabetes_lasso(alpha: float, solver=None) -> Problem:
    """The lasso on the diabetes data as they come: the largest curvature is 500 times the smallest."""
    x, y = centred_diabetes()
    solved = (solver or linear_model.Lasso)(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(x, y)
    return least_squares(x, y, solved.coef_, alpha)


@cache
def diabetes_elastic_net(alpha: float, l1_ratio: float) -> Problem:
    """The elastic net on diabetes data with standardised columns and targets of 25 to 346."""
    x, y = standardised_diabetes()[0], centred_diabetes()[1]
    solver = linear_model.ElasticNet(
        alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-14, max_iter=1_000_000
    ).fit(x, y)
    return least_squares(x, y, solver.coef_, alpha)


@cache
def digits_group_lasso(fraction: float = 0.2) -> Problem:
    """One-hot regression on digits with a group per pixel, at 0.2 of the largest strength: 33 of 64 pixels are zero."""
    x, labels = datasets.load_digits(return_X_y=True)
    x = x / 16
    y = torch.nn.functional.one_hot(torch.tensor(labels)).double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    strength_max = float(((x.T @ y) ** 2).sum(1).max() ** 0.5 / len(x))
    strength = fraction * strength_max
    solver = linear_model.MultiTaskLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y)
    return Problem(torch.tensor(x), torch.tensor(y), torch.tensor(solver.coef_), strength)


@cache
def diabetes_pairs(strength: float, solver=None) -> Problem:
    """The group lasso on standardised diabetes data, two columns per group, not weighed by their size."""
    x, y = standardised_diabetes()
    solved = (solver or celer.GroupLasso)(groups=2, alpha=strength, fit_intercept=False, tol=1e-14).fit(x, y)
    return least_squares(x, y, solved.coef_, strength)


@cache
def diabetes_mcp(strength: float, gamma: float, solver) -> Problem:
    """The minimax concave penalty on standardised diabetes data."""
    x, y = standardised_diabetes()
    solved = solver(alpha=strength, gamma=gamma, fit_intercept=False, tol=1e-14).fit(x, y)
    return least_squares(x, y, solved.coef_, strength)


@cache
def breast_cancer_logistic_lasso(fraction: float, intercept: bool) -> LogisticProblem:
    """The logistic lasso on standardised breast cancer data, at a fraction of the largest strength."""
    x, labels = standardised_breast_cancer()
    share = labels.mean() if intercept else 0.0
    strength = fraction * float(np.abs(x.T @ (labels - share)).max() / (2 * len(x)))
    # liblinear penalizes the intercept; saga does not, and takes a thousand times as long.
    how = {"solver": "saga", "tol": 1e-14} if intercept else {"solver": "liblinear", "tol": 1e-13, "random_state": 0}
    solver = linear_model.LogisticRegression(
        C=1 / (len(x) * strength), l1_ratio=1.0, fit_intercept=intercept, max_iter=1_000_000, **how
    ).fit(x, labels)
    bias = float(solver.intercept_[0]) if intercept else None
    return LogisticProblem(torch.tensor(x), torch.tensor(labels)[:, None], torch.tensor(solver.coef_), strength, bias)


def solve(problem: Problem, penalty: Penalty, make, iterations: int, how="proximal", model=None) -> Tensor:
    """Train a linear model, from zero if none is given, on the whole problem, and return its weights."""
    model = problem.model() if model is None else model
    optimizer = make(model.parameters())
    Regularizer(model, penalty, how=how).attach(optimizer)
    for _ in range(iterations):
        train_step(optimizer, problem.loss(model))
    return model.weight.detach()
