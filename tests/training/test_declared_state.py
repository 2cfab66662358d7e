"""Layers that declare schedules, and zeros that averages hold: what counts, and what an optimizer saves."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, Rprop

from models import batches, equal, loss_of, mlp, train, zeros
from shrinkage import L1, Cubic, GroupLasso, Ramp, Regularizer, Rows, Rule, SelectionError, regularize
from shrinkage.optimizers.parameter_state import states_in

PENALTIES = {"0.weight": L1(Ramp(0.05, 6)), "2.weight": GroupLasso(Cubic(0.03, 8), Rows())}


def sgd(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def declared(hold_zeros=None, penalties=PENALTIES):
    model = mlp()
    for name, penalty in penalties.items():
        regularize(model[int(name[0])], penalty, hold_zeros=hold_zeros)
    return model


@pytest.mark.parametrize("hold_zeros", [None, 0.9])
@pytest.mark.parametrize("make", [sgd, lambda model: Adam(model.parameters(), lr=0.02)])
def test_it_is_a_regularizer(make, hold_zeros):
    model, other = declared(hold_zeros), mlp()
    optimizer, explicit = make(model), make(other)
    Regularizer(other, PENALTIES, hold_zeros=hold_zeros).attach(explicit)
    train(model, optimizer, 20)
    train(other, explicit, 20)
    assert zeros(model) > 0
    assert equal(model, other)


def test_each_layer_holds_zeros_in_its_own_way():
    model, other = mlp(), mlp()
    regularize(model[0], L1(0.05), hold_zeros=0.9)
    regularize(model[2], L1(0.05))
    optimizer, explicit = sgd(model), sgd(other)
    Regularizer(other, {"0.weight": L1(0.05)}, hold_zeros=0.9).attach(explicit)
    Regularizer(other, {"2.weight": L1(0.05)}).attach(explicit)
    train(model, optimizer, 15)
    train(other, explicit, 15)
    assert equal(model, other)


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
@pytest.mark.parametrize("hold_zeros", [None, 0.9])
@pytest.mark.parametrize("when", ["before the first step", "later"])
def test_a_run_resumes_bit_for_bit(hold_zeros, when, stop):
    whole = declared(hold_zeros)
    train(whole, sgd(whole), 14)
    model = declared(hold_zeros)
    optimizer, file = sgd(model), io.BytesIO()
    train(model, optimizer, stop)
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again = declared(hold_zeros)
    other = sgd(again)
    if when == "later":
        train(again, other, 3)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert states_in(other.state_dict()["param_groups"][0])  # saved at once, it is still there
    train(again, other, batches(14)[stop:])
    assert equal(again, whole)


def test_layers_that_are_called_alike_are_told_apart():
    """Their averages, and what a metric needs of before the step, are kept by name."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    other = copy.deepcopy(model)
    for index in (0, 2, 4):
        regularize(model[index], L1(0.02), hold_zeros=0.9)
    optimizer = Rprop(model.parameters(), lr=0.01)
    explicit = Rprop(other.parameters(), lr=0.01)
    Regularizer(other, L1(0.02), hold_zeros=0.9).attach(explicit)
    train(model, optimizer, 10)
    train(other, explicit, 10)
    assert equal(model, other)
    (state,) = states_in(optimizer.state_dict()["param_groups"][0])
    assert state["parameters"] == ["weight of Linear", "weight of Linear (2)", "weight of Linear (3)"]


def test_without_need_nothing_is_saved():
    model = mlp()
    regularize(model[0], L1(0.05))
    optimizer = sgd(model)
    train(model, optimizer, 3)
    assert not states_in(optimizer.state_dict()["param_groups"][0])


