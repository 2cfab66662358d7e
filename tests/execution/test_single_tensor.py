"""Parity with torch's own decay, bit for bit, and the types in which things are computed."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from catalog import PENALTIES
from models import equal, mlp, train
from shrinkage import L1, L2, Regularizer
from shrinkage.execution.single_tensor import add_gradient_, chunks, decay_, prox_
from shrinkage.optimizers.adaptive_step import MetricStep

DECAY = 0.03
PENALIZED_AS_A_WHOLE = ("whole", "heads", "blocks", "Weighted", "Toward", "Orthogonal", "Nuclear")


@pytest.mark.parametrize(
    "make",
    [
        lambda p, **k: SGD(p, lr=0.1, **k),
        lambda p, **k: SGD(p, lr=0.1, momentum=0.9, nesterov=True, **k),
        lambda p, **k: SGD(p, lr=0.1, foreach=True, **k),
        lambda p, **k: SGD(p, lr=0.1, fused=True, **k),
        lambda p, **k: SGD(p, lr=0.1, maximize=True, **k),
        lambda p, **k: Adam(p, lr=0.01, **k),
        lambda p, **k: Adam(p, lr=0.01, foreach=True, **k),
        lambda p, **k: Adam(p, lr=0.01, fused=True, **k),
        lambda p, **k: Adam(p, lr=0.01, amsgrad=True, maximize=True, **k),
        lambda p, **k: RMSprop(p, lr=0.01, **k),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l2_gradient_is_weight_decay_bit_for_bit(make, dtype):
    ours, theirs = mlp(dtype), mlp(dtype)
    optimizer = make(ours.parameters())
    Regularizer(ours, {"*": L2(DECAY)}, how="gradient").attach(optimizer)
    train(ours, optimizer, 20)
    train(theirs, make(theirs.parameters(), weight_decay=DECAY), 20)
    assert equal(ours, theirs)
    assert not equal(ours, mlp(dtype))


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}, {"maximize": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("closure", [False, True])
def test_l2_decoupled_is_adamw_bit_for_bit(options, dtype, closure):
    ours, theirs = mlp(dtype), mlp(dtype)
    optimizer = AdamW(ours.parameters(), lr=0.01, weight_decay=0.0, **options)
    Regularizer(ours, {"*": L2(DECAY)}, how="decoupled").attach(optimizer)
    train(ours, optimizer, 20, closure=closure)
    train(theirs, AdamW(theirs.parameters(), lr=0.01, weight_decay=DECAY, **options), 20, closure=closure)
    assert equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("make", "options", "how"),
    [
        (SGD, {"lr": 0.1, "momentum": 0.9}, "gradient"),
        (SGD, {"lr": 0.1, "maximize": True}, "gradient"),
        (SGD, {"lr": 0.1, "foreach": True}, "gradient"),
        (Adam, {"lr": 0.01, "eps": 1e-4}, "gradient"),
        (Adam, {"lr": 0.01, "eps": 1e-4, "foreach": True}, "gradient"),
        (AdamW, {"lr": 0.1, "eps": 1e-4}, "decoupled"),  # with foreach=True, a CPU rounds 1 - lr * weight_decay as well
    ],
)
@pytest.mark.filterwarnings("ignore:.* is too small to move")
def test_l2_is_weight_decay_bit_for_bit_in_half_precision(make, options, how, dtype):
    """Sum and product are rounded once, as optimizers round them that are not fused."""
    ours, theirs = (nn.Linear(64, 64).to(dtype) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = make(ours.parameters(), weight_decay=0.0, **options)
    other = make(theirs.parameters(), weight_decay=0.3, **options)
    Regularizer(ours, {"*": L2(0.3)}, how=how).attach(optimizer)
    for _ in range(5):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape).to(dtype)
            two.grad = one.grad.clone()
        optimizer.step()
        other.step()
    assert all(parameter.isfinite().all() for parameter in ours.parameters())
    assert equal(ours, theirs)


@pytest.mark.parametrize("case", PENALTIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(case, dtype):
    penalty = case.make(0.3)
    parameter = nn.Parameter(torch.randn(case.shape).to(dtype))
    upcast = parameter.detach().float()
    for step in (0.37, torch.rand(case.shape) + 0.1):
        found = parameter.detach().clone()
        prox_(penalty, found, step)
        assert torch.equal(found, penalty.prox(upcast, step).to(dtype))
    decayed = parameter.detach().clone()
    decay_(penalty, decayed, 0.37)
    expected = upcast - 0.37 * penalty.gradient(upcast)
    torch.testing.assert_close(decayed, expected.to(dtype))


@pytest.mark.parametrize("case", PENALTIES, ids=str)
@pytest.mark.parametrize("factor", [1.0, -1.0, 1024.0, torch.tensor(1024.0)])
def test_the_derivative_is_added_in_place(case, factor):
    parameter = nn.Parameter(torch.randn(case.shape))
    parameter.grad = torch.randn(case.shape)
    place, expected = parameter.grad.data_ptr(), parameter.grad + factor * case.make(0.3).gradient(parameter.detach())
    add_gradient_(case.make(0.3), parameter.grad, parameter.detach(), factor)
    assert parameter.grad.data_ptr() == place
    torch.testing.assert_close(parameter.grad, expected)


def test_a_gradient_in_half_precision_is_rounded_once():
    parameter = nn.Parameter(torch.full((3,), 1.0, dtype=torch.bfloat16))
    parameter.grad = torch.full((3,), 1.0, dtype=torch.bfloat16)
    add_gradient_(L2(0.03), parameter.grad, parameter.detach(), 1.0)
    assert torch.equal(parameter.grad, torch.full((3,), 1.03).bfloat16())


def test_parameters_without_a_gradient_are_left_alone():
    layer = nn.Linear(3, 3)
    optimizer = SGD(layer.parameters(), lr=0.1)
    Regularizer(layer, L2(0.1), how="gradient").attach(optimizer)
    weight = layer.weight.detach().clone()
    optimizer.step()
    assert layer.weight.grad is None
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("case", PENALTIES, ids=str)
def test_transposed_and_sliced_parameters_are_written_in_place(case):
    base = torch.randn(*case.shape[2:], 2 * case.shape[0], case.shape[1]) if len(case.shape) == 2 else None
    if base is None:
        base = torch.randn(2 * case.shape[0], *case.shape[1:])
    parameter = nn.Parameter(base[::2])
    assert not parameter.is_contiguous()
    expected = case.make(0.3).prox(parameter.detach().contiguous(), 0.5)
    prox_(case.make(0.3), parameter.detach(), 0.5)
    torch.testing.assert_close(base[::2], expected)  # sums over other strides round differently


@pytest.mark.parametrize("case", PENALTIES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 13])
def test_chunks_give_what_the_whole_gives(monkeypatch, case, chunk):
    penalty, whole = case.make(0.2), torch.randn(case.shape)
    steps, grad = torch.rand(case.shape) + 0.1, torch.randn(case.shape)
    seen = []

    def eta(group, state, w):
        seen.append(w.shape)
        return state["step"]

    def run():
        w, added = whole.clone(), grad.clone()
        prox_(penalty, w, MetricStep(eta, {}, {"step": steps, "count": 3}, w))
        decay_(penalty, w, 0.1)
        add_gradient_(penalty, added, w, 2.0)
        return w, added

    expected = run()
    assert seen == [whole.shape]
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", chunk)
    for one, other in zip(run(), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert len(seen) > 2 or any(word in case.name for word in PENALIZED_AS_A_WHOLE)


def test_a_state_of_other_shapes_is_not_cut(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 4)
    w, state = torch.randn(6, 4), {"rows": torch.rand(6, 1), "columns": torch.rand(1, 4)}
    expected = L1(1.0).prox(w, state["rows"] * state["columns"])
    prox_(L1(1.0), w, MetricStep(lambda group, state, w: state["rows"] * state["columns"], {}, state, w))
    assert torch.equal(w, expected)


def test_a_sparse_gradient_in_a_state_is_not_cut(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 4)
    w, steps = torch.randn(6, 4), torch.rand(6, 4)
    state = {"steps": steps, "grad": torch.eye(6, 4).to_sparse()}
    expected = L1(1.0).prox(w, steps)
    seen = []
    prox_(L1(1.0), w, MetricStep(lambda group, state, w: seen.append(state["grad"]) or state["steps"], {}, state, w))
    assert torch.equal(w, expected)
    assert len(seen) > 1
    assert all(grad is state["grad"] for grad in seen)


class Distributed(torch.Tensor):
    """Stands for a tensor whose slices are copies: what is written into them is lost."""

    def split(self, *args):
        raise AssertionError("cut")


def test_only_plain_tensors_are_cut(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 4)
    w = torch.randn(6, 4)
    assert len(list(chunks(L1(0.1), w, 0.5))) == 6
    assert len(list(chunks(L1(0.1), w.as_subclass(Distributed), 0.5))) == 1
