"""How far a budget has come, in numbers and as a line."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal, NamedTuple

from shrinkage.penalties.value_objects import ByFields, value_class

Phase = Literal["waiting", "ramp", "held", "frozen", "done"]
Unit = Literal["zeros", "parameters", "multiply-adds"]


class LayerProgress(NamedTuple):
    """How many weights of a layer stay, of how many, how many have to, and whether that is all that keeps them."""

    stay: int
    of: int
    least: int
    bound: bool


@value_class
class BudgetProgress(ByFields):
    """How far one budget has come in one optimizer, as of the last ranking. Prints as a line.

    Args:
        update: updates made.
        updates: of the whole training.
        phase: "waiting", "ramp", "held" or "frozen"; of groups that span parameters "waiting", "ramp" or "done".
        unit: what is counted.
        wanted: what was to be reached by now; None before the first ranking.
        reached: what is.
        target: what is to be reached in the end.
        of: how many there are in all.
        changed: how many weights or channels changed between zero and not at the last ranking.
        due: channels that are on their way to zero.
        layers: what stays of each layer, by name.

    >>> print(BudgetProgress(3000, 12000, "ramp", "zeros", wanted=38000, reached=38000, target=46740, of=49200))
    update 3,000 of 12,000, ramp: 38,000 of 49,200 zero (wanted 38,000, in the end 46,740)
    """

    update: int
    updates: int
    phase: Phase
    unit: Unit
    wanted: int | None
    reached: int | None
    target: int
    of: int
    changed: int | None = None
    due: int | None = None
    layers: Mapping[str, LayerProgress] = field(default_factory=dict)

    def __str__(self) -> str:
        start = f"update {self.update:,} of {self.updates:,}, {self.phase}: "
        if self.reached is None or self.wanted is None:
            return f"{start}{self.target:,} of {self.of:,} {self.unit} in the end"
        what = "zero" if self.unit == "zeros" else f"{self.unit} left"
        text = f"{self.reached:,} of {self.of:,} {what} (wanted {self.wanted:,}, in the end {self.target:,})"
        if self.changed is not None:
            text += f"; {self.changed:,} changed at the last"
        if self.due is not None:
            return start + text + self._channels()
        bound = [f"{name} ({each.stay:,} of {each.of:,})" for name, each in self.layers.items() if each.bound]
        return start + text + (f"; held by its floor: {', '.join(bound)}" if bound else "")

    def _channels(self) -> str:
        """Return how many channels are gone or due, and of which kinds a single one is left."""
        of, stay = sum(each.of for each in self.layers.values()), sum(each.stay for each in self.layers.values())
        last = [name for name, each in self.layers.items() if each.bound]
        left = f"; last of its kind: {', '.join(last)}" if last else ""
        return f"; {of - stay:,} of {of:,} channels gone, {self.due:,} due{left}"


def numbers_of(budgets: Sequence[BudgetProgress]) -> dict[str, float]:
    """Return what is logged of budgets, as of their last ranking: what was wanted, and what is reached."""
    found: dict[str, float] = {}
    for index, each in enumerate(budgets):
        if each.reached is not None and each.wanted is not None:
            name = f"budget/{index}" if len(budgets) > 1 else "budget"
            found |= {f"{name}/wanted": float(each.wanted), f"{name}/reached": float(each.reached)}
    return found
