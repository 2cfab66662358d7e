"""Parameters that are replaced behind the optimizer's back, and conversions that keep them."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import LR, STRENGTH, assert_refused_and_unchanged, batches, equal, loss_of, mlp, sgd, train
from shrinkage import L1, AttachmentError, Regularizer, regularize


def stepped(how="proximal"):
    """A model that has made one step with a regularizer attached."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=LR)
    Regularizer(model, {"0.weight": L1(STRENGTH), "2.*": None}, how=how).attach(optimizer)
    train(model, optimizer, 1)
    return model, optimizer


@contextmanager
def conversion(switch, on=True):
    """Hold one of the switches of torch.__future__ that say what `module.to` does to parameters."""
    getattr(torch.__future__, f"set_{switch}_module_params_on_conversion")(on)
    try:
        yield
    finally:
        getattr(torch.__future__, f"set_{switch}_module_params_on_conversion")(False)


def overwritten(model):
    with conversion("overwrite"):
        model.double()


def assigned(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def emptied(model):
    model.to("meta")


@pytest.mark.parametrize("replace", [assigned, overwritten, emptied])
@pytest.mark.parametrize("declared", [False, True])
def test_parameters_replaced_behind_the_optimizers_back_are_refused(replace, declared):
    model, other = stepped() if not declared else (mlp(), None)
    optimizer = other or sgd(model)
    if declared:
        regularize(model[0], L1(STRENGTH))
        train(model, optimizer, 1)
    old = [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]
    replace(model)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(AttachmentError, match=r"holds none of the 1 penalized|'?weight.* was replaced in the model"):
        optimizer.step()
    assert all(map(torch.equal, old, optimizer.param_groups[0]["params"]))


def test_one_of_several_parameters_replaced_is_refused_by_name():
    model = mlp()
    optimizer = sgd(model)
    Regularizer(model, {"*.weight": L1(STRENGTH)}).attach(optimizer)
    model[2].weight = nn.Parameter(torch.ones(3, 8))
    message = r"'2\.weight' of shape \(3, 8\) was replaced in the model, but this SGD still updates"
    assert_refused_and_unchanged(model, optimizer, AttachmentError, message)


@pytest.mark.parametrize("whole", [True, False])
def test_an_optimizer_that_was_replaced_with_its_parameters_is_passed_over(whole):
    """As long as something holds it; strengths go on with the updates that the parameters of these names had."""
    model = mlp()
    old = sgd(model)
    regularizer = Regularizer(model, {"*.weight": L1(lambda update: STRENGTH + update)}).attach(old)
    train(model, old, 2)
    for layer in (model[0], model[2]) if whole else (model[0],):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert "not in an attached optimizer" in repr(regularizer)
    optimizer = sgd(model)
    regularizer.attach(optimizer)
    train(model, optimizer, 1)
    assert repr(regularizer).startswith("Regularizer: 2 parameters, attached to SGD, SGD\n")
    assert "not penalized" not in repr(regularizer)
    residuals = regularizer.residuals(lambda: loss_of(model, batches(1)[0]))
    assert {each.strength for each in residuals.penalized} == {f"{STRENGTH + 3:g}"}
    with pytest.raises(AttachmentError):
        old.step()


def test_strengths_outside_of_a_step_are_those_of_an_optimizer_that_still_penalizes():
    model = mlp()
    first, last = SGD(model[0].parameters(), lr=LR), SGD(model[2].parameters(), lr=LR)
    regularizer = Regularizer(model, {"*.weight": L1(lambda update: STRENGTH + update)}).attach(first).attach(last)
    train(model, first, 2)
    train(model, last, 5)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    residuals = regularizer.residuals(lambda: loss_of(model, batches(1)[0]))
    assert {each.strength for each in residuals.penalized} == {f"{STRENGTH + 5:g}"}


@pytest.mark.parametrize("change", ["double", "swap", "to", "load_state_dict", "to_empty", "half", "share_memory"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_conversions_that_keep_the_parameters_keep_the_penalty(change, momentum):
    def changed(model):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        if change == "load_state_dict":
            model.load_state_dict({name: 2 * value for name, value in state.items()})
        elif change == "to_empty":
            model.to_empty(device="cpu").load_state_dict(state)
        elif change == "swap":
            with conversion("swap"):
                model.double()
        elif change == "share_memory":
            assert all(parameter.is_shared() for parameter in model.share_memory().parameters())
        else:
            model.to(dtype={"double": torch.float64, "half": torch.float16}.get(change, torch.float32))

    model, plain = mlp(), mlp()
    optimizers = [SGD(each.parameters(), lr=LR, momentum=momentum) for each in (model, plain)]
    Regularizer(model, {"0.weight": L1(STRENGTH)}).attach(optimizers[0])

    @torch.no_grad()
    def after():
        w = plain[0].weight.to(max(plain[0].weight.dtype, torch.float32, key=lambda dtype: dtype.itemsize))
        plain[0].weight.copy_(w - w.clamp(-LR * STRENGTH / (1 - momentum), LR * STRENGTH / (1 - momentum)))

    for part in range(2):
        train(model, optimizers[0])
        train(plain, optimizers[1], after=after)
        if not part:
            changed(model)
            changed(plain)
    assert (model[0].weight == 0).any()
    assert equal(model, plain)
