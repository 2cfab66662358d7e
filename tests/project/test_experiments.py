"""The experiments, cut down to seconds, and what they show, cut down to what still shows it."""

import json
import sys

import pytest
import torch

from benchmarks.experiments import __main__ as command
from benchmarks.experiments.bias import bias
from benchmarks.experiments.delay import delay
from benchmarks.experiments.minibatches import minibatch_group_lasso, minibatch_lasso
from benchmarks.experiments.networks import Arm, networks
from benchmarks.experiments.problems import (
    breast_cancer_lasso,
    diabetes_lasso,
    digits_group_lasso,
    half_squares,
    sparse_regression,
)
from benchmarks.experiments.shortcuts import group_shortcuts, lasso_shortcuts
from benchmarks.experiments.training import SideBySide, adam, cosine, sgd, to_zero, train
from shrinkage import L1, MCP, SCAD, Blocks, Columns, GroupLasso, Regularizer

ENTRIES = (None, 0.99)

TINY = {
    "lasso": lambda seeds: minibatch_lasso(seeds, 20, ENTRIES, [sgd(0.1), adam(0.003, to_zero)]),
    "groups": lambda seeds: minibatch_group_lasso(seeds, 20, ENTRIES, [adam(0.003)]),
    "delay": lambda seeds: delay(seeds, 20, 10, ENTRIES, [sgd(0.1)]),
    "networks": lambda seeds: networks(seeds, ENTRIES, [Arm(sgd(0.1, cosine, momentum=0.9), 1e-3, 1)]),
    "lasso-shortcuts": lambda seeds: lasso_shortcuts(20),
    "group-shortcuts": lambda seeds: group_shortcuts(5),
    "bias": lambda seeds: bias(seeds, 3, [(sgd(0.1, momentum=0.9), 10)]),
    "bias-small": lambda seeds: bias(seeds, 3, [(sgd(0.2), 10)], smallest=1.0),
}


@pytest.mark.parametrize(
    ("problem", "alive", "objective"),
    [(breast_cancer_lasso, 5, 0.29258409), (diabetes_lasso, 6, None), (digits_group_lasso, 31, None)],
)
def test_outside_solutions_are_stationary(problem, alive, objective):
    stated = problem()
    solved = stated.model(stated.solution, stated.solution_bias)
    assert int((stated.solution != 0).any(0).sum()) == alive
    assert stated.residuals(solved).worst.relative < 1e-6
    assert stated.gap(solved) == 0
    assert stated.gap(stated.model()) > 0.01
    assert objective is None or stated.objective(solved) == pytest.approx(objective, abs=1e-8)


def test_synthetic_data_has_the_stated_weights():
    data = sparse_regression(3, smallest=1.0, examples=50, features=20, support=4, noise=0.0)
    assert (data.truth != 0).sum(1).tolist() == [4, 4, 4]
    assert data.truth[data.truth != 0].abs().min() >= 1
    assert torch.allclose(data.x @ data.truth[:, :, None], data.y)
    assert torch.allclose(data.x.square().mean(1), torch.ones(3, 20, dtype=torch.float64))


