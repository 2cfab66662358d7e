"""The examples train a dense model, models that become smaller on the way, and one that is small from the start.

All make the same number of updates, on the same batches, at the same learning rates. What becomes smaller after some of
these updates makes the others as a small model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from magnitude import magnitudes, places, pruned_to
from shrinkage import Budget, CoupledChannels, GroupLasso, Regularizer, Shrunk, shrink, shrink_optimizer_
from shrinkage.compression.calls.cost import parameter_count

DENSE, BUDGET, PENALTY, MAGNITUDE, SCRATCH = "dense", "budget", "penalty", "magnitude", "scratch"
HOLD_ZEROS = 0.99  # decay of the averaged gradients that keep zeros at zero despite minibatch noise
RAMP = 0.1  # the share of all updates in which the strength of the penalty rises from 0
WARM_UP = 0.05  # the share of all updates in which the learning rate rises from 0

Tick = Callable[[], None]


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
        target: of the budget: the parameters that are left at most, or the share of single weights that is zero.
        strength: of the penalty, in units of the loss.
        penalty_from: the share of the updates after which the penalty begins.
        shrink_after: the share after which it ends, and what is zero is removed or stays zero.
        prune_after: the share after which small channels of the dense model are removed.
    """

    updates: int
    seeds: int
    target: float
    strength: float
    penalty_from: float
    shrink_after: float
    prune_after: float

    @property
    def shrink_at(self) -> int:
        """Number of updates before the penalty ends."""
        return round(self.shrink_after * self.updates)

    @property
    def prune_at(self) -> int:
        """Number of updates before small channels are removed."""
        return round(self.prune_after * self.updates)

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
    """A model in training: it can be made smaller between two updates."""

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

    def train_until(self, update: int, tick: Tick) -> None:
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

    def outcome(self, variant: str, cut: Cut | None) -> Outcome:
        """Measure the quality that was reached."""
        model = self.model.eval()
        return Outcome(variant, self.seed, model, self.task.validation(model), self.task.test(model), cut)


Methods = Mapping[str, Callable[[Training, Tick], Cut | None]]


def share_of_rate(done: float) -> float:
    """Return the share of the largest learning rate when this share of the updates is done."""
    return min(done / WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2


def dense(training: Training, tick: Tick) -> None:
    """Train the whole model."""
    training.train_until(training.settings.updates, tick)


def budget(training: Training, tick: Tick) -> Cut:
    """Say how many parameters are left in the end; the model becomes smaller once they are."""
    task, settings = training.task, training.settings

    channels = CoupledChannels(training.model, task.inputs)
    budget = Budget(parameters=settings.target, updates=settings.updates, groups=channels)
    regularizer = Regularizer(training.model, budget).attach(training.optimizer)
    training.train_until(budget.last_update, tick)
    regularizer.detach()

    cut = training.go_on_with(shrink(training.model, task.inputs))
    training.train_until(settings.updates, tick)
    return cut


def penalty(training: Training, tick: Tick) -> Cut:
    """Train with a penalty on channels, remove those that are zero, and train what is left without it."""
    task, settings = training.task, training.settings

    channels = CoupledChannels(training.model, task.inputs)
    lasso = GroupLasso(settings.strength_at, channels)
    regularizer = Regularizer(training.model, lasso, hold_zeros=HOLD_ZEROS, compile=False).attach(training.optimizer)
    training.train_until(settings.shrink_at, tick)
    regularizer.detach()

    cut = training.go_on_with(shrink(training.model, task.inputs))
    training.train_until(settings.updates, tick)
    return cut


def magnitude(training: Training, tick: Tick) -> Cut:
    """Prune the smallest channels of the dense model at once, and train what is left."""
    task, settings = training.task, training.settings
    training.train_until(settings.prune_at, tick)
    channels = CoupledChannels(training.model, task.inputs)
    sizes = magnitudes(training.model, channels)
    cut = training.go_on_with(pruned_to(training.model, channels, sizes, task.inputs, settings.target))
    training.train_until(settings.updates, tick)
    return cut


def scratch(training: Training, tick: Tick) -> None:
    """Train a small model from the start."""
    train_small(training, training.settings.target, tick)


def train_small(training: Training, parameters: int, tick: Tick) -> None:
    """Train a model of about so many parameters, whose layers are smaller by the same share, from the start."""
    task = training.task
    channels = CoupledChannels(training.model, task.inputs)
    training.model = pruned_to(training.model, channels, places(channels), task.inputs, parameters).model
    torch.manual_seed(training.seed)
    for module in training.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()  # a smaller layer begins with larger weights
    training.optimizer = task.optimizer(training.model)
    training.train_until(training.settings.updates, tick)


CHANNELS: Methods = {DENSE: dense, BUDGET: budget, PENALTY: penalty, MAGNITUDE: magnitude, SCRATCH: scratch}


def compare(task: Task, settings: Settings, methods: Methods, tick: Callable[[str], None]) -> list[Outcome]:
    """Train by all methods with every seed; `tick` is called after each update with what is being done."""
    outcomes = []
    for seed in range(settings.seeds):
        for variant, method in methods.items():
            training = Training.begin(task, settings, seed)
            cut = method(training, partial(tick, f"{variant}, seed {seed}"))
            outcomes.append(training.outcome(variant, cut))
    return outcomes
