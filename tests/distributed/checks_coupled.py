"""Groups that span parameters of which each process holds a shard, a copy, or both: as on one process."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from distributed.common import whole
from distributed.registry import worlds
from models import train_step
from shrinkage import L2, MCP, Bound, Coupled, Grouped, GroupLasso, Member, Penalty, Regularizer, Rule
from shrinkage.selection.how import How

STEPS = 4
PLACES: Sequence[Callable[[int], Shard | Replicate]] = (lambda dims: Shard(0), lambda dims: Shard(dims - 1))
SHAPES = {"query": (12, 6), "key": (6, 12), "bias": (12,), "fused": (30, 6), "scale": (12,)}


def heads() -> Coupled:
    """Heads of 3 in differently shaped parameters, with indices in none, and one family apart."""
    of_12 = [row // 3 for row in range(12)]
    fused = [*of_12, *[-1] * 4, *reversed(of_12), -1, -1]
    return Coupled(
        [
            Member("query", 0, of_12),
            Member("key", 1, of_12),
            Member("bias", 0, of_12),
            Member("fused", 0, fused),
            Member("scale", 0, [4 + row % 5 for row in range(12)]),
        ]
    )


class Holder(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def trained(
    place: Callable[[str, Tensor], Tensor], optimizer: Callable[..., Optimizer], penalty: Penalty, how: How, every: int
) -> tuple[dict[str, Tensor], float]:
    """Parameters after steps along given gradients, and the penalty's value, with tensors put where `place` says."""
    model = Holder({name: place(name, tensor) for name, tensor in tensors(0).items()})
    rate_of = {"query": 0.02, "key": 0.05}
    groups = [{"params": [p], "lr": rate_of.get(name, 0.05)} for name, p in model.named_parameters()]
    own = optimizer(groups)
    regularizer = Regularizer(model, Rule(penalty, how=how, every=every)).attach(own)
    for step in range(1, STEPS + 1):
        for name, grad in tensors(step).items():
            model.get_parameter(name).grad = place(name, grad)
        own.step()
    return {name: whole(p) for name, p in model.named_parameters()}, float(regularizer.value())


RULES: Sequence[tuple[Penalty, How, int]] = (
    (GroupLasso(5.0, heads()), "proximal", 1),
    (GroupLasso(4.0, heads()), "proximal", 2),
    (Grouped(MCP(5.0), heads()), "proximal", 1),
    (GroupLasso(4.0, heads()), "decoupled", 1),
    (Grouped(L2(0.5), heads()), "decoupled", 1),
    (GroupLasso(0.2, heads()), "gradient", 1),
    (GroupLasso(Bound(40.0), heads()), "proximal", 1),
)


def placed(mesh: DeviceMesh, first: int, name: str, tensor: Tensor) -> Tensor:
    """Shards of rows, shards of columns, a copy or a plain tensor, in turn from `first` on."""
    kind = (list(SHAPES).index(name) + first) % 4
    if kind == 3:
        return tensor
    placement = Replicate() if kind == 2 else PLACES[kind](tensor.dim())
    return distribute_tensor(tensor, mesh, [placement], src_data_rank=None)


@worlds(2, 4, slow=4)
def check_every_placement(rank: int, world: int) -> dict[str, float]:
    """Shards of rows, shards of columns, copies and plain tensors, in one family; cut unevenly by 4 processes."""
    mesh = init_device_mesh("cpu", (world,))
    measured: dict[str, float] = {}
    for (penalty, how, every), optimizer in product(RULES, (SGD, Adam)):
        alone, value = trained(lambda name, tensor: tensor, optimizer, penalty, how, every)
        key = f"zeros of {penalty.describe(None)[0]}, {how}"
        measured[key] = measured.get(key, 0.0) + float(sum((w == 0).sum() for w in alone.values()))
        for first in range(0, 4, world // 2):  # four processes take turns in every second way
            together, value_together = trained(partial(placed, mesh, first), optimizer, penalty, how, every)
            assert abs(value - value_together) <= 1e-5 * abs(value)
            for name, expected in alone.items():
                torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)
                assert torch.equal(together[name] == 0, expected == 0)
    assert min(measured[f"zeros of {name}, proximal"] for name in ("GroupLasso", "Grouped MCP")) > 0, measured
    return measured


@worlds(4)
def check_two_dimensions_of_a_mesh(rank: int, world: int) -> None:
    """Some parameters are cut along one dimension of the mesh, some along the other, some along both."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    ways = {
        "query": [Shard(0), Shard(1)],
        "key": [Replicate(), Shard(0)],
        "bias": [Shard(0), Replicate()],
        "fused": [Shard(0), Shard(0)],
        "scale": [Replicate(), Replicate()],
    }
    for (penalty, how, every), optimizer in product(RULES, (SGD, Adam)):
        alone, _ = trained(lambda name, tensor: tensor, optimizer, penalty, how, every)
        together, _ = trained(
            lambda n, tensor: distribute_tensor(tensor, mesh, ways[n], src_data_rank=None),
            optimizer,
            penalty,
            how,
            every,
        )
        for name, expected in alone.items():
            torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)


def convolutions() -> tuple[nn.Sequential, Coupled]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.Flatten()]
    names = [f"{index}.{name}" for index in (0, 1, 3, 4) for name in ("weight", "bias")]
    members = [Member(n, 0, range(6) if n[0] in "01" else range(6, 11)) for n in names]
    return nn.Sequential(*layers, nn.Linear(20, 3)).double(), Coupled(members)


def losses(model: nn.Module, optimizer: Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
        train_step(optimizer, model(x).square().mean())


@worlds(2, 4, slow=4)
def check_wrapped_models(rank: int, world: int) -> None:
    """DistributedDataParallel and fully_shard, of all or layer by layer, with zeros held by averaged gradients."""
    for optimizer_class, hold_zeros in product((SGD, Adam), (None, 0.9)):
        results = []
        for wrap in ("alone", "ddp", "fsdp", "layers"):
            model, channels = convolutions()
            wrapped: nn.Module = model
            if wrap == "ddp":
                wrapped = DistributedDataParallel(model)
            elif wrap != "alone":
                for layer in model if wrap == "layers" else ():
                    if list(layer.parameters()):
                        fully_shard(layer)
                fully_shard(model)
            optimizer = optimizer_class(wrapped.parameters(), lr=0.05)
            Regularizer(wrapped, GroupLasso(2.0, channels), hold_zeros=hold_zeros).attach(optimizer)
            losses(wrapped, optimizer)
            results.append({name: whole(p) for name, p in model.named_parameters()})
        alone, *others = results
        assert sum(int((w == 0).sum()) for w in alone.values()) > 0
        for other in others:
            for name, expected in alone.items():
                torch.testing.assert_close(other[name], expected, rtol=1e-9, atol=1e-10)
