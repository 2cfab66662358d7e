"""Both examples train a dense model, a model that a penalty makes smaller, and one that is pruned by magnitude.

All three make the same number of updates, on the same batches, at the same learning rates. The second and the third
become smaller after some of these updates, and make the others as small models.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from magnitude import pruned_to
from shrinkage import CoupledChannels, GroupLasso, Regularizer, Shrunk, shrink, shrink_optimizer_
from shrinkage.compression.calls.cost import parameter_count

DENSE, OURS, MAGNITUDE = "dense", "shrinkage", "magnitude"
HOLD_ZEROS = 0.99  # decay of the averaged gradients that keep zeros at zero despite minibatch noise
RAMP = 0.1  # the share of all updates in which the strength of the penalty rises from 0
WARM_UP = 0.05  # the share of all updates in which the learning rate rises from 0

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What is learnt, by which model, and how its quality is measured.

    Args:
        name: for the table.
        unit: of the quality.
        higher_is_better: whether a model with a larger quality is better.
        build: makes an untrained model; its outputs are scores of classes along the last dimension.
        optimizer: makes the optimizer of a model.
        learning_rate: the largest; it rises to it in the first updates, and falls to 0 along a cosine.
        inputs: an example, by which the model is followed and its latency is measured.
        batch: the inputs and labels of an update, by seed and number of the update.
        validation: the quality of a model, in evaluation mode, on data that strengths may be chosen with.
        test: the same on data that nothing is chosen with.
    """

    name: str
    unit: str
    higher_is_better: bool
    build: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    learning_rate: float
    inputs: Tensor
    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    validation: Callable[[nn.Module], float]
    test: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Args:
        updates: of each model.
        seeds: models of each variant.
        strength: of the penalty, in units of the loss.
        penalty_from: the share of the updates after which the penalty begins.
        shrink_after: the share after which it ends, and zero channels are removed.
        prune_after: the share after which small channels of the dense model are removed.
    """

    updates: int
    seeds: int
    strength: float
    penalty_from: float
    shrink_after: float
    prune_after: float

    @property
    def shrink_at(self) -> int:
        """Number of updates before zero channels are removed."""
        return round(self.shrink_after * self.updates)

    @property
    def prune_at(self) -> int:
        """Number of updates before small channels are removed."""
        return round(self.prune_after * self.updates)

    @property
    def ticks(self) -> int:
        """How many updates are made in all; the pruned model begins as the dense one does."""
        return self.seeds * (3 * self.updates - self.prune_at)

    def strength_at(self, update: int) -> float:
        """Return the strength at an update: it rises to the whole one within `RAMP`."""
        return self.strength * min(max((update / self.updates - self.penalty_from) / RAMP, 0.0), 1.0)


@dataclass(frozen=True)
class Cut:
    """What making a model smaller did to its quality on validation data, and the largest change of its outputs."""

    validation_before: float
    validation_after: float
    error: float
    parameters: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained model of one variant and seed; only here is test data looked at."""

    variant: str
    seed: int
    model: nn.Module
    validation: float
    test: float
    cut: Cut | None


@dataclass(eq=False)
class Training:
    """A model in training: it can be copied and made smaller between two updates."""

    task: Task
    settings: Settings
    seed: int
    model: nn.Module
    optimizer: Optimizer
    update: int = 0

    @classmethod
    def begin(cls, task: Task, settings: Settings, seed: int) -> "Training":
        """Return the training of a fresh model; those of the same seed begin alike."""
        torch.manual_seed(seed)
        model = task.build()
        return cls(task, settings, seed, model, task.optimizer(model))

    def branch(self) -> "Training":
        """Return a training that goes on from here on its own."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        return replace(self, model=model, optimizer=optimizer)

    def train_until(self, update: int, tick: Callable[[], None]) -> None:
        """Make updates until there were so many: an ordinary loop."""
        self.model.train()
        for number in range(self.update, update):
            for group in self.optimizer.param_groups:
                group["lr"] = self.task.learning_rate * share_of_rate(number / self.settings.updates)
            inputs, labels = self.task.batch(self.seed, number)
            self.optimizer.zero_grad()
            cross_entropy(self.model(inputs).flatten(0, -2), labels.flatten()).backward()
            self.optimizer.step()
            tick()
        self.update = update

    def go_on_with(self, small: Shrunk) -> Cut:
        """Let the training go on with a smaller model in place of its own; momentum is cut alike."""
        before = self.task.validation(self.model.eval())
        shrink_optimizer_(self.optimizer, small.plan, self.model, small.model)
        self.model = small.model
        after = self.task.validation(self.model.eval())
        return Cut(before, after, small.report.error, parameter_count(small.model))

    def outcome(self, variant: str, cut: Cut | None = None) -> Outcome:
        """Measure the quality that was reached."""
        model = self.model.eval()
        return Outcome(variant, self.seed, model, self.task.validation(model), self.task.test(model), cut)


def share_of_rate(done: float) -> float:
    """Return the share of the largest learning rate when this share of the updates is done."""
    return min(done / WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2


def train_with_penalty(task: Task, settings: Settings, seed: int, tick: Callable[[], None]) -> Outcome:
    """Train with a penalty on channels, remove those that are zero, and train what is left without it."""
    training = Training.begin(task, settings, seed)

    channels = CoupledChannels(training.model, task.inputs)
    penalty = GroupLasso(settings.strength_at, channels)
    regularizer = Regularizer(training.model, penalty, hold_zeros=HOLD_ZEROS, compile=False).attach(training.optimizer)
    training.train_until(settings.shrink_at, tick)
    regularizer.detach()

    cut = training.go_on_with(shrink(training.model, task.inputs))
    training.train_until(settings.updates, tick)
    return training.outcome(OURS, cut)


def train_dense_and_pruned(
    task: Task, settings: Settings, seed: int, parameters: int, tick: Callable[[], None]
) -> tuple[Outcome, Outcome]:
    """Train without a penalty; a copy is pruned on the way, to as many parameters as `parameters`."""
    dense = Training.begin(task, settings, seed)
    dense.train_until(settings.prune_at, tick)
    pruned = dense.branch()
    dense.train_until(settings.updates, tick)

    channels = CoupledChannels(pruned.model, task.inputs)
    cut = pruned.go_on_with(pruned_to(pruned.model, channels, task.inputs, parameters))
    pruned.train_until(settings.updates, tick)
    return dense.outcome(DENSE), pruned.outcome(MAGNITUDE, cut)


def compare(task: Task, settings: Settings, tick: Tick) -> list[Outcome]:
    """Train all variants with every seed; `tick` is called after each update with what is being done."""
    outcomes = []
    for seed in range(settings.seeds):
        ours = train_with_penalty(task, settings, seed, lambda seed=seed: tick(f"{OURS}, seed {seed}"))
        size = parameter_count(ours.model)
        both = train_dense_and_pruned(task, settings, seed, size, lambda seed=seed: tick(f"others, seed {seed}"))
        outcomes += [both[0], both[1], ours]
    return outcomes
