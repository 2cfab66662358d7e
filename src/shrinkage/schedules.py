"""Strengths: a number, or a function of the update count."""

import math
from collections.abc import Callable
from numbers import Real

from torch import Tensor

from shrinkage.errors import shown

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
        raise error(
            f"{owner}: {name} must be a finite number >= 0 or a schedule (a function of the update count), "
            f"got {shown(strength)}"
        )


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


def total(one: Strength, other: Strength) -> Strength:
    """Return the sum of two strengths, a schedule if one of them is.

    >>> total(0.5, lambda iteration: 0.25 * iteration)(2)
    1.0
    """
    if callable(one) or callable(other):
        return lambda iteration: at(one, iteration) + at(other, iteration)
    return one + other


def at(strength: Strength, iteration: int) -> float:
    """Return `strength` at one update."""
    return strength(iteration) if callable(strength) else strength
