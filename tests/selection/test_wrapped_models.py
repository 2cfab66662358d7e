"""Models in the wrappers of DDP, FSDP, Fabric, checkpoints and the compiler keep the names of their parameters."""

import itertools

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from models import LR, STRENGTH, equal, mlp, sgd, soft_, train
from shrinkage import (
    L1,
    L2,
    Regularizer,
    SelectionError,
    regularize,
)


def checkpointed(module):
    return checkpoint_wrapper(module)


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = [nn.DataParallel, compiled, checkpointed]


@pytest.mark.parametrize(
    "order", list(itertools.permutations(WRAPPERS)), ids=lambda order: " ".join(w.__name__ for w in order)
)
def test_wrappers_leave_no_trace_in_names_in_any_order(order):
    inner = nn.Sequential(mlp(), nn.ModuleDict({"module": nn.Linear(3, 3), "model": nn.Linear(3, 3)}))
    names = [entry.name for entry in Regularizer(inner, L1(0.1)).plan]
    assert names == ["0.0.weight", "0.2.weight", "1.module.weight", "1.model.weight"]
    wrapped = inner
    for wrapper in order:
        wrapped = wrapper(wrapped)
        inner[0] = wrapper(inner[0])
        assert [entry.name for entry in Regularizer(wrapped, L1(0.1)).plan] == names
    assert [entry.name for entry in Regularizer(inner, L1(0.1)).plan] == names


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_rules_made_before_wrapping_and_after_penalize_the_same(wrapper, inside, first):
    model, plain = nn.Sequential(mlp(), nn.Identity()), nn.Sequential(mlp(), nn.Identity())
    optimizers = sgd(model), sgd(plain)
    rules = {"0.0.weight": L1(STRENGTH)}
    if first:
        Regularizer(model, rules).attach(optimizers[0])
    if inside:
        model[0] = wrapper(model[0])
    outer = model if inside else wrapper(model)
    if not first:
        Regularizer(outer, rules).attach(optimizers[0])
    train(model, optimizers[0])
    train(plain, optimizers[1], after=lambda: soft_(plain[0][0].weight, LR * STRENGTH))
    assert (plain[0][0].weight == 0).any()
    assert equal(model, plain)


def test_what_fabric_wraps_is_penalized_once():
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model, plain = mlp(), mlp()
    wrapped, optimizer = fabric.setup(model, sgd(model))
    (entry,) = Regularizer(wrapped, {"0.weight": L1(STRENGTH)}).attach(optimizer).plan
    assert (entry.name, entry.aliases) == ("0.weight", ())
    train(model, optimizer)
    train(plain, sgd(plain), after=lambda: soft_(plain[0].weight, LR * STRENGTH))
    assert equal(model, plain)


def test_two_parameters_that_come_to_one_name_are_refused():
    wrapper = nn.DataParallel(nn.Linear(3, 3))
    wrapper.weight = nn.Parameter(torch.ones(2))
    with pytest.raises(SelectionError, match=r"two parameters of the model are called 'weight'.*inside of the wrapper"):
        Regularizer(wrapper, {"weight": L1(0.1)})


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def evaluate(model, inputs):
    with torch.no_grad():
        model(inputs)


@pytest.mark.parametrize("when", ["attached before", "attached after an evaluation", "declared"])
@pytest.mark.usefixtures("one_process")
def test_a_model_that_fsdp_left_gathered_is_penalized_as_before(when):
    """After an evaluation FSDP's modules hold gathered parameters, which are not the optimizer's."""
    model, plain = mlp(), mlp()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    shards, optimizer, plain_optimizer, inputs = model[0].weight, sgd(model), sgd(plain), torch.ones(2, 6)
    if when == "declared":
        regularize(model[0], L1(STRENGTH))
        regularize(model[2], L2(STRENGTH))
    else:
        regularizer = Regularizer(model, {"0.weight": L1(STRENGTH), "2.weight": L2(STRENGTH)})
        if when == "attached before":
            regularizer.attach(optimizer)
    for step in range(3):
        for each in (optimizer, plain_optimizer):
            each.zero_grad()
        for each in (model, plain):
            each(inputs).square().sum().backward()
            if step or when != "declared":
                evaluate(each, inputs)
                assert model[0].weight is not shards
        if when != "declared":
            assert "not penalized" not in repr(regularizer.attach(optimizer))
        optimizer.step()
        model.reshard()
        plain_optimizer.step()
        with torch.no_grad():
            soft_(plain[0].weight, LR * STRENGTH)
            plain[2].weight.div_(1 + LR * STRENGTH)
    assert torch.equal(model[0].weight.full_tensor(), plain[0].weight)
    assert torch.equal(model[2].weight.full_tensor(), plain[2].weight)
    assert (plain[0].weight == 0).any()
