"""Whole training steps of a small network, and what each further small tensor costs, in several processes.

The host's work decides here, and differs from process to process with where things lie in memory. So every figure is
the median over processes of the medians over interleaved rounds, with the smallest and the largest of them.
"""

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.timing import Limits, Step, extra, interleaved, ratios
from shrinkage import L1, GroupLasso, Regularizer, Rows
from shrinkage.penalties.base import Penalty
from shrinkage.tables import table

SIZES, BATCH = (64, 100, 100, 10), 32
FEW, MANY, SIDE = 61, 148, 8  # of small tensors, as ResNet-20 and GPT-2 have them, and the length of their sides
STRENGTH, DECAY = 1e-4, 0.99
AT_ONCE = 50  # steps that are timed together, as in training: the first of them finds its memory in no cache
NONE, IN_LOSS = "none", "L1 in the loss"

OPTIMIZERS: Mapping[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD with momentum": partial(SGD, lr=0.01, momentum=0.9),
    "fused AdamW": partial(AdamW, lr=1e-3, fused=True),
}
RULES: Mapping[str, tuple[Penalty, float | None]] = {
    "L1": (L1(STRENGTH), None),
    "L1, zeros held": (L1(STRENGTH), DECAY),
    "rows": (GroupLasso(STRENGTH, Rows()), None),
    "rows, zeros held": (GroupLasso(STRENGTH, Rows()), DECAY),
}


@dataclass(frozen=True)
class Figure:
    """The median over processes, and the smallest and largest of them."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Figure":
        """Return the figure of what processes found.

        >>> Figure.of([1.0, 3.0, 2.0])
        Figure(median=2.0, least=1.0, most=3.0)
        """
        return Figure(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


@dataclass(frozen=True)
class Small:
    """Training steps relative to none, by optimizer and rule, and microseconds of each further small tensor."""

    processes: int
    ratios: dict[str, dict[str, Figure]]
    further: dict[str, dict[str, Figure]]

    def __str__(self) -> str:
        parts = [
            (f"whole training step of a network {'-'.join(map(str, SIZES))}, batch {BATCH}, over none", self.ratios),
            (f"us for each further tensor of {SIDE}x{SIDE}, from {FEW} to {MANY}", self.further),
        ]
        return "\n\n".join(
            f"{title}; {self.processes} processes\n"
            + table(["rule", *found], [[rule, *(str(found[name][rule]) for name in found)] for rule in rows_of(found)])
            for title, found in parts
        )


def rows_of(found: Mapping[str, Mapping[str, Figure]]) -> Iterable[str]:
    """Return the rules of a table."""
    return next(iter(found.values()))


def measure_small(limits: Limits, processes: int) -> Small:
    """Return figures of so many processes, one after the other."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(in_process, [limits] * processes, chunksize=1)
    return Small(processes, *(joined([each[part] for each in found]) for part in (0, 1)))


def joined(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Figure]]:
    """Return what processes found as figures."""
    return {
        name: {rule: Figure.of([each[name][rule] for each in found]) for rule in rules}
        for name, rules in found[0].items()
    }


def in_process(limits: Limits) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return ratios and microseconds per tensor, as this process finds them, with one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    return (
        {name: training_ratios(make, limits) for name, make in OPTIMIZERS.items()},
        {name: further_tensors(make, limits) for name, make in OPTIMIZERS.items()},
    )


def training_ratios(make: Callable[[Iterable[Tensor]], Optimizer], limits: Limits) -> dict[str, float]:
    """Return the medians of whole training steps relative to that without a rule."""
    steps = {NONE: training_step(make), IN_LOSS: training_step(make, in_loss=True)}
    steps |= {name: training_step(make, *rule) for name, rule in RULES.items()}
    times = interleaved({name: several(step) for name, step in steps.items()}, limits)
    return {name: ratios(own, times[NONE]).median for name, own in times.items() if name != NONE}


def further_tensors(make: Callable[[Iterable[Tensor]], Optimizer], limits: Limits) -> dict[str, float]:
    """Return the microseconds that a rule takes for each small tensor more."""
    steps = {
        (name, count): optimizer_step(make, count, *rule)
        for name, rule in {NONE: (), **RULES}.items()
        for count in (FEW, MANY)
    }
    times = interleaved({str(key): several(step) for key, step in steps.items()}, limits)

    def beyond(name: str, count: int) -> float:
        return extra(times[str((name, count))], times[str((NONE, count))]) * 1e6 / AT_ONCE

    return {name: (beyond(name, MANY) - beyond(name, FEW)) / (MANY - FEW) for name in RULES}


def several(step: Step) -> Step:
    """Return several steps as one, after as many that warm up."""

    def steps() -> None:
        for _ in range(AT_ONCE):
            step()

    steps()
    return steps


def training_step(
    make: Callable[[Iterable[Tensor]], Optimizer],
    penalty: Penalty | None = None,
    hold_zeros: float | None = None,
    *,
    in_loss: bool = False,
) -> Step:
    """Return a step of training, with a rule on every matrix, or L1 of them in the loss."""
    layers = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise(SIZES)]
    model = nn.Sequential(*[module for pair in layers for module in pair][:-1])
    optimizer = make(model.parameters())
    if penalty is not None:
        Regularizer(model, penalty, hold_zeros=hold_zeros).attach(optimizer)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    inputs, labels = torch.randn(BATCH, SIZES[0]), torch.randint(SIZES[-1], (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        if in_loss:
            loss = loss + STRENGTH * torch.stack([w.abs().sum() for w in matrices]).sum()
        loss.backward()
        optimizer.step()

    return step


def optimizer_step(
    make: Callable[[Iterable[Tensor]], Optimizer],
    count: int,
    penalty: Penalty | None = None,
    hold_zeros: float | None = None,
) -> Step:
    """Return a step of an optimizer with so many small matrices, a rule on each."""
    model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)))
    optimizer = make(model.parameters())
    if penalty is not None:
        Regularizer(model, penalty, hold_zeros=hold_zeros).attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return optimizer.step
