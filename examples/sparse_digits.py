"""A network for handwritten digits of which few weights are not zero, by a budget of zeros, and in other ways.

    pip install . rich scikit-learn
    python examples/sparse_digits.py

trains a network of linear layers in five ways with the same number of updates, and prints a table of quality and size.
Single weights are zero here, so the layers keep their shapes. Function `budget` is all that a budget needs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

import residual_network
from command import run
from comparison import (
    BUDGET,
    DENSE,
    HOLD_ZEROS,
    MAGNITUDE,
    PENALTY,
    SCRATCH,
    Methods,
    Settings,
    Task,
    Tick,
    Training,
    dense,
    train_small,
)
from digits.data import CLASSES, PIXELS, load
from results import nonzero_count
from shrinkage import L1, Budget, Regularizer, Rule, freeze_zeros

WIDTHS = (300, 100)
LEARNING_RATE = 2e-3
RAMP = (0.02, 0.4)  # of all updates: where magnitude pruning begins and ends
EVERY = 10  # updates from one cut of magnitude pruning to the next
FULL = Settings(680, seeds=5, target=0.95, strength=1e-3, penalty_from=0.0, shrink_after=0.6, prune_after=0.0)
QUICK = replace(FULL, updates=40, seeds=1, strength=3e-3)


def network() -> nn.Module:
    """Return the untrained network."""
    first, second = WIDTHS
    layers = nn.Linear(PIXELS, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, CLASSES)
    return nn.Sequential(*layers)


def optimizer(model: nn.Module) -> Optimizer:
    """Return the optimizer of a model."""
    return Adam(model.parameters(), lr=LEARNING_RATE)


def task() -> Task:
    """Return the task of the residual network, for this network."""
    own = replace(residual_network.task(load(), 1), name="handwritten digits, sparse network", build=network)
    return replace(own, optimizer=optimizer, learning_rate=LEARNING_RATE)


def budget(training: Training, tick: Tick) -> None:
    """Say which share of the weights is zero in the end."""
    settings = training.settings
    budget = Budget(zeros=settings.target, updates=settings.updates)
    Regularizer(training.model, budget).attach(training.optimizer)
    training.train_until(settings.updates, tick)


def penalty(training: Training, tick: Tick) -> None:
    """Train with a penalty on weights; then zeros stay, and what is left is trained without it."""
    settings = training.settings
    rule = Rule(L1(settings.strength_at), until=settings.shrink_at)
    Regularizer(training.model, rule, hold_zeros=HOLD_ZEROS, compile=False).attach(training.optimizer)
    training.train_until(settings.updates, tick)


def magnitude(training: Training, tick: Tick) -> None:
    """Set the smallest weights to zero for good, a few at a time along a cubic ramp."""
    settings = training.settings
    begin, end = (round(share * settings.updates) for share in RAMP)
    weights = [weight for weight in training.model.parameters() if weight.dim() > 1]
    freeze_zeros(training.model).attach(training.optimizer)
    for update in [*range(begin, end, EVERY), end]:
        training.train_until(update, tick)
        cut_smallest(weights, settings.target * (1 - (1 - (update - begin) / (end - begin)) ** 3))
    training.train_until(settings.updates, tick)


@torch.no_grad()
def cut_smallest(weights: Sequence[nn.Parameter], share: float) -> None:
    """Set this share of all weights to zero: those closest to it."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    stays = torch.ones_like(sizes)
    stays[sizes.topk(round(share * len(sizes)), largest=False).indices] = 0.0
    for weight, mask in zip(weights, stays.split([weight.numel() for weight in weights]), strict=True):
        weight.mul_(mask.view_as(weight))


def scratch(training: Training, tick: Tick) -> None:
    """Train a model from the start that has as many parameters as are not zero in the others."""
    weights = sum(weight.numel() for weight in training.model.parameters() if weight.dim() > 1)
    train_small(training, nonzero_count(training.model) - round(training.settings.target * weights), tick)


METHODS: Methods = {DENSE: dense, BUDGET: budget, PENALTY: penalty, MAGNITUDE: magnitude, SCRATCH: scratch}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example and return its numbers."""
    return run("sparse_digits", __doc__ or "", lambda quick: task(), FULL, QUICK, arguments, METHODS)


if __name__ == "__main__":
    main()
