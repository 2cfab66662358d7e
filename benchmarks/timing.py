"""Interleaved rounds: every variant takes one step in each, and figures are medians over rounds."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

from shrinkage.compression.calls.modes import without_collection

Step = Callable[[], object]
Clock = Callable[[], float]
Times = dict[str, list[float]]

CPU = torch.device("cpu")


def warm_up(steps: Iterable[Step], times: int = 2) -> None:
    """Take every step, in turns, before any is measured.

    Optimizers with and without a rule step the same parameters here, which is what a user is warned of.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this .* steps .*, which a Regularizer penalizes in another optimizer")
        for step in [*steps] * times:
            step()


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Return the median and quartiles of `values`, at least one.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, lower=1.5, upper=2.5)
        """
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        lower, _, upper = quantiles(values, n=4, method="inclusive")
        return Spread(median(values), lower, upper)


@dataclass(frozen=True)
class Limits:
    """At most so many rounds, and no new one after so many seconds, but at least three or all."""

    rounds: int
    seconds: float

    def allow(self, done: int, elapsed: float) -> bool:
        """Return whether there is to be another round."""
        return done < self.rounds and (elapsed < self.seconds or done < 3)


def order(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of one round: it starts one later each time, and every other one runs backwards.

    So nobody always runs after the same one, whose tensors are then in the cache.

    >>> order(["a", "b", "c"], 0), order(["a", "b", "c"], 1)
    (['a', 'b', 'c'], ['a', 'c', 'b'])
    """
    start = turn % len(names)
    rotated = [*names[start:], *names[:start]]
    return rotated[::-1] if turn % 2 else rotated


def interleaved(
    steps: Mapping[str, Step], limits: Limits, device: torch.device = CPU, clock: Clock = perf_counter
) -> Times:
    """Return the seconds of every step, by name, one figure per round."""
    times: Times = {name: [] for name in steps}
    start, turn = clock(), 0
    with without_garbage_collection():
        while limits.allow(turn, clock() - start):
            for name in order(list(steps), turn):
                times[name].append(seconds(steps[name], device, clock))
            turn += 1
    return times


def seconds(step: Step, device: torch.device = CPU, clock: Clock = perf_counter) -> float:
    """Return the seconds of one step, from an idle device to an idle device."""
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def ratios(times: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Return the ratios within a round.

    >>> ratios([2.0, 3.0], [1.0, 2.0]).median
    1.75
    """
    return Spread.of([time / alone for time, alone in zip(times, baseline, strict=True)])


def extra(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of what a step takes longer than the baseline's in the same round; negative if shorter.

    >>> extra([2.0, 3.0], [1.0, 2.5])
    0.75
    """
    return median(time - alone for time, alone in zip(times, baseline, strict=True))


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect garbage before, and none inside."""
    gc.collect()
    with without_collection():
        yield
