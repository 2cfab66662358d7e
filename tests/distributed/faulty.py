"""Checks that fail in the ways checks can fail: what the harness itself is tested on, and a run that is killed."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer

from distributed.common import assert_equal, resume, state_of, train_together
from models import mlp
from shrinkage import L1, Columns, GroupLasso, Regularizer


def check_that_holds(rank: int, world: int) -> dict[str, float]:
    dist.all_reduce(torch.ones(()))
    return {"rank": float(rank)}


def check_that_fails_on_one_process(rank: int, world: int) -> None:
    assert rank == 0, "as it should"
    dist.all_reduce(torch.ones(()))


def check_that_forgets_a_collective(rank: int, world: int) -> None:
    if rank == 0:
        dist.all_reduce(torch.ones(()))


def check_that_hangs(rank: int, world: int) -> None:
    if rank == 1:
        time.sleep(600)


def check_that_dies(rank: int, world: int) -> None:
    if rank == 1:
        os._exit(9)


def check_that_holds_afterwards(rank: int, world: int) -> dict[str, float]:
    return check_that_holds(rank, world)


SAVED, KILLED, STEPS = 3, 4, 8


def started(dies: bool = False) -> tuple[nn.Module, Optimizer, Regularizer]:
    """A model in shards with groups that cross processes; the process that `dies` is killed inside of a step."""

    def strength(update: int) -> float:
        if dies and update == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.02 * 0.8**update

    model = fully_shard(mlp())
    optimizer = AdamW(model.parameters(), lr=0.02, foreach=False)
    rules = {"0.weight": GroupLasso(strength, Columns()), "2.weight": L1(0.03)}
    return model, optimizer, Regularizer(model, rules, hold_zeros=0.9).attach(optimizer)


def check_that_is_killed(rank: int, world: int) -> None:
    model, optimizer, regularizer = started(dies=rank == 1)
    train_together(model, optimizer, rank, range(SAVED))
    dcp.save(state_of(model, optimizer, regularizer), checkpoint_id=os.environ["CHECKPOINT"])
    train_together(model, optimizer, rank, range(SAVED, STEPS))


def check_that_resumes(rank: int, world: int) -> None:
    """As a run that was never stopped, bit for bit."""
    straight, resumed = started(), started()
    train_together(*straight[:2], rank, range(STEPS))
    train_together(*resumed[:2], rank, range(1))  # so that there are averages to load into
    resume(Path(os.environ["CHECKPOINT"]), *resumed)
    assert resumed[2].state_dict()["updates"] == [SAVED]
    train_together(*resumed[:2], rank, range(SAVED, STEPS))
    assert_equal(resumed[0], straight[0])
    assert resumed[2].state_dict()["updates"] == [STEPS]
