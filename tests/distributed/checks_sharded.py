"""Parameters that are cut over processes: every penalty gives what it gives in one process.

Where nothing has to be added up, bit for bit; sums over processes come in another order: to 1e-6 of the largest weight,
with the same zeros.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import SGD, AdamW, Optimizer

from catalog import EXPLICIT_PENALTIES, PENALTIES, ConstraintCase, PenaltyCase
from distributed.common import ALL_CASES, Zoo, whole, zero_count, zoo_rules
from distributed.registry import worlds
from shrinkage import Grouped, Penalty, Regularizer, Rule, SparseGroupLasso, Toward
from shrinkage.distributed.group_sharding import group_sharding_of
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.selection.how import How

Placements = Callable[[Tensor], list[Shard | Replicate]]
STEPS = 4

# The fused kernel rounds the last elements of a shard otherwise than those in the middle of a whole.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "AdamW": lambda p: AdamW(p, lr=0.02, foreach=False),
}


def rows(w: Tensor) -> list[Shard | Replicate]:
    return [Shard(0)]


def columns(w: Tensor) -> list[Shard | Replicate]:
    return [Shard(w.dim() - 1)]


def rows_and_columns(w: Tensor) -> list[Shard | Replicate]:
    return [Shard(0), Shard(w.dim() - 1)]


def copies_of_columns(w: Tensor) -> list[Shard | Replicate]:
    return [Replicate(), Shard(w.dim() - 1)]


def cut(zoo: Zoo, mesh: DeviceMesh, placements: Placements) -> Zoo:
    """Replace the weights by shards on this process."""
    spread = [distribute_tensor(w.detach(), mesh, placements(w), src_data_rank=None) for w in zoo.weights]
    zoo.weights = nn.ParameterList(map(nn.Parameter, spread))
    return zoo


def train(zoo: Zoo, optimizer: Optimizer, steps: range) -> None:
    """Steps on gradients that are made from the whole weights, the same in every process."""
    for step in steps:
        for w in zoo.weights:
            full = whole(w.detach())
            noise = torch.sin((step + 1.3) * torch.arange(1.0, full.numel() + 1)).reshape(full.shape)
            grad = full - 0.3 + noise
            if isinstance(w, DTensor):
                w.grad = distribute_tensor(grad, w.device_mesh, w.placements, src_data_rank=None)
            else:
                w.grad = grad
        optimizer.step()


def sums_suffice(penalty: Penalty) -> bool:
    """Whether a penalty that crosses processes asks for sums, which come in another order there."""
    if isinstance(penalty, Toward | NonNegative | Ridged) and penalty.penalty is not None:
        return sums_suffice(penalty.penalty)
    return isinstance(penalty, Grouped | SparseGroupLasso)


class Training(NamedTuple):
    """How a zoo is trained."""

    optimizer: str
    how: How
    strength: float
    cases: tuple[PenaltyCase | ConstraintCase, ...]
    steps: int
    every: int


def trained(zoo: Zoo, training: Training) -> Zoo:
    optimizer = OPTIMIZERS[training.optimizer](list(zoo.parameters()))
    rules = zoo_rules(training.cases, training.strength).items()
    regularizer = Regularizer(zoo, [Rule(each, name, training.how, every=training.every) for name, each in rules])
    regularizer.attach(optimizer)
    train(zoo, optimizer, range(training.steps))
    return zoo


@cache
def trained_on_one_process(training: Training) -> Zoo:
    """The reference, which is the same however parameters are sharded."""
    return trained(Zoo(training.cases), training)


def compare(
    mesh: DeviceMesh,
    placements: Placements,
    how: How,
    strength: float,
    cases: Sequence,
    steps: int = STEPS,
    every: int = 1,
) -> dict[str, float]:
    """Train the zoo cut over processes and whole, with several optimizers; return differences and zeros."""
    measured = {}
    for name in OPTIMIZERS:
        rules, training = zoo_rules(cases, strength), Training(name, how, strength, tuple(cases), steps, every)
        spread, alone = trained(cut(Zoo(cases), mesh, placements), training), trained_on_one_process(training)
        worst = 0.0
        for case, shard, reference, penalty in zip(cases, spread.weights, alone.weights, rules.values(), strict=True):
            found = whole(shard.detach())
            difference = float((found - reference).abs().max())
            assert torch.equal(found == 0, reference == 0), f"{case} with {name}: other zeros"
            if sums_suffice(penalty) and group_sharding_of(penalty, shard) is not None:
                worst = max(worst, difference)
                assert difference <= 1e-6 * float(reference.abs().max()), f"{case} with {name}: {difference}"
            elif sums_suffice(penalty):
                assert difference <= 1e-6, f"{case} with {name}: {difference}"
            else:
                assert difference == 0, f"{case} with {name}: {difference}"
        measured |= {f"zeros with {name}": float(zero_count(alone)), f"difference with {name}": worst}
    return measured


@worlds(2, 4, slow=4)
def check_rows_are_cut(rank: int, world: int) -> dict[str, float]:
    measured = compare(init_device_mesh("cpu", (world,)), rows, "proximal", 2.0, ALL_CASES)
    assert min(value for name, value in measured.items() if "zeros" in name) > 100, measured
    return measured


@worlds(2, 4, slow=4)
def check_columns_are_cut(rank: int, world: int) -> dict[str, float]:
    return compare(init_device_mesh("cpu", (world,)), columns, "proximal", 2.0, ALL_CASES)


@worlds(4)
def check_rows_and_columns_are_cut(rank: int, world: int) -> dict[str, float]:
    return compare(init_device_mesh("cpu", (2, 2)), rows_and_columns, "proximal", 2.0, ALL_CASES)


@worlds(4)
def check_copies_of_cut_columns(rank: int, world: int) -> dict[str, float]:
    return compare(init_device_mesh("cpu", (2, 2)), copies_of_columns, "proximal", 2.0, ALL_CASES)


@worlds(2)
def check_every_second_step(rank: int, world: int) -> None:
    cases = [case for case in PENALTIES if case.name.startswith(("L1", "GroupLasso", "Nuclear"))]
    for placements in (rows, columns):
        compare(init_device_mesh("cpu", (world,)), placements, "proximal", 1.0, cases, every=2)


@worlds(2, 4)
def check_decoupled(rank: int, world: int) -> None:
    for mesh, placements in cuttings(world):
        compare(mesh, placements, "decoupled", 2.0, ALL_CASES, steps=2)


@worlds(2, 4)
def check_gradient(rank: int, world: int) -> None:
    for mesh, placements in cuttings(world):
        compare(mesh, placements, "gradient", 0.5, EXPLICIT_PENALTIES, steps=2)


def cuttings(world: int) -> list[tuple[DeviceMesh, Placements]]:
    """Rows, and columns; with four processes both at once."""
    if world == 4:
        return [(init_device_mesh("cpu", (2, 2)), rows_and_columns)]
    return [(init_device_mesh("cpu", (world,)), placements) for placements in (rows, columns)]


@worlds(4)
def check_several_meshes_and_none_in_one_optimizer(rank: int, world: int) -> None:
    """Groups that cross processes of one mesh, of another, and of no mesh, in one step."""
    square, line = init_device_mesh("cpu", (2, 2)), init_device_mesh("cpu", (4,))
    cases = [case for case in PENALTIES if case.name == "GroupLasso columns"] * 4
    zeros = 0
    placed = [(square, [Shard(0), Replicate()]), (line, [Shard(0)]), (square, [Shard(0), Shard(1)])]
    for make in OPTIMIZERS.values():
        spread, alone = Zoo(cases), Zoo(cases)
        for index, (mesh, placements) in enumerate(placed):  # the last stays as it is
            weight = spread.weights[index].detach()
            spread.weights[index] = nn.Parameter(distribute_tensor(weight, mesh, placements, src_data_rank=None))
        for zoo in (spread, alone):
            optimizer = make(list(zoo.parameters()))
            optimizer.defaults["foreach"] = optimizer.param_groups[0]["foreach"] = False  # which takes one mesh only
            Regularizer(zoo, zoo_rules(cases, 1.0)).attach(optimizer)
            train(zoo, optimizer, range(STEPS))
        for shard, reference in zip(spread.weights, alone.weights, strict=True):
            found = whole(shard.detach())
            assert torch.equal(found == 0, reference == 0)
            assert float((found - reference).abs().max()) <= 1e-6 * float(reference.abs().max())
        assert torch.equal(spread.weights[3], alone.weights[3])
        zeros += zero_count(alone)
    assert 0 < zeros < len(OPTIMIZERS) * sum(w.numel() for w in alone.weights)
