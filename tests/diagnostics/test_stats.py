"""The numbers that are logged, against sums and counts that are written out."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import train_step
from shrinkage import (
    L0,
    L1,
    Budget,
    Coupled,
    CoupledChannels,
    ElasticNet,
    Grouped,
    GroupLasso,
    L1Ball,
    Member,
    Regularizer,
    Rows,
    Rule,
    SparseGroupLasso,
    regularize,
)


def network(dtype=torch.float32):
    """Two layers of 4 and 2 rows; row 1 of the first is zero, and one more weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[2, 0] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_elements(dtype):
    model = network(dtype)
    stats = Regularizer(model, {"0.weight": L1(0.5), "2.weight": ElasticNet(0.1, 0.2)}).stats()
    first, last = model[0].weight.detach().double(), model[2].weight.detach().double()
    penalty = 0.5 * first.abs().sum() + 0.1 * last.abs().sum() + 0.1 * last.square().sum()
    assert stats.pop("shrinkage/penalty") == pytest.approx(float(penalty), rel=1e-5)
    assert stats == {
        "shrinkage/zeros": 4 / 20,
        "shrinkage/dead_layers": 0,
        "shrinkage/strength/0.weight": 0.5,
        "shrinkage/strength/2.weight/l1": 0.1,
        "shrinkage/strength/2.weight/l2": 0.2,
    }


@pytest.mark.parametrize(
    "penalty", [GroupLasso(0.1, Rows()), SparseGroupLasso(0.1, 0.1, Rows()), Grouped(L0(1e-3), Rows())]
)
def test_groups(penalty):
    stats = Regularizer(network(), penalty).stats()
    assert (stats["shrinkage/zeros"], stats["shrinkage/zero_groups"]) == (4 / 20, 1 / 6)


def test_groups_that_span_parameters():
    model = network()
    members = [Member("0.weight", 0, range(4)), Member("2.weight", 1, range(4))]
    rule = Rule(GroupLasso(0.1, Coupled(members)))
    assert Regularizer(model, rule).stats()["shrinkage/zero_groups"] == 0
    model[2].weight.data[:, 1] = 0
    stats = Regularizer(model, rule).stats()
    assert (stats["shrinkage/zeros"], stats["shrinkage/zero_groups"]) == (6 / 20, 1 / 4)
    assert stats["shrinkage/strength/GroupLasso"] == 0.1


def test_layers_that_are_zero():
    model = network()
    model[2].weight.data.zero_()
    stats = Regularizer(model, {nn.Linear: L1(0.1)}).stats()
    assert stats["shrinkage/dead_layers"] == 1
    assert stats["shrinkage/strength/Linear"] == 0.1


def test_schedules_and_rules_that_are_over():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    rules = [Rule(L1(lambda update: 0.1 * update), "0.*", until=3), Rule(L1(0.2), "2.weight", until=2, after=L1(0.05))]
    regularizer = Regularizer(model, rules).attach(optimizer)
    strengths = []
    for _ in range(4):
        stats = regularizer.stats()
        strengths.append(tuple(stats.get(f"shrinkage/strength/{rule}") for rule in ("0.*", "2.weight")))
        assert stats["shrinkage/penalty"] == pytest.approx(float(regularizer.value()))
        assert stats["shrinkage/zeros"] > 0
        train_step(optimizer, model(torch.ones(1, 3)).square().sum())
    assert strengths == [(0.0, 0.2), (0.1, 0.2), (0.2, 0.05), (None, 0.05)]


def test_constraints_have_no_strength():
    assert Regularizer(network(), L1Ball(1.0)).stats().keys() == {
        f"shrinkage/{name}" for name in ("penalty", "zeros", "dead_layers")
    }


def test_declared_layers_and_tied_parameters():
    model = nn.Sequential(regularize(nn.Linear(2, 2), L1(0.1)), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    torch.nn.init.ones_(model[0].weight)
    stats = Regularizer(model).stats()
    assert stats["shrinkage/penalty"] == pytest.approx(0.4)
    assert stats["shrinkage/strength/0.weight"] == 0.1


@pytest.mark.parametrize("coupled", [False, True], ids=["single weights", "channels"])
def test_budgets(coupled):
    model = network()
    groups = CoupledChannels(model, torch.randn(1, 3)) if coupled else None
    optimizer = SGD(model.parameters(), lr=0.1)
    budget = Budget(zeros=0.5, updates=40, groups=groups)
    regularizer = Regularizer(model, budget).attach(optimizer)
    assert not any("budget" in name for name in regularizer.stats())
    for _ in range(40):
        train_step(optimizer, (model(torch.ones(1, 3)) - 1).square().sum())
    stats, (progress,) = regularizer.stats(), regularizer.progress()
    assert stats["shrinkage/budget/reached"] == progress.reached
    assert stats["shrinkage/budget/wanted"] == progress.wanted
    assert stats["shrinkage/penalty"] == 0
    if coupled:
        assert stats["shrinkage/zero_groups"] == 0.5
    else:
        assert stats["shrinkage/zeros"] == 0.5


def test_nothing_changes():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    Regularizer(model, L1(0.1)).stats()
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
