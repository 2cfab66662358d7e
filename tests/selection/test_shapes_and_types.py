"""Parameters that are lazy, empty, numbers, expanded, transposed, complex or integers."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim import Adam

from catalog import CONSTRAINTS, PENALTIES
from models import LR, STRENGTH, Alone, assert_refused_and_unchanged, equal, fill_gradients, sgd, soft_, train
from shrinkage import (
    L1,
    GroupError,
    GroupLasso,
    Heads,
    Kernels,
    ParameterError,
    Regularizer,
    Rows,
    Toward,
    Weighted,
    regularize,
)


@pytest.mark.parametrize("declared", [False, True])
def test_lazy_groups_are_the_rows_of_the_weight_that_comes_to_be(declared, without_native):
    def made(first):
        torch.manual_seed(1)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 3))

    model, plain = made(nn.LazyLinear(8)), made(nn.LazyLinear(8))
    optimizers = sgd(model), sgd(plain)
    penalty = GroupLasso(1.0, Rows())
    if declared:
        regularize(model[0], penalty)
    else:
        Regularizer(model, {"0.weight": penalty}).attach(optimizers[0])
    torch.manual_seed(3)
    train(model, optimizers[0])
    torch.manual_seed(3)
    train(plain, optimizers[1], after=lambda: plain[0].weight.data.copy_(penalty.prox(plain[0].weight.data, LR)))
    assert (model[0].weight == 0).all(1).any()
    assert equal(model, plain)


@pytest.mark.parametrize(
    "penalty",
    [GroupLasso(STRENGTH, Heads(3)), Weighted(L1(STRENGTH), torch.ones(4, 6)), Toward(L1(1.0), torch.ones(3))],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_lazy_parameter_of_a_shape_that_does_not_fit_is_refused(penalty, declared):
    model = nn.Sequential(nn.LazyLinear(4))
    optimizer = sgd(model)
    if declared:
        regularize(model[0], penalty)
    else:
        Regularizer(model, {"0.weight": penalty}).attach(optimizer)
    optimizer.step()  # of other layers, as it were
    model(torch.ones(2, 5))
    assert_refused_and_unchanged(model, optimizer, GroupError, r"weight'? .*of shape \(4, 5\) cannot be penalized")


# Shapes and strides


def refuses(penalty, shape):
    try:
        penalty.check_shape(shape)
    except GroupError:
        return True
    return False


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("case", [*PENALTIES, *CONSTRAINTS], ids=str)
def test_an_empty_parameter_is_penalized_nothing_or_refused_by_name(shape, case):
    penalty = case.make(0.1, shape) if case in PENALTIES else case.make()
    model = Alone(torch.ones(shape))
    model.other = nn.Parameter(torch.tensor([1.0, 0.01]))
    optimizer = sgd(model)
    rules = {"w": penalty, "other": L1(STRENGTH)}
    if refuses(penalty, shape):
        with pytest.raises(GroupError, match=rf"'w' of shape {re.escape(str(shape))} cannot be penalized by"):
            Regularizer(model, rules)
        return
    regularizer = Regularizer(model, rules).attach(optimizer)
    for _ in range(2):
        fill_gradients(model, 0.0)
        optimizer.step()
    assert model.w.shape == shape
    assert regularizer.value().isfinite()
    torch.testing.assert_close(model.other.detach(), torch.tensor([1 - 2 * LR * STRENGTH, 0.0]))


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_a_number_is_a_parameter_too(how):
    model, plain = Alone(torch.tensor(1.0)), Alone(torch.tensor(1.0))
    optimizers = sgd(model), sgd(plain)
    Regularizer(model, {"w": L1(0.3)}, how=how).attach(optimizers[0])
    for _ in range(30):
        for each in (model, plain):
            each.w.grad = torch.tensor(0.1)
        optimizers[0].step()
        with torch.no_grad():
            if how == "gradient":
                plain.w.grad += 0.3 * plain.w.sign()
            optimizers[1].step()
            if how != "gradient":
                soft_(plain.w, LR * 0.3)
    assert (model.w == 0) == (how != "gradient")
    assert equal(model, plain)


def test_a_number_has_no_rows():
    with pytest.raises(GroupError, match=r"'w' of shape \(\) cannot be penalized by .*Rows"):
        Regularizer(Alone(torch.tensor(1.0)), {"w": GroupLasso(0.1, Rows())})


def test_an_expanded_parameter_is_refused():
    with pytest.raises(ParameterError, match=r"'w' of shape \(3, 4\) is expanded: .*before expand\(\)"):
        Regularizer(Alone(torch.ones(1, 4).expand(3, 4)), {"w": L1(0.1)})
    alone = torch.empty_strided((1, 4), (0, 1)).fill_(1.0)
    assert len(Regularizer(Alone(alone), {"w": L1(0.1)}).plan) == 1


@pytest.mark.parametrize(
    "penalty", [L1(STRENGTH), GroupLasso(STRENGTH, Rows()), GroupLasso(STRENGTH, Kernels())], ids=str
)
@pytest.mark.parametrize("make", [sgd, lambda model: Adam(model.parameters(), lr=0.01)])
def test_channels_last_changes_the_memory_and_not_the_numbers(penalty, make):
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, 3)
    model = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for each in (model, plain):
        optimizer = make(each)
        Regularizer(each, penalty).attach(optimizer)
        generator = torch.Generator().manual_seed(2)
        for _ in range(5):
            each.weight.grad = torch.randn(each.weight.shape, generator=generator).mul(0.1)
            each.weight.grad = each.weight.grad.contiguous(memory_format=torch.preserve_format)
            optimizer.step()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    if isinstance(penalty, L1):
        assert torch.equal(model.weight, plain.weight)
    torch.testing.assert_close(model.weight, plain.weight)  # sums over other strides round differently
    assert torch.equal(model.weight == 0, plain.weight == 0)


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_a_transposed_parameter_trains_as_its_copy_does(how):
    base = torch.randn(5, 4)
    model, plain = Alone(base.t()), Alone(base.t().contiguous())
    for each in (model, plain):
        optimizer = Adam(each.parameters(), lr=0.1)
        Regularizer(each, {"w": L1(STRENGTH)}, how=how).attach(optimizer)
        for _ in range(5):
            each.w.grad = torch.sin(each.w.detach())
            optimizer.step()
    assert not model.w.is_contiguous()
    assert torch.equal(model.w, plain.w)


# Types


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64], ids=str
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_type_that_can_not_be_penalized_is_refused_by_name(dtype, declared):
    model = Alone(torch.ones(3, 4).to(dtype))
    with pytest.raises(ParameterError, match=rf"'w' of shape \(3, 4\) has type {dtype}; .*\{{'w': None\}}"):
        regularize(model, L1(0.1), parameter="w") if declared else Regularizer(model, {"w": L1(0.1)})


def test_a_complex_weight_is_penalized_as_pairs_of_real_ones():
    with pytest.raises(ParameterError, match=r"view_as_real\(\.\.\.\).*GroupLasso\(strength, Kernels\(\), weigh_by"):
        Regularizer(Alone(torch.ones(3, 4, dtype=torch.complex64)), {"w": L1(0.1)})
    z = torch.randn(3, 4, dtype=torch.complex128)
    model = Alone(torch.view_as_real(z).clone())
    optimizer = sgd(model)
    Regularizer(model, {"w": GroupLasso(9.0, Kernels(), weigh_by_size=False)}).attach(optimizer)
    model.w.grad = torch.zeros_like(model.w)
    optimizer.step()
    expected = z * (1 - LR * 9.0 / z.abs()).clamp_min(0)
    found = torch.view_as_complex(model.w.detach())
    assert torch.equal(found == 0, expected == 0)
    assert 0 < (found == 0).sum() < 12
    torch.testing.assert_close(found, expected)


def test_a_gradient_of_a_narrower_type_keeps_its_type_and_the_weight_its_precision():
    for how in ("proximal", "gradient"):
        model, plain = Alone(torch.linspace(-1, 1, 7)), Alone(torch.linspace(-1, 1, 7))
        optimizers = sgd(model), sgd(plain)
        Regularizer(model, {"w": L1(0.3)}, how=how).attach(optimizers[0])
        for each in (model, plain):
            each.w.grad_dtype = torch.bfloat16
            each.w.grad = torch.full((7,), 0.1, dtype=torch.bfloat16)
        optimizers[0].step()
        with torch.no_grad():
            if how == "gradient":
                plain.w.grad = (plain.w.grad.float() + 0.3 * plain.w.sign()).bfloat16()
            optimizers[1].step()
            if how == "proximal":
                soft_(plain.w, LR * 0.3)
        assert torch.equal(model.w.grad, torch.full((7,), 0.1, dtype=torch.bfloat16))
        assert equal(model, plain)
