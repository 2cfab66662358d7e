"""A weight for every element or group: free, forced, and in between."""

import math

import pytest
import torch
from torch.optim import SGD, Adam

from models import mlp, train, train_step
from problems import diabetes_lasso
from shrinkage import L0, L1, L2, MCP, SCAD, Box, Grouped, GroupError, GroupLasso, Lp, Regularizer, Rows, Weighted
from shrinkage.execution.single_tensor import prox_

WEIGHTS = torch.tensor([0.0, 0.5, 1.0, math.inf])


@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3), MCP(0.3), SCAD(0.3), L0(0.3), Lp(0.3, 0.5), L1(0.0)], ids=str)
@pytest.mark.parametrize("step", [0.7, torch.tensor(0.7), torch.tensor([0.7, 0.5, 0.3, 0.1])])
def test_zero_is_free_infinity_is_zero_and_one_is_the_penalty(penalty, step):
    w = torch.tensor([1.3, 1.4, 1.5, 1.6])
    y = Weighted(penalty, WEIGHTS).prox(w, step)
    assert y[0] == w[0]
    assert y[3] == 0
    assert y[2] == penalty.prox(w, step)[2]
    assert torch.equal(Weighted(penalty, WEIGHTS).prox(w, 0.0), w)
    assert not Weighted(penalty, WEIGHTS).value(y).isnan()
    assert not Weighted(penalty, WEIGHTS).gradient(y).isnan().any()
    assert not Weighted(penalty, WEIGHTS).residual(y, w).isnan().any()


def test_infinite_weights_make_zeros_of_a_smooth_penalty():
    model = mlp()
    weights = torch.ones(8, 6)
    weights[0] = math.inf
    optimizer = Adam(model.parameters(), lr=0.01)
    Regularizer(model, {"0.weight": Weighted(L2(0.1), weights)}, how="decoupled").attach(optimizer)
    train(model, optimizer, 3)
    assert (model[0].weight[0] == 0).all()
    assert (model[0].weight[1:] != 0).all()
    with pytest.raises(ValueError, match='cannot be applied with how="gradient"'):
        Regularizer(model, {"0.weight": Weighted(L2(0.1), weights)}, how="gradient")


def test_the_adaptive_lasso_is_the_lasso_in_scaled_features():
    problem = diabetes_lasso()
    weights = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)[None]
    found = []
    for x, penalty, back in (
        (problem.x, Weighted(L1(0.05), weights), torch.ones_like(weights)),
        (problem.x / weights, L1(0.05), 1 / weights),
    ):
        model = problem.model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
        Regularizer(model, penalty).attach(optimizer)
        for _ in range(3000):
            train_step(optimizer, (model(x) - problem.y).square().sum() / (2 * len(x)))
        found.append(model.weight.detach() * back)
    assert torch.equal(found[0] == 0, found[1] == 0)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_one_weight_per_group():
    w = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    weights = torch.tensor([0.0, 1.0, math.inf])
    penalty = Grouped(Weighted(L1(1.0), weights), Rows(), weigh_by_size=False)
    expected = torch.tensor([[3.0, 4.0], [2.4, 3.2], [0.0, 0.0]])
    torch.testing.assert_close(penalty.prox(w, 1.0), expected)
    torch.testing.assert_close(penalty.prox(w, torch.ones_like(w)), expected)
    assert GroupLasso(1.0, Rows(), weigh_by_size=False).value(w[:2]) == 10
    assert Grouped(Weighted(L1(1.0), weights[:2]), Rows(), weigh_by_size=False).value(w[:2]) == 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Weighted(GroupLasso(1.0, Rows()), WEIGHTS), TypeError, "one of single elements"),
        (lambda: Weighted(L1(1.0), [1.0]), TypeError, "floating point tensor"),
        (lambda: Weighted(L1(1.0), torch.ones(2, dtype=torch.int)), TypeError, "floating point tensor"),
        (lambda: Weighted(L1(1.0), torch.tensor([-1.0])), ValueError, "must be >= 0 and not NaN"),
        (lambda: Weighted(L1(1.0), torch.tensor([math.nan])), ValueError, "must be >= 0 and not NaN"),
        (lambda: Regularizer(mlp(), {"0.weight": Weighted(L1(1.0), WEIGHTS)}), GroupError, r"\(4,\) .* \(8, 6\)"),
        (
            lambda: Regularizer(mlp(), {"0.weight": Grouped(Weighted(L1(1.0), WEIGHTS), Rows())}),
            GroupError,
            r"weights of shape \(4,\) do not have the shape of what they stand for, \(8,\)",
        ),
    ],
)
def test_bad_weights_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.linspace(0, 2, 8)[:, None],
        torch.linspace(0, 2, 6)[None],
        torch.linspace(0, 2, 6),
        torch.tensor([[math.inf], [0.0]] * 4),
    ],
    ids=lambda weights: str(tuple(weights.shape)),
)
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.01)])
@pytest.mark.parametrize("inner", [L1(0.3), SCAD(0.3), L2(0.3)], ids=str)
def test_weights_spread_over_the_parameter(weights, make, inner):
    """As if they were written out, in values, residuals and in training."""
    written = weights.expand(8, 6).clone()
    found = []
    for each in (weights, written):
        torch.manual_seed(0)
        model = mlp()
        optimizer = make(model.parameters())
        regularizer = Regularizer(model, {"0.weight": Weighted(inner, each)})
        regularizer.attach(optimizer)
        train(model, optimizer, 5)
        found.append(model[0].weight.detach())
    assert torch.equal(*found)
    w, grad = torch.randn(2, 8, 6).unbind()
    one, two = Weighted(inner, weights), Weighted(inner, written)
    assert torch.equal(one.value(w), two.value(w))
    assert torch.equal(one.residual(w, grad), two.residual(w, grad))
    assert torch.equal(one.strength_max(grad), two.strength_max(grad))
    assert torch.equal(one.prox(w, torch.rand(8, 6).fill_(0.3)), two.prox(w, 0.3))


