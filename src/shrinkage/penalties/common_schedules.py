"""Ramp, Cubic, Cosine, Steps: the usual schedules of a strength, as values that print, compare and pickle.

All count updates from 0. Before its start a ramp is at `low`; from its end on it is at `high`.
"""

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import KW_ONLY

from shrinkage.errors import shown
from shrinkage.penalties.schedules import Described, check_number, check_positive
from shrinkage.penalties.value_objects import value_class


@value_class
class Rise(Described):
    """A strength that goes from `low` to `high` in a number of updates."""

    high: float
    updates: int
    _: KW_ONLY
    start: int = 0
    low: float = 0.0

    def __post_init__(self) -> None:
        """Raise unless all arguments are numbers that make sense."""
        name = type(self).__name__
        check_number(name, "high", self.high)
        check_number(name, "low", self.low)
        check_count(name, "updates", self.updates, least=1)
        check_count(name, "start", self.start)

    def __call__(self, update: int) -> float:
        """Return the strength at an update, the first being 0."""
        done = (update - self.start) / self.updates
        if done <= 0:
            return self.low
        return self.high if done >= 1 else self.low + (self.high - self.low) * self.share(done)

    @abstractmethod
    def share(self, done: float) -> float:
        """Return how much of the way from `low` to `high` is behind at a share of the updates between 0 and 1."""

    def words(self) -> str:
        """Return what tells the curve from a straight line, for a printed plan."""
        return ""

    @property
    def text(self) -> str:
        since = f" from {self.start}" if self.start else ""
        return f"{self.low:g} to {self.high:g}{since} by {self.start + self.updates}{self.words()}"


@value_class
class Ramp(Rise):
    """A strength that rises in a straight line, or as a power of the share of updates that are over.

    low + (high - low) * f^power,  where f is (update - start) / updates, between 0 and 1

    Args:
        high: the strength from update `start` + `updates` on, >= 0.
        updates: how many updates it takes, at least 1.
        start: the update at which it begins.
        low: the strength before; if it is more than `high`, the strength falls.
        power: of f, > 0. More than 1 begins slowly.

    Raises:
        ValueError: a strength is negative or not finite, `updates` is less than 1, `start` less than 0, or `power` is
            not positive.
        TypeError: a strength is not a number.

    >>> from shrinkage import L1
    >>> L1(Ramp(1e-3, 1000)).at(500)
    L1(strength=0.0005)
    """

    _: KW_ONLY
    power: float = 1.0

    def __post_init__(self) -> None:
        Rise.__post_init__(self)
        check_positive("Ramp", "power", self.power)

    def share(self, done: float) -> float:
        return float(done**self.power)

    def words(self) -> str:
        return "" if self.power == 1 else f" (power {self.power:g})"


class Cubic(Rise):
    """A strength that rises fast at first and slowly in the end: the usual schedule of pruning.

    high + (low - high) * (1 - f)^3,  where f is (update - start) / updates, between 0 and 1

    Args:
        high: the strength from update `start` + `updates` on, >= 0.
        updates: how many updates it takes, at least 1.
        start: the update at which it begins.
        low: the strength before; if it is more than `high`, the strength falls.

    Raises:
        ValueError: a strength is negative or not finite, `updates` is less than 1, or `start` less than 0.
        TypeError: a strength is not a number.

    Reference: Zhu and Gupta (2017), "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", eq. 1.

    >>> from shrinkage import TopK
    >>> TopK(Cubic(0.125, 1000, low=1.0)).at(500)
    TopK(density=0.234375, groups=Whole())
    """

    def share(self, done: float) -> float:
        return float(1 - (1 - done) ** 3)

    def words(self) -> str:
        return " (cubic)"


class Cosine(Rise):
    """A strength that rises along half a cosine: slowly at both ends.

    low + (high - low) * (1 - cos(pi f)) / 2,  where f is (update - start) / updates, between 0 and 1

    Args:
        high: the strength from update `start` + `updates` on, >= 0.
        updates: how many updates it takes, at least 1.
        start: the update at which it begins.
        low: the strength before; if it is more than `high`, the strength falls.

    Raises:
        ValueError: a strength is negative or not finite, `updates` is less than 1, or `start` less than 0.
        TypeError: a strength is not a number.

    >>> [round(Cosine(1e-3, 1000)(update), 6) for update in (0, 250, 500, 1000)]
    [0.0, 0.000146, 0.0005, 0.001]
    """

    def share(self, done: float) -> float:
        return (1 - math.cos(math.pi * done)) / 2

    def words(self) -> str:
        return " (cosine)"


@value_class
class Steps(Described):
    """A strength that is constant between the updates at which it changes.

    the value of the last key that is not more than the update

    Args:
        values: strengths >= 0, by the update from which they hold. Update 0 has to be among them.

    Raises:
        ValueError: a strength is negative or not finite, a key is no update, or 0 is missing.
        TypeError: `values` is no mapping, or a strength is not a number.

    >>> steps = Steps({0: 0.0, 1000: 1e-4, 5000: 1e-3})
    >>> steps(999), steps(1000), steps(9999)
    (0.0, 0.0001, 0.001)
    """

    values: Mapping[int, float]

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise TypeError(
                f"Steps: expected strengths by update such as {{0: 0.0, 1000: 1e-4}}, got {shown(self.values)}"
            )
        for update, strength in self.values.items():
            check_count("Steps", "each key", update)
            check_number("Steps", f"the strength from update {update} on", strength)
        if 0 not in self.values:
            raise ValueError(f"Steps: the strength from update 0 on is missing in {shown(dict(self.values))}")
        ordered = {update: float(strength) for update, strength in sorted(self.values.items())}
        object.__setattr__(self, "values", ordered)

    def __call__(self, update: int) -> float:
        """Return the strength at an update, the first being 0."""
        starts = list(self.values)
        return self.values[starts[max(bisect_right(starts, update) - 1, 0)]]

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))

    def __repr__(self) -> str:
        return f"Steps({self.values})"

    @property
    def text(self) -> str:
        first, *others = (f"{strength:g} from {update}" for update, strength in self.values.items())
        return ", ".join((first.removesuffix(" from 0"), *others))


def check_count(owner: str, name: str, count: object, *, least: int = 0) -> None:
    """Raise `ValueError` unless `count` is a whole number of updates.

    >>> check_count("Ramp", "updates", 0, least=1)
    Traceback (most recent call last):
    ValueError: Ramp: updates must be a whole number >= 1, got 0
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise ValueError(f"{owner}: {name} must be a whole number >= {least}, got {shown(count)}")
