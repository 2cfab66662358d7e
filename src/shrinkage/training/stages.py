"""What happens to parameters at an update: what is penalized, at which strength, and whose zeros stay."""

from collections.abc import Sequence
from typing import NamedTuple

from shrinkage.penalties.base import Penalty
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.update_count import Updates


class Stage(NamedTuple):
    """What happens to the parameters of one optimizer at one update.

    Args:
        penalized: what is penalized, with the penalty at this update.
        frozen: parameters whose zeros stay.
    """

    penalized: Sequence[tuple[PenalizedParameter, Penalty]] = ()
    frozen: Sequence[PenalizedParameter] = ()

    @property
    def penalties(self) -> list[Penalty]:
        """The penalties alone."""
        return [penalty for _, penalty in self.penalized]


class Stages:
    """What happens to the parameters of one optimizer, update for update.

    Args:
        targets: what is penalized, at every update.
        held: what is not penalized, and whose zeros stay later: `until` tells when.
    """

    def __init__(self, targets: Sequence[PenalizedParameter], held: Sequence[PenalizedParameter] = ()) -> None:
        self._targets, self._held = targets, held
        self._scheduled = any(target.changes for target in targets) or bool(held)
        self._until = min((each.until for each in (*targets, *held) if each.until is not None), default=None)
        self._asked: tuple[object, Stage] | None = None  # when strengths were asked for, and what came

    @property
    def change(self) -> bool:
        """Whether strengths change, or end."""
        return self._scheduled

    def freeze(self, updates: Updates) -> bool:
        """Return whether zeros of some parameters stay from now on, which no step is prepared for."""
        return self._until is not None and (not self._until or updates.count() >= self._until)

    def now(self, updates: Updates) -> Stage:
        """Return what happens after so many updates; schedules are asked once for each step."""
        key = self._scheduled and (updates.steps, updates.skipped is None)
        if self._asked is None or self._asked[0] != key:
            self._asked = (key, stage_at(self._targets, self._held, updates.count() if self._scheduled else 0))
        return self._asked[1]


def stage_at(targets: Sequence[PenalizedParameter], held: Sequence[PenalizedParameter], update: int) -> Stage:
    """Return what happens to `targets`, and to what is `held` later, at an update."""
    frozen = [each for each in (*targets, *held) if each.until is not None and update >= each.until]
    acting = acting_at(targets, update)
    return Stage(list(zip(acting, at_update(acting, update), strict=True)), frozen)


def acting_at(targets: Sequence[PenalizedParameter], update: int) -> list[PenalizedParameter]:
    """Return what is penalized at an update: of rules that are over by then, what comes after, if anything."""
    now = [each.second if each.until is not None and update >= each.until else each for each in targets]
    return [target for target in now if target is not None]


def at_update(targets: Sequence[PenalizedParameter], update: int) -> list[Penalty]:
    """Return the penalties of `targets` at an update; an error of a schedule gets the parameter's name.

    A penalty that several parameters share is asked once, and stays one for all of them.
    """
    found: dict[int, Penalty] = {}
    for target in targets:
        if id(target.penalty) in found:
            continue
        try:
            found[id(target.penalty)] = target.penalty.at(update)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the schedule of {target.name!r} at update {update}: {error}") from error
    return [found[id(target.penalty)] for target in targets]
