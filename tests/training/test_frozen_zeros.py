"""Zeros that stay zero: against loops written by hand, and against least squares on the weights that are left."""

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Muon

from catalog import OPTIMIZERS
from models import batches, closure_of, equal, loss_of, mlp, train, weights
from problems import diabetes_lasso
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    Columns,
    Coupled,
    Grouped,
    GroupError,
    GroupLasso,
    Member,
    ParameterError,
    Regularizer,
    Ridged,
    Rows,
    Rule,
    SelectionError,
    SparseGroupLasso,
    Toward,
    freeze_zeros,
    regularize,
)


def pruned(dtype=torch.float32):
    """A network with zero rows, and with zeros elsewhere."""
    model = mlp(dtype)
    with torch.no_grad():
        for w in weights(model):
            w[0, ::2] = 0.0
            w[1] = 0.0
    return model


def matrices(p):
    return [w for w in p if w.dim() > 1]


MAKERS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "Adam fused": lambda p: Adam(p, lr=0.05, fused=True),
    "Muon": lambda p: Muon(matrices(p), lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_is_that_of_a_loop_with_masks(make, dtype, closure):
    model, other = pruned(dtype), pruned(dtype)
    optimizer, by_hand = make(list(model.parameters())), make(list(other.parameters()))
    masks = [w == 0 for w in weights(other)]

    @torch.no_grad()
    def clear():
        for w, mask in zip(weights(other), masks, strict=True):
            w.grad[mask] = 0.0

    @torch.no_grad()
    def restore():
        for w, mask in zip(weights(other), masks, strict=True):
            w[mask] = 0.0

    train(model, optimizer, 3)  # without masks: momentum moves what is zero now
    train(other, by_hand, 3)
    for network in (model, other):
        with torch.no_grad():
            for w, mask in zip(weights(network), masks, strict=True):
                w[mask] = 0.0
    freeze_zeros(model).attach(optimizer)
    train(model, optimizer, 10, closure=closure)
    train(other, by_hand, 10, before=clear, after=restore)
    assert equal(model, other)
    assert all(bool((w == 0)[mask].all()) for w, mask in zip(weights(model), masks, strict=True))


@pytest.mark.parametrize("after", [None, L2(0.5)])
def test_gradients_are_as_the_loop_left_them(after):
    model = pruned()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, Rule(L1(0.1), how="gradient", until=0, after=after)).attach(optimizer)
    loss_of(model, batches(1)[0]).backward()
    before = [w.grad.clone() for w in weights(model)]
    assert any(bool(grad[w == 0].any()) for grad, w in zip(before, weights(model), strict=True))
    optimizer.step()
    assert all(torch.equal(w.grad, grad) for w, grad in zip(weights(model), before, strict=True))


def refit(make, iterations=3000, *, closure=False):
    """Train the weights that the lasso leaves, with a stale state, and return how far they are from least squares."""
    problem = diabetes_lasso()
    support = (problem.solution != 0)[0]
    exact = torch.linalg.lstsq(problem.x[:, support], problem.y).solution[:, 0]
    model = problem.model()
    model.weight.data.copy_(problem.solution + 0.1)
    optimizer = make(model.parameters())
    step = closure_of(optimizer, functools.partial(problem.loss, model))
    for _ in range(0 if closure else 5):
        step()
        optimizer.step()
    model.weight.data.copy_(problem.solution)
    freeze_zeros(model).attach(optimizer)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        if closure:
            optimizer.step(step)
        else:
            step()
            optimizer.step()
            rate.step()
        assert not model.weight[0, ~support].any()
    return float((model.weight.detach()[0, support] - exact).abs().max())


ROUGH = {"Rprop": 1e-5, "Rprop foreach": 1e-5}  # its step does not shrink with the gradient
QUICK = ("SGD momentum", "Adam", "Adagrad fused", "Adadelta")
CASES = [pytest.param(case, id=str(case), marks=() if str(case) in QUICK else pytest.mark.slow) for case in OPTIMIZERS]


@pytest.mark.parametrize("case", CASES)
def test_a_refit_is_least_squares_on_what_is_left(case):
    assert refit(case.make) <= ROUGH.get(case.name, 1e-10)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_no_zero_escapes(case):
    """In a network, from batches of noise, whatever the optimizer keeps from before."""
    model = pruned(torch.float64)
    masks = [w == 0 for w in weights(model)]
    optimizer = case.make(list(model.parameters()))
    train(model, optimizer, 3)
    with torch.no_grad():
        for w, mask in zip(weights(model), masks, strict=True):
            w[mask] = 0.0
    freeze_zeros(model).attach(optimizer)
    for _ in range(5):
        train(model, optimizer, 10)
        assert all(torch.equal(w == 0, mask) for w, mask in zip(weights(model), masks, strict=True))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_gradients_in_closures_are_masked(search):
    """Without masks inside the closure, directions mix in what zeros would do, and the result is off by 0.2."""
    assert refit(lambda p: LBFGS(p, lr=1.0, line_search_fn=search), 60, closure=True) <= 1e-4


@pytest.mark.parametrize(
    "groups", [Rows(), {nn.Linear: Rows()}, {"0.weight": Rows(), "*.weight": None}], ids=["all", "class", "some"]
)
def test_of_groups_only_whole_ones_stay(groups):
    model = pruned()
    rows = [(w == 0).all(1) for w in weights(model)]
    single = [w == 0 for w in weights(model)]
    freeze_zeros(model, groups).attach(optimizer := SGD(model.parameters(), lr=0.1))
    train(model, optimizer, 10)
    for index, w in enumerate(weights(model)):
        if isinstance(groups, dict) and None in groups.values() and index:
            assert bool((w == 0)[single[index]].all())
        else:
            assert torch.equal((w == 0).all(1), rows[index])
            assert torch.equal(w == 0, rows[index][:, None].expand_as(w))


