"""FullyShardedDataParallel (FSDP1): at a step every process holds a flat shard of each parameter, or nothing of it.

With `use_orig_params=True` penalties of single elements are those of one process, bit for bit; what needs the shape of
a parameter is refused by name, and so is every penalty where a flat parameter takes the place of the model's own.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.optim import SGD, Adam, AdamW

from distributed.common import (
    ALL_CASES,
    OPTIMIZERS,
    STEPS,
    Zoo,
    assert_equal,
    parts,
    train_alike,
    train_alone,
    train_together,
    zero_count,
    zoo_loss,
    zoo_rules,
)
from distributed.registry import worlds
from models import loss_of, mlp, train_step
from shrinkage import L1, GroupLasso, ParameterError, Regularizer, Rows, Toward, regularize
from shrinkage.distributed.flat_parameters import penalizes_any_shard

RULES = zoo_rules(ALL_CASES, 0.5).values()
ELEMENTWISE = [case for case, rule in zip(ALL_CASES, RULES, strict=True) if penalizes_any_shard(rule)]
# torch's fused kernel rounds the last few elements of a tensor otherwise than those before, so that shards differ.
UNFUSED = {"SGD momentum": OPTIMIZERS["SGD momentum"], "AdamW": lambda p: AdamW(p, lr=0.02)}
OTHERS = [case for case in ALL_CASES if case not in ELEMENTWISE]


def flattened(model: nn.Module, *, use_orig_params: bool = True) -> FullyShardedDataParallel:
    """The model in flat shards."""
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=cpu)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole parameters, by their names in the model."""
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        named = model.named_parameters()
        return {name.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for name, p in named}


def assert_equals_one_process(model: nn.Module, alone: nn.Module) -> None:
    gathered = whole(model)
    for name, parameter in alone.named_parameters():
        assert torch.equal(gathered[name], parameter), f"{name}: {(gathered[name] - parameter).abs().max()}"


@worlds(2, 4)
def check_every_elementwise_penalty(rank: int, world: int) -> dict[str, float]:
    assert len(ELEMENTWISE) > 14
    zeros = {}
    for how in ("proximal", "gradient", "decoupled"):
        explicit = zip(ELEMENTWISE, zoo_rules(ELEMENTWISE, 1.0).values(), strict=True)
        cases = [case for case, rule in explicit if rule.explicit or how != "gradient"]
        rules = zoo_rules(cases, 2.0)
        for name, make in UNFUSED.items():
            planned_before = name == "AdamW"
            together, alone = Zoo(cases), Zoo(cases)
            regularizer = Regularizer(together, rules, how=how) if planned_before else None
            wrapped = flattened(together)
            optimizer, reference = make(list(wrapped.parameters())), make(list(alone.parameters()))
            (regularizer or Regularizer(wrapped, rules, how=how)).attach(optimizer)
            Regularizer(alone, rules, how=how).attach(reference)
            gathered = partial(FullyShardedDataParallel.summon_full_params, wrapped, writeback=False, with_grads=True)
            train_alike(wrapped, optimizer, alone, reference, parts(rank), loss=zoo_loss, gathered=gathered)
            assert_equals_one_process(wrapped, alone)
            zeros[f"zeros, {how}, {name}"] = float(zero_count(alone))
    assert min(count for name, count in zeros.items() if "gradient" not in name) > 20, zeros
    return zeros


