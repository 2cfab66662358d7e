"""Budgets in a plan: which parameters each of them ranks together, and its lines in print."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.nn.parameter import is_lazy

from shrinkage.errors import SelectionError, warn_user
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.membership import coupled_of
from shrinkage.proximal.ranking import floors
from shrinkage.selection.channel_budgets import ChannelTarget, channel_target
from shrinkage.selection.named_parameters import NamedParameter
from shrinkage.selection.supported_parameters import is_frozen
from shrinkage.tables import names_note, shape_text

LATE = 0.7  # of a training
Names = Sequence[NamedParameter]


class RankedEntry(NamedTuple):
    """One parameter of a budget: its name, its other names if it is tied, and its shape (None while lazy)."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...] | None
    frozen: bool = False


class PlannedBudget(NamedTuple):
    """A budget, and the parameters that it ranks together, in the model's order."""

    budget: Budget
    entries: tuple[RankedEntry, ...]

    @property
    def names(self) -> list[str]:
        """All names of its parameters."""
        return [name for entry in self.entries for name in (entry.name, *entry.aliases)]

    def channels(self) -> ChannelTarget | None:
        """Return what it chooses from if its groups span parameters."""
        coupled = coupled_of(self.budget)
        if coupled is None:
            return None
        shapes = {entry.name: entry.shape for entry in self.entries if entry.shape is not None}
        return channel_target(self.budget, coupled, shapes, [entry.name for entry in self.entries if not entry.frozen])

    def rows(self) -> list[list[str]]:
        """Return its rows of the printed plan."""
        channels = self.channels()
        if channels is not None:
            return channels.rows(self.budget)
        return [self._cells(entry) for entry in self.entries if not entry.frozen]

    def _cells(self, entry: RankedEntry) -> list[str]:
        groups = self.budget.groups
        shape = "lazy" if entry.shape is None else shape_text(entry.shape)
        shown = "-" if groups is None else type(groups).__name__
        if groups is not None and entry.shape is not None:
            shown = f"{groups.count_in(entry.shape)} x {shown}"
        zeros = f"{100 * (self.budget.zeros or 0):g}% zeros"
        return [" = ".join((entry.name, *entry.aliases)), shape, shown, "Budget", zeros, "kept aside"]

    def line(self) -> str:
        """Return the line below the table, with its line break."""
        channels = self.channels()
        if channels is not None:
            return channels.line(self.budget)
        budget, ranked = self.budget, [entry for entry in self.entries if not entry.frozen]
        window = (
            f"zero by update {budget.last_update:,} (from {budget.first_update:,} on), kept aside until "
            f"{budget.freeze_update:,} of {budget.updates:,}"
        )
        where = f"{len(ranked)} parameter{'s' * (len(ranked) != 1)}"
        frozen = names_note("frozen, so not ranked", [entry.name for entry in self.entries if entry.frozen])
        shapes = [entry.shape for entry in ranked if entry.shape is not None]
        if len(shapes) < len(ranked):
            return f"\nBudget: {100 * (budget.zeros or 0):g}% of the weights in {where} {window}{frozen}"
        sizes, members = sizes_of(budget, shapes)
        count = sum(size * each for size, each in zip(sizes, members, strict=True))
        zeros = budget.zeros_at(budget.last_update, count)
        least = [m * each for m, each in zip(floors(sizes, members, count - zeros, budget.least), members, strict=True)]
        few = " and ".join(f"{each:,}" for each in least)
        stay = few if len(least) < 3 else f"{min(least):,} to {max(least):,} of each"
        return f"\nBudget: {zeros:,} of {count:,} weights in {where} {window}; at least {stay} stay{frozen}"


def planned_budget(budget: Budget, found: Sequence[Names]) -> PlannedBudget:
    """Return `budget` for parameters, each with all of its names.

    Raises:
        SelectionError: more weights have to stay than the budget leaves, one (or a group) for each parameter.
    """
    planned = PlannedBudget(budget, tuple(map(ranked_entry, found)))
    if planned.channels() is not None:  # which tells whether it can be reached
        return planned
    shapes = [entry.shape for entry in planned.entries if entry.shape is not None and not entry.frozen]
    sizes, members = sizes_of(budget, shapes)
    count = sum(size * each for size, each in zip(sizes, members, strict=True))
    left = count - budget.zeros_at(budget.last_update, count)
    if sum(members) > left:
        raise SelectionError(
            f"{budget} leaves {left:,} of {count:,} weights, and each of its {len(shapes)} parameters keeps one"
            f"{' group' * (budget.groups is not None)} at least, {sum(members):,} in all: ask for fewer zeros"
        )
    return planned


def ranked_entry(names: Names) -> RankedEntry:
    """Return the entry of one parameter, found under `names`."""
    first, *others = names
    parameter = first.parameter
    shape = None if parameter is None or is_lazy(parameter) else tuple(parameter.shape)
    return RankedEntry(first.name, tuple(other.name for other in others), shape, is_frozen(parameter))


def warn_of_late_ends(penalties: Iterable[Penalty | Budget | None]) -> None:
    """Warn of each budget that leaves little of the training for what stays to recover."""
    budgets = {id(each): each for each in penalties if isinstance(each, Budget)}
    for budget in budgets.values():
        name, fraction = ("end", budget.ends) if budget.coupled else ("freeze", budget.freezes)
        if fraction > LATE:
            warn_user(
                f"{budget}: {name}={fraction:g} is beyond {LATE:.0%} of updates={budget.updates:,}, so that little "
                "time is left in which the weights that stay recover"
            )


def sizes_of(budget: Budget, shapes: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return how many groups parameters of these shapes have, and of how many weights each; single weights are 1."""
    if budget.groups is None:
        return [math.prod(shape) for shape in shapes], [1] * len(shapes)
    layouts = [budget.groups.layout(shape) for shape in shapes]
    return [layout.count for layout in layouts], [layout.size for layout in layouts]
