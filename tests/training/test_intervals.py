"""Proximal operators at every k-th step, against the same with one at every step."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Rprop, SparseAdam

from models import batches, equal, loss_of, mlp, train
from shrinkage import L1, L2, Columns, GroupLasso, Nuclear, Regularizer, Rows, Rule, SelectionError
from shrinkage.optimizers.adaptive_step import number
from shrinkage.optimizers.registry import metric_of

K = 4
MAKES = {
    "SGD": lambda p: SGD(p, lr=0.01),
    "Adam": lambda p: Adam(p, lr=0.01),
    "AdamW fused": lambda p: AdamW(p, lr=0.01, fused=True, weight_decay=0.0),
}


def layer_with(weight, grad):
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight = nn.Parameter(weight.clone())
    layer.weight.grad = grad.clone()
    return layer


def stepped(weight, grad, make, penalty, every, count=3 * K):
    """The weight after steps with a constant gradient."""
    layer = layer_with(weight, grad)
    optimizer = make(layer.parameters())
    Regularizer(layer, Rule(penalty, every=every)).attach(optimizer)
    for _ in range(count):
        optimizer.step()
    return layer.weight.detach()


@pytest.mark.parametrize("make", MAKES)
def test_a_constant_gradient_and_l1_lead_to_the_same_weights(make):
    """As long as no weight passes zero."""
    weight = torch.tensor([[5.0, -5.0, 3.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
    grad = torch.tensor([[1.0, 1.0, -0.2], [0.7, 0.3, -0.1]], dtype=torch.float64)
    each, seldom = (stepped(weight, grad, MAKES[make], L1(0.5), every) for every in (1, K))
    torch.testing.assert_close(each, seldom, rtol=1e-12, atol=1e-12)
    assert (seldom == 0).sum() == 2
    assert not torch.equal(stepped(weight, grad, MAKES[make], L1(0.5), K, count=K + 1), each)


@pytest.mark.parametrize("penalty", [GroupLasso(0.5, Rows()), Nuclear(0.3)], ids=str)
def test_without_a_gradient_groups_and_singular_values_shrink_to_the_same(penalty):
    torch.manual_seed(0)
    weight, grad = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    each, seldom = (stepped(weight, grad, MAKES["SGD"], penalty, every) for every in (1, K))
    torch.testing.assert_close(each, seldom, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.2, Rows()), GroupLasso(0.2, Columns())], ids=str)
def test_solutions_stay(make, penalty):
    """Where minus the gradient is in the subdifferential, weights are back after every k-th step."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64)
    weight[0], weight[:, 1] = 0, 0
    grad = -penalty.gradient(weight)
    found = stepped(weight, grad, MAKES[make], penalty, K)
    torch.testing.assert_close(found, weight, rtol=1e-10, atol=1e-10)
    assert torch.equal(found == 0, weight == 0)