def check_empty_shards_schedules_and_held_zeros(rank: int, world: int) -> None:
    """Process 0 has nothing of the second layer, and so no gradient for it."""
    together, alone = mlp(), mlp()
    rules = {"*.weight": L1(lambda update: 0.02 + 0.01 * update)}
    regularizer = Regularizer(together, rules, hold_zeros=0.9)
    wrapped = flattened(together)
    optimizer, reference = SGD(wrapped.parameters(), lr=0.1), SGD(alone.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    Regularizer(alone, rules, hold_zeros=0.9).attach(reference)
    train_together(wrapped, optimizer, rank)
    assert (together[2].weight.numel() == 0) == (rank == 0)
    train_alone(alone, reference, world)
    assert_equals_one_process(wrapped, alone)
    assert zero_count(alone) > 0
    assert regularizer.state_dict()["updates"] == [STEPS]


def check_declared_layers_and_attachment_before_wrapping(rank: int, world: int) -> None:
    for declare in (True, False):
        together, alone = mlp(), mlp()
        reference = Adam(alone.parameters(), lr=0.02)
        optimizer = Adam(together.parameters(), lr=0.02)
        for model, each in ((together, optimizer), (alone, reference)):
            if declare:
                regularize(model[0], L1(0.1))
            else:
                Regularizer(model, {"0.weight": L1(0.1)}).attach(each)
        wrapped = flattened(together)
        if declare:
            optimizer = Adam(wrapped.parameters(), lr=0.02)
        train_together(wrapped, optimizer, rank)
        train_alone(alone, reference, world)
        assert_equals_one_process(wrapped, alone)
        assert zero_count(alone) > 0


def check_overflow_on_one_process(rank: int, world: int) -> None:
    """Only a scaler that asks the other processes knows of an overflow in a shard that it does not hold."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    for fused in (False, True):
        together, alone = mlp(), mlp()
        regularizer = Regularizer(together, L1(lambda update: 0.02 + 0.01 * update))
        wrapped = flattened(together)
        optimizer, reference = (Adam(model.parameters(), lr=0.02, fused=fused) for model in (wrapped, alone))
        regularizer.attach(optimizer)
        Regularizer(alone, L1(lambda update: 0.02 + 0.01 * update)).attach(reference)
        scaler: GradScaler = ShardedGradScaler("cpu", init_scale=1024.0)
        for step, batch in enumerate(parts(rank)):
            optimizer.zero_grad()
            loss = loss_of(wrapped, batch)
            scaler.scale(loss * (torch.inf if (rank, step) == (1, 2) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            if step != 2:
                train_alone(alone, reference, world, range(step, step + 1))
        assert_equals_one_process(wrapped, alone)
        assert regularizer.state_dict()["updates"] == [STEPS - 1]


def check_what_needs_the_shape_is_refused(rank: int, world: int) -> None:
    """In the plan if the model is wrapped by then, else when attaching, else at the first step; nothing is changed."""
    for case, rule in zip(OTHERS, zoo_rules(OTHERS, 1.0).values(), strict=True):
        model = Zoo([case])
        before = Regularizer(model, {"weights.0": rule})
        declared, attached = Zoo([case]), Zoo([case])
        optimizer = SGD(attached.parameters(), lr=0.1)
        Regularizer(attached, {"weights.0": rule}).attach(optimizer)
        regularize(declared, rule, parameter="weights.0")
        wrapped = flattened(model)
        with pytest.raises(ParameterError, match=r"'weights.0' cannot be penalized by .* use fully_shard"):
            before.attach(SGD(wrapped.parameters(), lr=0.1))
        with pytest.raises(ParameterError, match=r"'weights.0' cannot be penalized by .* use fully_shard"):
            Regularizer(wrapped, {"weights.0": rule})
        for each, stepped in ((attached, optimizer), (declared, None)):
            outer = flattened(each)
            stepped = stepped or SGD(outer.parameters(), lr=0.1)
            kept = whole(outer)
            zoo_loss(outer, parts(rank)[0]).backward()
            with pytest.raises(ParameterError, match=r"'weights.0.*' cannot be penalized by .* use fully_shard"):
                stepped.step()
            assert all(torch.equal(value, kept[name]) for name, value in whole(outer).items())
            del outer


def check_more_that_is_refused(rank: int, world: int) -> None:
    model = mlp()
    wrapped = flattened(model)
    with pytest.raises(ParameterError, match="make the Regularizer before it wraps the model"):
        Regularizer(wrapped, L1(0.1))
    with pytest.raises(ParameterError, match="cannot be penalized by Toward"):
        Regularizer(wrapped, {"*.weight": Toward(L1(0.1))})
    regularizer = Regularizer(wrapped, {"*.weight": L1(0.1)})
    with pytest.raises(ParameterError, match=r"holds a flat shard of '0\.weight'"):
        regularizer.value()
    with pytest.raises(ParameterError, match=r"holds a flat shard of '0\.weight'"):
        regularizer.residuals(lambda: loss_of(wrapped, parts(rank)[0]))


def check_flat_parameters_are_refused(rank: int, world: int) -> None:
    """Nothing is left of the model's parameters then: not where rules look, and not where layers declare."""
    model = mlp()
    regularizer = Regularizer(model, L1(0.1))
    wrapped = flattened(model, use_orig_params=False)
    with pytest.raises(ParameterError, match="use_orig_params=True"):
        regularizer.attach(SGD(wrapped.parameters(), lr=0.1))
    with pytest.raises(ParameterError, match="use_orig_params=True"):
        Regularizer(wrapped, {"*": L1(0.1)})
    for parameter in ("0.weight", "*.weight"):
        declared = regularize(mlp(), L1(0.1), parameter=parameter)
        outer = flattened(declared, use_orig_params=False)
        optimizer = SGD(outer.parameters(), lr=0.1)
        loss_of(outer, parts(rank)[0]).backward()
        with pytest.raises(ParameterError, match=r"of Sequential' is in a flat parameter .* use_orig_params=True"):
            optimizer.step()
        del declared, outer, optimizer


def check_layers_that_declare_inside_of_flat_parameters(rank: int, world: int) -> None:
    model = mlp()
    regularize(model[0], GroupLasso(0.1, Rows()))
    model = flattened(model, use_orig_params=False)
    optimizer = SGD(model.parameters(), lr=0.1)
    loss_of(model, parts(rank)[0]).backward()
    with pytest.raises(ParameterError, match="'weight of Linear' is in a flat parameter"):
        optimizer.step()


def check_a_declaration_outside_of_flat_parameters_holds(rank: int, world: int) -> None:
    """A layer that is not wrapped is penalized as ever, beside one that is."""
    together, alone = mlp(), mlp()
    for model in (together, alone):
        regularize(model[2], GroupLasso(0.1, Rows()))
    together[0] = flattened(together[0], use_orig_params=False)
    optimizer, reference = SGD(together.parameters(), lr=0.1), SGD(alone.parameters(), lr=0.1)
    for _ in range(20):  # every process sees the same batch here: only the first layer averages
        for model, each in ((together, optimizer), (alone, reference)):
            train_step(each, loss_of(model, parts(0)[0]))
    assert_equal(together[2], alone[2])
    assert zero_count(alone[2]) > 0


def check_flat_shards_that_are_whole(rank: int, world: int) -> None:
    """Without sharding every process has everything, but flat all the same: refused too, as the marks are the same."""
    model = mlp()
    regularizer = Regularizer(model, GroupLasso(0.1, Rows()))
    strategy = ShardingStrategy.NO_SHARD
    cpu = torch.device("cpu")
    wrapped = FullyShardedDataParallel(model, sharding_strategy=strategy, use_orig_params=True, device_id=cpu)
    with pytest.raises(ParameterError, match="use fully_shard"):
        regularizer.attach(SGD(wrapped.parameters(), lr=0.1))


def check_an_update_counts_where_there_is_no_shard(rank: int, world: int) -> None:
    model = nn.Linear(1, 1, bias=False)
    regularizer = Regularizer(model, L1(lambda update: 0.1 * update))
    wrapped = flattened(model)
    optimizer = SGD(wrapped.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    wrapped(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert (model.weight.grad is None) == (rank == 1)
    assert regularizer.state_dict()["updates"] == [1]
