"""Budgets of groups that span parameters: what there is to choose from, what can be reached, and lines of a plan."""

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from shrinkage.errors import GroupError, SelectionError
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.coupled_groups import NONE, Coupled
from shrinkage.penalties.group_choice import Stock
from shrinkage.penalties.kinds import Amount
from shrinkage.selection.coupled_rules import family_cells

Shapes = Mapping[str, Sequence[int]]
UNITS = {"zeros": "elements", "parameters": "parameters", "multiply_adds": "multiply-adds"}


class ChannelTarget(NamedTuple):
    """What a budget of groups that span parameters chooses from, and how much is left in the end, at most.

    Args:
        coupled: the groups, which know how many elements each has.
        stock: what there is.
        target: in the unit of the budget: elements of the groups, parameters, or multiply-adds.
        unit: its name.
    """

    coupled: Coupled
    stock: Stock
    target: int
    unit: str

    def goal(self, ramp: float) -> int:
        """Return how much is to be left when so much of the way to the target is made, from 0 to 1."""
        whole = self.stock.whole
        return self.target if ramp >= 1 else whole - int((whole - self.target) * ramp)

    def rows(self, budget: Budget) -> list[list[str]]:
        """Return the rows of the printed plan, one for the parameters of each family."""
        amount = f"{self.target:,} {self.unit}" if budget.zeros is None else f"{100 * budget.zeros:g}% zeros"
        cells = [family_cells(self.coupled, names) for names in self.coupled.families()]
        return [[*each, "Budget", amount, "held once zero"] for each in cells]

    def line(self, budget: Budget) -> str:
        """Return the line of the budget below the printed plan, with its line break."""
        stock, kinds = self.stock, len(self.stock.most)
        window = f"by update {budget.last_update:,} (from {budget.first_update:,} on) of {budget.updates:,}"
        count = f"{len(stock.kinds):,} channels of {kinds} kind{'s' * (kinds != 1)}"
        return (
            f"\nBudget: at most {self.target:,} of {stock.whole:,} {self.unit} {window}; {count}, at least 1 of each "
            f"stays: {stock.least:,} cannot go"
        )


def channel_target(budget: Budget, coupled: Coupled, shapes: Shapes, trained: Container[str]) -> ChannelTarget:
    """Return what `budget` chooses from and how much may be left.

    Args:
        budget: which has to be met.
        coupled: its groups, which span parameters.
        shapes: of these parameters, by name.
        trained: the names of those that take a gradient; groups with others stay.

    Raises:
        GroupError: the groups do not know how much of the model is left without some.
        SelectionError: the target cannot be reached, or is reached before training.
    """
    coupled = coupled.sized(shapes)
    kinds = coupled.kinds.of if coupled.kinds is not None else kinds_in(coupled)
    stock = Stock.of(kinds, amount_of(budget, coupled, kinds))
    free = stock.prices() > 0
    for name in coupled.names:
        if name not in trained:
            free[[group for group in coupled.slices(name).groups if group != NONE]] = False
    stock = Stock.of(kinds, stock.amount, free)
    found = ChannelTarget(coupled, stock, target_of(budget, stock.whole), UNITS[unit_of(budget)])
    check_reached(budget, found)
    return found


def unit_of(budget: Budget) -> str:
    """Return the name of the argument that tells the target."""
    return next(name for name in UNITS if getattr(budget, name) is not None)


def target_of(budget: Budget, whole: int) -> int:
    """Return how much may be left of the `whole`."""
    if budget.zeros is not None:
        return whole - math.ceil(budget.zeros * whole - 1e-9)
    allowed = budget.parameters or budget.multiply_adds or 0
    return int(allowed * whole + 1e-9) if allowed < 1 else int(allowed)


def kinds_in(coupled: Coupled) -> tuple[int, ...]:
    """Return the kind of each group: those are alike that have as many slices of each parameter."""
    own: list[Counter[str]] = [Counter() for _ in range(coupled.count)]
    for name in coupled.names:
        for group in coupled.slices(name).groups:
            if group != NONE:
                own[group][name] += 1
    known: dict[frozenset[tuple[str, int]], int] = {}
    return tuple(known.setdefault(frozenset(each.items()), len(known)) for each in own)


def amount_of(budget: Budget, coupled: Coupled, kinds: Sequence[int]) -> Amount:
    """Return how much is left in the unit of the budget, by how many groups of each kind are gone."""
    if budget.zeros is not None:
        sizes = dict(zip(kinds, coupled.sizes, strict=True))
        return Amount(((1, ((sum(coupled.sizes), tuple(sorted(sizes.items()))),)),))
    if coupled.kinds is None:
        raise GroupError(
            f"{coupled!r} does not know what reads its channels, so that nothing can be said of {unit_of(budget)}; use "
            "CoupledChannels(model, inputs), or zeros="
        )
    if budget.parameters is not None:
        return coupled.kinds.parameters
    multiply_adds = coupled.kinds.counted_multiply_adds()
    if multiply_adds is None:
        raise GroupError(
            f"{coupled!r} comes from a file without its multiply-adds; call CoupledChannels(model, inputs) once more"
        )
    return multiply_adds


def check_reached(budget: Budget, found: ChannelTarget) -> None:
    """Raise `SelectionError` if the target is less than what cannot go, or more than there is."""
    stock, target, unit = found.stock, found.target, found.unit
    if target < stock.least:
        raise SelectionError(
            f"{target:,} {unit} cannot be reached: with one channel of each kind {stock.least:,} of {stock.whole:,} "
            "are left"
        )
    if target > stock.whole:
        raise SelectionError(f"{budget} allows {target:,} {unit}, and there are {stock.whole:,}: ask for fewer")
