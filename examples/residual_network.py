"""A small residual network for handwritten digits, made smaller by a budget of parameters, and in other ways.

    pip install . rich scikit-learn
    python examples/residual_network.py

trains the network in five ways with the same number of updates, and prints a table of quality, size and latency. What
happens on the way from training to the smaller model is in `comparison.py`, function `budget`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from command import run
from comparison import Settings, Task
from digits.data import CLASSES, SIDE, Digits, Images, load
from digits.train import accuracy

WIDTHS = (16, 32, 64)
BATCH = 64
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-3
FULL = Settings(680, seeds=3, target=7_600, strength=1e-3, penalty_from=0.0, shrink_after=0.7, prune_after=0.3)
QUICK = replace(FULL, updates=60, seeds=1, target=40_000, strength=4e-3)


class Block(nn.Module):
    """Two 3x3 convolutions and the way around them, a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.around(x))


def network(blocks: int) -> nn.Module:
    """Return the untrained network: three stages of blocks, each half as large and twice as wide as the last."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, SIDE, SIDE)), nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    inputs = WIDTHS[0]
    for outputs in WIDTHS:
        for number in range(blocks):
            layers.append(Block(inputs, outputs, 2 if number == 0 and outputs > WIDTHS[0] else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def optimizer(model: nn.Module) -> Optimizer:
    """Return the optimizer of a model."""
    return SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def batch(images: Images, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Return the images and labels of an update: each epoch goes through all images, in an order of its own."""
    epoch, place = divmod(number, -(-len(images) // BATCH))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    chosen = order[place * BATCH : (place + 1) * BATCH]
    return images.pixels[chosen], images.labels[chosen]


def task(digits: Digits, blocks: int) -> Task:
    """Return the task of recognising the digits."""
    return Task(
        name="handwritten digits, residual network",
        unit="accuracy in %",
        higher_is_better=True,
        build=lambda: network(blocks),
        optimizer=optimizer,
        learning_rate=LEARNING_RATE,
        inputs=digits.validation.pixels[:BATCH],
        batch=lambda seed, number: batch(digits.train, seed, number),
        validation=lambda model: 100 * accuracy(model, digits.validation),
        test=lambda model: 100 * accuracy(model, digits.test),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example and return its numbers."""
    return run("residual_network", __doc__ or "", lambda quick: task(load(), 1 if quick else 2), FULL, QUICK, arguments)


if __name__ == "__main__":
    main()
