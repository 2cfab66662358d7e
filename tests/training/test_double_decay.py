"""Weights that decay twice are seen when a regularizer is attached."""

import warnings

import pytest
from torch.optim import ASGD, SGD, Adam, AdamW, Muon

from models import mlp
from shrinkage import L1, L2, MCP, ElasticNet, Grouped, Huber, Regularizer, Rows, Rule, regularize

RULES = {"*.weight": L2(1e-3)}
DECAYING = {
    "AdamW decays them by weight_decay=0.01 as well [(]its default[)]": lambda p: AdamW(p),
    "AdamW decays them by weight_decay=0.2 as well;": lambda p: AdamW(p, weight_decay=0.2),
    "Muon decays them by weight_decay=0.1 as well [(]its default[)]": lambda p: Muon(
        [each for each in p if each.dim() == 2]
    ),
    "ASGD decays them by lambd=0.0001 as well [(]its default[)]": lambda p: ASGD(p),
    "SGD decays them by weight_decay=0.0005 as well;": lambda p: SGD(p, lr=0.1, weight_decay=5e-4),
}


@pytest.mark.parametrize(("match", "make"), DECAYING.items(), ids=list(DECAYING))
def test_attaching_warns_once(match, make):
    model = mlp()
    with pytest.warns(UserWarning, match=match) as told:
        Regularizer(model, RULES, how="gradient").attach(make(model.parameters()))
    assert len(told) == 1
    assert "'0.weight', '2.weight' are penalized by L2(strength=0.001)" in str(told[0].message)


@pytest.mark.parametrize(
    "penalty", [ElasticNet(0.1, 0.1), Huber(0.1, delta=1.0), MCP(0.1) + L2(0.1), Grouped(L2(0.1), Rows())], ids=str
)
def test_all_that_decays_is_seen(penalty):
    model = mlp()
    with pytest.warns(UserWarning, match="'0.weight' is penalized by"):
        Regularizer(model, {"0.weight": penalty}).attach(AdamW(model.parameters()))


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), Adam, lambda p: AdamW(p, weight_decay=0)])
def test_optimizers_without_decay_are_silent(make):
    model = mlp()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Regularizer(model, RULES).attach(make(model.parameters()))
    assert not told


@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, 0.0), L2(0.0)], ids=str)
def test_what_does_not_decay_is_noted_in_print(penalty):
    model = mlp()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer = AdamW(model.parameters())
        regularizer = Regularizer(model, {"0.weight": penalty}).attach(optimizer)
    assert not told
    assert repr(regularizer).endswith("\n+ weight_decay 0.01 of AdamW: '0.weight'")


def test_a_group_of_its_own_is_asked():
    model = mlp()
    groups = [{"params": model[0].parameters(), "weight_decay": 0.0}, {"params": model[2].parameters()}]
    with pytest.warns(UserWarning, match="'2.weight' is penalized by"):
        Regularizer(model, RULES).attach(AdamW(groups))


def test_what_comes_later_is_seen():
    model = mlp()
    with pytest.warns(UserWarning, match="penalized by L2"):
        Regularizer(model, Rule(L1(0.1), until=5, after=L2(0.1))).attach(AdamW(model.parameters()))


def test_a_layer_that_declares_decay_is_told_at_the_first_step():
    model = mlp()
    regularize(model[0], L2(0.1))
    optimizer = AdamW(model.parameters())
    model(model[0].weight.new_ones(6)).sum().backward()
    with pytest.warns(UserWarning, match="penalized by L2"):
        optimizer.step()