@pytest.mark.parametrize("recipe", [sgd(0.1, momentum=0.9), adam(0.01, to_zero)], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("hold_zeros", ENTRIES)
@pytest.mark.parametrize("outputs", [1, 3])
def test_models_side_by_side_are_trained_as_if_alone(recipe, hold_zeros, outputs):
    x, y = torch.randn(2, 40, 6, dtype=torch.float64), torch.randn(2, 40, outputs, dtype=torch.float64)
    rows = torch.randint(40, (50, 8))

    def trained(model, groups, x, y):
        penalty = L1(0.1) if outputs == 1 else GroupLasso(0.6, groups, weigh_by_size=False)
        optimizer = recipe.make(model.parameters())
        Regularizer(model, {"weight": penalty}, hold_zeros=hold_zeros).attach(optimizer)

        def loss(step):
            return half_squares(model(x[..., rows[step], :]), y[..., rows[step], :]).sum()

        train(optimizer, loss, 50, schedule=recipe.schedule)
        return model

    together = trained(SideBySide(2, outputs, 6, bias=True), Blocks(outputs, 1), x, y)
    for k in range(2):
        alone = torch.nn.Linear(6, outputs, dtype=torch.float64)
        for parameter in alone.parameters():
            torch.nn.init.zeros_(parameter)
        trained(alone, Columns(), x[k], y[k])
        assert torch.allclose(together.weights()[k], alone.weight, atol=1e-12)
        assert torch.allclose(together.biases()[k], alone.bias, atol=1e-12)
        assert torch.equal(together.weights()[k] == 0, alone.weight == 0)
    assert (together.weights() == 0).any()


def test_every_experiment_has_a_tiny_one():
    assert TINY.keys() == command.EXPERIMENTS.keys()


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", ["lasso", "groups"])
def test_identification_has_a_number_per_seed(name, seeds):
    result = TINY[name](seeds)
    assert len(result.runs) == (4 if name == "lasso" else 2)
    for runs in result.runs:
        for values in (runs.nonzero, runs.mismatch, runs.switching, runs.gap, runs.residual):
            assert len(values) == seeds
        assert all(0 <= count <= result.units for count in (*runs.nonzero, *runs.switching, *runs.mismatch))
        assert all(gap > 0 for gap in runs.gap)
        assert all(abs(n - result.exact) <= wrong for n, wrong in zip(runs.nonzero, runs.mismatch, strict=True))
    assert len(str(result).splitlines()) == 3 + len(result.runs)


def test_delay_counts_steps():
    result = TINY["delay"](2)
    assert [(wait.start, wait.hold_zeros) for wait in result.waits] == [
        (start, hold_zeros) for start in ("zero", "other problem") for hold_zeros in ENTRIES
    ]
    assert all(1 <= steps <= 20 for wait in result.waits for steps in (*wait.entered, *wait.close))
    assert len(str(result).splitlines()) == 3 + 4


def test_networks_count_zeros_among_the_small():
    result = TINY["networks"](2)
    for runs in result.runs:
        assert len(runs.accuracy) == len(runs.residual) == 2
        assert all(0 < zeros <= small < 1 for zeros, small in zip(runs.zeros, runs.small, strict=True))
    assert len(str(result).splitlines()) == 3 + 2


@pytest.mark.parametrize("name", ["lasso-shortcuts", "group-shortcuts"])
def test_shortcuts_name_every_way(name):
    result = TINY[name](1)
    assert len(set(map(str, result.outcomes))) == len(result.outcomes)
    assert all(0 <= each.zeros <= result.units and each.gap > 0 for each in result.outcomes)
    assert len(str(result).splitlines()) == 3 + len(result.outcomes)


def test_paths_have_a_best_point_per_repetition():
    result = TINY["bias"](2)
    assert len(result.strengths) == 3
    assert result.strengths == tuple(sorted(result.strengths, reverse=True))
    assert [end.penalty for end in result.ends] == ["L1", "MCP", "SCAD"]
    assert all(len(end.error) == len(end.exact) == 2 for end in result.ends)
    assert all(exact <= found for end in result.ends for exact, found in zip(end.exact, end.found, strict=True))
    assert len(str(result).splitlines()) == 3 + 3


def test_numbers_of_other_experiments_stay_in_the_file(tmp_path, monkeypatch, capsys):
    output = tmp_path / "runs" / "experiments.json"
    for name in TINY:
        monkeypatch.setitem(command.EXPERIMENTS, name, TINY[name])
    for only in ("lasso", "bias"):
        monkeypatch.setattr(sys, "argv", ["experiments", "--only", only, "--seeds", "1", "--output", str(output)])
        command.main()
    torch.set_flush_denormal(False)
    numbers = json.loads(output.read_text())
    assert numbers.keys() == {"lasso", "bias"}
    assert numbers["lasso"]["settings"]["seeds"] == 1
    assert numbers["lasso"]["runs"][0].keys() >= {"recipe", "hold_zeros", "nonzero", "gap"}
    assert "bias: best of 3 strengths" in capsys.readouterr().out


def test_averaged_gradients_find_the_support_under_minibatch_noise():
    """Logistic lasso, batches of 32: without them most weights flicker, with them the support is found."""
    without, held = minibatch_lasso(3, 4000, (None, 0.999), [sgd(0.5, to_zero)]).runs
    assert all(abs(count - 5) <= 1 for count in held.nonzero)
    assert all(wrong <= 2 for wrong in held.mismatch)
    assert all(count >= 15 for count in without.nonzero)
    assert max(held.residual) < 0.2 * min(without.residual)
    assert max(held.gap) < 1.5 * max(without.gap)


@pytest.mark.parametrize("recipe", [sgd(0.01, momentum=0.9), adam(0.003)], ids=lambda recipe: recipe.name)
def test_averages_no_longer_than_the_momentum_change_nothing(recipe):
    """Momentum moves zeros with the same average already, so that only a longer one holds more of them."""
    without, same, longer = minibatch_lasso(1, 500, (None, 0.9, 0.99), [recipe]).runs
    assert (same.nonzero, same.switching, same.gap) == (without.nonzero, without.switching, without.gap)
    assert longer.gap != without.gap


@pytest.mark.parametrize(("penalty", "limit"), [(MCP(1.0, gamma=3.0), 0.03), (SCAD(1.0, a=3.7), 0.027)], ids=repr)
def test_momentum_and_concavity_bound_the_learning_rate(penalty, limit):
    """A prox that expands by c cycles with momentum m unless c m < 1; at rest it solves the problem."""

    def last_weights(rate):
        model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        optimizer = sgd(rate, momentum=0.9).make(model.parameters())
        Regularizer(model, {"weight": penalty}).attach(optimizer)
        seen = []
        train(
            optimizer,
            lambda step: 0.5 * (model.weight - 2.5).square().sum(),
            2000,
            after_step=lambda step: seen.append(model.weight.item()),
        )
        return torch.tensor(seen[-200:], dtype=torch.float64)

    rest, cycle = last_weights(0.9 * limit), last_weights(1.1 * limit)
    solution = penalty.prox(torch.tensor(2.5, dtype=torch.float64), 1.0)
    assert (rest - solution).abs().max() < 1e-4
    assert cycle.max() - cycle.min() > 0.1
