"""Controls at work: with their states, in the penalties of one regularizer."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from shrinkage.penalties.base import Penalty, strengths_of
from shrinkage.penalties.controls import Control, Seen, State
from shrinkage.penalties.schedules import Described, Strength, slope, with_controls


class Controlled(Described):
    """A control at work in one regularizer. Not a value: two are never the same strength.

    Args:
        control: what it follows.
    """

    def __init__(self, control: Control) -> None:
        self.control = control
        self.state: State = control.start()
        self.measured: dict[str, tuple[float, float]] = {}  # by name of a parameter, its part of R and of the gain

    def __call__(self, update: int) -> float:
        """Return the strength now."""
        return self.control.strength(self.state)

    def see(self, lr: float = math.nan) -> None:
        """Go on to the next update, with a learning rate or with what was measured last."""
        parts = self.measured.values()
        value = math.fsum(value for value, _ in parts) if parts else math.nan
        self.state = self.control.next(self.state, Seen(lr, value, math.fsum(gain for _, gain in parts)))

    def with_controls(self, take: Callable[[Described], Described]) -> Strength:
        return take(self)

    @property
    def text(self) -> str:
        return f"{self(0):.3g} ({self.control.text})"

    def __repr__(self) -> str:
        return repr(self.control)

    def _data(self) -> dict[str, Any]:
        return {"control": self.control, "state": dict(self.state), "measured": dict(self.measured)}


def with_strengths(penalty: Penalty, change: Callable[[Strength], Strength]) -> Penalty:
    """Return `penalty` with each strength changed, in penalties inside of it too."""
    names = strengths_of(type(penalty))
    changes = {
        name: with_strengths(value, change) if isinstance(value, Penalty) else change(value)
        for name, value in penalty.arguments().items()
        if isinstance(value, Penalty) or name in names
    }
    return dataclasses.replace(penalty, **changes)


def at_work(penalty: Penalty, *, together: bool) -> Penalty:
    """Return `penalty` with its controls at work.

    Args:
        penalty: of a rule, or of one of its parameters.
        together: begin those that measure all parameters of the rule; otherwise those that each parameter has.
    """

    def begun(each: Described) -> Described:
        return Controlled(each) if isinstance(each, Control) and each.measures is together else each

    return with_strengths(penalty, partial(with_controls, take=begun)) if penalty.scheduled else penalty


def controls_in(penalty: Penalty) -> list[Controlled]:
    """Return the controls that are at work in `penalty`, in the order of its arguments."""
    found: list[Controlled] = []

    def note(each: Described) -> Described:
        found.extend([each] if isinstance(each, Controlled) else [])
        return each

    if penalty.scheduled:
        with_strengths(penalty, partial(with_controls, take=note))
    return list(dict.fromkeys(found))


def has_control(penalty: Penalty) -> bool:
    """Return whether a strength of `penalty` is a control."""
    begun = at_work(at_work(penalty, together=True), together=False)
    return bool(controls_in(begun))


def unit(penalty: Penalty, of: Controlled) -> Penalty:
    """Return what one unit of a strength in `penalty` penalizes, without the other strengths."""
    return with_strengths(penalty, partial(slope, of=of))
