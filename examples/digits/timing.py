"""How long does a training step take, and how much of it is the regularizer's?

The variants take turns: a round times some whole steps of each, so that a machine that is busy for a while slows all of
them. A regularizer's cost is its variant's time less that of the first variant in the same round.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

from digits.data import Images
from digits.train import BATCH, Run, training_step

ROUNDS = 30
STEPS = 20


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, and their lower and upper quartiles."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds per training step, and what of it the first variant does not need.

    `share` is the median of that extra over the median of the whole.
    """

    milliseconds: Spread
    extra: Spread
    share: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread and flush subnormal numbers to zero: they would slow down whoever meets them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def time_steps(
    runs: Sequence[Run], images: Images, *, rounds: int, steps: int, after_round: Callable[[], None]
) -> list[StepTime]:
    """Time training steps of every run; the models are left as they were.

    Args:
        runs: trained networks, the first being the one that the others are compared to.
        images: where the batch is taken from.
        rounds: how often every run has its turn.
        steps: training steps in one turn.
        after_round: called after every round.
    """
    kept = [copy.deepcopy(run.model.state_dict()) for run in runs]
    for run in runs:
        milliseconds_per_step(run, images, steps)  # the first turn is slow and does not count
    measured: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for position in range(len(runs)):
            index = (position + turn) % len(runs)  # another one begins each round
            measured[index].append(milliseconds_per_step(runs[index], images, steps))
        after_round()
    for run, state in zip(runs, kept, strict=True):
        run.model.load_state_dict(state)
    return [step_time(times, measured[0]) for times in measured]


def milliseconds_per_step(run: Run, images: Images, steps: int) -> float:
    """Return the mean time of whole training steps: forward, backward, penalty, optimizer."""
    pixels, labels = images.pixels[:BATCH], images.labels[:BATCH]
    start = perf_counter()
    for _ in range(steps):
        training_step(run.variant, run.model, run.optimizer, pixels, labels)
    return 1000 * (perf_counter() - start) / steps


def step_time(times: Sequence[float], reference: Sequence[float]) -> StepTime:
    """Summarise the times of one variant, round by round, against those of the reference."""
    whole = spread(times)
    extra = spread([time - other for time, other in zip(times, reference, strict=True)])
    return StepTime(whole, extra, extra.median / whole.median)


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of `values`.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, lower_quartile=2.0, upper_quartile=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), lower, upper)
