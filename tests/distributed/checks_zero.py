"""ZeroRedundancyOptimizer: every process steps some of the parameters and sends them to the others.

The optimizer inside is the one that steps, before it sends. The reference is one process, bit for bit.
"""

import copy
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import SGD, Adam, AdamW

from catalog import EXPLICIT_PENALTIES
from distributed.common import (
    ALL_CASES,
    STEPS,
    Zoo,
    assert_equal,
    assert_same_everywhere,
    data_parallel,
    everyones,
    parts,
    same_everywhere,
    train_alike,
    train_alone,
    train_together,
    zero_count,
    zoo_loss,
    zoo_rules,
)
from distributed.registry import worlds
from models import mlp, train
from shrinkage import L1, AttachmentError, Budget, GroupLasso, Regularizer, Rows, regularize
from shrinkage.selection.how import How


def every_penalty(rank: int, how: How, cases: list) -> dict[str, float]:
    """Train the zoo with its optimizer in parts, and in one process."""
    rules = zoo_rules(cases, 2.0)
    zeros = {}
    for name, make, options in (
        ("SGD momentum", SGD, {"lr": 0.05, "momentum": 0.9}),
        ("AdamW", AdamW, {"lr": 0.02, "fused": True}),
    ):
        together, alone = Zoo(cases), Zoo(cases)
        optimizer = ZeroRedundancyOptimizer(together.parameters(), make, **options)
        regularizer = Regularizer(together, rules, how=how).attach(optimizer)
        reference = make(alone.parameters(), **options)
        Regularizer(alone, rules, how=how).attach(reference)
        train_alike(data_parallel(together), optimizer, alone, reference, parts(rank), loss=zoo_loss)
        assert_equal(together, alone)
        assert_same_everywhere(together)
        assert same_everywhere(regularizer.state_dict())
        zeros[f"zeros with {name}"] = float(zero_count(together))
    return zeros


@worlds(2, 4, slow=4)
def check_every_penalty_proximal(rank: int, world: int) -> dict[str, float]:
    zeros = every_penalty(rank, "proximal", ALL_CASES)
    assert min(zeros.values()) > 100, zeros
    return zeros


@worlds(2, 4)
def check_every_penalty_decoupled(rank: int, world: int) -> dict[str, float]:
    zeros = every_penalty(rank, "decoupled", ALL_CASES)
    assert min(zeros.values()) > 100, zeros
    return zeros


@worlds(2, 4)
def check_every_penalty_gradient(rank: int, world: int) -> None:
    every_penalty(rank, "gradient", EXPLICIT_PENALTIES)


SCHEDULE = L1(lambda update: 0.05 + 0.02 * update)


@worlds(2, 4)
def check_processes_that_step_nothing_penalized(rank: int, world: int) -> dict[str, float]:
    """Of 4 processes two step biases only. The reference is DDP with an optimizer that is not in parts."""
    for how in ("proximal", "gradient", "decoupled"):
        parted, whole = mlp(), mlp()
        optimizer = ZeroRedundancyOptimizer(parted.parameters(), Adam, lr=0.02)
        regularizer = Regularizer(parted, SCHEDULE, how=how).attach(optimizer)
        train_together(data_parallel(parted), optimizer, rank)
        reference = Adam(whole.parameters(), lr=0.02)
        Regularizer(whole, SCHEDULE, how=how).attach(reference)
        train_together(data_parallel(whole), reference, rank)
        assert_equal(parted, whole)
        assert_same_everywhere(parted)
        assert regularizer.state_dict()["updates"] == [STEPS]
    return {"penalized here": float(sum(len(each.targets_left(own)) for own, each in regularizer._attached.pairs()))}


@worlds(2, 4)
def check_processes_that_step_nothing(rank: int, world: int) -> None:
    """Of 4 processes two have no parameter at all; layers that declare are penalized once even so."""
    for declare in (False, True):
        parted, whole = nn.Sequential(nn.Linear(6, 3)), nn.Sequential(nn.Linear(6, 3))
        whole.load_state_dict(parted.state_dict())
        for model in (parted, whole):
            if declare:
                regularize(model[0], GroupLasso(0.3, Rows()))
        optimizer = ZeroRedundancyOptimizer(parted.parameters(), SGD, lr=0.1)
        reference = SGD(whole.parameters(), lr=0.1)
        if not declare:
            Regularizer(parted, GroupLasso(0.3, Rows())).attach(optimizer)
            Regularizer(whole, GroupLasso(0.3, Rows())).attach(reference)
        train_together(data_parallel(parted), optimizer, rank)
        train_together(data_parallel(whole), reference, rank)
        assert_equal(parted, whole)
        assert_same_everywhere(parted)
        assert zero_count(parted) > 0


