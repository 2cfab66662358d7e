"""Optimizers that keep others: wrappers, containers, and those that leave some of their parameters to another one."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from models import equal, mlp, train, zeros
from shrinkage import L1, AttachmentError, GroupLasso, MetricError, ParameterError, Regularizer, Rows, regularize
from shrinkage.optimizers.introspection import unwrapped, working

RULES = {"0.weight": L1(0.1), "2.weight": GroupLasso(0.1, Rows())}


class Container(Optimizer):
    """The shape of torchtitan's container: one optimizer per part of the model, groups without a learning rate."""

    def __init__(self, parts):
        self.optimizers = [Adam(part.parameters(), lr=0.02) for part in parts]
        super().__init__([p for part in parts for p in part.parameters()], {})

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


class ByName(Optimizer):
    """The same, with its optimizers by name."""

    def __init__(self, parts):
        self.optimizers = {str(i): Adam(part.parameters(), lr=0.02) for i, part in enumerate(parts)}
        super().__init__([p for part in parts for p in part.parameters()], {"lr": 0.02})

    def step(self, closure=None):
        for optimizer in self.optimizers.values():
            optimizer.step()


class Hybrid(SGD):
    """The shape of Muon's published code: it steps matrices itself, and leaves the rest to one that it keeps."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.1)
        self.rest = Adam(model[2].parameters(), lr=0.02)

    def step(self, closure=None):
        everything = self.param_groups[0]["params"]
        self.param_groups[0]["params"] = everything[:2]
        super().step()
        self.param_groups[0]["params"] = everything
        self.rest.step()


class Around(Optimizer):
    """The shape of PostLocalSGDOptimizer: no hooks of its own."""

    def __init__(self, optim):
        self.optim = optim
        self.param_groups = optim.param_groups

    def step(self, closure=None):
        self.optim.step(closure)

    def zero_grad(self):
        self.optim.zero_grad()


def in_two_optimizers():
    """The same model, trained by one optimizer per layer, each attached to; and the same with declared layers."""
    model = mlp()
    optimizers = [Adam(layer.parameters(), lr=0.02) for layer in (model[0], model[2])]
    Regularizer(model, RULES).attach(optimizers[0]).attach(optimizers[1])
    return model, Together(optimizers)


class Together:
    """Several optimizers stepped one after the other."""

    def __init__(self, optimizers):
        self.optimizers = optimizers

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def declare(model, how="proximal"):
    regularize(model[0], RULES["0.weight"], how=how)
    regularize(model[2], RULES["2.weight"], how=how)


@pytest.mark.parametrize("container", [Container, ByName])
@pytest.mark.parametrize("declared", [True, False])
def test_a_container_is_attached_to_by_all_that_it_keeps(declared, container):
    by_hand, optimizers = in_two_optimizers()
    train(by_hand, optimizers)
    model = mlp()
    optimizer = container([model[0], model[2]])
    if declared:
        declare(model)
    else:
        regularizer = Regularizer(model, RULES).attach(optimizer).attach(optimizer)
    train(model, optimizer)
    assert equal(model, by_hand)
    assert zeros(model) > 0
    if not declared:
        assert regularizer.state_dict()["updates"] == [5, 5]
        regularizer.detach()
        train(model, optimizer)
        assert regularizer.state_dict()["updates"] == [5, 5]


@pytest.mark.parametrize("how", ["gradient", "decoupled"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_container_that_knows_optimizers_by_name_penalizes_once(declared, how):
    by_hand, model = mlp(), mlp()
    optimizer = Adam(by_hand.parameters(), lr=0.02)
    Regularizer(by_hand, RULES, how=how).attach(optimizer)
    train(by_hand, optimizer)
    optimizer = ByName([model[0], model[2]])
    if declared:
        declare(model, how)
    else:
        Regularizer(model, RULES, how=how).attach(optimizer)
    train(model, optimizer)
    assert equal(model, by_hand)


def test_a_container_with_no_penalized_parameter_is_refused():
    model = mlp()
    with pytest.raises(AttachmentError, match="this Container holds none of the 1 penalized parameters"):
        Regularizer(model, {"0.weight": L1(0.1)}).attach(Container([model[2]]))


def test_a_container_penalizes_in_some_of_what_it_keeps():
    model = mlp()
    optimizer = Container([model[0], model[2]])
    Regularizer(model, {"2.weight": L1(0.3)}).attach(optimizer)
    train(model, optimizer)
    assert (model[2].weight == 0).any()
    assert not (model[0].weight == 0).any()


@pytest.mark.parametrize("declared", [True, False])
def test_an_optimizer_that_leaves_parameters_to_another_penalizes_the_others(declared):
    by_hand = mlp()
    first, second = SGD(by_hand[0].parameters(), lr=0.1), Adam(by_hand[2].parameters(), lr=0.02)
    Regularizer(by_hand, RULES, how="decoupled").attach(first).attach(second)
    train(by_hand, Together([first, second]))
    model = mlp()
    if declared:
        declare(model, "decoupled")
    optimizer = Hybrid(model)
    if not declared:
        Regularizer(model, RULES, how="decoupled").attach(optimizer)
    train(model, optimizer)
    assert equal(model, by_hand)


def test_only_what_an_optimizer_steps_itself_needs_its_metric():
    model = mlp()
    Regularizer(model, {"2.weight": L1(0.1)}).attach(Hybrid(model))
    with pytest.raises(MetricError, match="Hybrid"):
        Regularizer(model, {"0.weight": L1(0.1)}).attach(Hybrid(model))


def test_a_failing_attachment_leaves_no_hooks():
    model = mlp()
    optimizer = Hybrid(model)
    regularizer = Regularizer(model, L1(0.1))
    with pytest.raises(MetricError):
        regularizer.attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "not attached" in repr(regularizer)


def test_a_wrapper_without_hooks_is_attached_to_by_the_optimizer_inside():
    by_hand = mlp()
    optimizer = AdamW(by_hand.parameters(), lr=0.02)
    Regularizer(by_hand, RULES).attach(optimizer)
    train(by_hand, optimizer)
    model = mlp()
    inside = AdamW(model.parameters(), lr=0.02)
    Regularizer(model, RULES).attach(Around(Around(inside)))
    train(model, Around(inside))
    assert equal(model, by_hand)
    assert working(Around(Around(inside))) == [inside]


class DeepSpeedZeroOptimizer:
    """What DeepSpeed makes of an optimizer; told by its module, as nothing of DeepSpeed is installed here."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


