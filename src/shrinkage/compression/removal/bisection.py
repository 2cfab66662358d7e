"""Smaller models are built and compared; bisection finds a removal that changes the outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.comparison import Checks
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.plans.applying import applied
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.sized_modules import check_sizes, correct_sizes_
from shrinkage.compression.plans.sizes import Tables
from shrinkage.compression.removal.analysis import Analysis
from shrinkage.compression.removal.attributes import alike, changed_attributes, equal_by_chance
from shrinkage.compression.removal.constants import shifts
from shrinkage.compression.removal.lockstep import Lockstep
from shrinkage.compression.removal.removable import Removal, kept_indices, removable
from shrinkage.compression.removal.rescaling import rescaling
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.errors import PlanError

TRIALS = 100  # smaller models that are built to find out which channels make a difference


class Choice(NamedTuple):
    """What stays although it could go: channels by label, and attributes by name that keep their old numbers.

    If `sized`, sizes in code that are wrong even so are corrected.
    """

    held: Tensor
    attributes: frozenset[str] = frozenset()
    sized: bool = False


@dataclass(eq=False)
class Attempts:
    """What smaller models are made from, and what is known of earlier ones.

    `refusal` tells why the plan of the last one was refused, if it was; `first` what goes if nothing is held; `last`
    what was held, and went, last; `untried` which channels stay because the number of trials was used up;
    `made` the last choice that is right, and what was built of it.
    """

    analysis: Analysis
    call: Call
    round_to: int
    checks: Checks
    uniform: bool = False
    refusal: str = field(default="", init=False)
    first: Tensor | None = field(default=None, init=False)
    last: tuple[Tensor, Removal] | None = field(default=None, init=False)
    untried: Tensor = field(init=False)
    lockstep: Lockstep = field(init=False)
    made: tuple[Choice, tuple[Removal, nn.Module, ShrinkPlan]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.untried = torch.zeros(self.analysis.coupling.labels.count, dtype=torch.bool)
        self.lockstep = Lockstep(self.analysis.model, self.analysis.coupling, self.call)

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
        divided = rescaling(coupling, removal.gone)
        plan = ShrinkPlan.of(
            model,
            keep,
            biases=tuple(target.path for target in added if not target.exists),
            attributes={name: value for name, value in changed.items() if name not in choice.attributes}
            | divided.attributes,
            scales=divided.scales,
            numbers=divided.numbers,
        )
        small = applied(model, plan)
        if choice.sized:
            plan = replace(plan, sizes=self.lockstep.corrections(small, removal.gone))
            check_sizes(small, plan.sizes)
            correct_sizes_(small, plan.sizes)
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

    def error(self, choice: Choice, wanted: Callable[[ShrinkPlan], bool] = lambda plan: True) -> float:
        """Return by how much the outputs of the smaller model differ; infinity where there is none that is `wanted`."""
        self.refusal = ""
        try:
            made = self.built(choice)
            if not wanted(made[2]):
                return float("inf")
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

        The last is empty unless a plan without all of it was refused. Sizes in code are corrected only where changed
        attributes do not do.
        """
        model, coupling = self.analysis.model, self.analysis.coupling
        choice = Choice(torch.zeros(coupling.labels.count, dtype=torch.bool))
        error, refusal = self.error(choice), ""
        gone = self.removal(choice.held).gone
        changed = changed_attributes(coupling, model, gone) if self.checks.known else {}
        groups = alike(changed, model)
        every = frozenset[str]().union(*groups)
        if groups:
            unchanged = choice._replace(attributes=every)
            if self.checks.accept(without := self.error(unchanged)):
                return unchanged, without, refusal
        if groups and not self.checks.accept(error):
            choice = choice._replace(attributes=equal_by_chance(coupling, model, gone, self._fits_alone))
            error = self.error(choice)
        if not self.checks.accept(error):
            choice, error, refusal = self._sized(choice, every)
        if not self.checks.accept(error):
            first = choice
            held, self.untried = culprits(coupling, gone, lambda held: self.fits(first._replace(held=held)))
            choice = choice._replace(held=held)
            error = self.error(choice)
        return *self._with_fewer_changes(choice, error, groups), refusal

    def _sized(self, choice: Choice, every: frozenset[str]) -> tuple[Choice, float, str]:
        """Return the choice with which outputs are right once sizes are corrected; `choice` itself if there is none.

        First all attributes change, then none of `every` one that could, then those that `choice` lets.
        """
        refusal = ""
        for attributes in dict.fromkeys((frozenset[str](), every, choice.attributes)):
            trial = Choice(choice.held, attributes, sized=True)
            error = self.error(trial)
            refusal = refusal or self.refusal
            if self.checks.accept(error):
                return trial, error, ""
        return choice._replace(sized=True), error, refusal

    def _with_fewer_changes(
        self, choice: Choice, error: float, groups: Sequence[frozenset[str]]
    ) -> tuple[Choice, float]:
        """Return `choice` with those `groups` of attributes as they were that need no change.

        Where sizes are corrected, those need none that make no difference to what else has to be.
        """
        sizes = self.compared(choice)[2].sizes if groups else {}

        def simpler(plan: ShrinkPlan) -> bool:
            return plan.sizes == sizes or _count(plan.sizes) < _count(sizes)

        for names in groups:
            trial = choice._replace(attributes=choice.attributes | names)
            if self.checks.accept(without := self.error(trial, simpler)):
                choice, error, sizes = trial, without, self.compared(trial)[2].sizes
        return choice, error


def _count(sizes: Mapping[str, Tables]) -> int:
    return sum(len(table) for tables in sizes.values() for table in tables)


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