def test_groups_that_span_parameters_stay_together():
    model = mlp()
    with torch.no_grad():
        model[0].weight[:3] = 0.0
        model[0].bias[:2] = 0.0
    coupled = Coupled([Member("0.weight", 0, range(8)), Member("0.bias", 0, range(8)), Member("2.weight", 1, range(8))])
    with torch.no_grad():
        model[2].weight[:, 1:4] = 0.0
    freeze_zeros(model, coupled).attach(optimizer := Adam(model.parameters(), lr=0.1))
    train(model, optimizer, 5)
    assert (model[0].weight == 0).all(1).tolist() == [False, True, *[False] * 6]
    assert (model[0].bias == 0).tolist() == [False, True, *[False] * 6]
    assert (model[2].weight == 0).all(0).tolist() == [False, True, *[False] * 6]


@pytest.mark.parametrize(
    "groups", [Rows(), Coupled([Member("0.weight", 0, range(8))])], ids=["rows", "span_parameters_tiny"]
)
def test_tiny_weights_keep_a_group_alive(groups):
    model = pruned()
    with torch.no_grad():
        model[0].weight[1, 0] = 1e-30  # its square is 0 in float32
    freeze_zeros(model, groups).attach(optimizer := SGD(model.parameters(), lr=0.1))
    train(model, optimizer, 1)
    assert bool(model[0].weight[1].any())


@pytest.mark.parametrize(
    ("penalty", "of_groups"),
    [
        (Ridged(GroupLasso(0.1, Rows()), 0.1), True),
        (Grouped(L2(0.1), Rows()), True),
        (SparseGroupLasso(0.1, 0.1, Rows()), False),
    ],
    ids=["ridged", "grouped", "sparse group"],
)
def test_what_a_zero_is_says_the_penalty(penalty, of_groups):
    w = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert penalty.zeros(w).tolist() == [[True, True], [not of_groups, False]]
    moved = Toward(penalty, torch.ones(2, 2))
    assert moved.zeros(w + 1).tolist() == penalty.zeros(w).tolist()


def test_tied_weights_are_masked_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[0] = 0.0
    freeze_zeros(model).attach(optimizer := SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
    assert (model[0].weight == 0).any(1).tolist() == [True, False, False, False]


def test_the_zeros_are_the_mask():
    """Nothing but a count is saved; a copy, and a model that is loaded, go on alike."""
    model = pruned()
    optimizer = AdamW(model.parameters(), lr=0.05)
    regularizer = freeze_zeros(model).attach(optimizer)
    train(model, optimizer, 3)
    assert regularizer.state_dict() == {"version": 1, "updates": [3]}
    other, file = pruned(), io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights_of, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights_of)
    again = AdamW(other.parameters(), lr=0.05)
    again.load_state_dict(state)
    freeze_zeros(other).attach(again)
    copied, copied_optimizer, copied_regularizer = copy.deepcopy((model, optimizer, regularizer))
    copied_regularizer.attach(copied_optimizer)
    for network, own in ((model, optimizer), (other, again), (copied, copied_optimizer)):
        train(network, own, batches(8)[3:])
    assert equal(model, other)
    assert equal(model, copied)


def test_a_frozen_parameter_and_one_without_gradient_are_left_alone():
    model = pruned()
    with torch.no_grad():
        model[2].weight.zero_()
    model[2].weight.requires_grad_(False)
    freeze_zeros(model).attach(optimizer := SGD(model.parameters(), lr=0.1))
    train(model, optimizer, 2)
    model[0].weight.grad = None
    optimizer.step()
    assert not model[2].weight.any()


def test_sparse_gradients():
    layer = nn.Embedding(5, 3, sparse=True)
    with torch.no_grad():
        layer.weight[1] = 0.0
    freeze_zeros(layer, {"weight": None}).attach(optimizer := SGD(layer.parameters(), lr=0.1))
    before = layer.weight.detach().clone()
    layer(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert not layer.weight[1].any()
    assert not torch.equal(layer.weight[2], before[2])


def test_a_print_says_what_stays():
    plan = freeze_zeros(pruned(), {"0.weight": None, "2.weight": Rows()}).plan
    assert str(plan).splitlines()[2:] == [
        "0.weight   8x6    -           -        -         zeros stay",
        "2.weight   3x8    3 x Rows()  -        -         zeros stay",
    ]


def test_what_is_refused():
    model = mlp()
    with torch.no_grad():
        model[2].weight.zero_()
    with pytest.raises(ParameterError, match=r"'2\.weight' of shape \(3, 8\) is zero everywhere: nothing"):
        freeze_zeros(model)
    assert len(freeze_zeros(model, {"0.weight": None}).plan) == 1
    with pytest.raises(TypeError, match="takes groups such as Rows"):
        freeze_zeros(mlp(), {"0.weight": L1(0.1)})
    with pytest.raises(TypeError, match="takes groups such as Rows"):
        freeze_zeros(mlp(), "0.weight")
    with pytest.raises(SelectionError, match="matches no parameter"):
        freeze_zeros(mlp(), {"none": None})
    with pytest.raises(GroupError, match="cannot be penalized"):
        freeze_zeros(mlp(), {"0.bias": Columns()})
    model = pruned()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.1)).attach(optimizer)
    with pytest.raises(AttachmentError, match="penalized by another Regularizer"):
        freeze_zeros(model).attach(optimizer)
    regularize(model[0], L1(0.1))
    with pytest.raises(SelectionError, match="its layer declares"):
        freeze_zeros(model)
