"""The processes find each other."""

import torch
import torch.distributed as dist

from distributed.registry import worlds


@worlds(2, 4)
def check_processes_reduce(rank: int, world: int) -> None:
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    assert total == world * (world - 1) / 2
