"""Every property of a constraint over the whole catalogue, against points of the set that are made without it."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import shrinkage
from catalog import CONSTRAINTS, ConstraintCase
from models import mlp, train
from shrinkage import (
    L1,
    L2,
    MCP,
    Box,
    Columns,
    GroupError,
    Kernels,
    L1Ball,
    MaxNorm,
    MinMaxNorm,
    NofM,
    Regularizer,
    Rows,
    Simplex,
    SpectralBall,
    TopK,
    UnitNorm,
    Whole,
)

every_constraint = pytest.mark.parametrize("case", CONSTRAINTS, ids=str)


def tensor(shape, scale=2.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


@every_constraint
@pytest.mark.parametrize("in_metric", [False, True])
def test_no_point_of_the_set_is_nearer(case: ConstraintCase, in_metric):
    random = torch.randn(40_000, *case.small, dtype=torch.float64)
    constraint = case.make()
    for _ in range(10):
        w = tensor(case.small)
        steps = torch.exp(torch.randn_like(w)) if in_metric else torch.ones_like(w)
        points = case.points(random, w)
        assert all(map(case.contains, points[:50]))
        y = constraint.prox(w, steps if in_metric else 1.0)
        assert case.contains(y)
        distances = ((torch.cat([y[None], points]) - w).square() / steps).flatten(1).sum(1)
        assert distances[0] <= distances[1:].min() * (1 + 1e-8)
        if case.convex:  # no point lies on the far side of the plane through y, square to where w lies
            beyond = ((points - y) * (w - y) / steps).flatten(1).sum(1)
            assert beyond.max() <= 1e-8


@every_constraint
@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_are_in_the_set_and_stay_there(case: ConstraintCase, in_metric, dtype):
    constraint, w = case.make(), tensor(case.shape).to(dtype)
    step = torch.exp(torch.randn_like(w)) if in_metric else 0.1
    y = constraint.prox(w, step)
    assert constraint.value(w) == math.inf
    assert constraint.value(y) == 0
    assert case.contains(y) or dtype == torch.float32
    assert y.dtype == dtype
    if not (in_metric and isinstance(constraint, SpectralBall)):  # found by iteration there
        assert torch.equal(constraint.prox(y, step), y)


@every_constraint
def test_the_size_of_a_constant_step_plays_no_part(case: ConstraintCase):
    constraint, w = case.make(), tensor(case.shape)
    expected = constraint.prox(w, 1.0)
    assert torch.equal(constraint.prox(w, 1e-6), expected)
    assert torch.equal(constraint.prox(w, torch.tensor(30.0)), expected)
    torch.testing.assert_close(constraint.prox(w, torch.full_like(w, 7.0)), expected, rtol=1e-6, atol=1e-8)


@every_constraint
def test_steps_of_0_leave_everything_alone(case: ConstraintCase):
    """A fused optimizer that met an overflow multiplies its steps by 0, and then nothing may change."""
    constraint, w = case.make(), tensor(case.shape)
    for step in (0.0, torch.tensor(0.0), torch.zeros_like(w)):
        assert torch.equal(constraint.prox(w, step), w)


@every_constraint
def test_residual_is_0_where_descent_is_blocked(case: ConstraintCase):
    constraint, w = case.make(), tensor(case.shape)
    y = constraint.prox(w, 1.0)
    assert constraint.residual(y, y - w).abs().max() <= 1e-9  # -grad points from y to w, out of the set
    assert constraint.residual(y, w - y + 1).abs().max() > 1e-3
    assert constraint.gradient(y).abs().max() == 0
    assert not constraint.explicit
    assert not constraint.holds_zeros


@every_constraint
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_stay_and_nothing_raises(case: ConstraintCase, bad):
    w = tensor(case.shape)
    w[0, 0] = bad
    found = case.make().prox(w, 1.0)
    clamped = isinstance(case.make(), Box) and bad == math.inf
    assert clamped or torch.equal(found[0, :1].nan_to_num(9.0), w[0, :1].nan_to_num(9.0))


@every_constraint
def test_narrow_types_strides_and_empty_tensors(case: ConstraintCase):
    constraint, w = case.make(), tensor(case.shape)
    strided = torch.empty(*case.shape, 2, dtype=torch.float64)[..., 0].copy_(w)
    assert torch.equal(constraint.prox(strided, 1.0), constraint.prox(w, 1.0))
    for dtype in (torch.float16, torch.bfloat16):
        narrow = w.to(dtype)
        assert torch.equal(constraint.prox(narrow, 1.0), constraint.prox(narrow.float(), 1.0).to(dtype))
    empty = torch.zeros(0, case.shape[1])
    assert constraint.prox(empty, 1.0).shape == empty.shape
    assert constraint.value(empty) == 0


@every_constraint
def test_constraints_are_values(case: ConstraintCase):
    constraint = case.make()
    assert constraint == case.make()
    assert hash(constraint) == hash(case.make())
    assert eval(repr(constraint), vars(shrinkage)) == constraint
    assert pickle.loads(pickle.dumps(constraint)) == constraint
    assert copy.deepcopy(constraint) == constraint
    assert constraint.strength_max(-torch.ones(2)) == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(1.0, 0.0), "low must not be greater than high, got low=1.0, high=0.0"),
        (lambda: Box(math.nan, 0.0), "low must not be greater"),
        (lambda: MinMaxNorm(2.0, 1.0), "low must not be greater than high, got low=2.0, high=1.0"),
        (lambda: MinMaxNorm(-1.0, 1.0), "MinMaxNorm: low, if not 0, must be a finite number > 0"),
        (lambda: MinMaxNorm(0.0, math.inf), "MinMaxNorm: high must be a finite number > 0"),
        (lambda: UnitNorm(length=0.0), "UnitNorm: length must be a finite number > 0"),
        (lambda: MaxNorm(0.0), "MaxNorm: limit must be a finite number > 0, got 0.0"),
        (lambda: L1Ball(-1.0), "L1Ball: radius must be a finite number > 0"),
        (lambda: Simplex(math.inf), "Simplex: total must be"),
        (lambda: SpectralBall(0.0), "SpectralBall: limit must be"),
        (lambda: TopK(1.5), "TopK: density must be between 0 and 1, got 1.5"),
        (lambda: TopK(-0.1), "TopK: density must be"),
        (lambda: NofM(5, 4), "0 <= n <= m, m >= 1, got n=5, m=4"),
        (lambda: NofM(0, 0), "0 <= n <= m"),
        (lambda: NofM(2.0, 4), "whole numbers"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: MaxNorm(1.0, Rows), lambda: UnitNorm("rows"), lambda: TopK(0.5, None)])
def test_groups_have_to_be_instances(make):
    with pytest.raises(TypeError, match="group view"):
        make()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(GroupError, match=r"multiple of 4, got shape \(3, 6\)"):
        NofM(2, 4).prox(torch.zeros(3, 6), 1.0)
    with pytest.raises(GroupError, match="two dimensions or more"):
        SpectralBall(1.0).prox(torch.zeros(3), 1.0)


def test_two_of_four_along_the_input_channels_of_a_convolution():
    w = torch.randn(5, 8, 3, 3)
    y = NofM(2, 4).prox(w, 1.0)
    assert ((y != 0).reshape(5, 2, 4, 3, 3).sum(2) == 2).all()
    assert torch.equal(y[y != 0], w[y != 0])


@pytest.mark.parametrize(
    ("density", "groups", "shape", "kept"),
    [
        (0.04, Whole(), (1, 10), 1),  # 0.4 rounds to 0, and a tensor of zeros puts out a constant
        (0.04, Whole(), (10, 10), 4),
        (0.5, Whole(), (1, 1), 1),
        (0.25, Whole(), (1, 10), 2),  # halves go to the even number
        (0.35, Whole(), (1, 10), 4),
        (1e-9, Rows(), (3, 7), 3),
        (0.05, Kernels(), (2, 3, 3, 3), 6),
        (0.1, Columns(), (2, 5), 5),
        (0.0, Rows(), (3, 7), 0),
        (1.0, Rows(), (3, 7), 21),
    ],
)
def test_one_element_is_kept_at_least(density, groups, shape, kept):
    w = torch.randn(shape)
    for step in (1.0, torch.rand(shape) + 0.1):
        assert (TopK(density, groups).prox(w, step) != 0).sum() == kept


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (torch.linspace(-1, 0.5, 8)[:, None], 0.6),
        (-0.1, torch.linspace(0, 1, 6)),
        (torch.full((8, 6), -0.2), torch.linspace(0, 1, 6)[None]),
        (torch.tensor(-0.1), math.inf),
    ],
)
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.01)])
def test_every_weight_stays_between_its_own_bounds(low, high, make):
    box, model = Box(low, high), mlp()
    optimizer = make(model.parameters())
    Regularizer(model, {"0.weight": box}).attach(optimizer)
    train(model, optimizer, 3)
    w = model[0].weight.detach()
    assert (w >= low).all()
    assert (w <= high).all()
    assert box.value(w) == 0
    random = torch.randn(8, 6)
    expected = torch.minimum(torch.maximum(random, torch.as_tensor(low)), torch.as_tensor(high))
    assert torch.equal(box.prox(random, torch.rand(8, 6) + 0.1), expected)
    assert box == pickle.loads(pickle.dumps(box)) == copy.deepcopy(box)
    assert hash(box) == hash(copy.deepcopy(box))
    assert box != Box(low, 2.0)
    assert "tensor(" not in repr(box)
    assert not isinstance(low, torch.Tensor) or box.low is not low


@pytest.mark.parametrize(("weights", "bounds"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("bound", [0.3, 0.7])
def test_a_weight_at_a_bound_of_another_type_is_stationary(weights, bounds, bound):
    layer = torch.nn.Linear(2, 1, bias=False, dtype=weights)
    box = Box(torch.tensor([[-bound, -bound]], dtype=bounds), torch.tensor([[bound, bound]], dtype=bounds))
    optimizer = SGD(layer.parameters(), lr=100.0)
    regularizer = Regularizer(layer, {"weight": box}).attach(optimizer)
    signs = torch.tensor([[1.0, -1.0]], dtype=weights)
    (layer.weight * signs).sum().backward()
    optimizer.step()
    assert regularizer.residuals(lambda: (layer.weight * signs).sum()).solved
    assert regularizer.value() == 0
    w = layer.weight.detach()
    assert (box.residual(w, signs) == 0).all()
    assert (box.residual(w, -signs) == 1).all()


def test_bounds_that_do_not_fit_are_refused():
    with pytest.raises(GroupError, match=r"the bounds low of shape \(8,\) .* reshape them to \(8, 1\)"):
        Regularizer(mlp(), {"0.weight": Box(torch.zeros(8), 1.0)})
    with pytest.raises(ValueError, match="low must not be greater than high, got low=a float32 tensor of shape"):
        Box(torch.tensor([0.0, 2.0]), 1.0)
    with pytest.raises(ValueError, match="do not spread over each other"):
        Box(torch.zeros(3), torch.ones(4))
    with pytest.raises(ValueError, match="low must not be greater than high"):
        Box(torch.tensor([0.0, math.nan]), 1.0)
    with pytest.raises(TypeError, match=r"low must be a number or .* got a int64 tensor of shape \(2,\)"):
        Box(torch.tensor([0, 1]), 1.0)
    with pytest.raises(TypeError, match="penalty must be convex"):
        Box(0.0, 1.0, MCP(0.1))


def test_norms_between_limits_as_keras_has_them():
    """w * clip(||w||, low, high) / ||w||"""
    w = torch.randn(50, 6, dtype=torch.float64) * torch.rand(50, 1, dtype=torch.float64)
    norms = w.norm(dim=1, keepdim=True)
    expected = w * norms.clamp(0.5, 1.0) / norms
    torch.testing.assert_close(MinMaxNorm(0.5, 1.0).prox(w, 0.1), expected)
    torch.testing.assert_close(UnitNorm(length=3.0).prox(w, 0.1), 3 * w / norms)
    torch.testing.assert_close(MinMaxNorm(0.0, 1.0).prox(w, 0.1), MaxNorm(1.0).prox(w, 0.1))
    assert torch.equal(MinMaxNorm(0.5, 1.0).prox(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


def test_a_density_can_follow_a_schedule():
    constraint = TopK(lambda update: 1 - 0.1 * update)
    assert constraint.scheduled
    assert constraint.at(5) == TopK(0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        TopK(lambda update: 2.0).at(0)


@every_constraint
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("draw", range(3))
def test_weights_that_rounding_moved_out_of_the_set_are_inside(case: ConstraintCase, dtype, draw):
    w = tensor(case.shape).to(dtype)
    layer = nn.Module()
    layer.weight = nn.Parameter(case.make().prox(w, 1.0))
    regularizer = Regularizer(layer, {"weight": case.make()})
    assert regularizer.value() == 0
    with_squares = Regularizer(layer, {"weight": case.make() + L2(2.0)}).value()
    torch.testing.assert_close(with_squares, layer.weight.detach().float().square().sum(), rtol=4e-2, atol=1e-6)
    layer.weight.data = w
    assert regularizer.value() == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("constraint", "size", "towards"),
    [
        (MaxNorm(0.7), 3.0, 1),
        (MinMaxNorm(0.3, 0.7), 3.0, 1),
        (MinMaxNorm(0.7, 2.0), 0.05, -1),
        (UnitNorm(), 3.0, 1),
        (SpectralBall(0.7), 3.0, 1),
    ],
)
def test_weights_that_rounding_moved_off_the_border_are_at_the_border(constraint, size, towards, dtype):
    """The loss pushes each of them against the constraint, so that they are stationary."""
    layer = nn.Module()
    layer.weight = nn.Parameter(constraint.prox(size * torch.randn(6, 8).to(dtype), 1.0))
    push = layer.weight.detach().float()
    if isinstance(constraint, SpectralBall):  # outwards in the singular values that are at the limit
        left, values, right = torch.linalg.svd(push, full_matrices=False)
        push = (left * (values > 0.69)) @ right
    regularizer = Regularizer(layer, {"weight": constraint})
    pressed, free = (
        regularizer.residuals(lambda sign=sign: -(sign * towards * push * layer.weight.float()).sum())
        for sign in (1, -1)
    )
    assert pressed.penalized[0].max <= 3e-3 * push.abs().max()
    if not isinstance(constraint, UnitNorm):
        assert free.penalized[0].max >= 0.9 * push.abs().max()


@pytest.mark.parametrize("high", [0.3, 0.7, torch.tensor([0.1, 0.3, 0.6, 0.7])])  # rounded up, down, and both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_at_a_bound_that_is_rounded_to_their_type_are_at_the_bound(high, dtype):
    layer = nn.Module()
    layer.weight = nn.Parameter(Box(-0.1, high).prox(torch.full((4,), 2.0, dtype=dtype), 1.0))
    regularizer = Regularizer(layer, {"weight": Box(-0.1, high, L1(1.0))})
    torch.testing.assert_close(regularizer.value(), layer.weight.detach().float().sum(), rtol=1e-2, atol=0)
    blocked = regularizer.residuals(lambda: -2 * layer.weight.float().sum())
    assert blocked.penalized[0].max == 0
    free = regularizer.residuals(lambda: 2 * layer.weight.float().sum())
    assert free.penalized[0].max == 3.0