@pytest.mark.parametrize("way", ["another optimizer", "a copy", "a pickle"])
def test_a_schedule_goes_on(way):
    seen = []
    model = mlp()
    regularize(model[0], L1(Noting(seen)))
    optimizer = sgd(model)
    train(model, optimizer, 3)
    if way == "a copy":
        model, optimizer = copy.deepcopy((model, optimizer))
    elif way == "a pickle":
        model = pickle.loads(pickle.dumps(model))
        optimizer = sgd(model)
    else:
        optimizer = sgd(model)
    seen = model[0]._shrinkage_declarations.rules[0].penalty.strength.seen
    seen.clear()
    train(model, optimizer, 3)
    assert seen == [3, 4, 5]


class Noting:
    """A schedule that notes for which updates it is asked."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, update):
        self.seen.append(update)
        return 0.01


def test_two_optimizers_in_turn_count_their_own_steps():
    seen = [], []
    model = mlp()
    regularize(model[0], L1(Noting(seen[0])))
    regularize(model[2], L1(Noting(seen[1])))
    first, second = SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
    train(model, first, 3)
    train(model, second, 2)
    train(model, first, 1)
    assert seen == ([0, 1, 2, 3], [0, 1])


def test_an_update_that_is_skipped_is_not_counted():
    seen = []
    model = mlp()
    regularize(model[0], L1(Noting(seen)))
    optimizer = Adam(model.parameters(), fused=True)
    scaler = GradScaler("cpu", init_scale=64.0)
    for index, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch) * (float("inf") if index == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert seen == [0, 1, 1, 2]


def test_a_regularizer_takes_its_place():
    model = declared(0.9, {"0.weight": L1(0.05)})
    optimizer = sgd(model)
    train(model, optimizer, 3)
    Regularizer(model, Rule(L1(0.05), "0.weight")).attach(optimizer)
    train(model, optimizer, 3)
    other = mlp()
    explicit = sgd(other)
    first = Regularizer(other, {"0.weight": L1(0.05)}, hold_zeros=0.9).attach(explicit)
    train(other, explicit, 3)
    first.detach()
    Regularizer(other, {"0.weight": L1(0.05)}).attach(explicit)
    train(other, explicit, 3)
    assert equal(model, other)


def test_a_layer_that_is_gone_still_holds_zeros():
    model = declared(0.9, {"0.weight": L1(0.05)})
    container = nn.ParameterDict({name.replace(".", "_"): w for name, w in model.named_parameters()})
    optimizer = SGD(container.parameters(), lr=0.1, momentum=0.9)
    functional = copy.deepcopy(model)
    for part in functional.modules():
        vars(part).pop("_shrinkage_declarations", None)
    names = dict.fromkeys(dict(model.named_parameters()))
    del model
    reference = declared(0.9, {"0.weight": L1(0.05)})
    by_layer = sgd(reference)
    for batch in batches(10):
        optimizer.zero_grad()
        x, y = batch
        own = {name: container[name.replace(".", "_")] for name in names}
        (torch.func.functional_call(functional, own, x) - y).square().mean().backward()
        optimizer.step()
    train(reference, by_layer, 10)
    trained = dict(reference.named_parameters())
    assert all(torch.equal(container[name.replace(".", "_")], w) for name, w in trained.items())


def test_what_is_refused():
    for wrong in (1.0, 0, "0.9"):
        with pytest.raises(ValueError, match="hold_zeros must be a decay between 0 and 1"):
            regularize(nn.Linear(2, 2), L1(0.1), hold_zeros=wrong)
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    regularize(one, L1(0.1), hold_zeros=0.9)
    regularize(other, L1(0.1))
    optimizer = SGD(one.parameters(), lr=0.1)
    one.weight.grad = torch.ones(3, 3)
    with pytest.raises(SelectionError, match=r"hold_zeros=0\.9|hold_zeros=None"):
        optimizer.step()


def test_a_declaration_that_is_taken_back_takes_its_averages_along():
    model = declared(0.9, {"0.weight": L1(0.05)})
    optimizer = sgd(model)
    train(model, optimizer, 2)
    regularize(model[0], None)
    regularize(model[0], L1(0.05))
    train(model, optimizer, 2)
    assert not model[0]._shrinkage_declarations.decays
