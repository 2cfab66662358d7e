"""The metric is what moves a weight under a constant gradient, at rest: measured, not quoted."""

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from catalog import OPTIMIZERS
from shrinkage import L1, MetricError, Regularizer, register_metric
from shrinkage.metric import _metrics, metric_of

UNCENTERED = [case for case in OPTIMIZERS if "centered" not in case.name]


def metric_after(optimizer: Optimizer, parameter: nn.Parameter):
    return metric_of(optimizer)(optimizer.param_groups[0], optimizer.state[parameter], parameter)


@pytest.mark.parametrize("case", UNCENTERED, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_constant_gradient_moves_a_weight_by_the_metric(case, sign):
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = case.make([parameter])
    optimizer.param_groups[0]["maximize"] = sign < 0
    grad = torch.tensor([0.5, -2.0, 1e-3, 7.0], dtype=torch.float64)
    for _ in range(3000):
        before = parameter.detach().clone()
        parameter.grad = grad.clone()
        optimizer.step()
    moved = (before - parameter.detach()) * sign
    torch.testing.assert_close(moved, metric_after(optimizer, parameter) * grad, rtol=1e-9, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centered_rmsprop_divides_by_the_standard_deviation(momentum):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = RMSprop([parameter], lr=0.1, centered=True, momentum=momentum)
    for _ in range(50):
        parameter.grad = torch.randn(3, dtype=torch.float64)
        optimizer.step()
    state = optimizer.state[parameter]
    deviation = (state["square_avg"] - state["grad_avg"] ** 2).sqrt()
    expected = 0.1 / (1 - momentum) / (deviation + 1e-8)
    torch.testing.assert_close(metric_after(optimizer, parameter), expected)


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_adam_corrects_the_second_moment_from_the_first_step_on(make, amsgrad, options):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = make([parameter], lr=0.1, amsgrad=amsgrad, **options)
    squares, largest = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(1, 6):
        parameter.grad = torch.randn(3, dtype=torch.float64) / t
        squares = 0.999 * squares + 0.001 * parameter.grad**2
        largest = torch.maximum(largest, squares)
        optimizer.step()
        second_moment = (largest if amsgrad else squares) / (1 - 0.999**t)
        torch.testing.assert_close(metric_after(optimizer, parameter), 0.1 / (second_moment.sqrt() + 1e-8))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Adam(p, lr=0.1),
        lambda p: Adam(p, lr=0.1, amsgrad=True),
        lambda p: RMSprop(p, lr=0.1),
        lambda p: RMSprop(p, lr=0.1, centered=True),
        lambda p: Adagrad(p, lr=0.1),
        lambda p: Adam(p, lr=torch.tensor(0.1)),
    ],
)
def test_an_element_that_never_had_a_gradient_takes_the_learning_rate(make):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = make([parameter])
    for _ in range(3):
        parameter.grad = torch.tensor([0.0, 4.0])
        optimizer.step()
    step = metric_after(optimizer, parameter)
    assert step[0] == torch.tensor(0.1)
    assert step[1] != torch.tensor(0.1)


def test_half_precision_moments_are_computed_in_float32():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Adam([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert metric_after(optimizer, parameter).dtype == torch.float32


def test_an_unknown_optimizer_is_refused_when_attaching_with_the_ways_out():
    model = nn.Linear(3, 2)
    with pytest.raises(MetricError) as caught:
        Regularizer(model, L1(0.1)).attach(LBFGS(model.parameters()))
    for word in ("LBFGS", 'how="decoupled"', 'how="gradient"', "register_metric(LBFGS, ...)"):
        assert word in str(caught.value)


class Inherits(Adam):
    pass


class Overrides(Adam):
    def step(self, closure=None):
        return super().step(closure)


class MixesIn(dict, SGD):
    pass


def test_a_subclass_has_its_parents_metric_only_with_its_parents_step():
    layer = nn.Linear(2, 2)
    assert metric_of(Inherits(layer.parameters())) is metric_of(Adam(layer.parameters()))
    assert metric_of(AdamW(layer.parameters())) is metric_of(Adam(layer.parameters()))
    with pytest.raises(MetricError, match="Overrides"):
        metric_of(Overrides(layer.parameters()))


def test_a_metric_can_be_registered(monkeypatch):
    monkeypatch.setattr("shrinkage.metric._metrics", dict(_metrics))
    model = nn.Linear(2, 2)
    optimizer = Overrides(model.parameters())
    register_metric(Overrides, lambda group, state, parameter: group["lr"])
    assert metric_after(optimizer, model.weight) == 1e-3
    Regularizer(model, L1(0.1)).attach(optimizer)
    with pytest.raises(TypeError, match=r"expected a subclass of torch\.optim\.Optimizer, got"):
        register_metric(nn.Linear, lambda group, state, parameter: 1.0)
