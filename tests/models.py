"""Small models, one loop that trains them and one refused step: what the tests of the hooks have in common."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from shrinkage import Penalty, Regularizer
from shrinkage.selection.how import How

STRENGTH, LR = 0.2, 0.1
Batch = tuple[Tensor, Tensor]


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two linear layers, the same at each call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Random inputs and targets for `mlp`, the same at each call."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 6, generator=generator, dtype=dtype), torch.randn(16, 3, generator=generator, dtype=dtype))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def closure_of(optimizer: Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What `optimizer.step` takes: it clears the gradients, computes those of the loss, and returns the loss."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    return closure


def train_step(
    optimizer: Optimizer,
    loss: Tensor,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Step on the gradients of one loss, with code of the test's own right before and after the optimizer's step."""
    closure_of(optimizer, lambda: loss)()
    before()
    optimizer.step()
    after()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    data: int | Sequence[Batch] = 5,
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = loss_of,
    closure: bool = False,
    **around: Callable[[], object],
) -> None:
    """Train on batches, or on so many of `batches`, in the plain way (`around` as in `train_step`) or with closures."""
    for batch in batches(data, next(model.parameters()).dtype) if isinstance(data, int) else data:
        if closure:
            optimizer.step(closure_of(optimizer, functools.partial(loss, model, batch)))
        else:
            train_step(optimizer, loss(model, batch), **around)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def soft_(w: Tensor, threshold: float | Tensor) -> None:
    """Soft threshold in the textbook's form."""
    w.copy_(w.sign() * (w.abs() - threshold).clamp_min(0))


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters agree, value for value."""
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(one.parameters(), other.parameters(), strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


def zeros(model: nn.Module) -> int:
    """Exact zeros among the weights."""
    return sum(int((w == 0).sum()) for w in weights(model))


def sgd(model: nn.Module) -> SGD:
    """Plain SGD on all parameters."""
    return SGD(model.parameters(), lr=LR)


def attached(
    make: Callable[[Iterator[nn.Parameter]], Optimizer],
    rules: Penalty | Mapping[Any, Penalty | None],
    how: How = "proximal",
    **options: Any,
) -> tuple[nn.Sequential, Optimizer, Regularizer]:
    """A model, its optimizer, and a regularizer that is attached to it."""
    model = mlp()
    optimizer = make(model.parameters())
    return model, optimizer, Regularizer(model, rules, how=how, **options).attach(optimizer)


def hooks(optimizer: Optimizer) -> int:
    """How many hooks are left around the step and the state of an optimizer."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_state_dict_post_hooks")
    return sum(len(getattr(optimizer, name)) for name in names)


def fill_gradients(model: nn.Module, value: float = 1.0) -> None:
    """Give every parameter that is trained a gradient of one value."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, value)


def assert_refused_and_unchanged(model: nn.Module, optimizer: Optimizer, error: type[Exception], message: str) -> None:
    """One more step raises, and moves nothing."""
    fill_gradients(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


class Alone(nn.Module):
    """One parameter, called w."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w) if w.is_floating_point() else nn.Parameter(w, requires_grad=False)


class CallsItsParent(SGD):
    """A step inside of a step."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)
