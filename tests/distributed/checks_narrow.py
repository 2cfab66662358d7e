"""Parameters in bfloat16 that are copied or cut: how they are rounded, and what is said of what rounds back."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.optim import SGD

from distributed.common import data_parallel, everyones, whole
from distributed.registry import worlds
from shrinkage import L1, L2, Columns, GroupLasso, Penalty, Regularizer, Rows
from shrinkage.selection.how import How

STEPS, LR, STRENGTH = 20, 0.1, 1e-2  # a step of 1e-3, of which rounding to the nearest number leaves nothing
CASES: list[tuple[Penalty, How]] = [
    (L1(STRENGTH), "proximal"),
    (L2(STRENGTH), "decoupled"),
    (GroupLasso(STRENGTH, Columns()), "proximal"),
]


def ones(rows: int = 64, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    layer = nn.Linear(64, rows, bias=False, dtype=dtype)
    nn.init.ones_(layer.weight)
    return layer


def decayed(model: nn.Module, penalty: Penalty, how: How, **options: bool) -> nn.Module:
    """Step on gradients of zero, so that only the penalty moves anything."""
    optimizer = SGD(model.parameters(), lr=LR)
    Regularizer(model, penalty, how=how, **options).attach(optimizer)
    for _ in range(STEPS):
        (model(torch.ones(1, 64, dtype=next(model.parameters()).dtype)) * 0).sum().backward()
        optimizer.step()
    return model


@worlds(2, 4)
def check_stochastic_rounding_of_copies_and_shards(rank: int, world: int) -> dict[str, float]:
    """Copies draw what one process draws, whatever torch's seed is; shards draw apart, and the mean is right."""
    torch.manual_seed(rank)
    measured = {}
    for penalty, how in CASES:
        alone = decayed(ones(), penalty, how, stochastic_rounding=True).weight
        copies = decayed(data_parallel(ones()), penalty, how, stochastic_rounding=True).module.weight
        assert torch.equal(copies, alone)
        assert all(torch.equal(each, copies) for each in everyones(copies))

        cut = fully_shard(ones())
        shard = decayed(cut, penalty, how, stochastic_rounding=True).weight.to_local()
        shards = everyones(shard)
        assert not any(torch.equal(each, shard) for other, each in enumerate(shards) if other != rank)
        again = decayed(fully_shard(ones()), penalty, how, stochastic_rounding=True).weight
        assert torch.equal(again.to_local(), shard)

        exact = decayed(ones(dtype=torch.float32), penalty, how).weight.detach().mean()
        for weights in (alone, torch.cat(shards)):
            # One weight is off by at most half a unit in the last place in each step, in the mean over draws.
            error = float((weights.detach().float().mean() - exact).abs())
            assert error <= 5 * STEPS**0.5 * torch.finfo(torch.bfloat16).eps / 2 / weights.numel() ** 0.5
            measured[f"error of the mean, {penalty}"] = error
    return measured


@worlds(4)
def check_stochastic_rounding_on_meshes(rank: int, world: int) -> None:
    """Where a mesh copies, its copies agree; where one dimension of it has one process only, nothing is cut."""

    def rounded(mesh, placements):
        layer = ones()
        spread = distribute_tensor(layer.weight.detach(), mesh, placements, src_data_rank=None)
        parameter = layer.weight = nn.Parameter(spread)
        optimizer = SGD([parameter], lr=LR)
        Regularizer(layer, L1(STRENGTH), stochastic_rounding=True).attach(optimizer)
        for _ in range(STEPS):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        return parameter.detach()

    pairs = init_device_mesh("cpu", (2, 2))
    first, second, third, fourth = everyones(rounded(pairs, [Replicate(), Shard(1)]).to_local())
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    quarters = everyones(rounded(pairs, [Shard(0), Shard(1)]).to_local())
    assert not any(torch.equal(quarters[i], quarters[j]) for i in range(4) for j in range(i))
    single = rounded(init_device_mesh("cpu", (4, 1)), [Replicate(), Shard(0)])
    assert torch.equal(whole(single), decayed(ones(), L1(STRENGTH), "proximal", stochastic_rounding=True).weight)


@worlds(2, 4)
def check_a_penalty_too_small_to_move_a_shard_is_said(rank: int, world: int) -> None:
    """Each process judges its own shard, if it has one, and asks nobody; groups that cross are not judged."""
    for penalty, how in (*CASES[:2], (GroupLasso(STRENGTH, Rows()), "proximal")):
        model = fully_shard(ones(rows=3))
        shape = tuple(model.weight.to_local().shape)
        if shape[0]:
            shard = rf"this process's shard of 'weight', of shape \({shape[0]}, 64\)"
            with pytest.warns(UserWarning, match=f"too small to move 100% of the weights of {shard}") as told:
                decayed(model, penalty, how)
            assert len(told) == 1
        else:
            decayed(model, penalty, how)
        assert (model.weight.to_local() == 1).all()
    group_sharding = decayed(fully_shard(ones(rows=3)), GroupLasso(STRENGTH, Columns()), "proximal")
    assert (group_sharding.weight.to_local() == 1).all()