class Engine:
    """What Accelerate and DeepSpeed put around it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_deepspeed_is_refused():
    model = mlp()
    optimizer = DeepSpeedZeroOptimizer(AdamW(model.parameters()))
    for each in (optimizer, Engine(optimizer)):
        with pytest.raises(AttachmentError, match="DeepSpeed's DeepSpeedZeroOptimizer steps flat shards"):
            Regularizer(model, L1(0.1)).attach(each)
    assert unwrapped(Engine(AdamW(model.parameters()))).param_groups  # an engine without ZeRO leaves it as it is


@pytest.mark.parametrize("mark", ["_hp_mapping", "ds_id"])
def test_parameters_that_deepspeed_steps_copies_of_are_refused(mark):
    """The marks of stages 1 and 2, and of stage 3; the optimizer inside steps a flat copy of the parameters."""
    model = mlp()
    attached = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(0.1)).attach(attached)
    flat = nn.Parameter(torch.zeros(9))
    attached.param_groups[0]["params"] = [flat]  # as deepspeed.initialize does
    setattr(model[0].weight, mark, None)
    with pytest.raises(ParameterError, match=r"'0\.weight' belongs to DeepSpeed"):
        attached.step()
    regularizer.detach()
    with pytest.raises(ParameterError, match=r"'0\.weight' belongs to DeepSpeed"):
        Regularizer(model, L1(0.1))
    layer = regularize(nn.Linear(2, 2), L1(0.1))
    setattr(layer.weight, mark, None)
    with pytest.raises(ParameterError, match="'weight of Linear' belongs to DeepSpeed"):
        attached.step()


def test_what_is_not_used_is_not_imported():
    """ZeroRedundancyOptimizer takes a second to import."""
    code = (
        "import sys, torch, shrinkage\n"
        "layer = shrinkage.regularize(torch.nn.Linear(2, 2), shrinkage.L1(0.1))\n"
        "optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)\n"
        "shrinkage.Regularizer(layer, shrinkage.L1(0.1)).attach(optimizer)\n"
        "layer(torch.ones(2)).sum().backward()\n"
        "optimizer.step()\n"
        "print('torch.distributed.optim' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"
