"""Strengths: a number, or a function of the update count."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.value_objects import Value, value_class

Schedule = Callable[[int], float]
Strength = float | Schedule


def check_strength(owner: str, name: str, strength: Strength) -> None:
    """Raise unless `strength` is a finite number that is not negative, or a schedule.

    >>> check_strength("L1", "strength", -1.0)
    Traceback (most recent call last):
    ValueError: L1: strength must be a finite number >= 0 or a schedule (a function of the update count), got -1.0
    """
    if callable(strength):
        return
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not (is_number and 0 <= strength < math.inf):
        error = ValueError if is_number else TypeError
        each = "; one strength for each element is Weighted(penalty, weights)" if isinstance(strength, Tensor) else ""
        raise error(
            f"{owner}: {name} must be a finite number >= 0 or a schedule (a function of the update count), "
            f"got {shown(strength)}{each}"
        )


class Described(Value, ABC):
    """A schedule that says in words what it does. Concrete ones are frozen dataclasses."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, update: int) -> float:
        """Return the strength at an update, the first being 0."""

    @property
    @abstractmethod
    def text(self) -> str:
        """What a printed plan says of it."""

    def with_controls(self, take: Callable[["Described"], "Described"]) -> Strength:
        """Return this strength with what `take` returns in place of each control in it."""
        return self

    def slope(self, of: Strength) -> float:
        """Return by how much this strength rises with the strength `of` in it."""
        return 1.0 if self is of else 0.0


def strength_text(strength: Strength) -> str:
    """Return a strength as a plan prints it.

    >>> strength_text(0.5), strength_text(lambda update: 0.1 * update)
    ('0.5', 'schedule')
    """
    if isinstance(strength, Described):
        return strength.text
    return "schedule" if callable(strength) else f"{float(strength):g}"


def check_number(owner: str, name: str, number: float) -> None:
    """Raise unless `number` is a finite number that is not negative.

    >>> check_number("Ramp", "high", math.inf)
    Traceback (most recent call last):
    ValueError: Ramp: high must be a finite number >= 0, got inf
    """
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not (is_number and 0 <= number < math.inf):
        error = ValueError if is_number else TypeError
        raise error(f"{owner}: {name} must be a finite number >= 0, got {shown(number)}")


def check_positive(owner: str, name: str, number: float, *, above: float = 0.0) -> None:
    """Raise unless `number` is a finite number greater than `above`.

    >>> check_positive("MCP", "gamma", 0.0)
    Traceback (most recent call last):
    ValueError: MCP: gamma must be a finite number > 0, got 0.0
    """
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not (is_number and above < number < math.inf):
        error = ValueError if is_number else TypeError
        raise error(f"{owner}: {name} must be a finite number > {above:g}, got {shown(number)}")


def fixed(strength: Strength) -> float:
    """Return the number that `strength` is; in a kernel that is being compiled it stands in a tensor.

    Raises:
        TypeError: `strength` is a schedule, so its value depends on the update count.

    >>> fixed(0.5)
    0.5
    """
    if isinstance(strength, Tensor):
        return strength
    if callable(strength):
        raise TypeError("the strength is a schedule: take the penalty of one update with .at(iteration)")
    return float(strength)


@value_class
class Total(Described):
    """The sum of two strengths at an update.

    >>> Total(0.5, lambda iteration: 0.25 * iteration)(2)
    1.0
    """

    one: Strength
    other: Strength

    def __call__(self, update: int) -> float:
        """Return the sum at an update."""
        return at(self.one, update) + at(self.other, update)

    @property
    def text(self) -> str:
        return f"{strength_text(self.one)} + {strength_text(self.other)}"

    def with_controls(self, take: Callable[[Described], Described]) -> Strength:
        return Total(with_controls(self.one, take), with_controls(self.other, take))

    def slope(self, of: Strength) -> float:
        return slope(self.one, of) + slope(self.other, of)


@value_class
class Multiple(Described):
    """A number of times a schedule.

    >>> Multiple(2.0, lambda iteration: 0.25 * iteration)(2)
    1.0
    """

    factor: float
    schedule: Schedule

    def __call__(self, update: int) -> float:
        """Return the multiple at an update."""
        return self.factor * self.schedule(update)

    @property
    def text(self) -> str:
        return f"{self.factor:g} x ({strength_text(self.schedule)})"

    def with_controls(self, take: Callable[[Described], Described]) -> Strength:
        return multiple(self.factor, with_controls(self.schedule, take))

    def slope(self, of: Strength) -> float:
        return self.factor * slope(self.schedule, of)


def total(one: Strength, other: Strength) -> Strength:
    """Return the sum of two strengths, a schedule if one of them is.

    >>> total(0.5, 0.25)
    0.75
    """
    return Total(one, other) if callable(one) or callable(other) else one + other


def multiple(factor: float, strength: Strength) -> Strength:
    """Return `factor` times `strength`, a schedule if that is one.

    >>> multiple(2, 0.25)
    0.5
    """
    return Multiple(factor, strength) if callable(strength) else factor * strength


def as_factor(factor: Any) -> float:
    """Return what a penalty is multiplied by, or raise unless it is a finite number that is not negative.

    >>> as_factor(-1)
    Traceback (most recent call last):
    ValueError: a penalty is multiplied by a finite number >= 0, got -1
    """
    is_number = isinstance(factor, Real) and not isinstance(factor, bool)
    if not (is_number and 0 <= factor < math.inf):
        error = ValueError if is_number else TypeError
        raise error(f"a penalty is multiplied by a finite number >= 0, got {shown(factor)}")
    return float(factor)


def at(strength: Strength, iteration: int) -> float:
    """Return `strength` at one update."""
    return strength(iteration) if callable(strength) else strength


def with_controls(strength: Strength, take: Callable[[Described], Described]) -> Strength:
    """Return `strength` with what `take` returns in place of each control in it."""
    return strength.with_controls(take) if isinstance(strength, Described) else strength


def slope(strength: Strength, of: Strength) -> float:
    """Return by how much `strength` rises with the strength `of` in it.

    >>> found = lambda update: 0.25
    >>> slope(Multiple(2.0, found), found), slope(0.5, found)
    (2.0, 0.0)
    """
    return strength.slope(of) if isinstance(strength, Described) else float(strength is of)