def test_weights_and_bounds_that_are_not_spread_out_yet_are_not_cut_into_chunks():
    w = torch.randn(600, 300)
    columns = torch.linspace(0, 2, 300)[None]
    for penalty in (Weighted(L1(0.3), columns), Weighted(L1(0.3), columns.T[:1]), Box(-columns, columns)):
        moved = w.clone()
        prox_(penalty, moved, 0.5)
        assert torch.equal(moved, penalty.prox(w, 0.5))


def test_one_weight_serves_all_groups():
    w = torch.randn(4, 6)
    one, all_of_them = (
        Grouped(Weighted(SCAD(0.3), each), Rows()) for each in (torch.tensor(2.0), torch.full((4,), 2.0))
    )
    for step in (0.5, torch.rand(4, 6)):
        assert torch.equal(one.prox(w, step), all_of_them.prox(w, step))
    assert one.bound("w", w).penalty.weights.shape == (4,)


@pytest.mark.parametrize(
    ("weights", "shape", "message"),
    [
        ((4,), (4, 8), r"reshape them to \(4, 1\)"),
        ((8,), (8, 8), r"more than one dimension of shape \(8, 8\): .* such as \(8, 1\) or \(1, 8\)"),
        ((3,), (8, 8, 3, 3), r"such as \(1, 1, 3, 1\) or \(1, 1, 1, 3\)"),
        ((4, 2), (4, 8), r"do not have the shape of what they stand for, \(4, 8\), nor a shape that spreads over it"),
        ((1, 4, 8), (4, 8), r"nor a shape that spreads over it"),
        ((5,), (4, 8), r"nor a shape that spreads over it"),
    ],
)
def test_weights_that_do_not_spread_in_one_way_are_refused(weights, shape, message):
    with pytest.raises(GroupError, match=message):
        Weighted(L1(0.1), torch.ones(weights)).check_shape(shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: L1(torch.ones(4, 8)),
            r"a float32 tensor of shape \(4, 8\); one strength for each element is Weighted",
        ),
        (lambda: Weighted(L1(0.1), torch.ones(4, 8).long()), r"got a int64 tensor of shape \(4, 8\)"),
        (lambda: Weighted(GroupLasso(0.1, Rows()), torch.ones(4)), r"is Grouped\(Weighted\(L1\(strength\), weights\)"),
        (lambda: MCP(0.1, gamma=torch.ones(4, 8)), r"MCP: gamma must be .* got a float32 tensor of shape \(4, 8\)"),
    ],
)
def test_messages_show_no_tensors(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_weights_are_copied():
    weights = torch.ones(2)
    penalty = Weighted(L1(1.0), weights)
    weights.zero_()
    assert torch.equal(penalty.weights, torch.ones(2))
    assert penalty == Weighted(L1(1.0), torch.ones(2))
    assert penalty != Weighted(L1(1.0), torch.zeros(2))


def test_a_schedule_inside():
    penalty = Weighted(L1(lambda update: 0.1 * update), WEIGHTS)
    assert penalty.scheduled
    assert penalty.at(5) == Weighted(L1(0.5), WEIGHTS)


def test_weights_follow_the_device_of_their_parameter():
    elsewhere = torch.zeros(4, 3, device="meta")
    assert Grouped(Weighted(L1(0.1), torch.ones(4)), Rows()).bound("w", elsewhere).penalty.weights.is_meta
