"""fully_shard, tensor parallel, and both: models trained in the way of each, against one process."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.optim import SGD, AdamW, Optimizer

from distributed.common import parts, shared_folder, train_alone, train_together, whole
from distributed.registry import worlds
from models import batches, loss_of, mlp, soft_
from shrinkage import (
    L1,
    L2,
    Columns,
    Grouped,
    GroupLasso,
    Heads,
    Nuclear,
    ParameterError,
    Penalty,
    Regularizer,
    Rows,
    SparseGroupLasso,
    Toward,
    radial,
    regularize,
    report,
    threshold_,
)
from shrinkage.sharding import crossing_of

Make = Callable[[list[nn.Parameter]], Optimizer]
STEPS = 6


def adamw(parameters: list[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.02, foreach=False)


def sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.5)


def assert_close(spread: nn.Module, alone: nn.Module, tolerance: float = 1e-6) -> float:
    """The same zeros, and values that agree; return the largest difference."""
    worst = 0.0
    for (name, mine), (_, other) in zip(spread.named_parameters(), alone.named_parameters(), strict=True):
        full = whole(mine.detach())
        worst = max(worst, float((full - other).abs().max()))
        assert torch.equal(full == 0, other == 0), f"{name}: other zeros"
        assert worst <= tolerance * max(1.0, float(other.abs().max())), f"{name}: {worst}"
    return worst


def sharded(model: nn.Module, dim: int = 0, **options: object) -> nn.Module:
    """Cut the layers, and then what is left, over all processes; 8 rows are even for 2 and 4, 3 and 6 are not."""
    place = (lambda parameter: Shard(parameter.dim() - 1)) if dim else None
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, shard_placement_fn=place, **options)
    return fully_shard(model, shard_placement_fn=place, **options)


def compared(
    rank: int, world: int, penalty: Penalty, make: Make, *, dim: int = 0, how: str = "proximal", **more
) -> float:
    """Train one model cut over processes and one whole; return the largest difference."""
    spread, alone = sharded(mlp(), dim), mlp()
    optimizer, reference = make(list(spread.parameters())), make(list(alone.parameters()))
    Regularizer(spread, penalty, how=how, **more).attach(optimizer)
    Regularizer(alone, penalty, how=how, **more).attach(reference)
    train_together(spread, optimizer, rank, range(STEPS))
    train_alone(alone, reference, world, range(STEPS))
    return assert_close(spread, alone)


@worlds(2, 4)
def check_fully_shard(rank: int, world: int) -> dict[str, float]:
    found = {}
    for make in (adamw, sgd):
        found["L1"] = compared(rank, world, L1(0.05), make)
        assert found["L1"] == 0 or world > 2  # 2 gradients have one order only
        for dim in (0, 1) if world == 2 else (0,):  # fully_shard cuts columns evenly only
            for penalty in (
                GroupLasso(0.08, Rows()),
                GroupLasso(0.08, Columns()),
                SparseGroupLasso(0.01, 0.05, Columns()),
            ):
                found[f"{penalty} dim {dim} {make.__name__}"] = compared(rank, world, penalty, make, dim=dim)
    return found


def check_fully_shard_made_after_the_rules(rank: int, world: int) -> None:
    """fully_shard replaces every parameter by a new one; a declaration and a plan find them by name."""
    spread, alone = mlp(), mlp()
    regularizer = Regularizer(spread, {"0.weight": GroupLasso(0.08, Columns())})
    regularize(spread[2], L1(0.05))
    regularize(alone[2], L1(0.05))
    sharded(spread)
    optimizer, reference = sgd(list(spread.parameters())), sgd(list(alone.parameters()))
    regularizer.attach(optimizer)
    Regularizer(alone, {"0.weight": GroupLasso(0.08, Columns())}).attach(reference)
    train_together(spread, optimizer, rank, range(STEPS))
    train_alone(alone, reference, world, range(STEPS))
    assert_close(spread, alone)
    assert float((alone[2].weight == 0).float().mean()) > 0


def check_fully_shard_in_mixed_precision(rank: int, world: int) -> None:
    """Weights and gradients are float32 where the step is; the reference takes the gradients of the cut model."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    spread, alone = sharded(mlp(), mp_policy=policy), mlp()
    optimizer, reference = sgd(list(spread.parameters())), sgd(list(alone.parameters()))
    Regularizer(spread, L1(0.05)).attach(optimizer)
    for batch in parts(rank, STEPS):
        optimizer.zero_grad()
        loss_of(spread, (batch[0].bfloat16(), batch[1])).backward()
        for mine, other in zip(spread.parameters(), alone.parameters(), strict=True):
            assert mine.dtype == mine.grad.dtype == torch.float32
            other.grad = whole(mine.grad).clone()
        optimizer.step()
        reference.step()
        with torch.no_grad():
            for weight in (alone[0].weight, alone[2].weight):
                soft_(weight, 0.1 / (1 - 0.5) * 0.05)
    assert assert_close(spread, alone) < 1e-7


