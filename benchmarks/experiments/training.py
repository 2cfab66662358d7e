"""The training loop, and linear models that are trained side by side, one per repetition."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

Schedule = Callable[[float], float]
Make = Callable[[Iterable[nn.Parameter]], Optimizer]
ENTRIES = (None, 0.9, 0.99, 0.999)


def constant(progress: float) -> float:
    """Return 1: the learning rate stays."""
    return 1.0


def to_zero(progress: float) -> float:
    """Return 1 at the beginning, 0 at the end."""
    return 1 - progress


def cosine(progress: float) -> float:
    """Return 1 at the beginning, 0.01 at the end, along half a cosine."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained.

    Args:
        name: in words.
        make: makes the optimizer.
        schedule: returns what the learning rate is multiplied by, given the share of steps that are done.
    """

    name: str
    make: Make
    schedule: Schedule = constant


IN_WORDS: dict[Schedule, str] = {constant: "", to_zero: " to 0", cosine: " cosine to 1%"}


def sgd(rate: float, schedule: Schedule = constant, momentum: float = 0.0, dampening: float = 0.0) -> Recipe:
    """Return a recipe with SGD."""
    terms = f"{f' momentum {momentum:g}' if momentum else ''}{f' dampening {dampening:g}' if dampening else ''}"

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=rate, momentum=momentum, dampening=dampening)

    return Recipe(f"SGD{terms}, {rate:g}{IN_WORDS[schedule]}", make, schedule)


def adam(rate: float, schedule: Schedule = constant) -> Recipe:
    """Return a recipe with Adam."""
    return Recipe(f"Adam, {rate:g}{IN_WORDS[schedule]}", lambda parameters: Adam(parameters, lr=rate), schedule)


def train(
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    schedule: Schedule = constant,
    after_step: Callable[[int], object] = lambda step: None,
) -> None:
    """Make `steps` updates with the gradients of `loss`, a function of the number of the step."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step / steps)
        optimizer.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        after_step(step)


class SideBySide(nn.Module):
    """Linear models of one shape, all zero, which share nothing; the outputs of one are adjacent rows of the weight.

    Optimizers and penalties that treat each element, or each block of `outputs` rows, by itself train each as if it
    were alone, and all of them in the time of one.
    """

    def __init__(self, count: int, outputs: int, features: int, *, bias: bool) -> None:
        super().__init__()
        self.shape = (count, outputs, features)
        self.weight = nn.Parameter(torch.zeros(count * outputs, features, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(count * outputs, dtype=torch.float64)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions `(count, examples, outputs)` for `(count, examples, features)`, each model its own."""
        count, outputs, _ = self.shape
        predicted = x @ self.weight.view(self.shape).mT
        return predicted if self.bias is None else predicted + self.bias.view(count, 1, outputs)

    def weights(self) -> Tensor:
        """Return the weights of each model, `(count, outputs, features)`."""
        return self.weight.detach().view(self.shape)

    def biases(self) -> Tensor:
        """Return the biases of each model, `(count, outputs)`; zeros if they have none."""
        count, outputs, _ = self.shape
        return self.weight.new_zeros(count, outputs) if self.bias is None else self.bias.detach().view(count, outputs)


def rows_of_batches(seed: int, steps: int, size: int, examples: int) -> Tensor:
    """Return which examples are in each batch, `(steps, size)`, drawn with replacement."""
    return torch.randint(examples, (steps, size), generator=torch.Generator().manual_seed(seed))


def hold_zeros_text(hold_zeros: float | None) -> str:
    """Return the decay of averaged gradients in words."""
    return "-" if hold_zeros is None else f"{hold_zeros:g}"


def spread(values: Iterable[float], form: str = ".2g") -> str:
    """Return mean ± standard deviation; the value alone if there is one.

    >>> spread([1.0, 2.0, 3.0])
    '2 ± 1'
    """
    held = list(values)
    return f"{mean(held):{form}} ± {stdev(held):{form}}" if len(held) > 1 else f"{held[0]:{form}}"


def in_turn(values: Iterable[float], form: str = "g") -> str:
    """Return values one after the other.

    >>> in_turn([5, 6, 5])
    '5, 6, 5'
    """
    return ", ".join(f"{value:{form}}" for value in values)


def extremes(values: Iterable[float], form: str = ".1g") -> str:
    """Return the least and the largest value.

    >>> extremes([3e-4, 1e-4, 2e-4])
    '0.0001 to 0.0003'
    """
    held = list(values)
    return f"{min(held):{form}} to {max(held):{form}}"