@pytest.mark.parametrize(
    "make", [lambda p: Rprop(p, lr=0.01), lambda p: Adadelta(p, lr=1.0), MAKES["SGD"]], ids=["Rprop", "Adadelta", "SGD"]
)
def test_steps_are_added_up(make, monkeypatch):
    """Element by element where the metric gives one number for each; large parameters in chunks too."""
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 12)
    ours, plain = mlp(), mlp()
    optimizer, by_hand = make(ours.parameters()), make(plain.parameters())
    Regularizer(ours, Rule(L1(0.05), "0.weight", every=3)).attach(optimizer)
    metric, weight, total = metric_of(by_hand), plain[0].weight, 0.0
    for index, batch in enumerate(batches(7)):
        for model, each in ((ours, optimizer), (plain, by_hand)):
            each.zero_grad()
            loss_of(model, batch).backward()
            group = by_hand.param_groups[0]
            noted = {} if metric.before is None else metric.before(group, by_hand.state.get(weight, {}), weight)
            each.step()
        with torch.no_grad():
            total = total + number(metric.eta(group, {**by_hand.state[weight], **noted, "grad": weight.grad}, weight))
            if index % 3 == 2:
                weight.copy_(L1(0.05).prox(weight, total))
                total = 0.0
    torch.testing.assert_close(ours[0].weight, plain[0].weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stop", [4, 5, 6])
@pytest.mark.parametrize("make", [*MAKES.values(), lambda p: Rprop(p, lr=0.01)], ids=[*MAKES, "Rprop"])
@pytest.mark.parametrize("through", ["optimizer", "regularizer"])
def test_a_run_goes_on_between_two_proximal_operators(make, stop, through):
    def run():
        model = mlp()
        optimizer = make(model.parameters())
        return model, optimizer, Regularizer(model, [Rule(L1(0.05), "0.weight", every=3), Rule(L1(0.05), "2.weight")])

    straight, optimizer, regularizer = run()
    regularizer.attach(optimizer)
    train(straight, optimizer, stop)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    assert ("intervals" in saved[2]) == (stop % 3 > 0)
    train(straight, optimizer, 5)

    resumed, optimizer, regularizer = run()
    resumed.load_state_dict(saved[0])
    if through == "regularizer":
        del saved[1]["param_groups"][0]["shrinkage"]
        regularizer.load_state_dict(saved[2])
    optimizer.load_state_dict(saved[1])
    regularizer.attach(optimizer)
    train(resumed, optimizer, 5)
    assert equal(straight, resumed)


def test_a_step_without_a_gradient_does_not_count():
    layer = layer_with(torch.ones(2, 2), torch.zeros(2, 2))
    optimizer = SGD(layer.parameters(), lr=0.1)
    Regularizer(layer, Rule(L1(1.0), every=2)).attach(optimizer)
    optimizer.step()
    layer.weight.grad = None
    optimizer.step()
    assert torch.equal(layer.weight, torch.ones(2, 2))
    layer.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(layer.weight, torch.full((2, 2), 0.8))


def test_an_update_that_an_overflow_skips_adds_nothing():
    layer = layer_with(torch.ones(2, 2), torch.zeros(2, 2))
    optimizer = AdamW(layer.parameters(), lr=0.1, fused=True, weight_decay=0.0)
    Regularizer(layer, Rule(L1(1.0), every=2)).attach(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), 0.9))


def test_what_is_printed_and_what_is_refused():
    model = mlp()
    regularizer = Regularizer(model, Rule(Nuclear(0.1), "0.weight", every=10))
    assert "proximal, every 10 steps" in str(regularizer)
    for every in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="every must be a whole number of at least 1"):
            Rule(L1(0.1), every=every)
    with pytest.raises(ValueError, match="acts through its derivative"):
        Rule(L1(0.1), how="gradient", every=2)
    with pytest.raises(ValueError, match="acts through its derivative"):
        Rule(L2(0.1), how="decoupled", every=2)
    model[2].weight = nn.Parameter(torch.randn(8, 6))
    model[0].weight = model[2].weight
    with pytest.raises(SelectionError, match="two rules clash"):
        Regularizer(model, [Rule(L1(0.1), "0.weight", every=2), Rule(L1(0.1), "2.weight")])
    other = Regularizer(mlp(), Rule(L1(0.1), "2.weight"))
    with pytest.raises(ValueError, match=r"intervals of '0\.weight'"):
        other.load_state_dict({"version": 1, "updates": [1], "intervals": [{"0.weight": {"total": 0.1, "steps": 1}}]})


def test_what_waits_for_other_rules_is_dropped():
    """A rule that penalized a parameter that is gone from the optimizer leaves nothing behind in what is saved."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, Rule(L1(0.1), "*.weight", every=5)).attach(optimizer)
    train(model, optimizer, 2)
    assert sorted(regularizer.state_dict()["intervals"][0]) == ["0.weight", "2.weight"]
    optimizer.param_groups[0]["params"] = [
        each for each in optimizer.param_groups[0]["params"] if each is not model[0].weight
    ]
    train(model, optimizer, 1)
    assert sorted(regularizer.state_dict()["intervals"][0]) == ["2.weight"]


def test_sparse_gradients_of_a_large_table(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 8)
    torch.manual_seed(0)
    table = nn.Embedding(20, 4, sparse=True)
    optimizer = SparseAdam(table.parameters(), lr=0.01)
    Regularizer(table, Rule(L1(0.1), "weight", every=2)).attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([3, 5])).square().sum().backward()
        before = table.weight.detach().clone()
        optimizer.step()
    touched = torch.zeros(20, dtype=torch.bool).index_fill_(0, torch.tensor([3, 5]), True)
    torch.testing.assert_close(table.weight[~touched], L1(0.1).prox(before[~touched], 0.02))
