"""Strengths to begin with: each layer's share of its own `strength_max`, and what a network does with them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from catalog import CONSTRAINTS, PENALTIES
from late import datasets
from models import batches, loss_of, mlp, train_step
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    Box,
    Budget,
    Coupled,
    ElasticNet,
    GroupLasso,
    MaxNorm,
    Member,
    Ramp,
    Regularizer,
    Rows,
    Rule,
    SelectionError,
    SparseGroupLasso,
    Toward,
    strength_max,
    suggest_strengths,
)
from shrinkage.diagnostics.suggested_strengths import with_strength

NO_STRENGTH = ("L2", "Huber", "Orthogonal", "FusedLasso", "L0", "Lp")


def asked(model, rules, **options):
    batch = batches(1, next(model.parameters()).dtype)[0]
    return suggest_strengths(model, lambda: loss_of(model, batch), rules, **options)


def test_each_layer_has_a_share_of_its_own_largest_strength():
    """`strength_max` for both rules together sets both layers to zero, where no gradient reaches either."""
    model, batch = mlp(), batches(1)[0]
    tops = [strength_max(model, lambda: loss_of(model, batch), {name: L1(1.0)}) for name in ("0.weight", "2.weight")]
    for rules in (L1(7.0), {nn.Linear: L1(0.0)}, [Rule(L1(1.0), "*.weight")]):
        found = asked(model, rules)
        assert [rule.penalty.strength for rule in found] == [top / 16 for top in tops]
        assert [rule.parameters for rule in found] == ["0.weight", "2.weight"]
        assert [rule.penalty.strength for rule in found.times(4.0)] == [4 * top / 16 for top in tops]
    assert asked(model, L1(1.0), share=0.5)[0].penalty.strength == 0.5 * tops[0]


def test_the_rules_are_those_of_a_regularizer():
    model = mlp()
    rules = [Rule(None, "2.*"), Rule(MaxNorm(3.0), "0.bias"), Rule(L1(1.0), "*.weight", every=1, until=100)]
    found = asked(model, rules)
    plan = Regularizer(model, found).plan
    assert [(entry.name, entry.penalty, entry.until) for entry in plan] == [
        ("0.weight", found[0].penalty, 100),
        ("0.bias", MaxNorm(3.0), None),
    ]
    assert list(found[1:]) == rules[:2]


@pytest.mark.parametrize("case", PENALTIES, ids=str)
def test_every_penalty_is_handled_or_refused_with_a_reason(case):
    torch.manual_seed(0)
    grad = torch.randn(case.shape, dtype=torch.float64)
    layer = nn.ParameterDict({"w": nn.Parameter(torch.randn(case.shape, dtype=torch.float64))})

    def loss():
        return (layer["w"] * grad).sum()

    penalty = case.make(1.0)
    handled = 0 < penalty.strength_max(grad) < torch.inf
    assert handled == (not penalty.smooth and not any(word in case.name for word in NO_STRENGTH if word != "L2"))
    if not handled:
        with pytest.raises(ValueError, match=r"'w': .*(it is smooth|withstands|differences alone|to be orthogonal)"):
            suggest_strengths(layer, loss, {"w": penalty})
        return
    found = suggest_strengths(layer, loss, {"w": penalty})
    assert found[0].penalty != penalty
    free = found.times(1e6)[0].penalty.residual(penalty.origin(grad), grad) > 0  # elements of weight 0
    assert not free.any() or "Weighted" in case.name
    for factor, stationary in ((16 * (1 + 1e-9), True), (16 * (1 - 1e-6), False)):
        (rule,) = found.times(factor)
        residual = rule.penalty.residual(penalty.origin(grad), grad)
        assert bool((residual[~free] <= 1e-12).all()) == stationary


@pytest.mark.parametrize("case", CONSTRAINTS, ids=str)
def test_a_constraint_stays_as_it_is_and_is_not_enough(case):
    model, constraint = mlp(), case.make()
    assert constraint.strengthless
    with pytest.raises(ValueError, match="no rule penalizes, with a strength, a parameter that takes a gradient"):
        asked(model, {"0.weight": constraint})
    assert asked(model, {"0.weight": L1(1.0), "2.bias": MaxNorm(1.0)})[1] == Rule(MaxNorm(1.0), "2.bias")


def test_what_else_stays_as_it_is():
    model, budget = mlp(), Budget(zeros=0.5, updates=1000)
    found = asked(model, [Rule(L1(1.0), "0.*"), Rule(budget, "2.weight"), Rule(None, "*")])
    assert [rule.parameters for rule in found] == ["0.weight", "0.bias", "2.weight", "*"]
    assert found[2].penalty is budget
    assert len(Regularizer(model, found).plan.budgets) == 1


def test_parts_of_a_strength():
    assert with_strength(ElasticNet(1.0, 0.5), 0.1) == ElasticNet(0.1, 0.5)
    assert with_strength(MCP(1.0, gamma=2.0), 0.1) == MCP(0.1, gamma=2.0)
    assert with_strength(MCP(1.0) + L2(0.5), 0.1) == MCP(0.1) + L2(0.5)
    assert with_strength(Box(-1.0, 1.0, L1(1.0)), 0.1) == Box(-1.0, 1.0, L1(0.1))
    assert with_strength(SparseGroupLasso(1.0, 3.0, Rows()), 8.0) == SparseGroupLasso(2.0, 6.0, Rows())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"0.weight": L2(1.0)}, r"'0.weight': no strength of L2.*it is smooth, .*None in place of this penalty"),
        ({"0.weight": L0(1.0)}, r"'0.weight': zero is stationary at every strength of L0.*None in place"),
        ({"0.weight": L1(Ramp(1.0, 10))}, r"has a schedule, and what is suggested is a number"),
        ([Rule(L1(1.0), "0.weight", "decoupled")], r'how="decoupled" is in units of weight decay'),
        ([Rule(L1(1.0), "0.weight", until=5, after=L1(0.1))], r"after=L1.* has a strength of its own"),
        ({"0.weight": None}, r"no rule penalizes, with a strength"),
    ],
    ids=str,
)
def test_what_is_refused_says_what_to_do(rules, message):
    with pytest.raises(ValueError, match=message):
        asked(mlp(), rules)


def test_a_layer_that_no_gradient_reaches_is_named():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match=r"no gradient reaches '0\.weight' where what L1.* train a few steps first"):
        asked(model, L1(1.0))
    assert asked(model, {"0.*": None, "2.*": L1(1.0)})[0].penalty.strength > 0
    with pytest.raises(SelectionError):
        asked(model, {"nothing": L1(1.0)})
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="share must be a finite number > 0"):
            asked(model, L1(1.0), share=share)


def test_a_loss_of_another_model_is_told():
    model, other, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(4, 3)
    regularizer = Regularizer(model, L1(0.1))
    for ask in (
        lambda loss: suggest_strengths(model, loss, L1(1.0)),
        lambda loss: strength_max(model, loss, L1(1.0)),
        regularizer.residuals,
    ):
        ask(lambda: model(x).square().mean())
        with pytest.raises(ValueError, match="with this very model"):
            ask(lambda: other(x).square().mean())


def test_frozen_and_tied_parameters():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    found = asked(model, L1(1.0))
    assert [(rule.parameters, rule.penalty is None) for rule in found] == [
        ("0.weight", False),
        ("1.weight", False),
        ("2.weight", True),
    ]
    assert found[0].penalty == found[1].penalty
    assert [entry.name for entry in Regularizer(model, found).plan] == ["0.weight"]


def test_layers_that_share_groups_have_one_strength_and_others_their_own():
    model, batch = mlp(torch.float64), batches(1, torch.float64)[0]
    channels = Coupled(
        [
            Member("0.weight", 0, range(8)),
            Member("0.bias", 0, range(8)),
            Member("2.bias", 0, range(8, 11)),
        ]
    )
    found = asked(model, GroupLasso(1.0, channels), share=1.0)
    assert [rule.penalty.groups.names for rule in found] == [("0.weight", "0.bias"), ("2.bias",)]
    for names, rule in zip((("0.weight", "0.bias"), ("2.bias",)), found, strict=True):
        other = mlp(torch.float64)
        for name in names:
            nn.init.zeros_(other.get_parameter(name))
        loss_of(other, batch).backward()
        grads = torch.cat(
            [
                other.get_parameter(name).grad.flatten(1)
                if name == "0.weight"
                else other.get_parameter(name).grad[:, None]
                for name in names
            ],
            1,
        )
        expected = (grads.norm(dim=1) / grads.shape[1] ** 0.5).max()
        assert rule.penalty.penalty.strength == pytest.approx(float(expected), rel=1e-9)
    assert len(Regularizer(model, found).plan) == 3


def test_batches_are_averaged_and_gone_through_for_each_layer():
    model = mlp(torch.float64)
    (x, y), *_ = batches(1, torch.float64)
    parts = [(x[:10], y[:10]), (x[10:], y[10:])]
    whole = asked(model, L1(1.0))
    split = suggest_strengths(model, lambda batch: loss_of(model, batch), L1(1.0), parts)
    for one, other in zip(whole, split, strict=True):
        assert one.penalty.strength == pytest.approx(other.penalty.strength, rel=1e-9)
    with pytest.raises(ValueError, match="an iterator can be used once only"):
        suggest_strengths(model, lambda batch: loss_of(model, batch), L1(1.0), iter(parts))


def test_a_reference_is_taken_when_the_regularizer_is_made():
    model = mlp()
    found = asked(model, {"0.weight": Toward(L1(1.0))})
    assert found[0].penalty.reference is None
    nn.init.ones_(model[0].weight)
    (entry,) = Regularizer(model, found).plan
    assert (entry.penalty.reference == 1).all()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(fails):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    gradient, calls = model[0].weight.grad, []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def closure():
        calls.append(None)
        loss = loss_of(model.train(), batches(1)[0])
        if fails and len(calls) == 2:
            raise RuntimeError("out of data")
        return loss

    model.eval()
    if fails:
        with pytest.raises(RuntimeError, match="out of data"):
            suggest_strengths(model, closure, L1(1.0))
    else:
        suggest_strengths(model, closure, L1(1.0))
    assert len(calls) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad is gradient
    assert (gradient == 1).all()
    assert model[3].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_it_prints_five_strengths_for_each_layer():
    layer = nn.Linear(1, 1, bias=False)
    text = repr(suggest_strengths(layer, lambda: 16 * layer.weight.sum(), GroupLasso(1.0, Rows())))
    header, _, row, advice = text.splitlines()
    assert header.split() == [
        "parameter",
        "penalty",
        "strength_max",
        "x",
        "1/16",
        "x",
        "1/4",
        "x",
        "1",
        "x",
        "4",
        "x",
        "16",
    ]
    assert row.split() == ["weight", "GroupLasso", "16", "0.062", "0.25", "1", "4", "16"]
    assert "Train with each column, which is .times(factor)" in advice


def digits():
    """Pixels from 0 to 1 and labels, 1300 to train on and the rest to test on."""
    x, y = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]
    return (x[:1300], y[:1300]), (x[1300:], y[1300:])


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=1e-3)])
def test_the_suggestion_for_a_network_gives_zeros_and_costs_no_accuracy(optimizer):
    """30 epochs on digits: at least 0.95 right, and 30 to 95 % of the first layer's weights exactly zero."""
    (x, y), (unseen, labels) = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    rules = suggest_strengths(model, lambda: cross_entropy(model(x), y), {"0.weight": L1(1.0)})
    stepped = optimizer(model.parameters())
    Regularizer(model, rules).attach(stepped)
    for epoch in range(30):
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            train_step(stepped, cross_entropy(model(x[batch]), y[batch]))
    assert 0.3 <= float((model[0].weight == 0).float().mean()) <= 0.95
    assert float((model(unseen).argmax(1) == labels).float().mean()) >= 0.95
