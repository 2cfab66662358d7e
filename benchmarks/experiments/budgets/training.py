"""The training that all methods share, and how a model is measured."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.experiments.budgets.tasks import Data, Task

WARM_UP = 0.05  # of all updates


class Run:
    """A model in training; the learning rate rises for 5% of the updates, and falls along half a cosine to 0.

    Args:
        task: what is learned.
        seed: of the split, the initial weights and the batches.
    """

    def __init__(self, task: Task, seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.seed, self.data = task, seed, task.data(seed)
        self.update = 0
        self.use(task.build())

    def use(self, model: nn.Module) -> None:
        """Go on with this model, and with a new optimizer."""
        self.model = model.train()
        self.optimizer = self.task.optimizer(model.parameters())
        self.rate = self.optimizer.param_groups[0]["lr"]

    def at(self, fraction: float) -> int:
        """Return the number of updates after this fraction of the training."""
        return round(fraction * self.task.updates)

    def loss(self, update: int) -> Tensor:
        """Return the loss on the batch of an update, the same for all methods."""
        x, y = self.data.batch(Generator().manual_seed(1_000_000 * self.seed + update))
        return cross_entropy(self.model(x).flatten(0, -2), y.flatten())

    def until(self, fraction: float, after: Callable[[], object] = lambda: None) -> None:
        """Train until this fraction of all updates is made, and call `after` behind each."""
        while self.update < self.at(fraction):
            done = self.update / self.task.updates
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(done / WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2
            self.optimizer.zero_grad()
            self.loss(self.update).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
            self.optimizer.step()
            self.update += 1
            after()


class Quality(NamedTuple):
    """How well a model does on held-out data: its error in percent, and its mean cross-entropy in nats."""

    error: float
    nll: float


@torch.no_grad()
def quality(model: nn.Module, data: Data) -> Quality:
    """Measure a model."""
    model.eval()
    wrong = nats = count = 0.0
    for x, y in data.held_out():
        scores, targets = model(x).flatten(0, -2), y.flatten()
        wrong += float((scores.argmax(1) != targets).sum())
        nats += float(cross_entropy(scores, targets, reduction="sum"))
        count += len(targets)
    return Quality(100 * wrong / count, nats / count)
