"""What a regularizer says of layers that declare their penalties: these act in every step, without `attach`."""

import gc

import pytest
from torch import nn
from torch.optim import SGD, Adam, AdamW

from models import batches, equal, loss_of, mlp, train
from shrinkage import L0, L1, L2, Ramp, Regularizer, SelectionError, regularize
from shrinkage.training.global_hook import optimizers_that_stepped

STRENGTH = 0.05
WITHOUT = "declared by layers, so penalized without attach in"


def declared(penalty=None, **options):
    model = mlp()
    regularize(model[0], penalty or L1(STRENGTH), **options)
    return model


def said(model, *rules):
    first, *_, last = str(Regularizer(model, *rules)).splitlines()
    return first, last


def test_declared_layers_are_not_called_unattached():
    model = declared()
    assert said(model) == (
        "Regularizer: 1 parameter, declared by layers",
        f"{WITHOUT} each optimizer that steps them: '0.weight'",
    )
    optimizer = Adam(model.parameters())
    train(model, optimizer, 1)
    assert said(model) == ("Regularizer: 1 parameter, declared by layers", f"{WITHOUT} Adam: '0.weight'")
    del optimizer
    gc.collect()
    assert "in each optimizer that steps them" in said(model)[1]


def test_optimizers_that_step_other_models_are_not_named():
    model, other = declared(), declared()
    optimizer = Adam(other.parameters())
    train(other, optimizer, 1)
    assert "in each optimizer that steps them" in said(model)[1]


def test_a_rule_for_more_than_what_layers_declare_is_not_attached():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    assert said(model, L1(STRENGTH)) == ("Regularizer: 2 parameters, not attached", f"{WITHOUT} SGD: '0.weight'")


def test_beside_an_attached_optimizer():
    model = declared()
    one, other = SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(other)
    loss_of(model, batches(1)[0]).backward()
    one.step()
    other.step()
    assert str(regularizer) == (
        f"Regularizer: 2 parameters, attached to SGD\n{regularizer.plan}\n{WITHOUT} SGD: '0.weight'"
    )
    regularizer.attach(one)
    assert str(regularizer) == f"Regularizer: 2 parameters, attached to SGD, SGD\n{regularizer.plan}"


def test_what_is_frozen_or_taken_back_is_not_penalized():
    model = declared()
    regularizer = Regularizer(model)
    model[0].weight.requires_grad_(False)
    assert "frozen, so not penalized: '0.weight'" in str(regularizer)
    assert WITHOUT not in str(regularizer)
    model[0].weight.requires_grad_(True)
    regularize(model[0], None)
    assert str(regularizer) == f"Regularizer: 1 parameter, not attached\n{regularizer.plan}"


def test_a_tied_layer_is_named_once_and_a_contradiction_later_is_no_error_of_print():
    model = declared()
    model.append(nn.Linear(6, 8))
    model[3].weight = model[0].weight
    regularizer = Regularizer(model)
    assert str(regularizer).endswith("in each optimizer that steps them: '0.weight'")
    regularize(model[3], L2(1.0))
    assert WITHOUT not in str(regularizer)


def test_each_way_to_hold_zeros_is_printed_and_a_regularizer_takes_the_one_that_all_have():
    model = declared(hold_zeros=0.9)
    regularizer = Regularizer(model)
    held = ", zeros held by gradients averaged with decay 0.9"
    assert str(regularizer).endswith(f"in each optimizer that steps them{held}: '0.weight'")
    other = declared(hold_zeros=0.9)
    optimizer = SGD(other.parameters(), lr=0.1)
    attached = Regularizer(other).attach(optimizer)
    assert f"attached to SGD{held}" in str(attached)
    train(other, optimizer, 20)
    train(model, SGD(model.parameters(), lr=0.1), 20)
    assert equal(model, other)
    regularize(model[2], L1(STRENGTH))
    mixed = Regularizer(model)
    assert str(mixed).count(WITHOUT) == 2
    with pytest.raises(SelectionError, match=r"hold_zeros=0\.9 and hold_zeros=None.* give hold_zeros="):
        mixed.attach(SGD(model.parameters(), lr=0.1))
    Regularizer(model, hold_zeros=0.99).attach(SGD(model.parameters(), lr=0.1))


def test_weights_that_the_optimizer_decays_too_are_named():
    model = declared()
    optimizer = AdamW(model.parameters())
    train(model, optimizer, 1)
    assert said(model)[1] == "+ weight_decay 0.01 of AdamW: '0.weight'"
    attached = Regularizer(model).attach(optimizer)
    assert str(attached).count("weight_decay") == 1


@pytest.mark.parametrize("kept", [True, False], ids=["its optimizer lives", "its optimizer is gone"])
def test_a_schedule_of_declared_layers_is_where_their_steps_have_brought_it(kept):
    model = declared(L1(Ramp(0.1, 10)))
    assert Regularizer(model).stats()["shrinkage/strength/0.weight"] == 0
    optimizer = SGD(model.parameters(), lr=0.01)
    train(model, optimizer, 5)
    if not kept:
        del optimizer
        gc.collect()
    regularizer = Regularizer(model)
    assert regularizer.stats()["shrinkage/strength/0.weight"] == pytest.approx(0.05)
    assert float(regularizer.value()) == pytest.approx(0.05 * float(model[0].weight.detach().abs().sum()))
    assert regularizer.updates is None
    other = Regularizer(model, {"2.weight": L1(Ramp(0.1, 10))})  # has made no step
    assert float(other.value()) == 0


@pytest.mark.parametrize("penalty", [L1(STRENGTH), L0(1e-3)])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("maximize", [False, True])
def test_residuals_are_those_of_an_attached_regularizer(penalty, optimizer, maximize):
    one, other = declared(penalty), mlp()
    by_layer = optimizer(one.parameters(), lr=0.01, maximize=maximize)
    attached = optimizer(other.parameters(), lr=0.01, maximize=maximize)
    regularizer = Regularizer(other, {"0.weight": penalty}).attach(attached)
    train(one, by_layer)
    train(other, attached)
    batch = batches(1)[0]
    found = Regularizer(one).residuals(lambda: loss_of(one, batch))
    wanted = regularizer.residuals(lambda: loss_of(other, batch))
    assert str(found) == str(wanted)
    assert "not penalized" not in str(found)


def test_advice_to_declared_layers_is_not_to_attach():
    def verdict(model):
        return Regularizer(model).residuals(lambda: loss_of(model, batches(1)[0])).verdict()

    model, held = declared(), declared(hold_zeros=0.9)
    for name, parameter in [*model.named_parameters(), *held.named_parameters()]:
        parameter.requires_grad_(name == "0.weight")
    assert "No optimizer steps '0.weight' now: train, by one that holds it." in verdict(model)
    optimizers = [SGD(each.parameters(), lr=0.1) for each in (model, held)]
    train(model, optimizers[0], 3)
    train(held, optimizers[1], 3)
    assert "lower the learning rate, which is 0.1" in verdict(model)
    assert "with hold_zeros=0.99" in verdict(model)
    assert "Averages that are longer, with hold_zeros=0.99," in verdict(held)


def test_optimizers_that_asked_are_forgotten_when_they_go():
    model = declared()
    for _ in range(3):
        optimizer = SGD(model.parameters(), lr=0.1)
        train(model, optimizer, 1)
        assert optimizer in optimizers_that_stepped()
        gone, optimizer = id(optimizer), None
        gc.collect()
        assert gone not in map(id, optimizers_that_stepped())
