"""fully_shard, tensor parallel, and both: models trained in the way of each, against one process."""

import copy
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.optim import SGD, Adam, AdamW, Optimizer

from distributed.common import (
    Batch,
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
from models import batches, loss_of, mlp, train, train_step
from shrinkage import (
    L1,
    L2,
    Bound,
    Columns,
    Grouped,
    GroupLasso,
    GroupLInf,
    Heads,
    Nuclear,
    ParameterError,
    Penalty,
    Regularizer,
    Rows,
    Rule,
    SparseGroupLasso,
    Toward,
    regularize,
    report,
    threshold_,
)
from shrinkage.proximal import secular
from shrinkage.selection.how import How

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
        full, other = whole(mine.detach()), other.detach()
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
    spread: nn.Module, alone: nn.Module, penalty: Penalty, make: Make, own: Sequence[Batch], **options: object
) -> float:
    """Train a model that is cut over processes, and one that is whole on its gradients; return the largest difference.

    That of what processes penalize by themselves is 0.
    """
    optimizer, reference = make(list(spread.parameters())), make(list(alone.parameters()))
    Regularizer(spread, penalty).attach(optimizer)
    Regularizer(alone, penalty).attach(reference)
    train_alike(spread, optimizer, alone, reference, own, **options)
    found = assert_close(spread, alone)
    assert found == 0 or isinstance(penalty, Grouped | SparseGroupLasso)
    return found


def square() -> nn.Module:
    """A network whose columns four processes can cut evenly: `fully_shard` takes no others."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def square_loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (model(torch.cat([x, x[:, :2]], 1))[:, :3] - y).square().mean()


@worlds(2, 4, slow=4)
def check_fully_shard(rank: int, world: int) -> dict[str, float]:
    found = {}
    for make in (adamw, sgd):
        for dim, network, loss in ((0, mlp, loss_of), (1, square, square_loss)):
            for penalty in (
                L1(0.05),
                GroupLasso(0.08, Rows()),
                GroupLasso(0.08, Columns()),
                SparseGroupLasso(0.01, 0.05, Columns()),
            ):
                found[f"{penalty} dim {dim} {make.__name__}"] = compared(
                    sharded(network(), dim), network(), penalty, make, parts(rank, STEPS), loss=loss
                )
    return found


def check_fully_shard_and_the_average_of_gradients(rank: int, world: int) -> None:
    """Against one process that averages them itself: the sum of two has one order only."""
    for make in (adamw, sgd):
        spread, alone = sharded(mlp()), mlp()
        optimizer, reference = make(list(spread.parameters())), make(list(alone.parameters()))
        Regularizer(spread, L1(0.05)).attach(optimizer)
        Regularizer(alone, L1(0.05)).attach(reference)
        train_together(spread, optimizer, rank, range(STEPS))
        train_alone(alone, reference, world, range(STEPS))
        assert assert_close(spread, alone) == 0


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


def check_fully_shard_in_mixed_precision(rank: int, world: int) -> dict[str, float]:
    """Weights and gradients are float32 where the step is."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    own = [(x.bfloat16(), y) for x, y in parts(rank, STEPS)]
    found = {}
    for penalty, make in ((L1(0.05), sgd), (L1(0.05), adamw), (GroupLasso(0.08, Columns()), adamw)):
        spread = sharded(mlp(), mp_policy=policy)
        found[f"{penalty} {make.__name__}"] = compared(spread, mlp(), penalty, make, own)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in spread.parameters())
    return found


def check_accumulation(rank: int, world: int) -> None:
    """Two micro-batches, synchronised once: the penalty is applied once."""
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
        train_step(reference, loss_of(alone, first) + loss_of(alone, second))
    assert_close(spread, alone)


class Messages(NamedTuple):
    """A rule for all weights, and the messages of a step."""

    penalty: Penalty
    make: Make
    sums: int
    gathered: int = 0
    how: How = "proximal"
    hold_zeros: float | None = None


