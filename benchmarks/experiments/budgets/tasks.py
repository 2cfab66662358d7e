"""What is learned: data, a model, its optimizer, and for how many updates."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from benchmarks.experiments.budgets.models import GPT, Transformer, convolutional, perceptron

CONTEXT = 64  # bytes that the decoder reads
WINDOWS = 512  # of held-out text
Examples = tuple[Tensor, Tensor]


class Data(Protocol):
    """Examples to train with, and held-out ones."""

    @property
    def inputs(self) -> Tensor:
        """A few inputs of the model."""

    def batch(self, chance: Generator) -> Examples:
        """Return inputs and targets of an update."""

    def held_out(self) -> Iterator[Examples]:
        """Yield all that the model is measured on."""


@dataclass(frozen=True, eq=False, slots=True)
class Labelled(Data):
    """Examples with a class each; 40% are held out."""

    train: Examples
    test: Examples
    size: int

    @property
    def inputs(self) -> Tensor:
        return self.train[0][:2]

    def batch(self, chance: Generator) -> Examples:
        x, y = self.train
        drawn = torch.randint(len(x), (self.size,), generator=chance)
        return x[drawn], y[drawn]

    def held_out(self) -> Iterator[Examples]:
        yield self.test


@dataclass(frozen=True, eq=False, slots=True)
class Text(Data):
    """Bytes, of which each is to be told from those before it."""

    train: Tensor
    test: Tensor
    size: int

    @property
    def inputs(self) -> Tensor:
        return windows(self.test, torch.tensor([0]))[0]

    def batch(self, chance: Generator) -> Examples:
        return windows(self.train, torch.randint(len(self.train) - CONTEXT, (self.size,), generator=chance))

    def held_out(self) -> Iterator[Examples]:
        for starts in torch.linspace(0, len(self.test) - CONTEXT - 1, WINDOWS).long().split(32):
            yield windows(self.test, starts)


def windows(text: Tensor, starts: Tensor) -> Examples:
    """Return the windows of `text` that start there, and the bytes that come next."""
    symbols = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return symbols[:, :-1], symbols[:, 1:]


def labelled(x: Any, y: Any, seed: int, size: int) -> Labelled:
    """Return examples that are split by `seed`, each class alike."""
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    return Labelled((train_x, train_y), (test_x, test_y), size)


def digits(seed: int, size: int = 64) -> Data:
    """Return images of digits, 8 by 8 pixels."""
    x, y = load_digits(return_X_y=True)
    return labelled(x / 16, y, seed, size)


def breast_cancer(seed: int) -> Data:
    """Return measurements of cells, of mean 0 and variance 1."""
    x, y = load_breast_cancer(return_X_y=True)
    return labelled((x - x.mean(0)) / x.std(0), y, seed, 32)


@cache
def sources(seed: int) -> Data:
    """Return the sources of Python's standard library; the seed changes the batches alone."""
    from small_gpt import load

    texts = load()
    return Text(texts.train, texts.test, 16)


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned.

    Args:
        data: by seed.
        build: makes the model.
        optimizer: makes the optimizer of parameters, or of groups of them.
        updates: so many are made by every method.
        channels: shares of all parameters that go, where whole channels do.
        weights: shares of weights that are zero, where single ones are.
        clip: largest norm of a gradient.
    """

    data: Callable[[int], Data]
    build: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[Any]], Optimizer]
    updates: int
    channels: tuple[float, ...]
    weights: tuple[float, ...] = (0.9, 0.95, 0.98)
    clip: float = math.inf

    def shares(self, unit: str) -> tuple[float, ...]:
        """Return the shares of a unit, "weights" or "channels"."""
        return self.channels if unit == "channels" else self.weights


def adam(parameters: Iterable[Any]) -> Optimizer:
    """Return Adam without decay."""
    return Adam(parameters, lr=2e-3)


def adamw(lr: float) -> Callable[[Iterable[Any]], Optimizer]:
    """Return what makes AdamW with a little decay."""
    return lambda parameters: AdamW(parameters, lr=lr, weight_decay=0.01)


TASKS = {
    "mlp": Task(digits, lambda: perceptron(64, 300, 100, 10), adam, 600, channels=(0.8, 0.9)),
    "convnet": Task(digits, convolutional, adam, 500, channels=(0.8, 0.895)),
    "transformer": Task(lambda seed: digits(seed, 32), Transformer, adamw(2e-3), 400, channels=(0.5, 0.658), clip=1.0),
    "cancer": Task(breast_cancer, lambda: perceptron(30, 100, 100, 2), adamw(2e-3), 400, channels=(0.9,), clip=1.0),
    "gpt": Task(sources, lambda: GPT(CONTEXT), adamw(3e-3), 800, channels=(0.494,)),
}
