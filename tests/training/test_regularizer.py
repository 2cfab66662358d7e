import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, train, weights, zeros
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    GroupLasso,
    Regularizer,
    Rows,
    SelectionError,
    regularize,
)
from shrinkage.training.attachment import explicit_attachments

STRENGTH = 0.02


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_attach_returns_the_regularizer_which_prints_its_plan():
    model = mlp()
    regularizer = Regularizer(model, L1(STRENGTH))
    assert repr(regularizer).startswith("Regularizer: 2 parameters, not attached\nparameter")
    optimizer = Adam(model.parameters())
    assert regularizer.attach(optimizer) is regularizer
    assert repr(regularizer) == f"Regularizer: 2 parameters, attached to Adam\n{regularizer.plan}"


def test_nothing_about_the_model_changes():
    model, untouched = mlp(), mlp()
    optimizer = Adam(model.parameters())
    Regularizer(model, L1(STRENGTH)).attach(optimizer)
    train(model, optimizer)
    assert list(model.state_dict()) == list(untouched.state_dict())
    assert repr(model) == repr(untouched)
    assert vars(model).keys() == vars(untouched).keys()


def test_detach_leaves_nothing_behind():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizer)
    train(model, optimizer, 1)
    regularizer.detach()
    assert hooks(optimizer) == 0
    assert not explicit_attachments[optimizer]
    plain = copy.deepcopy(model)
    train(model, optimizer)
    train(plain, SGD(plain.parameters(), lr=0.1))
    assert equal(model, plain)
    regularizer.detach()


def test_detached_and_attached_again_it_goes_on():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizer)
    train(model, optimizer, 2)
    regularizer.detach()
    regularizer.attach(optimizer)
    train(model, optimizer, 3)
    assert regularizer.state_dict() == {"version": 1, "updates": [5]}
    assert hooks(optimizer) == 2


def test_optimizers_and_models_are_not_kept_alive():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizer)
    train(model, optimizer, 1)
    optimizer.zero_grad()
    held = weakref.ref(optimizer), weakref.ref(model)
    del optimizer
    gc.collect()
    assert held[0]() is None
    assert "not attached" in repr(regularizer)
    del model, regularizer
    gc.collect()
    assert held[1]() is None


def test_a_model_that_holds_its_optimizer_is_not_kept_alive():
    model = mlp()
    model.optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(STRENGTH)).attach(model.optimizer)
    train(model, model.optimizer, 1)
    held = weakref.ref(model.optimizer), weakref.ref(model)
    del model
    gc.collect()
    assert held[0]() is held[1]() is None


@pytest.mark.parametrize("declared", [False, True])
def test_an_optimizer_whose_step_raised_is_not_kept_alive(declared):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    if declared:
        regularize(model[0], L1(STRENGTH))
    else:
        Regularizer(model, L1(STRENGTH)).attach(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    held = weakref.ref(optimizer), weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert held[0]() is held[1]() is None


def test_attaching_twice_penalizes_once():
    model, once = mlp(), mlp()
    optimizer, other = SGD(model.parameters(), lr=0.1), SGD(once.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizer)
    regularizer.attach(optimizer)
    Regularizer(once, L1(STRENGTH)).attach(other)
    train(model, optimizer)
    train(once, other)
    assert equal(model, once)


def test_two_regularizers_may_share_an_optimizer_but_not_a_parameter():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    first = Regularizer(model, {"0.weight": L1(STRENGTH)}).attach(optimizer)
    Regularizer(model, {"2.weight": L1(STRENGTH)}).attach(optimizer)
    clashing = Regularizer(model, {"*.weight": L2(STRENGTH)})
    with pytest.raises(AttachmentError, match=r"'0\.weight' of shape \(8, 6\) is penalized by another .*detach\(\)"):
        clashing.attach(optimizer)
    assert hooks(optimizer) == 4
    first.detach()
    Regularizer(model, {"0.weight": L2(STRENGTH)}).attach(optimizer)


def test_one_regularizer_for_several_optimizers():
    model, alone = mlp(), mlp()
    parts = [SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)]
    regularizer = Regularizer(model, L1(STRENGTH)).attach(parts[0]).attach(parts[1])
    assert "attached to SGD, SGD" in repr(regularizer)
    for batch in batches(5):
        model.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in parts:
            optimizer.step()
    optimizer = SGD(alone.parameters(), lr=0.1)
    Regularizer(alone, L1(STRENGTH)).attach(optimizer)
    train(alone, optimizer)
    assert equal(model, alone)
    assert regularizer.state_dict()["updates"] == [5, 5]


def test_parameters_that_no_attached_optimizer_holds_are_named():
    model = mlp()
    first, second = SGD(model[2].parameters(), lr=0.1), SGD(model[0].parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(0.1))
    assert "not penalized" not in repr(regularizer)
    regularizer.attach(first)
    assert repr(regularizer).endswith("\nnot in an attached optimizer, so not penalized: '0.weight'")
    regularizer.attach(second)
    assert "not penalized" not in repr(regularizer)


