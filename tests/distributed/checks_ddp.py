"""DistributedDataParallel: every process steps on the same gradients, so all of them stay equal, bit for bit.

The reference is one process that averages the gradients of the same batches in the same order: equality.
"""

import copy
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, Optimizer

from catalog import EXPLICIT_PENALTIES
from distributed.common import (
    ALL_CASES,
    OPTIMIZERS,
    STEPS,
    Batch,
    Zoo,
    assert_equal,
    assert_same_everywhere,
    average_gradients_,
    data_parallel,
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
from models import loss_of, mlp, soft_, train_step, weights
from shrinkage import (
    L1,
    L2,
    Bound,
    Corrected,
    Coupled,
    GroupLasso,
    Member,
    Ramp,
    Regularizer,
    Rows,
    Rule,
    regularize,
)
from shrinkage.selection.how import How


def every_penalty(rank: int, how: How, strength: float, cases: list) -> dict[str, float]:
    """Train the zoo in all processes and in one, with several optimizers."""
    rules = zoo_rules(cases, strength)
    zeros = {}
    for name, make in OPTIMIZERS.items():
        together, alone = Zoo(cases), Zoo(cases)
        optimizer = make(list(together.parameters()))
        regularizer = Regularizer(together, rules, how=how).attach(optimizer)
        reference = make(list(alone.parameters()))
        Regularizer(alone, rules, how=how).attach(reference)
        train_alike(data_parallel(together), optimizer, alone, reference, parts(rank), loss=zoo_loss)
        assert_equal(together, alone)
        assert_same_everywhere(together)
        assert same_everywhere(regularizer.state_dict())
        zeros[f"zeros with {name}"] = float(zero_count(together))
    return zeros


@worlds(2, 4, slow=4)
def check_every_penalty_proximal(rank: int, world: int) -> dict[str, float]:
    zeros = every_penalty(rank, "proximal", 2.0, ALL_CASES)
    assert min(zeros.values()) > 100, zeros
    return zeros


@worlds(2, 4)
def check_every_penalty_decoupled(rank: int, world: int) -> dict[str, float]:
    zeros = every_penalty(rank, "decoupled", 2.0, ALL_CASES)
    assert min(zeros.values()) > 100, zeros
    return zeros


@worlds(2, 4)
def check_every_penalty_gradient(rank: int, world: int) -> None:
    every_penalty(rank, "gradient", 0.5, EXPLICIT_PENALTIES)


def trained(
    rank: int,
    world: int,
    penalty: object,
    make: Callable[[list[nn.Parameter]], Optimizer],
    *,
    hold_zeros: float | None = None,
    steps: int = STEPS,
    wrap: Callable[[nn.Module], nn.Module] = data_parallel,
) -> nn.Module:
    """Train in all processes and in one, compare, and return the model."""
    together, alone = mlp(), mlp()
    optimizer, reference = make(list(together.parameters())), make(list(alone.parameters()))
    Regularizer(alone, penalty, hold_zeros=hold_zeros).attach(reference)
    wrapped = wrap(together)
    regularizer = Regularizer(wrapped, penalty, hold_zeros=hold_zeros).attach(optimizer)
    train_together(wrapped, optimizer, rank, range(steps))
    train_alone(alone, reference, world, range(steps))
    assert_equal(together, alone)
    assert_same_everywhere(together)
    assert regularizer.state_dict()["updates"] == [steps]
    return together


def adam(parameters: list[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.02)


def sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1)


@worlds(2, 4)
def check_against_a_loop_written_by_hand(rank: int, world: int) -> dict[str, float]:
    """The gradients are the reducer's own here, as it sums those of 4 processes in an order of its own."""
    together, hand = mlp(), mlp()
    optimizer, reference = adam(list(together.parameters())), adam(list(hand.parameters()))
    wrapped = data_parallel(together)
    Regularizer(wrapped, L1(0.05), compile=False).attach(optimizer)  # a kernel rounds roots otherwise

    def threshold() -> None:
        for w in weights(hand):
            state = reference.state[w]
            denominator = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8
            soft_(w, 0.05 * (0.02 / denominator))

    train_alike(wrapped, optimizer, hand, reference, parts(rank, 10), after=threshold)
    assert_equal(together, hand)
    assert_same_everywhere(together)
    assert zero_count(together) > 5
    return {"zeros": zero_count(together)}


def check_schedule(rank: int, world: int) -> None:
    trained(rank, world, L1(lambda update: 0.02 * update), adam)


def check_controls(rank: int, world: int) -> None:
    """Every process measures the same weights, and sends no message."""
    coupled = Coupled([Member("0.weight", 0, range(8)), Member("2.weight", 1, range(8))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda *_, **options: pytest.fail("a message"))
        free = trained(rank, world, L1(0.0), adam)
        for penalty in (L1(Bound(4.0)), [Rule(GroupLasso(Bound(4.0), coupled))], L1(Corrected(0.05))):
            found = trained(rank, world, penalty, adam)
            assert not any(map(torch.equal, weights(found), weights(free)))


def check_held_zeros(rank: int, world: int) -> None:
    held = trained(rank, world, L1(0.1), sgd, hold_zeros=0.9, steps=20)
    free = trained(rank, world, L1(0.1), sgd, steps=20)
    assert zero_count(held) > zero_count(free) > 0


def check_bucket_views_and_static_graph(rank: int, world: int) -> None:
    for options in ({"gradient_as_bucket_view": True}, {"static_graph": True}):
        for penalty in (L1(0.05), GroupLasso(0.05, Rows())):
            trained(rank, world, penalty, sgd, wrap=lambda model, options=options: data_parallel(model, **options))


def check_compiled(rank: int, world: int) -> None:
    """The compiler's graphs run torch's own operations here, so that nothing is rounded differently."""
    for wrap in (
        lambda model: data_parallel(torch.compile(model, backend="aot_eager")),
        lambda model: torch.compile(data_parallel(model), backend="aot_eager"),
    ):
        trained(rank, world, {"0.weight": L1(0.05), "2.weight": GroupLasso(0.05, Rows())}, adam, wrap=wrap)
    torch.compiler.reset()


def check_declared_layers(rank: int, world: int) -> None:
    together, alone = mlp(), mlp()
    for model in (together, alone):
        regularize(model[0], L1(0.05))
        regularize(model[2], GroupLasso(0.05, Rows()), how="decoupled")
    optimizer, reference = adam(list(together.parameters())), adam(list(alone.parameters()))
    train_together(data_parallel(together), optimizer, rank)
    train_alone(alone, reference, world)
    assert zero_count(together) > 0
    assert_equal(together, alone)
    assert_same_everywhere(together)


def check_declared_layers_that_keep_a_state(rank: int, world: int) -> None:
    """A count and averages, saved by the optimizer in each process, and loaded into another one."""
    together, alone = mlp(), mlp()
    for model in (together, alone):
        regularize(model[0], L1(Ramp(0.05, 6)), hold_zeros=0.9)
        regularize(model[2], GroupLasso(Ramp(0.03, 6), Rows()))
    optimizer, reference = adam(list(together.parameters())), adam(list(alone.parameters()))
    wrapped = data_parallel(together)
    train_together(wrapped, optimizer, rank)
    train_alone(alone, reference, world)
    assert_equal(together, alone)
    again, other = adam(list(together.parameters())), adam(list(alone.parameters()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(reference.state_dict()))
    train_together(wrapped, again, rank)
    train_alone(alone, other, world)
    assert zero_count(together) > 0
    assert_equal(together, alone)
    assert_same_everywhere(together)


def check_accumulation_without_synchronisation(rank: int, world: int) -> None:
    """Gradients of two batches add up, the first without communication; the penalty enters once per update."""
    for how in ("proximal", "gradient", "decoupled"):
        together, alone = mlp(), mlp()
        optimizer, reference = sgd(list(together.parameters())), sgd(list(alone.parameters()))
        wrapped = data_parallel(together)
        Regularizer(wrapped, L1(0.05), how=how).attach(optimizer)
        Regularizer(alone, L1(0.05), how=how).attach(reference)
        seen = [parts(each, 6) for each in range(world)]
        for first in range(0, 6, 2):
            optimizer.zero_grad()
            with wrapped.no_sync():
                loss_of(wrapped, seen[rank][first]).backward()
            loss_of(wrapped, seen[rank][first + 1]).backward()
            optimizer.step()
            average_gradients_(alone, [own[first : first + 2] for own in seen], sum_of_losses)
            reference.step()
        assert_equal(together, alone)
        assert_same_everywhere(together)


def sum_of_losses(model: nn.Module, pair: list[Batch]) -> Tensor:
    """The gradients of this loss are summed in the order of the batches."""
    return loss_of(model, pair[1]) + loss_of(model, pair[0])


class Branches(nn.Module):
    """A layer that always takes part, one that does where `used` says so, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk, self.branch, self.never = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        self.used = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.trunk(x)
        return y + self.branch(x) if self.used else y


def check_parameters_without_a_gradient(rank: int, world: int) -> None:
    """What one process uses is penalized in all of them; what none uses is left alone in all of them."""
    for how in ("proximal", "gradient", "decoupled"):
        together, alone = Branches(), Branches()
        optimizer, reference = sgd(list(together.parameters())), sgd(list(alone.parameters()))
        wrapped = data_parallel(together, find_unused_parameters=True)
        Regularizer(wrapped, GroupLasso(0.05, Rows()), how=how).attach(optimizer)
        Regularizer(alone, GroupLasso(0.05, Rows()), how=how).attach(reference)
        never = together.never.weight.detach().clone()
        seen = [parts(each) for each in range(world)]
        for step in range(STEPS):
            together.used = rank == 1
            train_step(optimizer, loss_of(wrapped, seen[rank][step]))
            reference.zero_grad()
            gradients = []
            for each in range(world):
                alone.used = each == 1
                loss = loss_of(alone, seen[each][step])
                gradients.append(torch.autograd.grad(loss, list(alone.parameters()), allow_unused=True))
            for parameter, *grads in zip(alone.parameters(), *gradients, strict=True):
                present = [grad / world for grad in grads if grad is not None]
                parameter.grad = sum(present[1:], present[0]) if present else None
            reference.step()
        assert_equal(together, alone)
        assert_same_everywhere(together)
        assert torch.equal(together.never.weight, never)


def check_overflow_on_one_process(rank: int, world: int) -> None:
    """The infinite gradient reaches every process, so every one of them skips the update, and none counts it."""
    for fused in (False, True):
        for how in ("proximal", "gradient", "decoupled"):
            together, alone = mlp(), mlp()
            models = (together, alone)
            optimizer, reference = (Adam(model.parameters(), lr=0.02, fused=fused) for model in models)
            wrapped = data_parallel(together)
            penalty = L1(lambda update: 0.02 + 0.01 * update)
            regularizer = Regularizer(wrapped, penalty, how=how).attach(optimizer)
            Regularizer(alone, penalty, how=how).attach(reference)
            scaler = GradScaler("cpu", init_scale=1024.0)
            for step, batch in enumerate(parts(rank)):
                optimizer.zero_grad()
                loss = loss_of(wrapped, batch) * (torch.inf if (rank, step) == (1, 2) else 1.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                if step != 2:
                    average_gradients_(alone, [parts(each)[step] for each in range(world)], loss_of)
                    reference.step()
            assert_equal(together, alone)
            assert_same_everywhere(together)
            assert regularizer.state_dict()["updates"] == [STEPS - 1]


def check_checkpoint_into_a_plain_model(rank: int, world: int) -> None:
    """A checkpoint of the model inside goes on in one process, and on another number of them."""
    together, alone = mlp(), mlp()
    optimizer = adam(list(together.parameters()))
    penalty = L1(lambda update: 0.02 * update)
    wrapped = data_parallel(together)
    regularizer = Regularizer(wrapped, penalty, hold_zeros=0.9).attach(optimizer)
    train_together(wrapped, optimizer, rank, range(STEPS))
    saved = copy.deepcopy((wrapped.module.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    train_together(wrapped, optimizer, rank, range(STEPS, 2 * STEPS))
    reference = adam(list(alone.parameters()))
    resumed = Regularizer(alone, penalty, hold_zeros=0.9).attach(reference)
    for stateful, state in zip((alone, reference, resumed), saved, strict=True):
        stateful.load_state_dict(state)
    train_alone(alone, reference, world, range(STEPS, 2 * STEPS))
    assert_equal(together, alone)
    assert zero_count(together) > 0
    assert resumed.state_dict()["updates"] == [2 * STEPS]


@worlds(4)
def check_resume_on_another_number_of_processes(rank: int, world: int) -> None:
    """Four processes train, two of them go on: as one does with the gradients of two."""
    everyone, pair = mlp(), dist.new_group([0, 1])
    optimizer = adam(list(everyone.parameters()))
    penalty = {"0.weight": L1(lambda update: 0.02 * update), "2.weight": GroupLasso(0.02, Rows())}
    wrapped = data_parallel(everyone)
    regularizer = Regularizer(wrapped, penalty).attach(optimizer)
    train_together(wrapped, optimizer, rank, range(STEPS))
    saved = copy.deepcopy((wrapped.module.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    if rank > 1:
        return
    models = two, one = mlp(), mlp()
    optimizers = [adam(list(model.parameters())) for model in models]
    regularizers = [Regularizer(m, penalty).attach(o) for m, o in zip(models, optimizers, strict=True)]
    for triple in zip(models, optimizers, regularizers, strict=True):
        for stateful, state in zip(triple, copy.deepcopy(saved), strict=True):
            stateful.load_state_dict(state)
    train_together(data_parallel(two, process_group=pair), optimizers[0], rank, range(STEPS, 2 * STEPS))
    train_alone(one, optimizers[1], 2, range(STEPS, 2 * STEPS))
    assert_equal(two, one)
    assert zero_count(two) > 0


def check_a_closure_that_raises_on_one_process(rank: int, world: int) -> None:
    """The other processes wait for it in the gradients' collective and give up; no process counts an update.

    After that all of them go on as if the step had not been tried.
    """
    together, alone = mlp(), mlp()
    optimizer, reference = sgd(list(together.parameters())), sgd(list(alone.parameters()))
    penalty = L1(lambda update: 0.02 + 0.01 * update)
    regularizer = Regularizer(together, penalty, how="gradient").attach(optimizer)
    Regularizer(alone, penalty, how="gradient").attach(reference)
    train_together(data_parallel(together), optimizer, rank, range(2))
    train_alone(alone, reference, world, range(2))

    impatient = data_parallel(together, process_group=dist.new_group(timeout=timedelta(seconds=3)))

    def closure() -> Tensor:
        if rank == 1:
            raise ValueError("a broken example")
        optimizer.zero_grad()
        loss = loss_of(impatient, parts(rank)[2])
        loss.backward()
        return loss

    with pytest.raises(ValueError if rank == 1 else RuntimeError):
        optimizer.step(closure)
    assert_equal(together, alone)
    assert regularizer.state_dict()["updates"] == [2]

    dist.barrier()
    train_together(data_parallel(together), optimizer, rank, range(2, STEPS))
    train_alone(alone, reference, world, range(2, STEPS))
    assert_equal(together, alone)
    assert_same_everywhere(together)


def check_a_loss_that_is_nan_on_one_process(rank: int, world: int) -> None:
    """Every process gets the NaN at the same step and keeps the same count; a checkpoint from before goes on."""
    together, alone = mlp(), mlp()
    optimizer, reference = adam(list(together.parameters())), adam(list(alone.parameters()))
    wrapped = data_parallel(together)
    regularizer = Regularizer(wrapped, {nn.Linear: GroupLasso(0.05, Rows())}, hold_zeros=0.9).attach(optimizer)
    Regularizer(alone, {nn.Linear: GroupLasso(0.05, Rows())}, hold_zeros=0.9).attach(reference)
    train_together(wrapped, optimizer, rank, range(3))
    train_alone(alone, reference, world, range(3))
    saved = copy.deepcopy((together.state_dict(), optimizer.state_dict(), regularizer.state_dict()))

    train_step(optimizer, loss_of(wrapped, parts(rank)[0]) * (torch.nan if rank == 1 else 1.0))
    assert all(w.isnan().all() for w in weights(together))
    assert_same_everywhere(together)
    assert regularizer.state_dict()["updates"] == [4]

    for stateful, state in zip((together, optimizer, regularizer), saved, strict=True):
        stateful.load_state_dict(state)
    train_together(wrapped, optimizer, rank, range(3, STEPS))
    train_alone(alone, reference, world, range(3, STEPS))
    assert_equal(together, alone)
    assert_same_everywhere(together)


def check_uneven_inputs(rank: int, world: int) -> None:
    """A process that runs out of batches takes no further step, and gets the others' weights at the end."""
    together = mlp()
    optimizer = sgd(list(together.parameters()))
    wrapped = data_parallel(together)
    regularizer = Regularizer(wrapped, L1(0.1)).attach(optimizer)
    with wrapped.join():
        train_together(wrapped, optimizer, rank, range(3 + 2 * rank))
    assert_same_everywhere(together)
    assert zero_count(together) > 0
    assert regularizer.state_dict()["updates"] == [3 + 2 * rank]  # as the optimizer's own state differs


def check_the_problem_is_told_once(rank: int, world: int) -> None:
    """What is not a step needs no other process: value, residuals, the printed plan."""
    model = mlp()
    wrapped = data_parallel(model)
    regularizer = Regularizer(wrapped, {"*.weight": L2(0.1)})
    if rank == 0:
        plain = Regularizer(model, {"*.weight": L2(0.1)})
        batch = parts(0)[0]
        assert str(regularizer) == str(plain)
        assert torch.equal(regularizer.value(), plain.value())
        ours = regularizer.residuals(lambda: loss_of(model, batch))
        assert str(ours) == str(plain.residuals(lambda: loss_of(model, batch)))
