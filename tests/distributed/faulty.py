"""Checks that fail in the ways checks can fail: what the harness itself is tested on."""

import os
import time

import torch
import torch.distributed as dist


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
