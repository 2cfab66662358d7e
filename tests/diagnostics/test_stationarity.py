"""Residuals and the largest strength, against gradients computed by hand and solutions that are known."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import batches, loss_of, mlp, train, train_step
from problems import diabetes_lasso, digits_group_lasso
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    Box,
    Columns,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupLasso,
    Huber,
    LogSum,
    Lp,
    MaxNorm,
    NonNegative,
    Nuclear,
    Orthogonal,
    ParameterError,
    Regularizer,
    Ridged,
    Rows,
    SelectionError,
    SparseGroupLasso,
    TopK,
    Toward,
    UnitNorm,
    Weighted,
    strength_max,
)


def solved(problem, penalty, iterations=1500):
    model = problem.model()
    optimizer = Adam(model.parameters(), lr=0.01)
    regularizer = Regularizer(model, penalty).attach(optimizer)
    for _ in range(iterations):
        train_step(optimizer, problem.loss(model))
    return model, regularizer, optimizer


def test_a_solved_lasso_is_certified_and_an_unsolved_one_is_not():
    problem = diabetes_lasso()
    model, regularizer, _optimizer = solved(problem, L1(problem.strength))
    found = regularizer.residuals(lambda: problem.loss(model))
    assert found.solved
    assert found.penalized[0].max <= 1e-12
    assert found.penalized[0].zeros == 0.4
    assert "Solved: the weights are stationary" in str(found)

    other = Regularizer(model, L1(1.01 * problem.strength)).residuals(lambda: problem.loss(model))
    assert not other.solved
    assert other.worst.relative == pytest.approx(0.01 / 1.01)
    assert "Not solved: the residual of weight is 0.0099 of the strength, the tolerance is 0.001." in str(other)
    assert Regularizer(model, L1(1.01 * problem.strength)).residuals(lambda: problem.loss(model), tolerance=0.02).solved


def test_a_group_residual_is_relative_to_what_a_group_withstands():
    problem = digits_group_lasso()
    model = problem.model()
    model.weight.data.copy_(problem.solution)
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    (found,) = Regularizer(model, penalty).residuals(lambda: problem.loss(model)).penalized
    assert found.max <= 1e-8
    assert found.zeros == 33 / 64
    half = GroupLasso(problem.strength / 2 / math.sqrt(10), Columns())  # sqrt(10) is the weight of a column
    (found,) = Regularizer(model, half).residuals(lambda: problem.loss(model)).penalized
    assert found.relative == pytest.approx(1.0, rel=1e-5)


def test_the_residual_is_the_formula_on_the_full_gradient():
    model = mlp()
    train(model, SGD(model.parameters(), lr=0.1), 5)
    (x, y), *_ = batches(1)
    model.zero_grad()
    loss_of(model, (x, y)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    regularizer = Regularizer(model, {"0.weight": L1(0.1), "2.weight": ElasticNet(0.1, 0.3)})
    found = regularizer.residuals(lambda: loss_of(model, (x, y)))
    assert all(p.grad is None for p in model.parameters())
    for each, penalty in zip(found.penalized, (L1(0.1), ElasticNet(0.1, 0.3)), strict=True):
        expected = penalty.residual(model.get_parameter(each.name).detach(), grads[each.name])
        assert each.max == pytest.approx(float(expected.max()))
        assert each.mean == pytest.approx(float(expected.mean()))
        assert each.relative == pytest.approx(each.max / 0.1)
    assert [(each.name, each.measure) for each in found.others] == [("0.bias", "gradient"), ("2.bias", "gradient")]
    assert found.others[0].max == pytest.approx(float(grads["0.bias"].abs().max()))
    assert found.others[0].relative == pytest.approx(found.others[0].max / 0.1)


def test_batches_are_averaged_by_their_length():
    model = mlp()
    (x, y), *_ = batches(1)
    regularizer = Regularizer(model, L1(0.1))
    whole = regularizer.residuals(lambda: loss_of(model, (x, y)))
    parts = [(x[:10], y[:10]), (x[10:], y[10:])]
    for data in (parts, [{"x": a, "y": b} for a, b in parts]):
        split = regularizer.residuals(
            lambda batch: loss_of(model, batch if isinstance(batch, tuple) else (batch["x"], batch["y"])), data
        )
        for one, other in zip(whole.penalized, split.penalized, strict=True):
            assert one.max == pytest.approx(other.max, rel=1e-5)


@pytest.mark.parametrize("penalty", [L0(0.01), Lp(0.01, 0.5)])
def test_penalties_whose_zeros_withstand_everything_are_measured_by_a_step(penalty):
    """The subdifferential at 0 is everything, so that the KKT residual there is 0 whatever the gradient."""
    problem = diabetes_lasso()
    model, regularizer, _optimizer = solved(problem, penalty)
    found = regularizer.residuals(lambda: problem.loss(model))
    assert found.penalized[0].measure == "fixed point"
    assert found.penalized[0].max <= 1e-9
    model.weight.data.zero_()
    (at_zero,) = Regularizer(model, penalty).residuals(lambda: problem.loss(model)).penalized
    assert at_zero.max > 0.1  # a step of size 1 leaves zero


@pytest.mark.parametrize("penalty", [L2(0.3), MaxNorm(0.5), Nuclear(0.05), MCP(0.05), Toward(L1(0.05))])
def test_solutions_of_other_penalties_are_certified(penalty):
    problem = diabetes_lasso()
    model = problem.model()
    model.weight.data.copy_(torch.linspace(-0.2, 0.2, 10)[None])
    optimizer = SGD(model.parameters(), lr=0.2)
    regularizer = Regularizer(model, penalty).attach(optimizer)
    for _ in range(3000):
        train_step(optimizer, problem.loss(model))
    assert regularizer.residuals(lambda: problem.loss(model), tolerance=1e-4).solved
    model.weight.data.add_(0.05)
    assert not regularizer.residuals(lambda: problem.loss(model), tolerance=1e-3).solved


def test_a_schedule_is_taken_at_the_update_that_was_reached():
    problem = diabetes_lasso()
    schedule = L1(lambda update: problem.strength * min(1.0, update / 100))
    model, regularizer, _optimizer = solved(problem, schedule)
    assert regularizer.residuals(lambda: problem.loss(model)).solved


def test_a_weight_that_is_nan_is_not_solved():
    model = nn.Sequential(mlp(), nn.Linear(2, 2))  # the second is not used, so that its NaN stays where it is
    model[1].weight.data[0, 0] = torch.nan
    residuals = Regularizer(model, L1(0.1)).residuals(lambda: loss_of(model[0], batches(1)[0]), tolerance=1e9)
    assert residuals.worst.name == "1.weight"
    assert not residuals.solved


@pytest.mark.parametrize("closure", [lambda: 1.0, lambda: torch.ones(()), lambda: torch.ones(2, requires_grad=True)])
def test_a_closure_has_to_return_a_loss(closure):
    with pytest.raises(TypeError, match="the closure has to return the loss, one number that can be differentiated"):
        Regularizer(mlp(), L1(0.1)).residuals(closure)


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="no batches in the data"):
        Regularizer(mlp(), L1(0.1)).residuals(lambda batch: None, iter(()))


def test_the_largest_strength_of_the_lasso_is_the_textbooks():
    problem = diabetes_lasso()
    model = problem.model()
    expected = (problem.x.T @ problem.y).abs().max() / len(problem.x)
    found = strength_max(model, lambda: problem.loss(model), L1(1.0))
    assert found == pytest.approx(float(expected), rel=1e-12)
    for factor, alive in ((1.0001, 0), (0.999, 1)):
        trained, _, _ = solved(problem, L1(factor * found))
        assert int((trained.weight != 0).sum()) == alive


@pytest.mark.parametrize("make", [lambda s: GroupLasso(s, Columns()), lambda s: GroupLasso(s, Rows()), L1, MCP])
def test_above_the_largest_strength_of_a_layer_training_leaves_nothing_of_it(make):
    model = mlp(torch.float64)
    data = batches(1, torch.float64)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = strength_max(model, lambda: loss_of(model, data), {"0.weight": make(1.0)})
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for factor, alive in ((1.001, False), (0.9, True)):
        layer = mlp(torch.float64)
        layer[0].weight.data.zero_()
        optimizer = SGD([layer[0].weight], lr=0.05)
        Regularizer(layer, {"0.weight": make(factor * found)}).attach(optimizer)
        for _ in range(500):
            train_step(optimizer, loss_of(layer, data))
        assert bool((layer[0].weight != 0).any()) == alive


def test_the_largest_strength_toward_a_reference_is_asked_there():
    model, data = mlp(), batches(1)[0]
    reference = torch.randn_like(model[0].weight)
    found = strength_max(model, lambda: loss_of(model, data), {"0.weight": Toward(L1(1.0), reference)})
    model[0].weight.data.copy_(reference)
    model.zero_grad()
    loss_of(model, data).backward()
    assert found == pytest.approx(float(model[0].weight.grad.abs().max()))


def test_an_error_gives_the_weights_back():
    model = mlp()
    before = model[0].weight.detach().clone()

    def fails():
        assert (model[0].weight == 0).all()
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        strength_max(model, fails, {"0.weight": L1(1.0)})
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("penalty", "cause"),
    [
        (L2(1.0), "it is smooth, so that it makes weights small and never zero"),
        (Huber(1.0, 0.1), "it is smooth, so that it makes weights small and never zero"),
        (Grouped(L2(1.0), Rows()), "it is smooth, so that it makes weights small and never zero"),
        (NonNegative(L2(1.0)), "it is smooth, so that it makes weights small and never zero"),
        (Toward(L2(1.0)), "it is smooth, so that it makes weights small and never zero"),
        (MaxNorm(1.0), "it is a constraint, which has no strength"),
        (NonNegative(), "it is a constraint, which has no strength"),
        (Ridged(MaxNorm(1.0), 0.1), "it is a constraint, which has no strength"),
        (Box(0.5, 1.0), "it is a constraint, which has no strength"),
        (Box(0.5, 1.0, L1(1.0)), "zero is outside of its bounds"),
        (Box(-1.0, 1.0, L2(1.0)), "it is smooth, so that it makes weights small and never zero"),
        (FusedLasso(1.0), "it penalizes differences alone, and here a constant is better than zero"),
        (Orthogonal(1.0), "it draws rows to be orthogonal, not to zero"),
        (SparseGroupLasso(0.0, 0.0, Rows()), "both of its strengths are 0, which tells no proportion"),
    ],
    ids=str,
)
def test_what_has_no_largest_strength_says_why(penalty, cause):
    model, data = mlp(), batches(1)[0]
    with pytest.raises(ValueError, match=r"no strength of .* makes all parameters zero, the least is inf: ") as caught:
        strength_max(model, lambda: loss_of(model, data), {"0.weight": penalty})
    assert str(caught.value).split(": ", 1)[1] == cause


@pytest.mark.parametrize("penalty", [L0(1.0), Lp(1.0, 0.5), Grouped(L0(1.0), Rows())], ids=str)
def test_what_keeps_every_zero_has_no_least_strength(penalty):
    model, data = mlp(), batches(1)[0]
    with pytest.raises(ValueError, match=r"zero is stationary at every strength of .*: it withstands every gradient"):
        strength_max(model, lambda: loss_of(model, data), {"0.weight": penalty})


def test_a_gradient_that_is_not_finite_is_named():
    model = mlp()
    with pytest.raises(ValueError, match=r"the gradient of '0\.weight' is not finite where .*L1.* penalizes is zero"):
        strength_max(model, lambda: model[0].weight.sqrt().sum(), {"0.weight": L1(1.0)})
    with pytest.raises(SelectionError):
        strength_max(model, lambda: model[0].weight.sum(), {"nothing": L1(1.0)})


def test_the_largest_strength_of_a_layer_changes_as_the_others_train():
    """Two layers in a row: with the second one doubled, the gradient of the first at zero is doubled."""
    model, x = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)), torch.randn(8, 3)

    def top():
        return strength_max(model, lambda: model(x).mean(), {"0.weight": L1(1.0)})

    before = top()
    model[1].weight.data.mul_(2)
    assert top() == pytest.approx(2 * before)


def test_frozen_and_tied_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    x = torch.randn(8, 4)
    found = Regularizer(model, L1(0.1)).residuals(lambda: model(x).square().mean())
    assert [each.name for each in (*found.penalized, *found.others)] == ["0.weight", "1.bias"]


def test_a_model_that_is_frozen_has_nothing_to_solve():
    model = mlp().requires_grad_(False)
    with pytest.warns(UserWarning, match="matches frozen parameters only"):
        regularizer = Regularizer(model, L1(0.1))
    with pytest.raises(ValueError, match="no parameter of the model takes a gradient"):
        regularizer.residuals(lambda: loss_of(model, batches(1)[0]))


def test_the_unit_of_decoupled_strengths_is_said():
    model = mlp()
    found = Regularizer(model, L1(0.1), how="decoupled").residuals(lambda: loss_of(model, batches(1)[0]))
    assert 'Strengths with how="decoupled" (0.weight, 2.weight) are in units of weight decay' in str(found)
    found = Regularizer(model, L1(0.1)).residuals(lambda: loss_of(model, batches(1)[0]))
    assert "weight decay" not in str(found)


def test_a_tied_parameter_is_penalized_under_any_of_its_names():
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    model["b"].weight = model["a"].weight
    nn.init.ones_(model["a"].weight)
    found = Regularizer(model, {"b.weight": L1(1.0)}).residuals(lambda: (model["a"].weight.sum() - 1) ** 2)
    assert [each.name for each in found.penalized] == ["b.weight"]
    assert found.penalized[0].relative == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "strength", "solved"), [(torch.bfloat16, 0.5, False), (torch.float16, 2.0, True)])
def test_gradients_of_many_batches_are_summed_in_float32(dtype, strength, solved):
    """The gradient is 1: in bfloat16 a sum of ones stalls at 256, in float16 a sum of 64 * 200 * 10 overflows."""
    model = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    data = [torch.ones(64, 4, dtype=dtype)] * 1200
    found = Regularizer(model, L1(strength)).residuals(lambda batch: model(batch).mean(), data)
    assert found.solved == solved


@pytest.mark.parametrize("penalty", [Box(-10.0, 10.0), L1(0.0), L2(0.0)])
def test_rounding_is_not_a_residual(penalty):
    problem = diabetes_lasso()
    model = problem.model()
    model.weight.data.copy_(torch.linalg.lstsq(problem.x, problem.y).solution.T)
    assert Regularizer(model, penalty).residuals(lambda: problem.loss(model)).solved
    model.weight.data.add_(0.1)
    assert not Regularizer(model, penalty).residuals(lambda: problem.loss(model)).solved


def test_a_steep_rule_does_not_hide_the_others():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    nn.init.zeros_(model[1].weight)
    data = torch.randn(8, 3)
    rules = {"1.weight": LogSum(1e-2, 1e-4), "0.weight": L1(1e-3)}
    found = Regularizer(model, rules).residuals(lambda: (model(data) - 0.01).mean())
    assert found.worst.name == "1.bias"
    assert not found.solved


def test_the_wrong_corner_of_a_tiny_box_is_not_stationary():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.fill_(1e-3)
    x = torch.eye(4) * 10
    assert not Regularizer(layer, Box(-1e-3, 1e-3)).residuals(lambda: layer(x).mean()).solved
    assert Regularizer(layer, Box(-1e-3, 1e-3)).residuals(lambda: -layer(x).mean()).solved


@pytest.mark.parametrize(
    ("constraint", "w", "target"),
    [(UnitNorm(), [[1.0, 0.0]], [[0.1, 0.0]]), (TopK(0.5), [[1.0, 0.0]], [[1.0, 0.5]])],
)
def test_minima_on_sets_that_are_not_convex_are_stationary(constraint, w, target):
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor(w))
    assert (
        Regularizer(layer, constraint)
        .residuals(lambda: 50 * (layer.weight - torch.tensor(target)).square().sum())
        .solved
    )


def test_a_small_weight_of_an_element_counts_for_itself():
    layer = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(layer.weight)
    penalty = Weighted(L1(1.0), torch.tensor([[1e-4, 1.0, 1.0]]))
    found = Regularizer(layer, penalty).residuals(lambda: (layer.weight * torch.tensor([[9e-4, 0.0, 0.0]])).sum())
    assert found.penalized[0].relative == pytest.approx(8.0, rel=1e-3)


def test_an_optimizer_that_climbs_is_judged_by_what_it_climbs():
    problem = diabetes_lasso()
    model = problem.model()
    optimizer = SGD(model.parameters(), lr=0.1, maximize=True)
    regularizer = Regularizer(model, L1(problem.strength)).attach(optimizer)
    for _ in range(3000):
        train_step(optimizer, -problem.loss(model))
    assert regularizer.residuals(lambda: -problem.loss(model)).solved


def test_a_learning_rate_that_ended_at_0_is_no_step():
    problem = diabetes_lasso()
    model = problem.model()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L0(0.01)).attach(optimizer)
    problem.loss(model).backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    assert math.isfinite(regularizer.residuals(lambda: problem.loss(model)).worst.relative)


def test_lazy_and_frozen_parameters_are_named():
    lazy = Regularizer(nn.LazyLinear(1), {"weight": L1(0.1)})
    for call in (lazy.value, lambda: lazy.residuals(lambda: None)):
        with pytest.raises(ParameterError, match="'weight' is lazy and has no value yet; run one forward pass first"):
            call()
    model, data = mlp(), batches(1)[0]
    model[0].requires_grad_(False)
    assert strength_max(model, lambda: loss_of(model, data), L1(1.0)) > 0
    with pytest.raises(ValueError, match="penalize no parameter that takes a gradient"):
        strength_max(model.requires_grad_(False), lambda: loss_of(model, data), L1(1.0))
