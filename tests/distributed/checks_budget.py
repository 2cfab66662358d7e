"""Budgets over processes: the set that stays is the one of a single machine, in four messages for each ranking."""

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import SGD, AdamW, Optimizer

from distributed.common import (
    Batch,
    assert_equal,
    assert_same_everywhere,
    data_parallel,
    parts,
    resume,
    shared_folder,
    state_of,
    train_alike,
    train_alone,
    train_together,
    whole,
)
from distributed.registry import worlds
from models import mlp
from shrinkage import Blocks, Budget, Columns, Regularizer, Rows
from shrinkage.selection.rules import Rules

STEPS = 35
BUDGET = Budget(zeros=0.7, updates=50, begin=0.1, end=0.4)  # from 5 to 20, frozen at 30
OPTIMIZERS = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda model: AdamW(model.parameters(), lr=0.02, foreach=False),
}


def sharded(model: nn.Module) -> nn.Module:
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def wide() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 3))


def zeros(model: nn.Module) -> int:
    return sum(int((whole(p.detach()) == 0).sum()) for p in model.parameters() if p.dim() > 1)


def alike(spread: nn.Module, alone: nn.Module, rules: Rules, name: str, own: list[Batch]) -> None:
    """Train on the very same gradients, and compare weights after each step."""
    optimizer, reference = OPTIMIZERS[name](spread), OPTIMIZERS[name](alone)
    Regularizer(spread, rules).attach(optimizer)
    Regularizer(alone, rules).attach(reference)

    def compare() -> None:
        for (key, mine), (_, other) in zip(spread.named_parameters(), alone.named_parameters(), strict=True):
            assert torch.equal(whole(mine.detach()), other.detach()), key

    train_alike(spread, optimizer, alone, reference, own, after=compare)
    assert zeros(alone) > 0


def check_data_parallel_is_one_process(rank: int, world: int) -> None:
    for name in OPTIMIZERS:
        model, alone = wide(), wide()
        optimizer, reference = OPTIMIZERS[name](model), OPTIMIZERS[name](alone)
        Regularizer(model, BUDGET).attach(optimizer)
        Regularizer(alone, BUDGET).attach(reference)
        train_together(data_parallel(model), optimizer, rank, range(STEPS))
        train_alone(alone, reference, world, range(STEPS))
        assert_equal(model, alone)
        assert_same_everywhere(model)
        assert zeros(model) == BUDGET.zeros_at(STEPS, 81)


@worlds(2, 4, slow=4)
def check_shards_are_ranked_as_one_machine_ranks_them(rank: int, world: int) -> None:
    for name in OPTIMIZERS:
        alike(sharded(wide()), wide(), BUDGET, name, parts(rank, STEPS))
        for groups in (Rows(), Columns(), Blocks(1, 3)):
            rules = {"0.weight": Budget(zeros=0.5, updates=50, groups=groups)}
            alike(sharded(mlp()), mlp(), rules, name, parts(rank, STEPS))


@worlds(2, 4)
def check_ties_go_by_their_place_in_the_whole_tensor(rank: int, world: int) -> None:
    """All weights of a layer are equal, and its gradients too: which of them go is decided by place alone."""
    results = []
    for spread in (sharded(wide()), wide()):
        with torch.no_grad():
            for parameter in spread.parameters():
                parameter.fill_(0.5)
        optimizer = SGD(spread.parameters(), lr=0.1)
        Regularizer(spread, BUDGET).attach(optimizer)
        for _ in range(20):
            for parameter in spread.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        results.append([whole(parameter.detach()) for parameter in spread.parameters()])
        assert zeros(spread) == BUDGET.zeros_at(20, 81)
    assert all(map(torch.equal, *results))


@worlds(2, 4, slow=4)
def check_messages(rank: int, world: int) -> None:
    """Four for each ranking, whatever the number of layers; none before the ramp, and none after the freeze."""
    model = sharded(nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))))
    optimizer = SGD(model.parameters(), lr=0.01)
    Regularizer(model, BUDGET).attach(optimizer)
    counts = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        with CommDebugMode() as seen:
            optimizer.step()
        counts.append(seen.get_total_counts())
    assert counts == [0] * 4 + [4] * 26 + [0] * 5


@worlds(2, 4)
def check_tensor_parallel(rank: int, world: int) -> None:
    """Columns of one layer and rows of the next are cut: the set is the same as on one machine, but for ties."""
    mesh = init_device_mesh("cpu", (world,))
    spread = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    spread.load_state_dict(mlp().state_dict())
    parallelize_module(spread, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    alike(spread, mlp(), BUDGET, "SGD", parts(0, STEPS))


@worlds(4)
def check_a_mesh_of_two_dimensions(rank: int, world: int) -> None:
    """Replicas count once: shards lie along the second dimension."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    spread = wide()
    for layer in spread:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    alike(fully_shard(spread, mesh=mesh), wide(), BUDGET, "AdamW", parts(rank, STEPS))


def check_a_distributed_checkpoint_resumes(rank: int, world: int) -> None:
    for at in (3, 12, 25):
        path = shared_folder(rank)

        def started() -> tuple[nn.Module, Optimizer, Regularizer]:
            model = sharded(wide())
            optimizer = OPTIMIZERS["AdamW"](model)
            return model, optimizer, Regularizer(model, BUDGET).attach(optimizer)

        model, optimizer, regularizer = started()
        train_together(model, optimizer, rank, range(at))
        dcp.save(state_of(model, optimizer, regularizer), checkpoint_id=path)
        train_together(model, optimizer, rank, range(at, STEPS))
        again, fresh, resumed = started()
        resume(path, again, fresh, resumed)
        train_together(again, fresh, rank, range(at, STEPS))
        for mine, other in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine.to_local(), other.to_local())
        assert zeros(again) == BUDGET.zeros_at(STEPS, 81)
