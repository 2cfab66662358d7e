"""Small models, one reference loop and one refused step: what the tests of the hooks have in common."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

STRENGTH, LR = 0.2, 0.1


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two linear layers, the same at each call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and targets for `mlp`, the same at each call."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 6, generator=generator, dtype=dtype), torch.randn(16, 3, generator=generator, dtype=dtype))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def train(model: nn.Module, optimizer: Optimizer, count: int = 5, *, closure: bool = False) -> None:
    """Train in the plain way, or with closures."""
    for batch in batches(count, next(model.parameters()).dtype):

        def backward(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        if closure:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()


def train_by_hand(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    count: int = 5,
) -> None:
    """Train with code of the test's own right before and after each optimizer step."""
    for batch in batches(count, next(model.parameters()).dtype):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        with torch.no_grad():
            before()
        optimizer.step()
        with torch.no_grad():
            after()


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


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