MESSAGES = [
    Messages(GroupLasso(0.01, Columns()), sgd, 1),
    Messages(GroupLasso(0.01, Columns()), adamw, 1 + secular.NEWTON_ITERATIONS),
    Messages(GroupLasso(0.01, Columns()), adamw, 1, how="gradient"),
    Messages(GroupLasso(0.01, Columns()), adamw, 1, how="decoupled"),
    Messages(Grouped(L2(0.01), Columns()), sgd, 1, how="decoupled"),
    Messages(GroupLasso(0.01, Columns()), sgd, 1, hold_zeros=0.9, gathered=2 * 5),  # each weight, and its average
    Messages(GroupLInf(0.01, Columns()), sgd, 0, gathered=5),
    Messages(GroupLasso(0.01, Rows()), adamw, 0),
    Messages(L1(0.01), adamw, 0, hold_zeros=0.9),
    Messages(L1(Bound(1.0)), adamw, 1),  # what all layers add to R, and to what a step takes off it
    Messages(GroupLasso(Bound(1.0), Rows()), sgd, 1),
]


@worlds(2, 4)
def check_messages(rank: int, world: int) -> None:
    """One sum over processes for all groups of all five layers; in Adam's metric one per iteration of the solver.

    As many where a process has no gradient. What a process penalizes by itself is in no message.
    """
    for case in MESSAGES:
        for clears in (False, True):
            model = sharded(nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))))
            optimizer = case.make(list(model.parameters()))
            rules = {"*.weight": case.penalty, "*": L1(0.01)}
            Regularizer(model, rules, how=case.how, hold_zeros=case.hold_zeros).attach(optimizer)
            model(torch.randn(4, 6)).square().sum().backward()
            if clears and rank == 0:
                optimizer.zero_grad()
            with CommDebugMode() as seen:
                optimizer.step()
            counts = [count for kind, count in seen.get_comm_counts().items() if "reduce" in str(kind)]
            assert (sum(counts), seen.get_total_counts()) == (case.sums, case.sums + case.gathered), case


@worlds(2, 4)
def check_a_process_without_gradients(rank: int, world: int) -> None:
    """It leaves its shards alone, and keeps nobody waiting: as in a loop in which its gradients and steps are 0."""
    for penalty, how in ((GroupLasso(0.3, Columns()), "proximal"), (Grouped(L2(0.5), Columns()), "decoupled")):
        for make in (sgd, adamw):
            model = sharded(mlp())
            optimizer = make(list(model.parameters()))
            rules = {"0.weight": penalty, "2.weight": Nuclear(0.1)}
            regularizer = Regularizer(model, rules, how=how, hold_zeros=0.99).attach(optimizer)
            before = shards(model)
            loss_of(model, batches(1)[0]).backward()
            if rank == 0:
                optimizer.zero_grad()
            optimizer.step()
            moved = [not torch.equal(*pair) for pair in zip(shards(model), before, strict=True)]
            assert not any(moved) if rank == 0 else all(m or not p.numel() for m, p in zip(moved, before, strict=True))
            assert regularizer.state_dict()["updates"] == [1]


def shards(model: nn.Module) -> list[Tensor]:
    """Copies of this process's shards of the parameters."""
    return [parameter.to_local().detach().clone() for parameter in model.parameters()]


@worlds(2, 4)
def check_a_gradient_that_is_nan_on_one_process(rank: int, world: int) -> None:
    """It reaches the group that crosses processes, and no other; nobody waits, and all count the updates."""
    for make in (sgd, adamw):
        for hold_zeros in (None, 0.9):
            model = sharded(mlp())
            optimizer = make(list(model.parameters()))
            rules = {"0.weight": GroupLasso(0.01, Columns()), "2.weight": L1(0.01)}
            regularizer = Regularizer(model, rules, hold_zeros=hold_zeros).attach(optimizer)
            for step, batch in enumerate(parts(rank, 3)):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                if step == 1:
                    for parameter in model.parameters():  # the loss of the next step shall be NaN no more than this
                        parameter.grad.to_local().zero_()
                    if rank == 1:
                        model[0].weight.grad.to_local()[0, 2] = torch.nan
                if step < 2:
                    optimizer.step()
            bad = whole(model[0].weight.detach()).isnan()
            expected = torch.zeros_like(bad)
            expected[:, 2] = True
            assert torch.equal(bad, expected)
            assert not whole(model[2].weight.detach()).isnan().any()
            assert regularizer.state_dict()["updates"] == [2]


