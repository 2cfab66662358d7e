"""Which pixels of a handwritten digit does a network need? A path of strengths, and the choice of one standard error.

    pip install . matplotlib rich scikit-learn
    python examples/strength_path.py

trains a network without a penalty, then at one strength after another, each time from where it stood at the last. The
penalty makes the weights of whole pixels zero. Validation images choose the strength: the greatest whose loss is within
one standard error of the best. The picture has the norm of each pixel's weights and the loss at each strength.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import shrinkage
from digits.data import CLASSES, PIXELS, Digits, load
from digits.train import accuracy
from shrinkage import Columns, GroupLasso, Regularizer, path
from shrinkage.pictures.strength_paths import path_coefficients, path_scores
from shrinkage.pictures.weights import png

OUTPUT = Path("runs/examples")
BATCH = 64
LEARNING_RATE = 0.1
MOMENTUM = 0.9
FIRST = "0.weight"  # of the layer that reads the pixels


@dataclass(frozen=True)
class Settings:
    """How long is trained, and at which strengths."""

    epochs: int
    epochs_each: int
    strengths: tuple[float, ...]


FULL = Settings(30, 12, tuple(1e-4 * 2**power for power in range(8)))
QUICK = Settings(2, 1, (1e-3, 1e-2))


def network() -> nn.Sequential:
    """Return the untrained network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(PIXELS, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, CLASSES))


def train(model: nn.Module, digits: Digits, epochs: int, attach: Callable[[Optimizer], object]) -> None:
    """Train for some epochs, with a learning rate that falls to zero."""
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    attach(optimizer)
    updates = epochs * -(-len(digits.train) // BATCH)
    schedule = CosineAnnealingLR(optimizer, updates)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for pixels, labels in digits.train.batches(BATCH, order):
            optimizer.zero_grad()
            cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            schedule.step()


def follow(settings: Settings, digits: Digits) -> tuple[nn.Sequential, shrinkage.Path]:
    """Return the network with the chosen weights, and the path."""
    model = network()
    train(model, digits, settings.epochs, lambda optimizer: None)

    def fit(regularizer: Regularizer) -> None:
        train(model, digits, settings.epochs_each, regularizer.attach)

    def losses(model: nn.Module) -> Tensor:
        return cross_entropy(model(digits.validation.pixels), digits.validation.labels, reduction="none")

    found = path(
        model,
        lambda strength: {FIRST: GroupLasso(strength, Columns())},
        fit,
        strengths=settings.strengths,
        score=losses,
        refit=fit,
        hold_zeros=0.99,
    )
    found.refits.load(model, found.one_standard_error)
    return model, found


def main(arguments: Sequence[str] | None = None) -> shrinkage.Path:
    """Run the example and return the path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="few updates, to see that all works")
    options = parser.parse_args(arguments)
    digits = load()
    model, found = follow(QUICK if options.quick else FULL, digits)
    chosen = found.one_standard_error
    print(found)
    print(
        f"\nStrength {chosen.strength:g} leaves {chosen.groups - chosen.zero_groups:g} of {chosen.groups} pixels; "
        f"with its refit, {100 * accuracy(model, digits.test):.1f}% of the test images are recognised."
    )
    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "strength_path_scores.png": path_scores(found),
        "strength_path_pixels.png": path_coefficients(found, FIRST, Columns()),
    }.items():
        (options.output / name).write_bytes(png(figure))
        print(f"Wrote {options.output / name}")
    return found


if __name__ == "__main__":
    main()
