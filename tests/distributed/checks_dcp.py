"""Distributed checkpoints (DCP) of a model under DDP, its optimizer and regularizer: bit for bit as without a stop."""

from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import SGD, Adam, Optimizer

from distributed.common import (
    STEPS,
    assert_equal,
    assert_same_everywhere,
    data_parallel,
    resume,
    shared_folder,
    state_of,
    train_alone,
    train_together,
    zero_count,
)
from models import mlp
from shrinkage import L1, GroupLasso, Regularizer, Rows, Toward

RULES = {"0.weight": L1(lambda update: 0.02 + 0.02 * update), "2.weight": Toward(GroupLasso(0.1, Rows()))}
MAKES = {"Adam": lambda p: Adam(p, lr=0.02), "SGD momentum": lambda p: SGD(p, lr=0.05, momentum=0.9)}


def started(make: Any) -> tuple[nn.Module, Optimizer, Regularizer]:
    """A model, its optimizer, and a regularizer with everything that has a state."""
    model = mlp()
    optimizer: Optimizer = make(model.parameters())
    return model, optimizer, Regularizer(model, RULES, hold_zeros=0.9).attach(optimizer)


def check_resume_on_the_same_and_on_one_process(rank: int, world: int) -> None:
    for make in MAKES.values():
        path = shared_folder(rank)
        model, optimizer, regularizer = started(make)
        wrapped = data_parallel(model)
        train_together(wrapped, optimizer, rank)
        dcp.save(state_of(wrapped, optimizer, regularizer), checkpoint_id=path)
        train_together(wrapped, optimizer, rank, range(STEPS, 2 * STEPS))
        assert zero_count(model) > 0

        again = data_parallel(started(make)[0])
        fresh = make(again.parameters())
        resumed = Regularizer(again, RULES, hold_zeros=0.9).attach(fresh)
        resume(path, again, fresh, resumed)
        assert resumed.state_dict()["updates"] == [STEPS]
        train_together(again, fresh, rank, range(STEPS, 2 * STEPS))
        assert_equal(again.module, model)
        assert_same_everywhere(again.module)

        if rank == 0:
            alone = started(make)
            resume(path, *alone, no_dist=True)
            train_alone(alone[0], alone[1], world, range(STEPS, 2 * STEPS))
            assert_equal(alone[0], model)
        dist.barrier()


def check_resume_by_the_optimizers_own_state(rank: int, world: int) -> None:
    """What rides in the optimizer's state is enough."""
    path = shared_folder(rank)
    model, optimizer, _ = started(MAKES["Adam"])
    wrapped = data_parallel(model)
    train_together(wrapped, optimizer, rank)
    parts = get_state_dict(wrapped, optimizer)
    dcp.save({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=path)
    train_together(wrapped, optimizer, rank, range(STEPS, 2 * STEPS))

    again, fresh, resumed = started(MAKES["Adam"])
    parts = get_state_dict(again, fresh)
    state = {"model": parts[0], "optimizer": parts[1]}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(again, fresh, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert resumed.state_dict()["updates"] == [STEPS]
    train_together(data_parallel(again), fresh, rank, range(STEPS, 2 * STEPS))
    assert_equal(again, model)


def check_resume_without_a_step_before_it(rank: int, world: int) -> None:
    """Torch steps a fresh optimizer once, with gradients and learning rate 0, to have a state to load into.

    That counts in Adam's own state, until it is loaded, and not in the regularizer's.
    """
    model, optimizer, regularizer = started(MAKES["Adam"])
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    get_state_dict(model, optimizer)
    assert all((value == kept[name]).all() for name, value in model.state_dict().items())
    assert regularizer.state_dict()["updates"] == [0]
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}
