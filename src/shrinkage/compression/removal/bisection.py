"""Smaller models are built and compared; bisection finds a removal that changes the outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.comparison import Checks
from shrinkage.compression.plans.shrink_plan import ShrinkPlan, applied
from shrinkage.compression.removal.analysis import Analysis
from shrinkage.compression.removal.attributes import alike, changed_attributes, equal_by_chance
from shrinkage.compression.removal.constants import shifts
from shrinkage.compression.removal.removable import Removal, kept_indices, removable
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.errors import PlanError

TRIALS = 100  # smaller models that are built to find out which channels make a difference


class Choice(NamedTuple):
    """What stays although it could go: channels by label, and attributes by name that keep their old numbers."""

    held: Tensor
    attributes: frozenset[str] = frozenset()


@dataclass(eq=False)
class Attempts:
    """What smaller models are made from, and what is known of earlier ones.

    `refusal` tells why the plan of the last one was refused, if it was; `first` what goes if nothing is held; `last`
    what was held, and went, last; `untried` which channels stay because the number of trials was used up;
    `made` the last choice that is right, and what was built of it.
    """

    analysis: Analysis
    round_to: int
    checks: Checks
    uniform: bool = False
    refusal: str = field(default="", init=False)
    first: Tensor | None = field(default=None, init=False)
    last: tuple[Tensor, Removal] | None = field(default=None, init=False)
    untried: Tensor = field(init=False)
    made: tuple[Choice, tuple[Removal, nn.Module, ShrinkPlan]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.untried = torch.zeros(self.analysis.coupling.labels.count, dtype=torch.bool)

    def removal(self, held: Tensor) -> Removal:
        """Return the channels that can go without those that are `held`, and no others than if none were.

        Worked out once for the same channels, as several ask for it.
        """
        if self.last is None or not torch.equal(self.last[0], held):
            if self.first is None and held.any():
                self.first = self.removal(torch.zeros_like(held)).gone
            stay = held if self.first is None else held | ~self.first
            self.last = held, removable(self.analysis, self.round_to, stay, self.uniform)
        return self.last[1]

    def built(self, choice: Choice) -> tuple[Removal, nn.Module, ShrinkPlan]:
        """Return what goes, the smaller model with its constants folded, and the plan of it."""
        removal = self.removal(choice.held)
        model, coupling = self.analysis.model, self.analysis.coupling
        keep = kept_indices(coupling, removal.gone)
        added = shifts(self.analysis, removal.gone)
        changed = changed_attributes(coupling, model, removal.gone)
        plan = ShrinkPlan.of(
            model,
            keep,
            biases=tuple(target.path for target in added if not target.exists),
            attributes={name: value for name, value in changed.items() if name not in choice.attributes},
        )
        small = applied(model, plan)
        for target, shift in added.items():
            bias = small.get_parameter(target.name)
            kept = keep.get(target.name, keep.get(f"{target.path}.weight", {}) if not target.exists else {}).get(0)
            shift = shift if kept is None else shift[list(kept)]
            with torch.no_grad():
                bias.copy_((bias.double() + shift.to(bias.device)).to(bias.dtype))
        return removal, small, plan

    def compared(self, choice: Choice) -> tuple[Removal, nn.Module, ShrinkPlan]:
        """Return what was built of `choice` and compared, that very model; build it if it was not right."""
        return self.made[1] if self.made is not None and self.made[0] is choice else self.built(choice)

    def error(self, choice: Choice) -> float:
        """Return by how much the outputs of the smaller model differ; infinity where there is none."""
        self.refusal = ""
        try:
            made = self.built(choice)
            error = self.checks.error(made[1])
            if self.checks.accept(error):
                self.made = choice, made
            return error
        except PlanError as error:
            self.refusal = str(error)
            return float("inf")

    def fits(self, choice: Choice) -> bool:
        """Return whether the outputs of the smaller model are those of the dense one, as far as they are compared."""
        return self.checks.accept(self.error(choice))

    def _fits_alone(self, held: Tensor, attributes: frozenset[str]) -> bool:
        """Return whether outputs are the same where some channels that are not `held` go and `attributes` stay."""
        return bool(self.removal(held).gone.any()) and self.fits(Choice(held, attributes))

    def settled(self) -> tuple[Choice, float, str]:
        """Return the choice by which most goes, by how much outputs then differ, and why not all goes that could.

        The last is empty unless a plan without all of it was refused.
        """
        model, coupling = self.analysis.model, self.analysis.coupling
        choice = Choice(torch.zeros(coupling.labels.count, dtype=torch.bool))
        error, refusal = self.error(choice), self.refusal
        gone = self.removal(choice.held).gone
        changed = changed_attributes(coupling, model, gone) if self.checks.known else {}
        groups = alike(changed, model)
        if groups:
            unchanged = Choice(choice.held, frozenset[str]().union(*groups))
            if self.checks.accept(without := self.error(unchanged)):
                return unchanged, without, refusal
        if groups and not self.checks.accept(error):
            choice = Choice(choice.held, equal_by_chance(coupling, model, gone, self._fits_alone))
            error = self.error(choice)
        if not self.checks.accept(error):
            chance = choice.attributes
            held, self.untried = culprits(coupling, gone, lambda held: self.fits(Choice(held, chance)))
            choice = Choice(held, chance)
            error = self.error(choice)
        for names in groups:
            trial = Choice(choice.held, choice.attributes | names)
            if self.checks.accept(without := self.error(trial)):
                choice, error = trial, without
        return choice, error, refusal


def culprits(coupling: Coupling, gone: Tensor, fine: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor]:
    """Return those of the channels `gone` that are held because their removal changes the outputs, found by bisection.

    The second result are those among them that were never tried by themselves, because `TRIALS` calls of `fine` were
    over: channels that differ among many that do not cost about twice the logarithm of their number each.
    """
    units: list[Tensor] = []
    taken = torch.zeros_like(gone)
    for axis in sorted(coupling.axes, key=lambda axis: axis in coupling.consumed):
        channels = coupling.axes[axis]
        fresh = channels[gone[channels] & ~taken[channels]]
        if len(fresh):
            units.append(fresh)
            taken[fresh] = True
    untried = torch.zeros_like(gone)
    left = TRIALS

    def holding_all_but(accepted: Sequence[Tensor]) -> Tensor:
        trial = gone.clone()
        for unit in accepted:
            trial[unit] = False
        return trial

    def sift(part: list[Tensor], accepted: list[Tensor]) -> list[Tensor]:
        nonlocal left
        if not part:
            return part
        if not left:
            untried[torch.cat(part)] = True
            return []
        left -= 1
        if fine(holding_all_but([*accepted, *part])):
            return part
        if len(part) == 1:
            return []
        middle = len(part) // 2
        first = sift(part[:middle], accepted)
        return first + sift(part[middle:], accepted + first)

    result = holding_all_but(sift(units, []))
    return (result, untried) if fine(result) else (gone, torch.zeros_like(gone))
