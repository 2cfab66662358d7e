"""`path`: what each fit begins with, what is counted and scored, when it ends, and what it refuses."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, train
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    Box,
    Budget,
    Columns,
    Coupled,
    GroupLasso,
    Member,
    NonNegative,
    Path,
    Ramp,
    Regularizer,
    Rows,
    Rule,
    SelectionError,
    path,
)
from shrinkage.paths.refit import refit_rules
from shrinkage.paths.strengths import greatest_strength
from shrinkage.paths.zero_counts import counts
from shrinkage.selection.plan import resolve


def trainer(model, updates=3, make=lambda p: SGD(p, lr=0.1)):
    """Return what trains with a new optimizer."""

    def fit(regularizer):
        regularizer.attach(optimizer := make(model.parameters()))
        train(model, optimizer, updates)

    return fit


def by_hand(model, strengths, rules=L1, make=lambda p: SGD(p, lr=0.1)):
    """Yield the model at each strength, by a plain loop."""
    for strength in strengths:
        regularizer = Regularizer(model, rules(strength))
        regularizer.attach(optimizer := make(model.parameters()))
        train(model, optimizer, 3)
        regularizer.detach()
        yield {name: tensor.clone() for name, tensor in model.state_dict().items()}


STRENGTHS = [0.0, 0.1, 0.3]


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), Adam], ids=["SGD", "Adam"])
def test_a_path_is_a_loop_written_by_hand(make):
    model, other = mlp(), mlp()
    found = path(model, L1, trainer(model, make=make), strengths=STRENGTHS)
    for point, state in zip(found, by_hand(other, STRENGTHS, make=make), strict=True):
        assert all(torch.equal(point.state[name], state[name]) for name in state)
    assert equal(model, other)
    assert [point.updates for point in found] == [3, 3, 3]


def test_a_schedule_begins_anew_at_each_strength_with_the_same_optimizer_too():
    model, other = mlp(), mlp()
    optimizer, second = (SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, other))

    def fit(regularizer):
        regularizer.attach(optimizer)
        train(model, optimizer, 3)

    found = path(model, lambda s: L1(Ramp(s, 2)), fit, strengths=STRENGTHS)
    for strength, point in zip(STRENGTHS, found, strict=True):
        regularizer = Regularizer(other, L1(Ramp(strength, 2))).attach(second)
        train(other, second, 3)
        regularizer.detach()
        assert all(torch.equal(point.state[name], each) for name, each in other.state_dict().items())


def test_a_fit_begins_in_the_modes_in_which_the_model_was_given():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    modes = []

    def fit(regularizer):
        modes.append([module.training for module in model.modules()])
        trainer(model)(regularizer)
        model.eval()  # as an early stop does that looks at validation data

    path(model, L1, fit, strengths=[0.1, 0.2])
    assert modes == [[True, True, False, True, True]] * 2


def test_a_score_sees_the_model_in_evaluation_mode_and_changes_nothing():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def score(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        model.train()
        model(torch.randn(4, 6))
        model.zero_grad()
        return torch.tensor([1.0, 2.0, 6.0])

    model = network()
    found = path(model, L1, trainer(model), strengths=[0.1, 0.2], score=score)
    assert found[0].score == 3.0
    assert found[0].error == pytest.approx(7**0.5 / 3**0.5)
    other = network()
    path(other, L1, trainer(other), strengths=[0.1, 0.2])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert math.isnan(path(model, L1, trainer(model), strengths=[0.1], score=lambda m: 2)[0].error)


@pytest.mark.parametrize("value", ["good", None, torch.empty(0)])
def test_a_score_that_is_no_number_is_refused(value):
    model = mlp()
    with pytest.raises(TypeError, match="score must return a number"):
        path(model, L1, trainer(model), strengths=[0.1], score=lambda m: value)


def test_a_refit_leaves_the_path_as_if_there_were_none():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    model = network()
    refits = []

    def refit(regularizer):
        refits.append(str(regularizer))
        trainer(model, updates=5)(regularizer)

    found = path(
        model, L1, trainer(model), strengths=[0.1, 0.3], refit=refit, score=lambda m: float(m[0].weight.norm())
    )
    other = network()
    alone = path(other, L1, trainer(other), strengths=[0.1, 0.3])
    for point, plain in zip(found, alone, strict=True):
        assert all(torch.equal(point.state[name], plain.state[name]) for name in plain.state)
        assert not torch.equal(point.refit.state["0.weight"], point.state["0.weight"])
        assert ((point.state["0.weight"] == 0) <= (point.refit.state["0.weight"] == 0)).all()
        assert point.zeros > 0
    assert all("zeros stay" in text for text in refits)
    assert found.refits[1].score != found[1].score
    assert found.refits.best.score == min(point.refit.score for point in found)


def test_a_refit_keeps_smooth_penalties_and_constraints():
    rules = {
        "a": Rule(L1(0.1), "0.*", every=2),
        "b": Rule(NonNegative(L1(0.1)), "1.*"),
        "c": Rule(L2(0.1), "2.*"),
        "d": Rule(Box(-1.0, 1.0, L1(0.1)), "3.*"),
        "e": Rule(Budget(zeros=0.5, updates=100, groups=Rows()), "4.*"),
        "f": Rule(None, "5.*"),
    }
    found = dict(zip(rules, refit_rules(list(rules.values()), "proximal"), strict=True))
    assert found["a"] == Rule(L1(0.1), "0.*", until=0)
    assert found["b"] == Rule(NonNegative(L1(0.1)), "1.*", until=0, after=NonNegative())
    assert found["c"] == rules["c"]
    assert found["d"] == Rule(Box(-1.0, 1.0, L1(0.1)), "3.*", until=0, after=Box(-1.0, 1.0))
    assert found["e"] == Rule(GroupLasso(0.0, Rows()), "4.*", until=0)
    assert found["f"] == rules["f"]


def test_zeros_are_counted_of_what_gives_zeros_and_groups_once():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].weight[1, 0] = 0.0
        model[0].bias[0] = 0.0
        model[1].weight.zero_()
    plan = resolve(model, {"0.weight": GroupLasso(0.1, Rows()), "1.weight": L2(0.1)})
    assert counts(model, plan) == (5, 12, 1, 3)
    assert counts(model, resolve(model, L2(0.1))) == (11, 18, 0, 0)
    assert counts(model, resolve(model, {"*": L1(0.1)}))[:2] == (12, 23)
    coupled = Coupled([Member("0.weight", 0, range(3)), Member("0.bias", 0, range(3)), Member("1.weight", 1, range(3))])
    assert counts(model, resolve(model, GroupLasso(0.1, coupled))) == (12, 21, 1, 3)
    assert counts(model, resolve(model, {"0.weight": Budget(zeros=0.5, updates=100, groups=Columns())})) == (
        5,
        12,
        0,
        4,
    )


def test_a_path_ends_where_nothing_is_left_and_strengths_only_grow():
    model = mlp()
    strengths = [100.0, 0.1, 100.0, 200.0]
    found = path(model, lambda s: {"2.weight": L1(s)}, trainer(model), strengths=strengths)
    assert found.strengths == strengths[:3]
    assert [point.empty for point in found] == [True, False, True]
    assert len(path(model, L1, trainer(model), strengths=[100.0, 200.0], stop=False)) == 2


def test_a_function_ends_a_path():
    model = mlp()
    seen = []

    def stop(so_far):
        assert isinstance(so_far, Path)
        seen.append(len(so_far))
        return so_far[-1].strength >= 0.2

    assert path(model, L1, trainer(model), strengths=[0.1, 0.2, 0.3], stop=stop).strengths == [0.1, 0.2]
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("strengths", "error", "message"),
    [
        ([], ValueError, "empty"),
        ([0.1, -0.1], ValueError, "finite and >= 0, got -0.1"),
        ([math.inf], ValueError, "finite"),
        (["0.1"], TypeError, "numbers"),
        (5, ValueError, "closure="),
        (1, ValueError, "closure="),
    ],
)
def test_wrong_strengths_are_refused_before_anything_is_trained(strengths, error, message):
    model, before = mlp(), mlp()
    with pytest.raises(error, match=message):
        path(model, L1, trainer(model), strengths=strengths)
    assert equal(model, before)


def test_a_fit_that_attaches_nothing_is_refused():
    model = mlp()
    with pytest.raises(AttachmentError, match=r"no update was made at strength 0\.1.*regularizer\.attach"):
        path(model, L1, lambda regularizer: None, strengths=[0.1])


def test_a_fit_that_raises_leaves_nothing_attached():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)

    def fit(regularizer):
        regularizer.attach(optimizer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        path(model, L1, fit, strengths=[0.1])
    Regularizer(model, L1(0.1)).attach(optimizer)  # refused, if another were attached


def test_rules_that_penalize_other_parameters_at_another_strength_are_refused_at_the_start():
    model, before = mlp(), mlp()
    with pytest.raises(SelectionError, match=r"at strength 0\.2 than at 0\.1: '2\.weight'"):
        path(
            model,
            lambda s: {"0.weight": L1(s), **({"2.weight": L1(s)} if s > 0.1 else {})},
            trainer(model),
            strengths=[0.1, 0.2],
        )
    assert equal(model, before)


def test_a_number_of_strengths_asks_a_network_layer_by_layer():
    (batch,) = batches(1, torch.float64)

    def least(*names):
        model = mlp(torch.float64)
        ws = [dict(model.named_parameters())[name] for name in names]
        with torch.no_grad():
            for w in ws:
                w.zero_()
        return max(float(grad.abs().max()) for grad in torch.autograd.grad(loss_of(model, batch), ws))

    model, before = mlp(torch.float64), mlp(torch.float64)
    rules = {"0.weight": 1.0, "2.weight": 0.5}
    found = greatest_strength(
        model,
        lambda s: {name: L1(factor * s) for name, factor in rules.items()} | {"*.bias": L2(0.1)},
        "proximal",
        lambda: loss_of(model, batch),
        None,
    )
    expected = max(least("0.weight"), least("2.weight") / 0.5)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > least("0.weight", "2.weight")
    assert equal(model, before)


@pytest.mark.parametrize("rules", [lambda s: L1(0.1), L2, lambda s: Budget(zeros=0.5, updates=100)])
def test_a_number_of_strengths_needs_a_penalty_that_grows(rules):
    model = mlp()
    with pytest.raises(ValueError, match="no penalty that makes zeros grows"):
        path(model, rules, trainer(model), strengths=3, closure=lambda: loss_of(model, batches(1)[0]))