def check_accumulation(rank: int, world: int) -> None:
    """Two micro-batches, synchronised once: the penalty is charged once."""
    spread, alone = sharded(mlp()), mlp()
    penalty = GroupLasso(0.08, Columns())
    optimizer, reference = adamw(list(spread.parameters())), adamw(list(alone.parameters()))
    Regularizer(spread, penalty, how="gradient").attach(optimizer)
    Regularizer(alone, penalty, how="gradient").attach(reference)
    for first, second in zip(batches(STEPS), batches(STEPS)[::-1], strict=True):
        optimizer.zero_grad()
        spread.set_requires_gradient_sync(False)
        loss_of(spread, first).backward()
        spread.set_requires_gradient_sync(True)
        loss_of(spread, second).backward()
        optimizer.step()
        reference.zero_grad()
        (loss_of(alone, first) + loss_of(alone, second)).backward()
        reference.step()
    assert_close(spread, alone)


@worlds(2, 4)
def check_messages(rank: int, world: int) -> dict[str, float]:
    """One sum over machines for all groups of all parameters; in Adam's metric one per iteration of the solver."""
    counts = {}
    original = dist.all_reduce
    for make in (sgd, adamw):
        model = sharded(nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))))
        optimizer = make(list(model.parameters()))
        Regularizer(model, {"0.*": None, "*.weight": GroupLasso(0.01, Columns()), "*": L1(0.01)}).attach(optimizer)
        assert crossing_of(L1(0.01), model[1].bias) is None  # what a machine charges by itself is in no message
        assert crossing_of(GroupLasso(0.01, Rows()), model[1].weight) is None
        model(torch.randn(4, 6)).square().sum().backward()
        calls = []
        dist.all_reduce = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)  # noqa: B023
        try:
            optimizer.step()
        finally:
            dist.all_reduce = original
        counts[make.__name__] = float(len(calls))
    assert counts == {"sgd": 1.0, "adamw": 1.0 + radial.NEWTON_ITERATIONS}
    return counts


@worlds(2, 4)
def check_a_process_without_gradients(rank: int, world: int) -> None:
    """It leaves its pieces alone, and keeps nobody waiting: as in a loop in which its gradients and steps are 0."""
    for make in (sgd, adamw):
        model = sharded(mlp())
        optimizer = make(list(model.parameters()))
        regularizer = Regularizer(model, {"0.weight": GroupLasso(0.3, Columns()), "2.weight": Nuclear(0.1)}, entry=0.99)
        regularizer.attach(optimizer)
        before = [p.to_local().clone() for p in model.parameters()]
        loss_of(model, batches(1)[0]).backward()
        if rank == 0:
            optimizer.zero_grad()
        optimizer.step()
        moved = [not torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before, strict=True)]
        assert not any(moved) if rank == 0 else all(m or not p.numel() for m, p in zip(moved, before, strict=True))
        assert regularizer.state_dict()["updates"] == [1]