@worlds(2, 4)
def check_declared_layers(rank: int, world: int) -> None:
    parted, whole = mlp(), mlp()
    for model in (parted, whole):
        regularize(model[0], L1(0.1))
        regularize(model[2], GroupLasso(0.1, Rows()), how="decoupled")
    optimizer, reference = (
        ZeroRedundancyOptimizer(parted.parameters(), Adam, lr=0.02),
        Adam(whole.parameters(), lr=0.02),
    )
    train_together(data_parallel(parted), optimizer, rank)
    train_together(data_parallel(whole), reference, rank)
    assert_equal(parted, whole)
    assert_same_everywhere(parted)
    assert zero_count(parted) > 0


def check_buckets_and_closures(rank: int, world: int) -> None:
    """Parameters are views of a bucket then; a closure gets its penalties inside of the step of the optimizer kept."""
    for how in ("proximal", "gradient"):
        together, alone = mlp(), mlp()
        optimizer = ZeroRedundancyOptimizer(together.parameters(), SGD, parameters_as_bucket_view=True, lr=0.1)
        Regularizer(together, L1(0.05), how=how).attach(optimizer)
        wrapped = data_parallel(together)
        reference = SGD(alone.parameters(), lr=0.1)
        Regularizer(alone, L1(0.05), how=how).attach(reference)
        train(wrapped, optimizer, parts(rank), closure=True)
        train_alone(alone, reference, world)
        assert_equal(together, alone)
        assert_same_everywhere(together)


@worlds(2, 4)
def check_a_group_that_is_added(rank: int, world: int) -> None:
    """A layer joins after two steps; of 4 processes its parameters go to those that had none."""
    parted, whole = mlp(), mlp()
    optimizer = ZeroRedundancyOptimizer(parted[0].parameters(), Adam, lr=0.02)
    reference = Adam(whole[0].parameters(), lr=0.02)
    regularizers = []
    for model, each in ((parted, optimizer), (whole, reference)):
        rules = {"0.weight": L1(0.1), "2.weight": GroupLasso(0.1, Rows())}
        regularizers.append(Regularizer(model, rules).attach(each))
        wrapped = data_parallel(model)
        train_together(wrapped, each, rank, range(2))
        each.add_param_group({"params": list(model[2].parameters()), "lr": 0.05})
        train_together(wrapped, each, rank, range(2, STEPS))
    assert_equal(parted, whole)
    assert_same_everywhere(parted)
    assert (parted[2].weight == 0).any()
    assert [each.state_dict()["updates"] for each in regularizers] == [[STEPS], [STEPS]]


def check_resume_from_a_consolidated_state(rank: int, world: int) -> None:
    """What process 0 consolidates goes on in parts, and in one process with a plain optimizer."""
    first = mlp()
    optimizer = ZeroRedundancyOptimizer(first.parameters(), Adam, lr=0.02)
    regularizer = Regularizer(first, SCHEDULE).attach(optimizer)
    wrapped = data_parallel(first)
    train_together(wrapped, optimizer, rank)
    optimizer.consolidate_state_dict(to=0)
    saved = [None]
    if rank == 0:
        saved = [copy.deepcopy((first.state_dict(), optimizer.state_dict(), regularizer.state_dict()))]
    dist.broadcast_object_list(saved, src=0)
    train_together(wrapped, optimizer, rank, range(STEPS, 2 * STEPS))

    second, alone = mlp(), mlp()
    resumed = ZeroRedundancyOptimizer(second.parameters(), Adam, lr=0.02)
    reference = Adam(alone.parameters(), lr=0.02)
    for model, each in ((second, resumed), (alone, reference)):
        again = Regularizer(model, SCHEDULE).attach(each)
        for stateful, state in zip((model, each, again), copy.deepcopy(saved[0]), strict=True):
            stateful.load_state_dict(state)
    train_together(data_parallel(second), resumed, rank, range(STEPS, 2 * STEPS))
    train_alone(alone, reference, world, range(STEPS, 2 * STEPS))
    assert_equal(second, first)
    assert_equal(second, alone)
    assert zero_count(second) > 0


def check_overlap_with_ddp_is_refused(rank: int, world: int) -> None:
    model = mlp()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), Adam, overlap_with_ddp=True, lr=0.02)
    with pytest.raises(AttachmentError, match="overlap_with_ddp=False"):
        Regularizer(model, L1(0.1)).attach(optimizer)


def check_an_optimizer_of_another_model_is_refused(rank: int, world: int) -> None:
    optimizer = ZeroRedundancyOptimizer(mlp().parameters(), Adam, lr=0.02)
    with pytest.raises(AttachmentError, match="this ZeroRedundancyOptimizer holds none of the 2 penalized"):
        Regularizer(mlp(), L1(0.1)).attach(optimizer)


