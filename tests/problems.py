"""Convex problems with outside solutions: what a penalty's strength has to mean."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Lasso, MultiTaskLasso
from torch import Tensor, nn

LASSO_STRENGTH = 0.05


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


@cache
def diabetes_lasso() -> Problem:
    """The lasso on standardised diabetes data, solved by scikit-learn: 6 of 10 weights are not zero."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    solver = Lasso(alpha=LASSO_STRENGTH, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(x, y)
    return Problem(torch.tensor(x), torch.tensor(y)[:, None], torch.tensor(solver.coef_)[None], LASSO_STRENGTH)


@cache
def digits_group_lasso() -> Problem:
    """One-hot regression on digits with a group per pixel, at 0.2 of the largest strength: 33 of 64 pixels are zero."""
    x, labels = load_digits(return_X_y=True)
    x = x / 16
    y = torch.nn.functional.one_hot(torch.tensor(labels)).double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    strength_max = float(((x.T @ y) ** 2).sum(1).max() ** 0.5 / len(x))
    strength = 0.2 * strength_max
    solver = MultiTaskLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y)
    return Problem(torch.tensor(x), torch.tensor(y), torch.tensor(solver.coef_), strength)
