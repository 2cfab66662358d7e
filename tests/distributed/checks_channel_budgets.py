"""Budgets of channels of which each process holds a shard, a copy, or both: the same ones go as on one process."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from distributed.checks_coupled import Holder, convolutions, heads, placed, tensors
from distributed.common import resume, shared_folder, state_of, whole
from distributed.registry import worlds
from models import train_step
from shrinkage import Budget, CoupledChannels, GroupError, Regularizer
from shrinkage.selection.channel_budgets import UNITS

UPDATES = 30
HALF = {"zeros": 0.4, "parameters": 250, "multiply_adds": 2_000}


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out that channels are coarse, or the last of their kind: these models are small."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(than it may|of its kind)")
        yield


def images(number: int) -> Tensor:
    """A batch for the network of convolutions."""
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def trained(wrap: str, optimizer_class: type[SGD | Adam], unit: str, score: str) -> tuple[dict[str, Tensor], int]:
    """Parameters after training with a budget, and what was reached."""
    model, _ = convolutions()
    channels = CoupledChannels(model, images(0)[:1])
    budget = Budget(**{unit: HALF[unit]}, updates=UPDATES, groups=channels, score=score)
    regularizer = Regularizer(model, budget)  # before the model is sharded: copies of it tell the multiply-adds
    wrapped: nn.Module = model
    if wrap == "ddp":
        wrapped = DistributedDataParallel(model)
    elif wrap != "alone":
        for layer in model if wrap == "layers" else ():
            if list(layer.parameters()):
                fully_shard(layer)
        fully_shard(model)
    optimizer = optimizer_class(wrapped.parameters(), lr=0.01)
    regularizer.attach(optimizer)
    with without_warnings():
        for number in range(UPDATES):
            train_step(optimizer, (wrapped(images(number)) - 1).square().mean())
    (progress,) = regularizer.progress()
    return {name: whole(p) for name, p in model.named_parameters()}, progress.reached


@worlds(2, 4, slow=4)
def check_wrapped_models_lose_the_same_channels(rank: int, world: int) -> dict[str, float]:
    """DistributedDataParallel and fully_shard, of all or layer by layer."""
    measured: dict[str, float] = {}
    for optimizer_class, unit in ((SGD, "zeros"), (Adam, "parameters"), (SGD, "multiply_adds")):
        for score in ("effect", "size") if unit == "zeros" else ("effect",):
            alone, reached = trained("alone", optimizer_class, unit, score)
            measured[f"{UNITS[unit]} by {score}"] = float(reached)
            for wrap in ("ddp", "fsdp", "layers"):
                other, also = trained(wrap, optimizer_class, unit, score)
                assert also == reached, (wrap, unit, also, reached)
                for name, expected in alone.items():
                    assert torch.equal(other[name] == 0, expected == 0), (wrap, unit, name)
                    torch.testing.assert_close(other[name], expected, rtol=1e-7, atol=1e-9)
            assert any((w == 0).any() for w in alone.values())
    return measured


@worlds(2)
def check_multiply_adds_are_counted_before_a_model_is_sharded(rank: int, world: int) -> None:
    model, _ = convolutions()
    channels = CoupledChannels(model, images(0)[:1])
    fully_shard(model)
    with pytest.raises(GroupError, match="make the Regularizer before"):
        Regularizer(model, Budget(multiply_adds=2_000, updates=UPDATES, groups=channels))


@worlds(2, 4, slow=4)
def check_every_placement_loses_the_same_groups(rank: int, world: int) -> None:
    """Shards of rows, shards of columns, copies and plain tensors, in one family; cut unevenly by 4 processes."""
    mesh = init_device_mesh("cpu", (world,))
    for first, score in product(range(4), ("effect", "size")):
        found = []
        for place in (lambda name, tensor: tensor, partial(placed, mesh, first)):
            model = Holder({name: place(name, tensor) for name, tensor in tensors(0).items()})
            optimizer = SGD(model.parameters(), lr=0.02)
            Regularizer(model, Budget(zeros=0.3, updates=UPDATES, groups=heads(), score=score)).attach(optimizer)
            for step in range(1, UPDATES + 1):
                for name, grad in tensors(step).items():
                    model.get_parameter(name).grad = place(name, grad)
                with without_warnings():
                    optimizer.step()
            found.append({name: whole(p) for name, p in model.named_parameters()})
        alone, together = found
        assert sum(int((w == 0).sum()) for w in alone.values()) > 0
        for name, expected in alone.items():
            assert torch.equal(together[name] == 0, expected == 0), (first, name)
            torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)


def check_a_distributed_checkpoint_resumes_with_channels(rank: int, world: int) -> None:
    """Before the ramp, on it between two looks, and after its end."""

    def started() -> tuple[nn.Module, Optimizer, Regularizer]:
        model, _ = convolutions()
        budget = Budget(zeros=0.4, updates=UPDATES, groups=CoupledChannels(model, images(0)[:1]))
        regularizer = Regularizer(model, budget)
        fully_shard(model)
        optimizer = Adam(model.parameters(), lr=0.01)
        return model, optimizer, regularizer.attach(optimizer)

    def steps(model: nn.Module, optimizer: Optimizer, numbers: range) -> None:
        with without_warnings():
            for number in numbers:
                train_step(optimizer, (model(images(number)) - 1).square().mean())

    for at in (2, 8, 20):
        path = shared_folder(rank)
        model, optimizer, regularizer = started()
        steps(model, optimizer, range(at))
        dcp.save(state_of(model, optimizer, regularizer), checkpoint_id=path)
        steps(model, optimizer, range(at, UPDATES))
        again, fresh, resumed = started()
        if at > 15:  # the state has one entry less from the end of the ramp on
            resumed.load_state_dict({"version": 1, "updates": [at]})
        resume(path, again, fresh, resumed)
        steps(again, fresh, range(at, UPDATES))
        for mine, other in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine.to_local(), other.to_local())
        assert sum(int((whole(w) == 0).sum()) for w in again.parameters()) > 0
