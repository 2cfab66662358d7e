"""Networks trained on a table of numbers: dense with an early stop, along strengths, and with fewer columns."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from shrinkage.paths.path import Path
from shrinkage.paths.strengths import RulesAt
from shrinkage.paths.warm_starts import path
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.groups import Columns
from shrinkage.penalties.nonconvex import MCP
from shrinkage.training.freeze import freeze_zeros
from shrinkage.training.regularizer import Regularizer

FIRST = "0.weight"  # the weight of the first layer: a column per column of the table
GAMMA = 1.0  # of MCP: a column whose norm is beyond this times the strength is not penalized
BEGIN = 0.3  # of the usual size, first weights: what is left of a column after training is what was learned, not drawn
LOOK = 5  # updates between looks at the rows held out
PATIENCE = 6  # looks without a better loss, after which training stops
SMALL = 0.1  # the share of columns of the dense network whose norms are called small
GREATEST = 3.0  # the last strength, in units of the greatest of these norms over gamma


@dataclass(frozen=True)
class Table:
    """Rows to train on, and rows held out, by which training stops and strengths are compared.

    Args:
        x: float32, shape `(rows, columns)`.
        y: targets: classes, shape `(rows,)`, or numbers, shape `(rows, outputs)`.
        held_x: the same of the rows held out.
        held_y: their targets.
        losses: of outputs and targets: a loss per row, whose mean is minimized.
    """

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    losses: Callable[[Tensor, Tensor], Tensor]

    def held_losses(self, model: nn.Module) -> Tensor:
        """Return the loss of each row held out."""
        with torch.no_grad():
            return self.losses(model(self.held_x), self.held_y)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches without end: the table in random parts of equal size, of at most `size` rows."""
        parts = -(-len(self.x) // size)
        while True:
            if parts == 1:
                yield self.x, self.y
                continue
            for rows in torch.randperm(len(self.x)).tensor_split(parts):
                yield self.x[rows], self.y[rows]


@dataclass(frozen=True)
class Fitting:
    """How a network is trained on a table. Lengths are in updates, so that more rows do not take more time."""

    table: Table
    batch_size: int
    max_iter: int
    iter_per_strength: int
    learning_rate: float
    path_learning_rate: float

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> Iterator[int]:
        """Make updates, and yield the number of each after it."""
        for update, (x, y) in zip(range(1, updates + 1), self.table.batches(self.batch_size), strict=False):
            optimizer.zero_grad()
            self.table.losses(model(x), y).mean().backward()  # type: ignore[no-untyped-call]  # torch gives it none
            optimizer.step()
            yield update

    def to_early_stop(self, model: nn.Module, regularizer: Regularizer | None = None) -> int:
        """Train by Adam until the rows held out gain no more, to the best weights; return the number of updates."""
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        if regularizer is not None:
            regularizer.attach(optimizer)
        best, kept, looks, update = float(self.table.held_losses(model).mean()), weights_of(model), 0, 0
        for update in self.train(model, optimizer, self.max_iter):
            if update % LOOK:
                continue
            loss = float(self.table.held_losses(model).mean())
            if loss < best:
                best, kept, looks = loss, weights_of(model), 0
            else:
                looks += 1
            if looks == PATIENCE:
                break
        model.load_state_dict(kept)
        return update

    def along(self, model: nn.Module, strengths: Sequence[float], *, least: int, refit: bool) -> Path:
        """Return the path from a dense network until `least` columns are left, with refits if they are compared."""

        def fit(regularizer: Regularizer) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=self.path_learning_rate, momentum=0.9)
            regularizer.attach(optimizer)
            for _ in self.train(model, optimizer, self.iter_per_strength):
                pass

        return path(
            model,
            on_columns(FIRST),
            fit,
            strengths=strengths,
            score=self.table.held_losses,
            refit=fit if refit else None,
            stop=lambda so_far: so_far[-1].groups - so_far[-1].zero_groups <= least,
            hold_zeros=0.99 if len(self.table.x) > self.batch_size else None,
            progress=False,
        )

    def with_columns(self, model: nn.Module, columns: Tensor) -> int:
        """Train a network once more with some columns, and return the number of updates; other weights stay at zero."""
        weight = model.get_parameter(FIRST)
        with torch.no_grad():
            weight.copy_(torch.zeros_like(weight).index_copy_(1, columns, weight[:, columns]))
        regularizer = freeze_zeros(model, {FIRST: Columns()})
        updates = self.to_early_stop(model, regularizer)
        regularizer.detach()
        return updates


def on_columns(weight: str) -> RulesAt:
    """Return the penalty on the columns of one weight: concave, so that columns that stay are not shrunk."""
    return lambda strength: {weight: Grouped(MCP(strength, GAMMA), Columns(), weigh_by_size=False)}


def perceptron(hidden: Sequence[int], outputs: int, told: Tensor) -> nn.Sequential:
    """Return a multilayer perceptron whose first weights are small; of columns that are constant, not `told`, zero."""
    layers: list[nn.Module] = []
    for inputs, width in pairwise([len(told), *hidden]):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))
    with torch.no_grad():
        weight = model.get_parameter(FIRST).mul_(BEGIN)
        if told.any():
            weight[:, ~told] = 0
    return model


def spread_strengths(norms: Tensor, count: int) -> list[float]:
    """Return strengths that grow by the same factor, from where few of these columns are penalized to where all are.

    >>> [round(each, 3) for each in spread_strengths(torch.tensor([0.0, *([1.0] * 20), 9.0]), 4)]
    [1.0, 3.0, 9.0, 27.0]
    """
    there = norms[norms > 0]
    low, high = float(there.quantile(SMALL)) / GAMMA, GREATEST * float(there.max()) / GAMMA
    strengths: list[float] = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()
    return strengths


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of a model."""
    return copy.deepcopy(model.state_dict())
