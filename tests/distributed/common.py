"""A model with every penalty in it, and what several checks share: training by parts, and comparing processes."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from catalog import CONSTRAINTS, PENALTIES, ConstraintCase, PenaltyCase
from models import Batch, batches, loss_of, train
from shrinkage import Penalty, Regularizer

STEPS = 5
Value = TypeVar("Value")

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "AdamW fused": lambda p: AdamW(p, lr=0.02, fused=True),
}


def parts(rank: int, count: int = STEPS) -> list[Batch]:
    """The batches of one process: the same inputs at each call, others in every process."""
    return [(x.roll(rank + 1, 0) * (rank + 1), y.roll(3 * rank, 0)) for x, y in batches(count)]


def average_gradients_(model: nn.Module, own: Sequence[Batch], loss: Callable[[nn.Module, Batch], Tensor]) -> None:
    """Set the gradients of one step to the average over the batches of all processes, summed in their order."""
    for parameter in model.parameters():
        parameter.grad = None
    gradients = []
    for batch in own:
        for parameter in model.parameters():
            parameter.grad = None
        loss(model, batch).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for parameter, *grads in zip(model.parameters(), *gradients, strict=True):
        shares = [grad / len(own) for grad in grads if grad is not None]
        parameter.grad = None if not shares else sum(shares[1:], shares[0])


def train_alone(
    model: nn.Module,
    optimizer: Optimizer,
    world: int,
    steps: range = range(STEPS),
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
) -> None:
    """Train in one process on what `world` processes see."""
    seen = [parts(rank, steps.stop) for rank in range(world)]
    for step in steps:
        average_gradients_(model, [own[step] for own in seen], loss)
        optimizer.step()


def train_together(
    model: nn.Module,
    optimizer: Optimizer,
    rank: int,
    steps: range = range(STEPS),
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
) -> None:
    """Train on this process's part."""
    train(model, optimizer, parts(rank, steps.stop)[steps.start :], loss=loss)


def train_alike(
    model: nn.Module,
    optimizer: Optimizer,
    alone: nn.Module,
    reference: Optimizer,
    own: Sequence[Batch],
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train on this process's batches, and `alone` on the very gradients that come of it.

    So they are the same, whatever the order in which processes are summed. Inside of `gathered` they can be read.
    `after` is called when both have stepped.
    """

    def copy_gradients() -> None:
        with gathered():
            for mine, other in zip(model.parameters(), alone.parameters(), strict=True):
                other.grad = None if mine.grad is None else whole(mine.grad).clone()

    def follow() -> None:
        reference.step()
        after()

    train(model, optimizer, own, loss=loss, before=copy_gradients, after=follow)


class Zoo(nn.Module):
    """One parameter per case of the catalogue, and the part of the loss that moves it."""

    def __init__(self, cases: Sequence[PenaltyCase | ConstraintCase]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weights = nn.ParameterList(torch.randn(case.shape, generator=generator) for case in cases)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(w * noise(w, x)).sum().square() + (w - 0.3).square().sum() for w in self.weights]).sum()


def noise(w: Tensor, x: Tensor) -> Tensor:
    """Numbers in the shape of `w` that depend on a batch."""
    return torch.sin(x.sum() * torch.arange(1.0, w.numel() + 1)).reshape(w.shape)


def zoo_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(batch[0])
    return loss


def zoo_rules(cases: Sequence[PenaltyCase | ConstraintCase], strength: float) -> dict[str, Penalty]:
    """One rule per parameter of `Zoo`."""
    made = (case.make(strength) if isinstance(case, PenaltyCase) else case.make() for case in cases)
    return {f"weights.{index}": penalty for index, penalty in enumerate(made)}


ALL_CASES = [*PENALTIES, *CONSTRAINTS]


def differences(one: nn.Module, other: nn.Module) -> Iterator[float]:
    """The largest difference of each pair of parameters."""
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        yield float((a.detach() - b.detach()).abs().max()) if a.numel() else 0.0


def zero_count(model: nn.Module) -> int:
    """Exact zeros among all parameters."""
    return sum(int((p == 0).sum()) for p in model.parameters())


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """All parameters agree, value for value."""
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), f"{name}: {(a - b).abs().max()}"


def assert_same_everywhere(model: nn.Module) -> None:
    """All parameters agree, bit for bit, in all processes."""
    for name, parameter in model.named_parameters():
        mine = parameter.detach().contiguous()
        all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, mine)
        assert all(torch.equal(each.view(torch.int32), mine.view(torch.int32)) for each in all_of_them), name


def everyones(value: Value) -> list[Value]:
    """What each process passes here, in the order of the processes."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def same_everywhere(value: object) -> bool:
    """Whether a value is equal in all processes."""
    return all(each == value for each in everyones(value))


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, of which a process may hold a shard."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def shared_folder(rank: int) -> Path:
    """A new folder, the same in all processes."""
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    return Path(str(folder[0]))


def state_of(model: nn.Module, optimizer: Optimizer, regularizer: Regularizer) -> dict[str, Any]:
    """What docs/distributed.md puts into a distributed checkpoint."""
    parts = get_state_dict(model, optimizer)
    return {"model": parts[0], "optimizer": parts[1], "regularizer": regularizer.state_dict()}


def resume(folder: Path, model: nn.Module, optimizer: Optimizer, regularizer: Regularizer, **options: Any) -> None:
    """Load in the order of the documentation: the regularizer comes last."""
    state = state_of(model, optimizer, regularizer)
    dcp.load(state, checkpoint_id=folder, **options)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    regularizer.load_state_dict(state["regularizer"])


def data_parallel(model: nn.Module, **options: object) -> DistributedDataParallel:
    """The model with gradients averaged over all processes."""
    return DistributedDataParallel(model, **options)
