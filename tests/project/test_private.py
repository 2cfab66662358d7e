"""Private names of torch: one that is gone is an error where it is needed, and nowhere else."""

import sys

import pytest
import torch
import torch._dynamo
import torch._inductor
import torch.distributed.checkpoint.state_dict as checkpoint
import torch.distributed.fsdp as fsdp
from torch import nn
from torch.distributed.fsdp import _common_utils
from torch.optim import SGD, Optimizer

from models import CallsItsParent, batches, loss_of, mlp, train
from shrinkage import L1, Regularizer, ShrinkageError, regularize, shrink
from shrinkage.execution.compiled import ONE_PASS, known
from shrinkage.private import code_inside, private, wrapped


def renamed(function):
    def renamed_wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return renamed_wrapper


renamed.__qualname__ = "Optimizer.profile_hook_step"


def attached(make, lr=0.1, how="decoupled"):
    """An optimizer whose next step penalizes the weights of a model that has gradients."""
    model = mlp()
    optimizer = make(model.parameters(), lr=lr)
    Regularizer(model, L1(0.01), how=how).attach(optimizer)
    loss_of(model, batches(1)[0]).backward()
    return optimizer


@pytest.mark.parametrize("way", ["gone", "renamed"])
def test_steps_inside_of_steps_need_the_function_that_runs_hooks(way, monkeypatch):
    attached(CallsItsParent).step()
    plain, nested = attached(SGD), attached(CallsItsParent)
    if way == "gone":
        monkeypatch.delattr(Optimizer, "profile_hook_step")
    else:
        monkeypatch.setattr(Optimizer, "profile_hook_step", staticmethod(renamed))
    plain.step()
    plain.step()
    with pytest.raises(ShrinkageError, match=rf"torch {torch.__version__[:4]}.*profile_hook_step.*later release"):
        nested.step()


def test_a_step_after_one_that_raised_needs_it_too(monkeypatch):
    def fail():
        raise InterruptedError

    optimizer = attached(SGD)
    with pytest.raises(InterruptedError):
        optimizer.step(fail)
    monkeypatch.setattr(Optimizer, "profile_hook_step", staticmethod(renamed))
    with pytest.raises(ShrinkageError, match=r"profile_hook_step.<locals>.wrapper.*one that raised"):
        optimizer.step()


def test_a_step_of_size_zero_needs_the_function_by_which_checkpoints_step(monkeypatch):
    monkeypatch.delattr(checkpoint, "_init_optim_state")
    attached(SGD).step()
    with pytest.raises(ShrinkageError, match=r"state_dict\._init_optim_state.*checkpoint"):
        attached(SGD, lr=0.0).step()


class Holder(nn.Module):
    """What stands in for a wrapper of torch's, and holds another module by some name."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Linear(4, 3))

    def forward(self, x):
        return next(self.children())(x)


@pytest.mark.parametrize(
    ("file", "kind", "name"),
    [
        ("torch._dynamo", "OptimizedModule", "_orig_mod"),
        ("torch.distributed.fsdp", "FullyShardedDataParallel", "_fsdp_wrapped_module"),
        (
            "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
            "CheckpointWrapper",
            "_checkpoint_wrapped_module",
        ),
    ],
)
def test_a_wrapper_holds_its_module_by_the_known_name(file, kind, name, monkeypatch):
    __import__(file)
    Regularizer(Holder("other"), L1(0.1))
    monkeypatch.setattr(sys.modules[file], kind, Holder)
    assert wrapped(Holder(name)) is not None
    regularizer = Regularizer(Holder(name), {"weight": L1(0.1)})
    assert "weight" in str(regularizer)
    with pytest.raises(ShrinkageError, match=rf"Holder\.{name}.*inside of {kind}"):
        Regularizer(Holder("other"), L1(0.1))


def test_a_compiled_module_that_hides_its_own_is_neither_declared_nor_made_smaller(monkeypatch):
    monkeypatch.setattr(torch._dynamo, "OptimizedModule", Holder)
    for call in (lambda: regularize(Holder("other"), L1(0.1)), lambda: shrink(Holder("other"), torch.randn(2, 4))):
        with pytest.raises(ShrinkageError, match="_orig_mod"):
            call()


def test_marks_of_flat_shards_are_the_known_ones(monkeypatch):
    monkeypatch.setattr(fsdp, "FullyShardedDataParallel", Holder)
    monkeypatch.setattr(_common_utils, "FSDP_FLATTENED", "_another")
    Regularizer(mlp(), L1(0.1))
    with pytest.raises(ShrinkageError, match=r"mark '_fsdp_flattened'.*flat shards"):
        Regularizer(Holder("_fsdp_wrapped_module"), L1(0.1))
    monkeypatch.delattr(_common_utils, "FSDP_FLATTENED")
    with pytest.raises(ShrinkageError, match=r"_common_utils\.FSDP_FLATTENED.*flat shards"):
        Regularizer(Holder("_fsdp_wrapped_module"), L1(0.1))


def test_the_operator_in_place(monkeypatch, without_native):
    optimizer = attached(SGD)
    monkeypatch.delattr(torch._C._nn, "softshrink")
    with pytest.raises(ShrinkageError, match=r"torch\._C\._nn\.softshrink.*in place"):
        optimizer.step()


def test_options_of_the_compiler_that_are_gone_are_left_out_and_said(monkeypatch, caplog):
    assert known(ONE_PASS) == ONE_PASS
    assert not caplog.records
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["realize_opcount_threshold"])
    assert known(ONE_PASS) == {"realize_opcount_threshold": ONE_PASS["realize_opcount_threshold"]}
    assert "no option realize_acc_reads_threshold, realize_reads_threshold" in caplog.text


def test_every_private_name_is_there_today():
    assert code_inside(Optimizer.profile_hook_step, "wrapper", "").co_name == "wrapper"
    assert wrapped(torch.compile(nn.Linear(2, 2))) is not None
    assert private(checkpoint, "_init_optim_state", "").__name__ == "_init_optim_state"
    with pytest.raises(ShrinkageError, match=r"README"):
        private(torch, "no_such_name", "test")
    train(mlp(), attached(CallsItsParent), 1)
