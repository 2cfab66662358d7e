"""A schedule follows the updates that its parameters had: over optimizers that are exchanged, and smaller models."""

import copy
import gc
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, train, train_step
from shrinkage import (
    L1,
    CoupledChannels,
    GroupLasso,
    Regularizer,
    Rows,
    Rule,
    Toward,
    shrink,
    shrink_optimizer_,
)
from shrinkage.optimizers.parameter_state import states_in


class Counted:
    """A schedule that notes for which updates it is asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, update):
        self.seen.append(update)
        return 0.01


@pytest.mark.parametrize("way", ["both live", "the first is gone", "detached", "detached and copied", "each epoch"])
def test_another_optimizer_of_the_same_parameters_goes_on(way):
    schedule, model = Counted(), mlp()
    regularizer = Regularizer(model, L1(schedule), hold_zeros=0.9)
    first = Adam(model.parameters())
    regularizer.attach(first)
    train(model, first, 3)
    if way.startswith("detached"):
        regularizer.detach()
    if way == "detached and copied":
        model, regularizer = copy.deepcopy((model, regularizer))
        schedule = regularizer.plan.entries[0].penalty.strength
    if way == "the first is gone":
        del first
        gc.collect()
    for _ in range(3 if way == "each epoch" else 1):
        second = SGD(model.parameters(), lr=0.1)
        regularizer.attach(second)
        train(model, second, 1)
    assert schedule.seen == list(range(6 if way == "each epoch" else 4))
    assert regularizer.state_dict()["updates"][-1] == len(schedule.seen)


def test_averaged_gradients_go_on_too():
    model = mlp()
    regularizer = Regularizer(model, L1(0.1), hold_zeros=0.9)
    first, second = SGD(model.parameters(), lr=0.0), SGD(model.parameters(), lr=0.0)
    expected = torch.zeros(8, 6)
    for index, optimizer in enumerate((first, first, second)):
        regularizer.attach(optimizer)
        model[0].weight.grad = torch.full((8, 6), index + 1.0)
        expected = expected * 0.9 + 0.1 * (index + 1.0)
        optimizer.step()
    torch.testing.assert_close(regularizer.state_dict()["averages"][1]["0.weight"]["total"], expected)


def test_alternating_optimizers_have_one_count_which_is_saved():
    schedule, model = Counted(), mlp()
    optimizers = [SGD(model.parameters(), lr=0.1), Adam(model.parameters())]
    regularizer = Regularizer(model, L1(schedule)).attach(optimizers[0]).attach(optimizers[1])
    for _ in range(3):
        for optimizer in optimizers:
            train(model, optimizer, 1)
    assert schedule.seen == list(range(6))
    state = regularizer.state_dict()
    assert state["updates"] == [6, 6]
    for attach_first in (True, False):
        other = Regularizer(model, L1(schedule))
        fresh = [SGD(model.parameters(), lr=0.1), Adam(model.parameters())]
        for each in fresh if attach_first else ():
            other.attach(each)
        other.load_state_dict(state)
        for each in fresh:
            other.attach(each)
        for each in fresh:
            train(model, each, 1)
        assert schedule.seen[-2:] == [6, 7]


def test_an_older_state_that_is_loaded_counts_from_there():
    schedule, model = Counted(), mlp()
    regularizer = Regularizer(model, L1(schedule))
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = regularizer.state_dict()
    train(model, optimizer, 3)
    regularizer.detach()
    regularizer.load_state_dict(state)
    regularizer.attach(optimizer)
    train(model, optimizer, 1)
    assert schedule.seen == [0, 1, 2, 3, 4, 2]


def test_optimizers_of_other_parameters_count_for_themselves():
    schedules, model = [Counted(), Counted()], mlp()
    rules = {"0.weight": L1(schedules[0]), "2.weight": L1(schedules[1])}
    regularizer = Regularizer(model, rules)
    optimizers = [SGD(model[index].parameters(), lr=0.1) for index in (0, 2)]
    regularizer.attach(optimizers[0])
    train(model, optimizers[0], 3)
    regularizer.attach(optimizers[1])
    train(model, optimizers[1], 2)
    assert (schedules[0].seen, schedules[1].seen) == ([0, 1, 2], [0, 1])


def test_another_regularizer_starts_at_0():
    schedule, model = Counted(), mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    first = Regularizer(model, L1(schedule)).attach(optimizer)
    train(model, optimizer, 2)
    first.detach()
    Regularizer(model, L1(schedule)).attach(optimizer)
    train(model, optimizer, 1)
    assert schedule.seen == [0, 1, 0]


def dense(bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=bias), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        for layer, gone in ((model[0], slice(2, 9)), (model[2], slice(0, 3))):
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
    return model


X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def step(model, optimizer):
    train_step(optimizer, (model(X) - X[:, :1]).square().mean())


def rules_for(model, schedule, kind):
    if kind == "coupled":
        return GroupLasso(schedule, CoupledChannels(model, X[:4]))
    return {"0.weight": GroupLasso(schedule, Rows()), "2.weight": Toward(L1(schedule)), "4.weight": L1(0.0)}


def trained(kind, hold_zeros=0.9):
    schedule, model = Counted(), dense()
    optimizer = Adam(model.parameters(), lr=1e-4)
    regularizer = Regularizer(model, rules_for(model, schedule, kind), hold_zeros=hold_zeros).attach(optimizer)
    for _ in range(5):
        step(model, optimizer)
    return schedule, model, optimizer, regularizer


def cut_of(plan, name, tensor):
    for dim, kept in plan.keep.get(name, {}).items():
        tensor = tensor.index_select(dim, torch.tensor(kept))
    return tensor


@pytest.mark.parametrize("kind", ["coupled", "own"])
@pytest.mark.parametrize("detach", ["before", "after"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_smaller_model_goes_on_in_the_same_optimizer(kind, detach, times):
    schedule, model, optimizer, regularizer = trained(kind)
    reached = 5
    for _ in range(times):
        before = copy.deepcopy(regularizer.state_dict())
        small = shrink(model, X)
        assert small.plan.keep
        if detach == "before":
            regularizer.detach()
        shrink_optimizer_(optimizer, small.plan, model, small.model)
        if detach == "after":
            regularizer.detach()
        saved = torch.load(written(optimizer.state_dict()), weights_only=True)
        optimizer.load_state_dict(saved)
        model = small.model
        regularizer = Regularizer(model, rules_for(model, schedule, kind), hold_zeros=0.9).attach(optimizer)
        now = regularizer.state_dict()
        assert now["updates"] == [reached]
        for name, average in now["averages"][0].items():
            assert torch.equal(average["total"], cut_of(small.plan, name, before["averages"][0][name]["total"]))
        for name, reference in now.get("references", {}).items():
            assert torch.equal(reference, cut_of(small.plan, name, before["references"][name]))
        step(model, optimizer)
        reached += 1
        assert schedule.seen[-1] == reached - 1
        with torch.no_grad():
            model[0].weight[0] = 0
            model[0].bias[0] = 0


def test_a_state_that_waits_for_its_regularizer_is_cut_by_every_plan():
    model = dense()
    optimizer = Adam(model.parameters(), lr=1e-4)
    names = ("0.weight", "2.weight")
    regularizers = [Regularizer(model, {name: L1(0.01)}, hold_zeros=0.9).attach(optimizer) for name in names]
    for _ in range(5):
        step(model, optimizer)
    expected = regularizers[1].state_dict()["averages"][0]["2.weight"]["total"]
    for _ in range(2):
        small = shrink(model, X)
        for each in regularizers:
            each.detach()
        shrink_optimizer_(optimizer, small.plan, model, small.model)
        expected, model = cut_of(small.plan, "2.weight", expected), small.model
        regularizers = [Regularizer(model, {"0.weight": L1(0.01)}, hold_zeros=0.9).attach(optimizer)]
        step(model, optimizer)
        with torch.no_grad():
            model[0].weight[0] = model[0].bias[0] = 0
    waited = Regularizer(model, {"2.weight": L1(0.01)}, hold_zeros=0.9).attach(optimizer).state_dict()
    assert states_in(optimizer.param_groups[0]) == []  # nothing of an earlier shape is left
    assert waited["updates"] == [5]
    assert torch.equal(waited["averages"][0]["2.weight"]["total"], expected)


def written(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("kind", ["coupled", "own"])
@pytest.mark.parametrize("attach_first", [True, False])
def test_a_state_from_before_the_shrink_is_loaded_with_the_plan(kind, attach_first):
    schedule, model, _, regularizer = trained(kind)
    state = torch.load(written(regularizer.state_dict()), weights_only=True)
    small = shrink(model, X)
    optimizer = Adam(small.model.parameters())
    other = Regularizer(small.model, rules_for(small.model, schedule, kind), hold_zeros=0.9)
    if attach_first:
        other.attach(optimizer)
        untouched = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=r"saved before shrink\(\) needs the plan: load_state_dict\(state, plan="):
            other.load_state_dict(state)
        assert str(other.state_dict()) == str(untouched)
    other.load_state_dict(state, plan=small.plan)
    other.attach(optimizer)
    step(small.model, optimizer)
    assert schedule.seen[-1] == 5
    with pytest.raises(ValueError, match="the plan cuts one of shape"):
        other.load_state_dict(other.state_dict(), plan=small.plan)


def test_steps_that_wait_are_cut_too():
    model = dense()
    optimizer = Adam(model.parameters(), lr=1e-3)
    regularizer = Regularizer(model, [Rule(L1(1e-3), "0.weight", every=3)]).attach(optimizer)
    for _ in range(2):
        step(model, optimizer)
    before = regularizer.state_dict()["intervals"][0]["0.weight"]
    small = shrink(model, X)
    regularizer.detach()
    shrink_optimizer_(optimizer, small.plan, model, small.model)
    other = Regularizer(small.model, [Rule(L1(1e-3), "0.weight", every=3)]).attach(optimizer)
    assert other.state_dict()["intervals"][0]["0.weight"] == before


def recurrent():
    torch.manual_seed(0)
    return nn.ModuleDict({"lstm": nn.LSTM(4, 4), "head": nn.Linear(4, 2)})


def older_state(way):
    """A state of when a bare penalty left recurrent layers alone: that of rules which name the other weights."""
    model = recurrent()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, {"head.weight": L1(0.1)}, hold_zeros=0.9).attach(optimizer)
    for _ in range(3):
        model["head"](model["lstm"](torch.ones(2, 4))[0]).sum().backward()
        optimizer.step()
    return copy.deepcopy(regularizer.state_dict() if way == "regularizer" else optimizer.state_dict())


@pytest.mark.parametrize("way", ["regularizer", "optimizer"])
@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("hold_zeros", [0.9, None])
def test_a_state_of_the_earlier_default_loads_with_one_warning(way, attach_first, hold_zeros):
    state, model = older_state(way), recurrent()
    if hold_zeros is None:
        (state if way == "regularizer" else state["param_groups"][0]["shrinkage"][0]).pop("averages")
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(0.1), hold_zeros=hold_zeros)
    with (
        pytest.warns(UserWarning, match=r"weight_hh_l0', 'lstm\.weight_ih_l0'")
        if hold_zeros or way == "optimizer"
        else quiet() as told
    ):
        if attach_first:
            regularizer.attach(optimizer)
        (regularizer if way == "regularizer" else optimizer).load_state_dict(state)
        regularizer.attach(optimizer)
    assert told is None or len(told) == 1
    assert regularizer.state_dict()["updates"] == [3]


class quiet:
    def __enter__(self):
        return None

    def __exit__(self, *error):
        return None


def test_training_goes_on_as_if_there_were_one_optimizer():
    """Plain SGD has no state of its own, so that exchanging it in the middle changes nothing."""
    ends = []
    for exchange in (False, True):
        model = mlp()
        regularizer = Regularizer(model, L1(lambda update: 0.05 * 0.9**update), hold_zeros=0.9)
        optimizer = SGD(model.parameters(), lr=0.1)
        regularizer.attach(optimizer)
        for index, batch in enumerate(batches(8)):
            if exchange and index % 3 == 2:
                optimizer = SGD(model.parameters(), lr=0.1)
                regularizer.attach(optimizer)
            train_step(optimizer, loss_of(model, batch))
        ends.append(model)
    assert equal(*ends)
