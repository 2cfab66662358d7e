"""Networks on digits: are small weights zero, and what does it cost in accuracy?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.experiments.training import ENTRIES, Recipe, adam, cosine, hold_zeros_text, sgd, spread, to_zero, train
from digits.data import Digits, load
from digits.train import BATCH, accuracy, network
from shrinkage import L1, Regularizer
from shrinkage.tables import table

SMALL = 1e-3


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: a recipe, a strength of L1 on all weight matrices, and a number of epochs."""

    recipe: Recipe
    strength: float
    epochs: int


ARMS = (
    Arm(adam(0.003, to_zero), 3e-4, 60),
    Arm(adam(0.003), 3e-4, 60),
    *(Arm(sgd(0.1, cosine, momentum=0.9), strength, 50) for strength in (1e-4, 3e-4, 1e-3)),  # as in the demo
)


@dataclass(frozen=True, slots=True)
class NetworkRuns:
    """What one way to train gives, a number per seed.

    Args:
        recipe: in words.
        strength: of L1 on all weight matrices.
        hold_zeros: decay of the averaged gradients that hold zeros; None without.
        accuracy: share of test images that are recognised.
        zeros: share of weights that are exactly zero.
        small: share of weights below 0.001, the zeros included.
        residual: largest residual of a weight for the loss of all training images, relative to the strength.
    """

    recipe: str
    strength: float
    hold_zeros: float | None
    accuracy: tuple[float, ...]
    zeros: tuple[float, ...]
    small: tuple[float, ...]
    residual: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Networks:
    """Trained networks, 64-100-100-10, as in the demo."""

    batch: int
    runs: tuple[NetworkRuns, ...]

    def __str__(self) -> str:
        header = [
            "recipe",
            "strength",
            "hold_zeros",
            "test accuracy %",
            "zeros %",
            "below 0.001 %",
            "residual / strength",
        ]
        rows = [
            [
                runs.recipe,
                f"{runs.strength:g}",
                hold_zeros_text(runs.hold_zeros),
                *(
                    spread((100 * share for share in shares), ".1f")
                    for shares in (runs.accuracy, runs.zeros, runs.small)
                ),
                spread(runs.residual),
            ]
            for runs in self.runs
        ]
        return f"digits network, batch {self.batch}, L1 on all weight matrices\n{table(header, rows)}"


def networks(
    seeds: int = 3,
    entries: Sequence[float | None] = ENTRIES,
    arms: Sequence[Arm] = ARMS,
) -> Networks:
    """Train networks in every way, with every hold_zeros rule."""
    digits = load()
    return Networks(
        BATCH, tuple(network_runs(arm, hold_zeros, digits, seeds) for arm in arms for hold_zeros in entries)
    )


def network_runs(arm: Arm, hold_zeros: float | None, digits: Digits, seeds: int) -> NetworkRuns:
    """Train a network per seed."""
    trained = [trained_network(arm, hold_zeros, digits, seed) for seed in range(seeds)]
    models = [model for model, _ in trained]
    return NetworkRuns(
        arm.recipe.name,
        arm.strength,
        hold_zeros,
        accuracy=tuple(accuracy(model, digits.test) for model in models),
        zeros=tuple(share_below(model, 0.0) for model in models),
        small=tuple(share_below(model, SMALL) for model in models),
        residual=tuple(residual for _, residual in trained),
    )


def trained_network(arm: Arm, hold_zeros: float | None, digits: Digits, seed: int) -> tuple[nn.Sequential, float]:
    """Train a network, and return it with its largest residual relative to the strength."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = network()
    optimizer = arm.recipe.make(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L1(arm.strength)}, hold_zeros=hold_zeros).attach(optimizer)
    steps = arm.epochs * -(-len(digits.train) // BATCH)
    batches = (batch for _ in range(arm.epochs) for batch in digits.train.batches(BATCH, order))

    def loss_of(pixels: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(pixels), labels)

    train(optimizer, lambda step: loss_of(*next(batches)), steps, schedule=arm.recipe.schedule)
    found = regularizer.residuals(lambda: loss_of(digits.train.pixels, digits.train.labels))
    return model, max(each.relative for each in found.penalized)


def share_below(model: nn.Sequential, bound: float) -> float:
    """Return the share of elements of weight matrices whose size is at most `bound`."""
    sizes = torch.cat(
        [weight.detach().abs().flatten() for name, weight in model.named_parameters() if "weight" in name]
    )
    return float((sizes <= bound).double().mean())