def check_a_closure_that_raises_on_one_process(rank: int, world: int) -> None:
    """The others wait for it in the groups' sum, and give up; nothing moved, and nobody counts an update."""
    impatient = dist.new_group(timeout=timedelta(seconds=1))
    mesh = DeviceMesh.from_group(impatient, "cpu", mesh_dim_names=("impatient",))  # without a name it is the default
    spread = sharded(mlp(), mesh=mesh)
    optimizer = sgd(list(spread.parameters()))
    rules = {"0.weight": GroupLasso(0.1, Columns()), "2.weight": L1(0.1)}
    regularizer = Regularizer(spread, rules, how="gradient").attach(optimizer)
    before = shards(spread)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(spread, parts(rank)[0])
        loss.backward()
        if rank == 1:
            raise ValueError("a broken example")
        return loss

    with pytest.raises(ValueError if rank == 1 else RuntimeError):
        optimizer.step(closure)
    assert all(map(torch.equal, shards(spread), before))
    assert regularizer.state_dict()["updates"] == [0]


class Unused(nn.Module):
    """A layer that takes part in the loss, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.used, self.never = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.used(x)
        return output


def check_a_layer_that_is_not_used(rank: int, world: int) -> None:
    """It has no gradient anywhere, and stays as it is; its groups cross processes."""
    for penalty, how in (
        (GroupLasso(0.3, Columns()), "proximal"),
        (GroupLasso(0.3, Columns()), "gradient"),
        (GroupLasso(0.3, Columns()), "decoupled"),
        (Grouped(L2(0.5), Columns()), "decoupled"),
    ):
        model = Unused()
        for layer in (model.used, model.never, model):
            fully_shard(layer)
        optimizer = sgd(list(model.parameters()))
        Regularizer(model, penalty, how=how).attach(optimizer)
        before = shards(model)
        train_together(model, optimizer, rank, range(3))
        used, _, never, _ = (not torch.equal(*pair) for pair in zip(shards(model), before, strict=True))
        assert used
        assert not never


def check_zeros_are_held(rank: int, world: int) -> None:
    """Averaged gradients across processes, for groups that cross and for those that do not; saved and restored."""
    for penalty in (GroupLasso(0.1, Columns()), GroupLasso(0.1, Rows()), L1(0.05), Toward(GroupLasso(0.1, Columns()))):
        spread, alone = sharded(mlp()), mlp()
        optimizer, reference = sgd(list(spread.parameters())), sgd(list(alone.parameters()))
        mine = Regularizer(spread, penalty, hold_zeros=0.99).attach(optimizer)
        Regularizer(alone, penalty, hold_zeros=0.99).attach(reference)
        train_together(spread, optimizer, rank, range(STEPS))
        train_alone(alone, reference, world, range(STEPS))
        assert_close(spread, alone)
        mine.load_state_dict(copy.deepcopy(mine.state_dict()))
        train_together(spread, optimizer, rank, range(STEPS, 2 * STEPS))
        train_alone(alone, reference, world, range(STEPS, 2 * STEPS))
        assert_close(spread, alone)


def check_zeros_stay(rank: int, world: int) -> None:
    """Zeros of elements, and of groups that processes cut or count: those of one process, which are there before."""

    def pruned() -> nn.Module:
        model = mlp()
        with torch.no_grad():
            model[0].weight[:, 1] = model[0].weight[2:4] = model[0].weight[0, ::2] = 0.0
        return model

    for penalty in (L1(0.1), GroupLasso(0.1, Columns()), GroupLasso(0.1, Rows()), GroupLasso(0.1, Heads(4))):
        spread, alone = sharded(pruned()), pruned()
        mask = penalty.zeros(alone[0].weight)
        assert 0 < int(mask.sum()) < mask.numel()
        optimizer, reference = adamw(list(spread.parameters())), adamw(list(alone.parameters()))
        rule = Rule(penalty, "0.weight", until=0, after=L1(0.001))
        Regularizer(spread, rule).attach(optimizer)
        Regularizer(alone, rule).attach(reference)
        train_alike(spread, optimizer, alone, reference, parts(rank, STEPS))
        assert_close(spread, alone)
        assert bool((whole(spread[0].weight.detach()) == 0)[mask].all())


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
    with pytest.raises(ParameterError, match=r"'0.weight' of shape \(8, 6\) is sharded over processes"):
        Regularizer(spread, L1(0.1)).residuals(lambda: loss_of(spread, batches(1)[0]))


def tensor_parallel(model: nn.Module, mesh) -> nn.Module:
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@worlds(2, 4)
def check_tensor_parallel(rank: int, world: int) -> dict[str, float]:
    """Every process sees the same batch; rows of the first layer and columns of the second are cut."""
    worst = 0.0
    for penalty in (L1(0.05), GroupLasso(0.08, Rows()), GroupLasso(0.08, Columns()), GroupLasso(0.08, Heads(2, dim=1))):
        for make in (adamw, sgd):
            spread = tensor_parallel(mlp(), init_device_mesh("cpu", (world,)))
            worst = max(worst, compared(spread, mlp(), penalty, make, batches(STEPS)))
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
            Regularizer(model, {"0.weight": L1(0.05)}, how=how, hold_zeros=0.9).attach(optimizer)
            for x, _ in batches(STEPS):
                train_step(optimizer, model[1](whole(model[0](x[None]))).square().mean())
        assert_close(one, two)


@worlds(4)
def check_fully_shard_of_tensor_parallel(rank: int, world: int) -> dict[str, float]:
    """A mesh of 2 x 2: shards of rows are interleaved where both cut dimension 0."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    worst = 0.0
    for penalty in (L1(0.05), GroupLasso(0.08, Rows()), GroupLasso(0.08, Columns()), Nuclear(0.02), Toward(L1(0.02))):
        for make in (adamw, sgd):
            spread = sharded(tensor_parallel(mlp(), mesh["tensor"]), mesh=mesh["data"])
            worst = max(worst, compared(spread, mlp(), penalty, make, parts(rank // 2, STEPS)))
    return {"difference": worst}


def check_an_overflow_on_one_process(rank: int, world: int) -> None:
    """An infinite gradient in one shard: nothing moves anywhere, and the update is not counted."""
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


@worlds(4)
def check_distributed_checkpoint_on_another_number_of_processes(rank: int, world: int) -> None:
    """Saved from 2 processes and resumed on 4, and the other way round: as one process that was never stopped."""
    rules = {"0.weight": GroupLasso(lambda update: 0.02 * update, Columns()), "2.weight": L1(0.03)}
    groups = {size: dist.new_group(list(range(size))) for size in (2, 4)}

    def started(model: nn.Module) -> tuple[nn.Module, Optimizer, Regularizer]:
        optimizer = adamw(list(model.parameters()))
        return model, optimizer, Regularizer(model, rules, hold_zeros=0.9).attach(optimizer)

    alone, reference, _ = started(mlp())
    train(alone, reference, 8)
    for saving, loading in ((2, 4), (4, 2)):
        path = shared_folder(rank)
        if rank < saving:
            model, optimizer, regularizer = started(sharded(mlp(), mesh=DeviceMesh.from_group(groups[saving], "cpu")))
            train(model, optimizer, 4)
            dcp.save(state_of(model, optimizer, regularizer), checkpoint_id=path, process_group=groups[saving])
        dist.barrier()
        if rank < loading:
            model, optimizer, regularizer = started(sharded(mlp(), mesh=DeviceMesh.from_group(groups[loading], "cpu")))
            train(model, optimizer, 1)  # so that there are averages to load into
            resume(path, model, optimizer, regularizer, process_group=groups[loading])
            assert regularizer.state_dict()["updates"] == [4]
            train(model, optimizer, batches(8)[4:])
            assert_close(model, alone)
        dist.barrier()


def check_the_guide_saves_and_loads(rank: int, world: int) -> None:
    """The code of docs/distributed.md."""
    guide = Path(__file__).parents[2] / "docs" / "distributed.md"
    _, code = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    model = sharded(mlp())
    optimizer = adamw(list(model.parameters()))
    regularizer = Regularizer(model, L1(lambda update: 0.01 * update), hold_zeros=0.9).attach(optimizer)
    train_together(model, optimizer, rank, range(3))
    code = code.replace('"checkpoint"', repr(str(shared_folder(rank))))
    exec(code, {"model": model, "optimizer": optimizer, "regularizer": regularizer})
    assert regularizer.state_dict()["updates"] == [3]


def check_controls_find_the_same_strengths(rank: int, world: int) -> None:
    """Of shards, and of groups that are cut: what is measured is that of the full tensors, on all processes."""
    for penalty in (L1(Bound(2.0)), GroupLasso(Bound(2.0), Columns())):
        found = []
        for model in (mlp(torch.float64), sharded(mlp(torch.float64))):
            optimizer = Adam(model.parameters(), lr=0.02)
            regularizer = Regularizer(model, penalty).attach(optimizer)
            for batch in batches(20, torch.float64):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
            entry, _ = regularizer.plan
            found.append((model, entry.penalty.describe(entry.shape).strength))
        (alone, strength), (model, other) = found
        assert strength == other != "0 (R(w) <= 2)"
        for one, shard in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(shard.full_tensor(), one, rtol=0, atol=1e-12)