def test_an_optimizer_that_holds_no_penalized_parameter_is_refused():
    model = mlp()
    with pytest.raises(AttachmentError, match=r"SGD holds none of the 2 penalized parameters \('0\.weight' \(8, 6\)"):
        Regularizer(model, L1(0.1)).attach(SGD(mlp().parameters(), lr=0.1))
    with pytest.raises(AttachmentError, match="holds none of the 1 penalized"):
        Regularizer(model, {"0.weight": L1(0.1)}).attach(SGD(model[2].parameters(), lr=0.1))


def test_a_parameter_that_left_the_model_is_reported():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.1)).attach(optimizer)
    model[2] = nn.Identity()
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(AttachmentError, match=r"'2\.weight' of shape \(3, 8\) is not in the model any more"):
        optimizer.step()


class Wrapper:
    """An optimizer wrapper without hooks of its own, like Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_a_wrapper_is_attached_to_by_the_optimizer_inside():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(STRENGTH)).attach(Wrapper(Wrapper(optimizer)))
    assert hooks(optimizer) == 2


def test_what_is_no_optimizer_is_refused():
    model = mlp()
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got Sequential"):
        Regularizer(model, L1(STRENGTH)).attach(model)


def test_value_is_the_penalty_of_the_plan():
    model = mlp()
    rules = {"*.weight": L1(0.1), "0.bias": L2(lambda iteration: 0.5 + iteration)}
    expected = 0.1 * sum(w.abs().sum() for w in weights(model)) + 0.25 * model[0].bias.square().sum()
    value = Regularizer(model, rules).value()
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad


def halving(iteration):
    return 0.1 * 0.5**iteration


@pytest.mark.parametrize("load_first", [True, False])
def test_resume_is_bit_identical(load_first):
    def start():
        model = mlp()
        optimizer = Adam(model.parameters(), lr=0.01)
        return model, optimizer, Regularizer(model, {"0.*": GroupLasso(halving, Rows()), "2.*": L1(halving)})

    straight, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(straight, optimizer, 3)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    train(straight, optimizer, 3)

    resumed, optimizer, regularizer = start()
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if load_first:
        regularizer.load_state_dict(saved[2])
        regularizer.attach(optimizer)
    else:
        regularizer.attach(optimizer)
        regularizer.load_state_dict(saved[2])
    train(resumed, optimizer, 3)
    assert equal(straight, resumed)
    assert regularizer.state_dict() == {"version": 1, "updates": [6]}


@pytest.mark.parametrize("state", [{}, {"version": 2, "updates": [1]}, {"version": 1}, {"version": 1, "updates": [-1]}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(ValueError, match=r"expected \{'version': 1, 'updates': \[\.\.\.\]\}"):
        Regularizer(mlp(), L1(0.1)).load_state_dict(state)


def test_a_state_of_another_number_of_optimizers_is_refused():
    model = mlp()
    regularizer = Regularizer(model, L1(0.1)).attach(SGD(model.parameters(), lr=0.1))
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    with pytest.raises(ValueError, match="counts updates of 2 optimizers, this regularizer is attached to 1"):
        regularizer.load_state_dict({"version": 1, "updates": [1, 2]})


def test_without_rules_it_takes_what_the_layers_declare():
    model = nn.Sequential(regularize(nn.Linear(6, 8), L1(0.1)), nn.Linear(8, 3))
    (entry,) = Regularizer(model).plan
    assert (entry.name, entry.penalty, entry.how) == ("0.weight", L1(0.1), "proximal")
    with pytest.raises(SelectionError, match="no layer of the model declares any"):
        Regularizer(mlp())


def test_a_regularizer_takes_the_place_of_a_declaration_or_clashes_with_it():
    def start():
        model = mlp()
        regularize(model[0], L1(0.1))
        return model, SGD(model.parameters(), lr=0.1)

    alone, optimizer = start()
    train(alone, optimizer)
    both, optimizer = start()
    Regularizer(both, {"0.weight": L1(0.1)}).attach(optimizer)
    train(both, optimizer)
    assert equal(alone, both)
    with pytest.raises(
        SelectionError, match=r"two rules clash on '0\.weight': its layer declares L1.*another rule .* L2"
    ):
        Regularizer(both, {"0.weight": L2(STRENGTH)})
    assert zeros(both) > 0


def test_lazy_parameters_are_penalized_once_they_exist():
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, GroupLasso(3.0, Rows())).attach(optimizer)
    train(model, optimizer)
    assert zeros(model) > 0


def test_copies_and_pickles_are_not_attached_and_go_on_counting():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizer)
    train(model, optimizer, 3)
    for twin in (copy.deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))):
        assert "not attached" in repr(twin)
        assert twin.state_dict() == {"version": 1, "updates": [3]}
        assert twin.plan == regularizer.plan
    assert "attached to SGD" in repr(regularizer)
    regularizer.detach()


def test_optimizers_that_are_gone_are_forgotten_and_their_updates_are_not():
    model = mlp()
    regularizer = Regularizer(model, L1(STRENGTH))
    gone = SGD(model.parameters(), lr=0.1)
    regularizer.attach(gone)
    train(model, gone, 3)
    del gone
    gc.collect()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    train(model, optimizer, 1)
    assert regularizer.state_dict()["updates"] == [4]
