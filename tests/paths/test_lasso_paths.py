"""Paths of linear models are those of scikit-learn: the same weights, the same errors of folds, the same choice."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from late import linear_model, model_selection
from problems import standardised_diabetes
from shrinkage import L1, Path, path

X, Y = map(torch.tensor, standardised_diabetes())
STRENGTH_MAX = float((X.T @ Y).abs().max() / len(Y))


def linear(bias=False):
    model = nn.Linear(10, 1, bias=bias, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def solver(model, x, y, tolerance, updates=20_000):
    """Return what trains by the gradients of half the mean squared error until the problem is solved."""
    size, centre, mean = len(y), x.mean(0), y.mean()
    x, y = (x - centre, y - mean) if model.bias is not None else (x, y)
    curvature, slope = x.T @ x / size, x.T @ y / size

    def fit(regularizer):
        regularizer.attach(optimizer := SGD([model.weight], lr=0.8, momentum=0.83))
        for update in range(updates):
            model.weight.grad = (model.weight.detach() @ curvature) - slope
            if update % 20 == 0 and solved(regularizer, model.weight, tolerance):
                break
            optimizer.step()
        if model.bias is not None:
            with torch.no_grad():
                model.bias.copy_(mean - model.weight @ centre)

    return fit


def solved(regularizer, w, tolerance):
    (entry,) = regularizer.plan
    return float(entry.penalty.residual(w.detach(), w.grad).max()) < tolerance * entry.penalty.strength


@pytest.mark.parametrize("order", [1, -1], ids=["sparse to dense", "dense to sparse"])
def test_a_path_of_the_lasso_is_that_of_scikit_learn(order):
    x, y = standardised_diabetes()
    strengths = np.geomspace(0.99, 0.01, 12) * STRENGTH_MAX
    _, expected, _ = linear_model.lasso_path(x, y, alphas=strengths, tol=1e-14, max_iter=1_000_000)
    model = linear()
    found = path(model, L1, solver(model, X, Y, 1e-8), strengths=strengths[::order])
    coefficients = found.coefficients("weight")[:, 0].numpy()
    assert len(found) == 12
    assert abs(coefficients - expected.T[::order]).max() < 1e-8
    assert ((coefficients != 0) == (expected.T[::order] != 0)).all()
    assert [point.zeros for point in found] == list((expected == 0).sum(0)[::order])
    assert np.array_equal(model.weight[0].detach().numpy(), coefficients[-1])


def folds_along(strengths, splits, x, y):
    paths = []
    for train, test in splits:
        model, held_out = linear(bias=True), (x[test], y[test])

        def errors(model, held_out=held_out):
            return (model(held_out[0])[:, 0] - held_out[1]).square()

        fit = solver(model, x[train], y[train], 1e-9)
        paths.append(path(model, L1, fit, strengths=strengths, score=errors))
    return Path.together(paths)


@pytest.mark.parametrize(
    ("count", "shortest"), [(6, 1e-2), pytest.param(100, 1e-3, marks=pytest.mark.slow)], ids=["few", "default"]
)
def test_joined_folds_have_the_errors_and_the_choice_of_lasso_cv(count, shortest):
    x, y = standardised_diabetes()
    alphas = 0.99 * linear_model.LassoCV(alphas=count, eps=shortest, cv=5).fit(x, y).alphas_
    peer = linear_model.LassoCV(alphas=alphas, cv=5, tol=1e-12, max_iter=1_000_000).fit(x, y)
    joined = folds_along(alphas, model_selection.KFold(5).split(x), X, Y)
    errors = np.array([point.score for point in joined])
    assert abs(errors - peer.mse_path_.mean(1)).max() < 1e-8
    spread = peer.mse_path_.std(1, ddof=1) / 5**0.5
    assert abs(np.array([point.error for point in joined]) - spread).max() < 1e-8
    assert joined.best.strength == peer.alpha_
    one = max(a for a, e in zip(alphas, errors, strict=True) if e <= errors.min() + spread[errors.argmin()])
    assert joined.one_standard_error.strength == one > peer.alpha_


def test_a_number_of_strengths_ends_where_nothing_is_left():
    model = linear()

    def loss():
        return 0.5 * (model(X)[:, 0] - Y).square().mean()

    fit = solver(model, X, Y, 1e-6)
    found = path(model, L1, fit, strengths=4, closure=loss)
    assert found.strengths == pytest.approx([STRENGTH_MAX / 10**power for power in (3, 2, 1, 0)], rel=1e-9)
    assert [point.empty for point in found] == [False, False, False, True]
    twice = path(model, lambda s: {"weight": L1(2 * s)}, fit, strengths=2, closure=loss)
    assert twice.strengths[-1] == pytest.approx(STRENGTH_MAX / 2, rel=1e-9)


def test_refits_are_least_squares_on_what_is_left():
    model = linear()
    least_squares = solver(model, X, Y, 0.0, updates=400)
    strengths = [0.05, 0.4]
    found = path(model, L1, solver(model, X, Y, 1e-8), strengths=strengths, refit=least_squares)
    plain = linear()
    alone = path(plain, L1, solver(plain, X, Y, 1e-8), strengths=strengths)
    assert torch.equal(found.coefficients("weight"), alone.coefficients("weight"))  # the path goes on from the fits
    for point in found.refits:
        w = point.state["weight"][0]
        support = w != 0
        assert torch.equal(support, found.at(point).state["weight"][0] != 0)
        solution = torch.linalg.lstsq(X[:, support], Y[:, None]).solution[:, 0]
        assert (w[support] - solution).abs().max() < 1e-9