def check_held_zeros(rank: int, world: int) -> None:
    counts = []
    for hold_zeros in (0.9, None):
        together, alone = mlp(), mlp()
        optimizer = ZeroRedundancyOptimizer(together.parameters(), SGD, lr=0.1)
        reference = SGD(alone.parameters(), lr=0.1)
        Regularizer(together, L1(0.1), hold_zeros=hold_zeros).attach(optimizer)
        Regularizer(alone, L1(0.1), hold_zeros=hold_zeros).attach(reference)
        train_together(data_parallel(together), optimizer, rank, range(20))
        train_alone(alone, reference, world, range(20))
        assert_equal(together, alone)
        counts.append(zero_count(together))
    assert counts[0] > counts[1] > 0


def check_resume_with_held_zeros(rank: int, world: int) -> None:
    """Every process averages what it steps: it saves that itself, and refuses what another one saved."""
    first, second = mlp(), mlp()
    models, optimizers = (first, second), []
    for model in models:
        optimizers.append(ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1))
    regularizers = [Regularizer(m, L1(0.1), hold_zeros=0.9).attach(o) for m, o in zip(models, optimizers, strict=True)]
    wrapped = data_parallel(first)
    train_together(wrapped, optimizers[0], rank, range(10))
    second.load_state_dict(first.state_dict())
    mine = copy.deepcopy(regularizers[0].state_dict())
    everyones: list[dict[str, Any]] = [{} for _ in range(world)]
    dist.all_gather_object(everyones, mine)
    with pytest.raises(ValueError, match=r"save and load Regularizer\.state_dict\(\) in every process"):
        regularizers[1].load_state_dict(everyones[1 - rank])
    merged = {name: average for state in everyones for name, average in state["averages"][0].items()}
    regularizers[1].load_state_dict({**mine, "averages": [merged]})  # as one process would have saved it
    train_together(wrapped, optimizers[0], rank, range(10, 20))
    train_together(data_parallel(second), optimizers[1], rank, range(10, 20))
    assert_equal(first, second)
    saved = [each.state_dict()["averages"][0] for each in regularizers]
    assert saved[0].keys() == saved[1].keys() == {"0.weight" if rank == 0 else "2.weight"}


BUDGET = Budget(zeros=0.7, updates=50, begin=0.1, end=0.4)  # from 5 to 20, frozen at 30


@worlds(2, 4)
def check_each_process_ranks_what_it_steps(rank: int, world: int) -> None:
    """That is what one process does with an optimizer for each part: each has the stated share."""
    model, alone = mlp(), mlp()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.05, momentum=0.9)
    regularizer = Regularizer(model, BUDGET).attach(optimizer)
    own = {id(each) for group in optimizer.optim.param_groups for each in group["params"]}
    stepped = everyones([name for name, each in model.named_parameters() if id(each) in own])
    references = [SGD(map(alone.get_parameter, names), lr=0.05, momentum=0.9) for names in stepped if names]
    reference, ranked = Regularizer(alone, BUDGET), {id(alone[i].weight) for i in (0, 2)}
    for each in references:
        if any(id(parameter) in ranked for parameter in each.param_groups[0]["params"]):
            reference.attach(each)

    def follow() -> None:
        for each in references[1:]:
            each.step()
        assert_equal(model, alone)

    train_alike(data_parallel(model), optimizer, alone, references[0], parts(rank, 35), after=follow)
    assert_same_everywhere(model)
    assert [int((model[i].weight == 0).sum()) for i in (0, 2)] == [BUDGET.zeros_at(35, n) for n in (48, 24)]
    reached = everyones(sum(each.reached for each in regularizer.progress() if each.reached))
    assert sum(reached) == sum(each.reached for each in reference.progress() if each.reached)


def check_resume_with_weights_kept_aside(rank: int, world: int) -> None:
    """Every process keeps aside what it steps: it saves that itself, and refuses what another one saved."""
    first, second = mlp(), mlp()
    optimizers = [ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.05) for model in (first, second)]
    regularizers = [Regularizer(m, BUDGET).attach(o) for m, o in zip((first, second), optimizers, strict=True)]
    wrapped = data_parallel(first)
    train_together(wrapped, optimizers[0], rank, range(12))
    second.load_state_dict(first.state_dict())
    states = everyones(copy.deepcopy(regularizers[0].state_dict()))
    with pytest.raises(ValueError, match=r"save and load Regularizer\.state_dict\(\) in every process"):
        regularizers[1].load_state_dict(states[1 - rank])
    regularizers[1].load_state_dict(states[rank])
    train_together(wrapped, optimizers[0], rank, range(12, 35))
    train_together(data_parallel(second), optimizers[1], rank, range(12, 35))
    assert_equal(first, second)
    assert zero_count(second) > 0
