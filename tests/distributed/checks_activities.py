"""Penalties on what layers put out: each process averages over its own samples, and the mean is that over all."""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from models import batches, loss_of, mlp
from shrinkage import L1, Activities
from shrinkage.distributed.dtensor import whole

STRENGTH = 0.3


def joined(world: int) -> tuple[Tensor, Tensor]:
    """The first batch of every process, in one."""
    first = batches(world, torch.float64)
    return torch.cat([x for x, _ in first]), torch.cat([y for _, y in first])


def gradients_of_the_term(net: nn.Sequential, world: int) -> list[Tensor]:
    """Gradients with the term in the loss of all samples."""
    x, y = joined(world)
    h = net[:2](x)
    loss = (net[2](h) - y).square().mean() + STRENGTH * h.abs().sum() / len(x)
    return list(torch.autograd.grad(loss, list(net.parameters())))


def check_gradients(rank: int, world: int) -> None:
    """DDP and `fully_shard`, whose model is penalized before and after it is wrapped."""
    wanted = gradients_of_the_term(mlp(torch.float64), world)
    for before in (True, False):
        for wrap in (DistributedDataParallel, fully_shard):
            net = mlp(torch.float64)
            activities = Activities(net, {"1": L1(STRENGTH)}) if before else None
            wrapped = wrap(net)
            activities = activities or Activities(wrapped, {"1": L1(STRENGTH)})
            for _ in range(2):  # the second time, the wrapper knows the graph
                net.zero_grad()
                activities.mark(loss_of(wrapped, own_batch(rank, world))).backward()
                for parameter, grad in zip(net.parameters(), wanted, strict=True):
                    assert torch.allclose(whole(parameter.grad), grad, rtol=0, atol=1e-15)


def own_batch(rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This process's share of the samples."""
    return batches(world, torch.float64)[rank]