def check_zeros_are_held(rank: int, world: int) -> None:
    """Averaged gradients across processes, for groups that cross and for those that do not; saved and restored."""
    for penalty in (GroupLasso(0.1, Columns()), GroupLasso(0.1, Rows()), L1(0.05), Toward(GroupLasso(0.1, Columns()))):
        spread, alone = sharded(mlp()), mlp()
        optimizer, reference = sgd(list(spread.parameters())), sgd(list(alone.parameters()))
        mine = Regularizer(spread, penalty, entry=0.99).attach(optimizer)
        Regularizer(alone, penalty, entry=0.99).attach(reference)
        train_together(spread, optimizer, rank, range(STEPS))
        train_alone(alone, reference, world, range(STEPS))
        assert_close(spread, alone)
        mine.load_state_dict(copy.deepcopy(mine.state_dict()))
        train_together(spread, optimizer, rank, range(STEPS, 2 * STEPS))
        train_alone(alone, reference, world, range(STEPS, 2 * STEPS))
        assert_close(spread, alone)


def check_values_reports_and_thresholds(rank: int, world: int) -> None:
    for penalty in (
        L1(0.1),
        GroupLasso(0.1, Columns()),
        Nuclear(0.1),
        Toward(L2(0.1), mlp(torch.float32)[0].weight + 1),
    ):
        spread, alone = sharded(mlp()), mlp()
        rules = {"0.weight": penalty}
        torch.testing.assert_close(Regularizer(spread, rules).value(), Regularizer(alone, rules).value())
    assert report(spread).to_dict() == report(alone).to_dict()
    assert threshold_(spread, 0.2) == threshold_(alone, 0.2) > 0
    assert_close(spread, alone, 0.0)
    with pytest.raises(ParameterError, match=r"'0.weight' of shape \(8, 6\) is spread over machines"):
        Regularizer(spread, L1(0.1)).residuals(lambda: loss_of(spread, batches(1)[0]))


def tensor_parallel(model: nn.Module, mesh) -> nn.Module:
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@worlds(2, 4)
def check_tensor_parallel(rank: int, world: int) -> dict[str, float]:
    """Every process sees the same batch; rows of the first layer and columns of the second are cut."""
    worst = 0.0
    for penalty in (L1(0.05), GroupLasso(0.08, Rows()), GroupLasso(0.08, Columns()), GroupLasso(0.08, Heads(2, dim=1))):
        for make in (adamw, sgd):
            spread, alone = tensor_parallel(mlp(), init_device_mesh("cpu", (world,))), mlp()
            for model in (spread, alone):
                optimizer = make(list(model.parameters()))
                Regularizer(model, penalty).attach(optimizer)
                for batch in batches(STEPS):
                    optimizer.zero_grad()
                    loss_of(model, batch).backward()
                    optimizer.step()
            worst = max(worst, assert_close(spread, alone))
    return {"difference": worst}


