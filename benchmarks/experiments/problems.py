"""Convex problems whose solutions are known from outside, and data whose true weights are known."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from shrinkage import L1, Columns, GroupLasso, Penalty, Regularizer, Residuals

LARGEST_PIXEL = 16

Loss = Callable[[Tensor, Tensor], Tensor]


def half_squares(predicted: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error of an example, averaged over examples: `(..., examples, outputs)` to `(...)`."""
    return (predicted - target).square().sum(-1).mean(-1) / 2


def logistic(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of labels 0 and 1: `(..., examples, 1)` to `(...)`."""
    return binary_cross_entropy_with_logits(predicted, target, reduction="none").squeeze(-1).mean(-1)


@dataclass(frozen=True, eq=False, slots=True)
class Problem:
    """Minimize the mean loss of a linear model plus a penalty on its weight.

    Args:
        x: `(examples, features)`.
        y: `(examples, outputs)`.
        loss: of predictions and targets.
        penalty: of the weight.
        strength: of the penalty.
        bias: whether the model has one; it is never penalized.
        solution: the weight that an outside solver finds, `(outputs, features)`.
        solution_bias: its bias, `(outputs,)`; zeros if the model has none.
    """

    x: Tensor
    y: Tensor
    loss: Loss
    penalty: Penalty
    strength: float
    bias: bool
    solution: Tensor
    solution_bias: Tensor

    def model(self, weight: Tensor | None = None, bias: Tensor | None = None) -> nn.Linear:
        """Return a linear model with these weights, 0 where they are left out."""
        linear = nn.Linear(self.x.shape[1], self.y.shape[1], bias=self.bias, dtype=self.x.dtype)
        with torch.no_grad():
            for parameter, value in ((linear.weight, weight), (linear.bias, bias)):
                if parameter is not None:
                    parameter.copy_(torch.zeros_like(parameter) if value is None else value)
        return linear

    def mean_loss(self, model: nn.Linear) -> Tensor:
        """Return the loss of all data."""
        return self.loss(model(self.x), self.y)

    @torch.no_grad()
    def objective(self, model: nn.Linear) -> float:
        """Return the loss of all data plus the penalty."""
        return float(self.mean_loss(model) + self.penalty.value(model.weight))

    def gap(self, model: nn.Linear) -> float:
        """Return how far the objective is above that of the outside solution."""
        return self.objective(model) - self.objective(self.model(self.solution, self.solution_bias))

    def residuals(self, model: nn.Linear) -> Residuals:
        """Return how far a model is from solving the problem."""
        return Regularizer(model, {"weight": self.penalty}).residuals(lambda: self.mean_loss(model))


@cache
def breast_cancer_lasso(share: float = 0.1) -> Problem:
    """Return logistic regression on standardised data at `share` of the largest L1 strength, solved by scikit-learn."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    strength = share * float(abs(x.T @ (y - y.mean())).max() / len(x))
    solver = LogisticRegression(C=1 / (len(x) * strength), l1_ratio=1.0, solver="saga", tol=1e-12, max_iter=100_000)
    solver.fit(x, y)
    solution, bias = torch.tensor(solver.coef_), torch.tensor(solver.intercept_)
    target = torch.tensor(y, dtype=torch.float64)[:, None]
    return Problem(torch.tensor(x), target, logistic, L1(strength), strength, True, solution, bias)


@cache
def diabetes_lasso(strength: float = 0.05) -> Problem:
    """Return the lasso on standardised data, solved by scikit-learn."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    solver = Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(x, y)
    solution = torch.tensor(solver.coef_)[None]
    return without_bias(torch.tensor(x), torch.tensor(y)[:, None], L1(strength), strength, solution)


@cache
def digits_group_lasso(share: float = 0.2) -> Problem:
    """Return one-hot regression with a group per pixel at `share` of the largest strength, solved by scikit-learn."""
    x, labels = load_digits(return_X_y=True)
    x = x / LARGEST_PIXEL
    y = one_hot(torch.tensor(labels)).double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    strength = share * float(((x.T @ y) ** 2).sum(1).max() ** 0.5 / len(x))
    solver = MultiTaskLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y)
    penalty = GroupLasso(strength, Columns(), weigh_by_size=False)
    return without_bias(torch.tensor(x), torch.tensor(y), penalty, strength, torch.tensor(solver.coef_))


def without_bias(x: Tensor, y: Tensor, penalty: Penalty, strength: float, solution: Tensor) -> Problem:
    """Return a least squares problem whose model has no bias."""
    return Problem(x, y, half_squares, penalty, strength, False, solution, x.new_zeros(len(solution)))


@dataclass(frozen=True, eq=False, slots=True)
class Synthetic:
    """Repetitions of a regression with known sparse weights.

    Args:
        x: `(repetitions, examples, features)`, columns of mean 0 and mean square 1.
        y: `(repetitions, examples, 1)`.
        truth: `(repetitions, features)`.
    """

    x: Tensor
    y: Tensor
    truth: Tensor


def sparse_regression(
    repetitions: int,
    *,
    smallest: float,
    examples: int = 200,
    features: int = 400,
    support: int = 10,
    noise: float = 2.0,
    seed: int = 0,
) -> Synthetic:
    """Return normal data and noise, and `support` weights of random sign, sizes uniform in `smallest` to 2 more."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(repetitions, examples, features)
    x = x - x.mean(1, keepdim=True)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    sizes = smallest + 2 * torch.rand((repetitions, support), generator=generator, dtype=torch.float64)
    places = torch.stack([torch.randperm(features, generator=generator)[:support] for _ in range(repetitions)])
    truth = x.new_zeros(repetitions, features).scatter(1, places, sizes * normal(repetitions, support).sign())
    y = x @ truth[:, :, None] + noise * normal(repetitions, examples, 1)
    return Synthetic(x, y - y.mean(1, keepdim=True), truth)
