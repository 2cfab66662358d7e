"""Does a penalty that stops growing find the true support, where the lasso is biased? Paths of strengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments.problems import Synthetic, half_squares, sparse_regression
from benchmarks.experiments.training import Recipe, SideBySide, adam, extremes, sgd, spread, train
from shrinkage import L1, MCP, SCAD, Penalty, Regularizer
from shrinkage.tables import table

PENALTIES: dict[str, Callable[[float], Penalty]] = {"L1": L1, "MCP": MCP, "SCAD": SCAD}
LEAST = 0.05  # strength at the end of a path, of the largest

# Where MCP is concave its prox expands by 1 / (1 - step / gamma), and momentum turns that into a cycle unless
# step < gamma (1 - momentum), SCAD alike with a - 1: for SGD, lr < 0.03 and 0.027. The last arm is beyond.
ARMS = (
    (sgd(0.2), 300),
    (adam(0.01), 400),
    (sgd(0.02, momentum=0.9), 300),
    (sgd(0.1, momentum=0.9), 200),
)


@dataclass(frozen=True, slots=True)
class PathEnd:
    """The best point of the path of one penalty, a number per repetition: that with the least error.

    Args:
        recipe: in words.
        penalty: its name.
        steps: of training at each strength, from the weights of the strength before.
        error: Euclidean distance to the true weights.
        nonzero: weights that are not zero.
        exact: whether these are the true ones.
        found: whether they are at any point of the path.
        residual: largest residual, relative to the strength.
    """

    recipe: str
    penalty: str
    steps: int
    error: tuple[float, ...]
    nonzero: tuple[int, ...]
    exact: tuple[bool, ...]
    found: tuple[bool, ...]
    residual: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bias:
    """Least errors on paths, on repetitions of a regression with known weights."""

    smallest: float
    repetitions: int
    examples: int
    features: int
    strengths: tuple[float, ...]
    ends: tuple[PathEnd, ...]

    def __str__(self) -> str:
        header = ["recipe", "penalty", "error", "not zero", "exact support", "on the path", "residual / strength"]
        rows = [
            [
                end.recipe,
                end.penalty,
                spread(end.error, ".3f"),
                spread(end.nonzero, ".1f"),
                f"{sum(end.exact)}/{len(end.exact)}",
                f"{sum(end.found)}/{len(end.found)}",
                extremes(end.residual),
            ]
            for end in self.ends
        ]
        about = f"{self.examples} examples, {self.features} features, {self.repetitions} repetitions"
        about = f"{about}, sizes {self.smallest:g} to {self.smallest + 2:g}"
        return f"best of {len(self.strengths)} strengths; {about}\n{table(header, rows, right=range(2, 7))}"


@dataclass(frozen=True, eq=False, slots=True)
class Point:
    """Models side by side after training at one strength; a number per repetition."""

    error: Tensor
    nonzero: Tensor
    exact: Tensor
    residual: Tensor


def bias(
    repetitions: int = 20, points: int = 25, arms: Sequence[tuple[Recipe, int]] = ARMS, smallest: float = 2.0
) -> Bias:
    """Follow paths of L1, MCP and SCAD from the strength at which zero is stationary in every repetition.

    Weights of size `smallest` and more are beyond gamma times the strengths that matter if it is 2: MCP leaves them
    alone. If it is 1 they are not, and a weaker strength has the least error, at which some other weights have entered.
    """
    data = sparse_regression(repetitions, smallest=smallest)
    _, examples, features = data.x.shape
    largest = float((data.x.mT @ data.y).abs().max() / examples)
    strengths = tuple(largest * LEAST ** (index / max(points - 1, 1)) for index in range(points))
    ends = tuple(path_end(data, recipe, name, strengths, steps) for recipe, steps in arms for name in PENALTIES)
    return Bias(smallest, repetitions, examples, features, strengths, ends)


def path_end(data: Synthetic, recipe: Recipe, name: str, strengths: Sequence[float], steps: int) -> PathEnd:
    """Follow the path of one penalty, and return its best point in each repetition."""
    repetitions, _, features = data.x.shape
    models = SideBySide(repetitions, 1, features, bias=False)
    path = [point(data, models, recipe, PENALTIES[name](strength), strength, steps) for strength in strengths]
    best = torch.stack([each.error for each in path]).argmin(0)

    def at_best(values: list[Tensor]) -> list[Any]:
        return torch.stack(values).gather(0, best[None])[0].tolist()

    return PathEnd(
        recipe.name,
        name,
        steps,
        error=tuple(at_best([each.error for each in path])),
        nonzero=tuple(at_best([each.nonzero for each in path])),
        exact=tuple(at_best([each.exact for each in path])),
        found=tuple(torch.stack([each.exact for each in path]).any(0).tolist()),
        residual=tuple(at_best([each.residual for each in path])),
    )


def point(data: Synthetic, models: SideBySide, recipe: Recipe, penalty: Penalty, strength: float, steps: int) -> Point:
    """Train at one strength, with a new optimizer from the weights that `models` have."""

    def loss() -> Tensor:
        return half_squares(models(data.x), data.y).sum()

    optimizer = recipe.make(models.parameters())
    Regularizer(models, {"weight": penalty}).attach(optimizer)
    train(optimizer, lambda step: loss(), steps, schedule=recipe.schedule)
    (gradient,) = torch.autograd.grad(loss(), [models.weight])
    found = models.weight.detach()
    return Point(
        error=(found - data.truth).norm(dim=1),
        nonzero=(found != 0).sum(1),
        exact=((found != 0) == (data.truth != 0)).all(1),
        residual=penalty.residual(found, gradient).amax(1) / strength,
    )
