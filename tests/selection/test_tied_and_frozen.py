"""Parameters that are tied, come apart, are frozen, unused, or copied with `copy.copy`."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from models import LR, STRENGTH, assert_refused_and_unchanged, equal, mlp, sgd, soft_, train, zeros
from shrinkage import (
    L1,
    L2,
    Regularizer,
    SelectionError,
    regularize,
)


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6, bias=False)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.decoder(torch.tanh(self.encoder(x))))


@pytest.mark.parametrize("rule", ["encoder.weight", "decoder.weight", "*coder.weight"])
@pytest.mark.parametrize("declared", [False, True])
def test_a_tied_weight_is_penalized_once_under_each_of_its_names(rule, declared):
    model, plain = Autoencoder(), Autoencoder()
    optimizer = sgd(model)
    if declared:
        regularize(model, L1(STRENGTH), parameter=rule)
    else:
        Regularizer(model, {rule: L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer)
    train(plain, sgd(plain), after=lambda: soft_(plain.encoder.weight, LR * STRENGTH))
    assert (model.encoder.weight == 0).any()
    assert equal(model, plain)


def test_weights_tied_later_are_penalized_once():
    model, plain = Autoencoder(), Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().clone())
    optimizer = sgd(model)
    regularizer = Regularizer(model, {"*coder.weight": L1(STRENGTH)}).attach(optimizer)
    assert len(regularizer.plan) == 2
    model.decoder.weight = model.encoder.weight
    train(model, optimizer)
    train(plain, sgd(plain), after=lambda: soft_(plain.encoder.weight, LR * STRENGTH))
    assert equal(model, plain)
    assert "not penalized" not in repr(regularizer)
    torch.testing.assert_close(regularizer.value(), STRENGTH * plain.encoder.weight.detach().abs().sum())


@pytest.mark.parametrize(("declared", "registered"), [(False, True), (False, False), (True, True)])
def test_a_weight_of_another_optimizer_is_penalized_once_it_is_tied_to_one_of_this(declared, registered):
    model, plain = Autoencoder(), Autoencoder()
    for each in (model, plain):
        each.decoder.weight = nn.Parameter(each.encoder.weight.detach().clone())
    optimizer, plain_optimizer = (SGD([each.encoder.weight, *each.head.parameters()], lr=LR) for each in (model, plain))
    if declared:
        regularize(model.decoder, L1(STRENGTH))
        regularize(model.head, L1(STRENGTH))
    else:
        Regularizer(model, {"decoder.weight": L1(STRENGTH), "head.weight": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 1)
    train(plain, plain_optimizer, 1, after=lambda: soft_(plain.head.weight, LR * STRENGTH))
    for each in (model, plain):
        if registered:
            each.decoder.weight = each.encoder.weight
        else:
            each.decoder._parameters["weight"] = each.encoder.weight
    train(model, optimizer)

    def after():
        soft_(plain.head.weight, LR * STRENGTH)
        soft_(plain.encoder.weight, LR * STRENGTH)

    train(plain, plain_optimizer, after=after)
    assert (model.encoder.weight == 0).any()
    assert equal(model, plain)


def test_two_rules_that_come_to_clash_on_a_weight_tied_later_are_refused():
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().clone())
    optimizer = sgd(model)
    Regularizer(model, {"encoder.weight": L1(STRENGTH), "decoder.weight": L2(STRENGTH)}).attach(optimizer)
    model.decoder.weight = model.encoder.weight
    message = r"'encoder\.weight' and 'decoder\.weight' are one tied parameter by now, but two rules clash"
    assert_refused_and_unchanged(model, optimizer, SelectionError, message)


def test_weights_that_come_apart_are_both_penalized():
    model, plain = Autoencoder(), Autoencoder()
    optimizers = sgd(model), sgd(plain)
    Regularizer(model, {"*coder.weight": L1(STRENGTH)}).attach(optimizers[0])
    for each, optimizer in zip((model, plain), optimizers, strict=True):
        each.decoder.weight = nn.Parameter(each.encoder.weight.detach().clone())
        optimizer.add_param_group({"params": [each.decoder.weight]})
    train(model, optimizers[0])

    def after():
        soft_(plain.encoder.weight, LR * STRENGTH)
        soft_(plain.decoder.weight, LR * STRENGTH)

    train(plain, optimizers[1], after=after)
    assert (model.decoder.weight == 0).any()
    assert equal(model, plain)


# Frozen and unused


def test_a_parameter_unfrozen_in_the_middle_is_penalized_from_then_on():
    model, plain = mlp(), mlp()
    optimizers = sgd(model), sgd(plain)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizers[0])
    for each in (model, plain):
        each[0].requires_grad_(False)
    assert repr(regularizer).endswith("\nfrozen, so not penalized: '0.weight'")
    train(model, optimizers[0], 2)
    train(plain, optimizers[1], 2, after=lambda: soft_(plain[2].weight, LR * STRENGTH))
    for each in (model, plain):
        each[0].requires_grad_(True)
    assert "frozen" not in repr(regularizer)
    train(model, optimizers[0], 5)

    def after():
        soft_(plain[0].weight, LR * STRENGTH)
        soft_(plain[2].weight, LR * STRENGTH)

    train(plain, optimizers[1], after=after)
    assert (model[0].weight == 0).any()
    assert equal(model, plain)


def test_a_rule_that_matches_frozen_parameters_only_warns():
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"the rule '0\.\*' matches frozen parameters only \('0\.weight' \.\.\.\)"):
        Regularizer(model, {"0.*": L1(STRENGTH), "2.*": L1(STRENGTH)})
    Regularizer(model, {"0.*": None, "*": L1(STRENGTH)})
    Regularizer(model, L1(STRENGTH))


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = mlp(), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_an_unused_parameter_is_left_alone(how):
    model, plain = WithUnused(), WithUnused()
    plain.load_state_dict(model.state_dict())
    optimizer = AdamW(model.parameters(), lr=0.01)
    Regularizer(model, {"*": L2(0.5)}, how=how).attach(optimizer)
    train(model, optimizer)
    assert equal(model.unused, plain.unused)
    assert not equal(model.used, plain.used)


# Copied with copy.copy


def shallow_copy(model):
    copied = copy.copy(model)
    assert copied.weight is model.weight
    return copied


def test_a_shallow_copy_is_penalized_once_with_its_original():
    torch.manual_seed(1)
    layer = regularize(nn.Linear(6, 3), L1(STRENGTH))
    copied, plain = shallow_copy(layer), copy.deepcopy(regularize(layer, None))
    regularize(layer, L1(STRENGTH))
    train(copied, sgd(copied))
    train(plain, sgd(plain), after=lambda: soft_(plain.weight, LR * STRENGTH))
    assert equal(copied, plain)


@pytest.mark.parametrize("make", [lambda layer: layer, copy.deepcopy], ids=["made", "deep copy"])
def test_a_shallow_copy_without_its_original_is_penalized_and_can_be_declared_anew(make):
    layer = make(regularize(nn.Linear(6, 3), L1(STRENGTH)))
    copied, plain = shallow_copy(layer), nn.Linear(6, 3)
    plain.load_state_dict(layer.state_dict())
    del layer
    gc.collect()
    train(copied, sgd(copied))
    train(plain, sgd(plain), after=lambda: soft_(plain.weight, LR * STRENGTH))
    assert equal(copied, plain)
    regularize(regularize(copied, None), L1(5.0))
    train(copied, sgd(copied))
    assert zeros(copied) > 0
