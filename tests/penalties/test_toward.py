"""Penalties of the distance to a reference: where it comes from, and that it survives a restart."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import batches, equal, mlp, train
from shrinkage import (
    L1,
    L2,
    GroupError,
    GroupLasso,
    ParameterError,
    Regularizer,
    Rows,
    SelectionError,
    Toward,
    regularize,
)


def test_l2_sp_is_weight_decay_toward_the_pretrained_weights():
    model, by_hand = mlp(), mlp()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer, other = SGD(model.parameters(), lr=0.1), SGD(by_hand.parameters(), lr=0.1)
    Regularizer(model, {"*.weight": Toward(L2(0.3))}, how="gradient").attach(optimizer)
    train(model, optimizer, 10)

    def decay():
        for name, p in by_hand.named_parameters():
            if name.endswith("weight"):
                p.grad.add_(0.3 * (p.detach() - start[name]))

    train(by_hand, other, 10, before=decay)
    for one, two in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_l1_sp_leaves_weights_exactly_at_the_reference():
    model = mlp()
    start = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, {"*.weight": Toward(L1(0.1))}).attach(optimizer)
    train(model, optimizer, 30)
    for name in ("0.weight", "2.weight"):
        same = model.get_parameter(name) == start[name]
        assert 0 < int(same.sum()) < same.numel()


@pytest.mark.parametrize("kind", ["the model", "a state_dict", "a tensor"])
def test_the_reference_may_come_from_three_places(kind):
    model = mlp()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    reference = {"the model": None, "a state_dict": start, "a tensor": start["0.weight"]}[kind]
    regularizer = Regularizer(model, {"0.weight": Toward(L2(1.0), reference)})
    assert regularizer.value() == 0
    model[0].weight.data.add_(0.5)
    torch.testing.assert_close(regularizer.value(), torch.tensor(0.5 * 0.25 * 48))
    assert ("references" in regularizer.state_dict()) == (kind == "the model")
    assert "L2 toward reference" in str(regularizer.plan)


def test_a_reference_taken_from_the_model_survives_a_restart():
    def start(model):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        return optimizer, Regularizer(model, {"*.weight": Toward(L1(0.05))}).attach(optimizer)

    whole = mlp()
    train(whole, start(whole)[0], 20)

    first = mlp()
    optimizer, regularizer = start(first)
    train(first, optimizer, batches(20)[:12])
    stream = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), regularizer.state_dict()], stream)
    stream.seek(0)
    model_state, optimizer_state, state = torch.load(stream, weights_only=True)

    second = mlp()
    second.load_state_dict(model_state)  # before the regularizer is made, which so takes another reference at first
    optimizer, regularizer = start(second)
    optimizer.load_state_dict(optimizer_state)
    regularizer.load_state_dict(state)
    train(second, optimizer, batches(20)[12:])
    assert equal(second, whole)


def test_references_of_another_model_are_refused():
    state = Regularizer(mlp(), {"0.weight": Toward(L1(0.1))}).state_dict()
    with pytest.raises(ValueError, match=r"references of '0.weight', this regularizer of '2.weight'"):
        Regularizer(mlp(), {"2.weight": Toward(L1(0.1))}).load_state_dict(state)
    state["references"]["0.weight"] = torch.zeros(3)
    regularizer = Regularizer(mlp(), {"0.weight": Toward(L1(0.1))})
    before = regularizer.plan
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(3,\), the parameter \(8, 6\)"):
        regularizer.load_state_dict(state)
    assert regularizer.plan is before


def test_groups_toward_a_reference():
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    penalty = Toward(GroupLasso(1.0, Rows(), weigh_by_size=False), reference)
    w = reference + torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(penalty.prox(w, 1.0), reference + torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    assert torch.equal(penalty.prox(w, 1.0)[1], reference[1])


def test_what_does_not_move_comes_back_bit_for_bit():
    reference, w = torch.full((4,), 1e8), torch.tensor([0.1, 0.2, 0.3, 0.7])
    assert torch.equal(Toward(L1(0.0), reference).prox(w, 1.0), w)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Toward(L1(0.1), "pretrained.pt"), TypeError, "reference must be a tensor, a state_dict or None"),
        (lambda: Toward(0.1), TypeError, "expected a penalty"),
        (lambda: Toward(L1(0.1)).prox(torch.ones(2), 1.0), TypeError, "has no reference tensor yet"),
        (lambda: Regularizer(mlp(), {"0.weight": Toward(L1(0.1), torch.ones(3))}), GroupError, r"\(3,\).*\(8, 6\)"),
        (lambda: Regularizer(mlp(), {"0.weight": Toward(L1(0.1), {})}), SelectionError, "has no '0.weight'"),
        (lambda: regularize(nn.Linear(2, 2), Toward(L1(0.1))), ValueError, "use Regularizer"),
        (lambda: Regularizer(nn.LazyLinear(2), Toward(L1(0.1))), ParameterError, "is lazy, so it has no value yet"),
    ],
)
def test_bad_references_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_layer_may_declare_a_reference_that_is_given():
    layer = nn.Linear(3, 2)
    reference = layer.weight.detach().clone()
    regularize(layer, Toward(L1(10.0), reference))
    optimizer = SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.ones(3)).sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight, reference)
    copied = copy.deepcopy(layer)
    copied.weight.grad = torch.ones(2, 3)
    SGD(copied.parameters(), lr=0.1).step()
    assert torch.equal(copied.weight, reference)


def test_a_reference_is_not_the_parameter_that_moves():
    """A state_dict, and the parameter itself, share their memory with what is going to move."""
    for reference_of in (nn.Module.state_dict, lambda layer: layer.weight):
        for declared in (False, True):
            layer = nn.Linear(2, 1, bias=False)
            start = layer.weight.detach().clone()
            penalty = Toward(L1(1e6), reference_of(layer))
            if declared:
                regularize(layer, penalty)
            optimizer = SGD(layer.parameters(), lr=1.0)
            regularizer = None if declared else Regularizer(layer, penalty).attach(optimizer)
            for _ in range(2):
                layer(torch.ones(1, 2)).sum().backward()
                optimizer.step()
            assert torch.equal(layer.weight, start)
            assert regularizer is None or regularizer.value() == 0
