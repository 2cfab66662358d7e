"""Metrics of optimizers where parameters are cut over processes: as in one process, or refused by name."""

from collections.abc import Callable

import pytest
import torch
from schedulefree import SGDScheduleFree
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import ASGD, SGD, Adadelta, Adafactor, Adamax, NAdam, Optimizer, RAdam

from shrinkage import L1, Columns, GroupLasso, MetricError, Penalty, Regularizer, Rows, register_metric

# Without Rprop, whose step torch cannot make on a tensor that is cut.
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "NAdam": lambda p: NAdam(p, lr=0.05, foreach=False),
    "RAdam": lambda p: RAdam(p, lr=0.05, foreach=False),
    "Adamax": lambda p: Adamax(p, lr=0.05, foreach=False),
    "Adadelta": lambda p: Adadelta(p, lr=0.5, eps=1e-2, foreach=False),
    "ASGD": lambda p: ASGD(p, lr=0.3, lambd=0.2, foreach=False),
    "schedule-free": lambda p: SGDScheduleFree(p, lr=0.3, foreach=False),
}
STEPS = 8


class Clears(SGD):
    """An optimizer that clears the gradients at the end of its own step."""

    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


class Trusts(SGD):
    """Stands for an optimizer whose step at one element depends on others."""

    def step(self, closure=None):
        super().step(closure)


def register_schedule_free() -> None:
    """As docs/optimizers.md does, for the defaults: the newest iterate is 1 / k of the average."""
    register_metric(
        SGDScheduleFree,
        lambda group, state, w: group["scheduled_lr"],
        iterate=lambda group, state, w: (state["z"], 1 - group["momentum"] * (1 - 1 / group["k"])),
    )


def start() -> tuple[Tensor, list[Tensor]]:
    """A weight of five uneven rows, and its gradients."""
    generator = torch.Generator().manual_seed(5)
    weight, *gradients = torch.randn(STEPS + 1, 5, 4, dtype=torch.float64, generator=generator)
    return weight, gradients


def train(parameter: nn.Parameter, optimizer: Optimizer, penalty: Penalty, gradients: list[Tensor]) -> Tensor:
    if isinstance(optimizer, SGDScheduleFree):
        optimizer.train()
    Regularizer(nn.ParameterList([parameter]), {"0": penalty}).attach(optimizer)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer.state[parameter].get("z", parameter.detach())


def check_metrics_of_shards(rank: int, world: int) -> dict[str, float]:
    register_schedule_free()
    mesh = init_device_mesh("cpu", (world,))
    measured = {}
    for name, make in OPTIMIZERS.items():
        for penalty in (L1(1.0), GroupLasso(0.4, Rows()), GroupLasso(0.4, Columns())):
            weight, gradients = start()
            alone, together = (nn.Parameter(w) for w in (weight, distribute_tensor(weight, mesh, [Shard(0)])))
            if name == "schedule-free" and penalty == GroupLasso(0.4, Columns()):
                continue
            expected = train(alone, make([alone]), penalty, gradients)
            spread = [distribute_tensor(gradient, mesh, [Shard(0)]) for gradient in gradients]
            found = train(together, make([together]), penalty, spread)
            assert isinstance(found, DTensor)
            assert torch.equal(found.full_tensor() == 0, expected == 0), (name, penalty)
            difference = float((found.full_tensor() - expected).abs().max())
            assert difference <= (0.0 if penalty == L1(1.0) else 1e-12), (name, penalty, difference)
            assert (expected == 0).any() or penalty != L1(1.0), name
            measured[f"{name}, {penalty}"] = difference
    return measured


def check_groups_where_the_step_clears_gradients(rank: int, world: int) -> None:
    register_metric(Clears, lambda group, state, w: group["lr"])
    mesh = init_device_mesh("cpu", (world,))
    weight, gradients = start()
    alone, together = (nn.Parameter(w) for w in (weight, distribute_tensor(weight, mesh, [Shard(0)])))
    expected = train(alone, SGD([alone], lr=0.1), GroupLasso(2.0, Columns()), gradients)
    spread = [distribute_tensor(gradient, mesh, [Shard(0)]) for gradient in gradients]
    found = train(together, Clears([together], lr=0.1), GroupLasso(2.0, Columns()), spread)
    assert isinstance(found, DTensor)
    assert torch.equal(found.full_tensor() == 0, expected == 0)
    assert (expected == 0).any()
    assert float((found.full_tensor() - expected).abs().max()) <= 1e-12


def check_what_needs_the_whole_is_refused(rank: int, world: int) -> None:
    register_schedule_free()
    mesh = init_device_mesh("cpu", (world,))
    for make, penalty in (
        (Adafactor, L1(1.0)),
        (lambda p: SGDScheduleFree(p, lr=0.3), GroupLasso(0.4, Columns())),
    ):
        parameter = nn.Parameter(distribute_tensor(start()[0], mesh, [Shard(0)]))
        optimizer = make([parameter])
        regularizer = Regularizer(nn.ParameterList([parameter]), {"0": penalty})
        with pytest.raises(MetricError, match=r"'0' of shape \(5, 4\) is sharded over processes"):
            regularizer.attach(optimizer)
        assert not optimizer._optimizer_step_pre_hooks
        Regularizer(nn.ParameterList([parameter]), {"0": penalty}, how="gradient").attach(optimizer)


def check_a_learning_rate_needs_no_metric(rank: int, world: int) -> None:
    """A trust ratio needs the whole of a parameter, and decoupled penalties do not ask for it."""
    register_metric(Trusts, lambda group, state, w: group["lr"] * w.norm(), elementwise=False)
    mesh = init_device_mesh("cpu", (world,))
    weight, gradients = start()
    parameter = nn.Parameter(distribute_tensor(weight.clone(), mesh, [Shard(0)]))
    with pytest.raises(MetricError, match="sharded over processes"):
        Regularizer(nn.ParameterList([parameter]), {"0": L1(1.0)}).attach(Trusts([parameter]))
    optimizer = Trusts([parameter], lr=0.1)
    Regularizer(nn.ParameterList([parameter]), {"0": L1(5.0)}, how="decoupled").attach(optimizer)
    parameter.grad = distribute_tensor(gradients[0], mesh, [Shard(0)])
    optimizer.step()
    expected = nn.functional.softshrink(weight.add(gradients[0], alpha=-0.1), 0.5)
    assert torch.equal(parameter.full_tensor(), expected)
    assert (expected == 0).any()