def check_sequence_parallel(rank: int, world: int) -> None:
    """The gradient of a norm's weight comes as parts that are still to be added up."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))
    spread = parallelize_module(copy.deepcopy(alone), init_device_mesh("cpu", (world,)), {"0": SequenceParallel()})
    for how in ("gradient", "proximal"):
        one, two = copy.deepcopy(spread), copy.deepcopy(alone)
        for model in (one, two):
            optimizer = sgd(list(model.parameters()))
            Regularizer(model, {"0.weight": L1(0.05)}, how=how, entry=0.9).attach(optimizer)
            for x, _ in batches(STEPS):
                optimizer.zero_grad()
                hidden = whole(model[0](x[None]))
                model[1](hidden).square().mean().backward()
                optimizer.step()
        assert_close(one, two)


@worlds(4)
def check_fully_shard_of_tensor_parallel(rank: int, world: int) -> dict[str, float]:
    """A mesh of 2 x 2: pieces of rows are interleaved where both cut dimension 0."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    worst = 0.0
    for penalty in (L1(0.05), GroupLasso(0.08, Rows()), GroupLasso(0.08, Columns()), Nuclear(0.02), Toward(L1(0.02))):
        for make in (adamw, sgd):
            spread, alone = tensor_parallel(mlp(), mesh["tensor"]), mlp()
            sharded(spread, mesh=mesh["data"])
            optimizer, reference = make(list(spread.parameters())), make(list(alone.parameters()))
            Regularizer(spread, penalty).attach(optimizer)
            Regularizer(alone, penalty).attach(reference)
            for batch in parts(rank // 2, STEPS):
                optimizer.zero_grad()
                loss_of(spread, batch).backward()
                for mine, other in zip(spread.parameters(), alone.parameters(), strict=True):
                    other.grad = whole(mine.grad).clone()
                optimizer.step()
                reference.step()
            found = assert_close(spread, alone)
            assert found == 0 or isinstance(penalty, Grouped)
            worst = max(worst, found)
    return {"difference": worst}


def check_an_overflow_on_one_process(rank: int, world: int) -> None:
    """An infinite gradient in one piece: nothing moves anywhere, and the update is not counted."""
    for options in ({"fused": True}, {"foreach": False}):
        model = sharded(mlp())
        optimizer = AdamW(model.parameters(), lr=0.02, **options)
        strengths = []
        schedule = lambda update: strengths.append(update) or 0.05  # noqa: B023, E731
        regularizer = Regularizer(model, GroupLasso(schedule, Columns())).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step, batch in enumerate(parts(rank, 4)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            if step == 2 and rank == 1:
                next(model.parameters()).grad.to_local()[0] = torch.inf
            before = [p.to_local().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            moved = any(not torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before, strict=True))
            assert moved == (step != 2)
        assert regularizer.state_dict()["updates"] == [3]


def with_state(model: nn.Module, optimizer: Optimizer, regularizer: Regularizer) -> dict[str, object]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "regularizer": regularizer.state_dict()}


@worlds(4)
def check_distributed_checkpoint_on_another_number_of_processes(rank: int, world: int) -> None:
    """Saved from 2 processes, resumed on 4: as one process that was never stopped."""
    rules = {"0.weight": GroupLasso(lambda update: 0.02 * update, Columns()), "2.weight": L1(0.03)}
    path = shared_folder(rank)
    alone = mlp()
    reference = adamw(list(alone.parameters()))
    Regularizer(alone, rules, entry=0.9).attach(reference)
    same = lambda model, optimizer, steps: [  # noqa: E731
        (optimizer.zero_grad(), loss_of(model, batches(8)[step]).backward(), optimizer.step()) for step in steps
    ]
    same(alone, reference, range(8))
    half = dist.new_group([0, 1])
    if rank < 2:
        mesh = torch.distributed.device_mesh.DeviceMesh.from_group(half, "cpu")
        model = sharded(mlp(), mesh=mesh)
        optimizer = adamw(list(model.parameters()))
        regularizer = Regularizer(model, rules, entry=0.9).attach(optimizer)
        same(model, optimizer, range(4))
        dcp.save(with_state(model, optimizer, regularizer), checkpoint_id=path, process_group=half)
    dist.barrier()
    model = sharded(mlp())
    optimizer = adamw(list(model.parameters()))
    regularizer = Regularizer(model, rules, entry=0.9).attach(optimizer)
    same(model, optimizer, range(1))  # so that there are averages to load into
    state = with_state(model, optimizer, regularizer)
    dcp.load(state, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    regularizer.load_state_dict(state["regularizer"])
    same(model, optimizer, range(4, 8))
    assert_close(model, alone)


def check_the_guide_saves_and_loads(rank: int, world: int) -> None:
    """The code of docs/machines.md."""
    guide = Path(__file__).parents[2] / "docs" / "machines.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    model = sharded(mlp())
    optimizer = adamw(list(model.parameters()))
    regularizer = Regularizer(model, L1(lambda update: 0.01 * update), entry=0.9).attach(optimizer)
    train_together(model, optimizer, rank, range(3))
    exec(code, {"model": model, "optimizer": optimizer, "regularizer": regularizer, "path": shared_folder(rank)})
    assert regularizer.state_dict()["updates"] == [3]
