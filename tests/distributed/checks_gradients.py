"""Gradients to which penalties are added early, and those that a step leaves as they were, in shards."""

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

from distributed.common import average_gradients_, parts
from models import Batch, loss_of, mlp
from shrinkage import L1, L2, Columns, GroupLasso, Regularizer

RULES = {"0.weight": GroupLasso(0.3, Columns()), "2.weight": L1(0.3)}  # the groups of the first cross processes


def cut() -> tuple[torch.nn.Module, torch.optim.Optimizer, Regularizer]:
    """A model whose rows are cut over processes, with both rules."""
    model = fully_shard(mlp())
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
    return model, optimizer, Regularizer(model, RULES, how="gradient").attach(optimizer)


def check_clipping_with_the_penalties(rank: int, world: int) -> None:
    """Against one process that has them in its loss."""
    spread, optimizer, regularizer = cut()
    alone = mlp()
    reference = SGD(alone.parameters(), lr=0.1, momentum=0.5)
    seen = [parts(each) for each in range(world)]
    for step, batch in enumerate(parts(rank)):
        optimizer.zero_grad()
        loss_of(spread, batch).backward()
        regularizer.add_gradients_()
        norm = clip_grad_norm_(spread.parameters(), 0.5)
        optimizer.step()
        average_gradients_(alone, [own[step] for own in seen], loss_of)
        first, second = alone[0].weight, alone[2].weight
        (0.3 * len(first) ** 0.5 * first.norm(dim=0).sum() + 0.3 * second.abs().sum()).backward()
        expected = clip_grad_norm_(alone.parameters(), 0.5)
        reference.step()
        torch.testing.assert_close(norm.full_tensor(), expected)
        assert expected > 0.5
    for mine, other in zip(spread.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.full_tensor(), other)


def check_stepping_twice_on_the_same_gradients(rank: int, world: int) -> None:
    spread, optimizer, _ = cut()
    alone = mlp()
    reference = SGD(alone.parameters(), lr=0.1, momentum=0.5)
    Regularizer(alone, RULES, how="gradient").attach(reference)
    seen = [parts(each) for each in range(world)]
    for step, batch in enumerate(parts(rank)):
        optimizer.zero_grad()
        loss_of(spread, batch).backward()
        own = [p.grad.to_local().clone() for p in spread.parameters()]
        average_gradients_(alone, [own[step] for own in seen], loss_of)
        for _ in range(2):
            optimizer.step()
            reference.step()
        assert all(torch.equal(p.grad.to_local(), g) for p, g in zip(spread.parameters(), own, strict=True))
    for mine, other in zip(spread.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.full_tensor(), other)


def check_a_process_without_gradients_keeps_nobody_waiting(rank: int, world: int) -> None:
    """Where the loop had penalties added on one process only, all of them still take part in the sums."""
    model, optimizer, regularizer = cut()
    for batch in parts(rank):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if rank == 0:
            optimizer.zero_grad()
        regularizer.add_gradients_()
        optimizer.step()
    assert regularizer.state_dict()["updates"] == [5]


def check_a_step_that_is_left_out_where_one_process_has_no_gradients(rank: int, world: int) -> None:
    """What was added on the other process went with its gradients; both may add anew, and talk as often."""
    model, optimizer, regularizer = cut()
    for step, batch in enumerate(parts(rank)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if rank == 0:
            optimizer.zero_grad()
        regularizer.add_gradients_()
        if step % 2:
            optimizer.step()
    assert regularizer.state_dict()["updates"] == [2]


def check_a_closure_without_gradients_on_one_process_has_the_same_value(rank: int, world: int) -> None:
    """Of what is sharded over processes every one of them asks for the value, and adds all of it to its loss."""
    model = fully_shard(mlp())
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, {"0.weight": L1(0.3), "2.weight": L2(0.3)}, how="gradient").attach(optimizer)
    for batch in parts(rank):
        before = regularizer.value()

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if rank == 0:
                model[0].weight.grad = None
            return torch.zeros(())

        assert torch.equal(optimizer.step(closure), before)
    assert regularizer.state_dict()["updates"] == [5]
