"""The training loop: an ordinary one. The regularizer is the one line that says `Regularizer`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from digits.data import CLASSES, PIXELS, Digits, Images
from digits.variants import Variant
from shrinkage import Regularizer

NEURONS = 100
BATCH = 64
LEARNING_RATE = 0.1
FINAL_LEARNING_RATE = 1e-3
MOMENTUM = 0.9
LAYERS = ("input", "hidden", "output")


@dataclass(frozen=True, slots=True)
class Epoch:
    """The state after one pass over the training images: the share of exact zeros is given per layer."""

    validation_accuracy: float
    zeros: dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One trained network, with the optimizer that trained it and what happened on the way."""

    variant: Variant
    seed: int
    model: nn.Sequential
    optimizer: Optimizer
    history: tuple[Epoch, ...]

    @property
    def validation_accuracy(self) -> float:
        """Share of validation images that were recognised after the last epoch."""
        return self.history[-1].validation_accuracy


def network() -> nn.Sequential:
    """Return the untrained network: 64 pixels, two hidden layers of 100 neurons, 10 digits."""
    layers = [
        ("input", nn.Linear(PIXELS, NEURONS)),
        ("relu1", nn.ReLU()),
        ("hidden", nn.Linear(NEURONS, NEURONS)),
        ("relu2", nn.ReLU()),
        ("output", nn.Linear(NEURONS, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def train(variant: Variant, digits: Digits, *, seed: int, epochs: int, after_epoch: Callable[[], None]) -> Run:
    """Train a network; `after_epoch` is called after every pass over the training images."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = network()
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    if variant.rules is not None:
        Regularizer(model, variant.rules, how=variant.how, hold_zeros=variant.hold_zeros).attach(optimizer)

    steps = epochs * -(-len(digits.train) // BATCH)
    schedule = CosineAnnealingLR(optimizer, steps, eta_min=FINAL_LEARNING_RATE)
    history = []
    for _ in range(epochs):
        for pixels, labels in digits.train.batches(BATCH, order):
            training_step(variant, model, optimizer, pixels, labels)
            schedule.step()
        history.append(Epoch(accuracy(model, digits.validation), zeros_per_layer(model)))
        after_epoch()
    return Run(variant, seed, model, optimizer, tuple(history))


def training_step(variant: Variant, model: nn.Sequential, optimizer: Optimizer, pixels: Tensor, labels: Tensor) -> None:
    """Make one update. Only the variant with a term in the loss has anything to add here."""
    optimizer.zero_grad()
    loss = cross_entropy(model(pixels), labels)
    if variant.in_loss:
        for weight in weights_of(model).values():
            loss = loss + variant.strength * weight.abs().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight of each layer: what all penalties on `*.weight` penalize."""
    return {layer: model.get_parameter(f"{layer}.weight") for layer in LAYERS}


@torch.no_grad()
def accuracy(model: nn.Sequential, images: Images) -> float:
    """Return the share of `images` that `model` recognises."""
    return int((model(images.pixels).argmax(1) == images.labels).sum()) / len(images)


@torch.no_grad()
def zeros_per_layer(model: nn.Sequential) -> dict[str, float]:
    """Return the share of exact zeros in the weight of each layer."""
    return {layer: int((weight == 0).sum()) / weight.numel() for layer, weight in weights_of(model).items()}
