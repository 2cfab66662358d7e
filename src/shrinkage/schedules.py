"""Strengths: a number, or a function of the update count."""

import math
from collections.abc import Callable
from numbers import Real

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
            f"got {strength!r}"
        )


def fixed(strength: Strength) -> float:
    """Return the number that `strength` is.

    Raises:
        TypeError: `strength` is a schedule, so its value depends on the update count.

    >>> fixed(0.5)
    0.5
    """
    if callable(strength):
        raise TypeError("the strength is a schedule: take the penalty of one update with .at(iteration)")
    return float(strength)
