"""How far parameters are from stationary: numbers, the table of them, and what they say in words."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from shrinkage.diagnostics.advice import Training, advice
from shrinkage.diagnostics.zero_layers import told_first
from shrinkage.tables import table


class ParameterResidual(NamedTuple):
    """How far one parameter is from stationary.

    Args:
        name: the parameter.
        penalty: its penalty, in words; "none" if it is not.
        strength: of the penalty, in words.
        measure: "KKT", the distance of the negative gradient to the subdifferential; "fixed point", how far a step and
            a prox move, per unit of step; "gradient", where nothing is penalized.
        max: largest residual of an element or group.
        mean: mean over elements or groups.
        relative: the largest relative to the strength, as a gradient: to the least that moves a zero weight or group.
            For what has no such gradient (smooth penalties, constraints, `L0`, no penalty), relative to the least of
            the others, or absolute if there are none.
        zeros: share of exact zeros.
        members: the parameters, where groups span several of them.
    """

    name: str
    penalty: str
    strength: str
    measure: str
    max: float
    mean: float
    relative: float
    zeros: float
    members: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that these numbers are about."""
        return self.members or (self.name,)


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residuals of all penalized parameters, and of the others. Prints as a table and as text.

    Args:
        penalized: parameters that a rule penalizes, in the order of the plan.
        others: the other parameters that take a gradient.
        tolerance: largest residual that counts as solved, relative to the strength.
        decoupled: names of those that are penalized with `how="decoupled"`, whose strength has another unit.
        training: how the weights were trained, on which the advice depends.
        dead: names of the layers' weights that are zero as a whole: solved, but of no use.
    """

    penalized: tuple[ParameterResidual, ...]
    others: tuple[ParameterResidual, ...]
    tolerance: float
    decoupled: tuple[str, ...] = ()
    training: Training = field(default_factory=Training, repr=False)
    dead: tuple[str, ...] = ()

    @property
    def worst(self) -> ParameterResidual:
        """The parameter with the largest residual relative to the strength, penalized or not."""
        return max((*self.penalized, *self.others), key=lambda each: (math.isnan(each.relative), each.relative))

    @property
    def solved(self) -> bool:
        """Whether no residual is larger than the tolerance."""
        return self.worst.relative <= self.tolerance

    def __str__(self) -> str:
        header = ["parameter", "penalty", "strength", "measure", "max", "mean", "of the strength", "zeros"]
        rows = [residual_cells(each) for each in (*self.penalized, *self.others)]
        return "\n".join([*told_first(self.dead), table(header, rows, right=range(4, 8)), self.verdict()])

    def after(self, training: Training) -> "Residuals":
        """Return these residuals, with what is known of the training before them."""
        return replace(self, training=training)

    def verdict(self) -> str:
        """Return in words whether the stated problem is solved."""
        if self.solved:
            return (
                "Solved: the weights are stationary for the loss plus the penalties, "
                f"to {self.tolerance:g} of the strength."
            )
        worst = self.worst
        names = "" if worst.name in self.decoupled else ", ".join(self.decoupled[:3])
        note = f' Strengths with how="decoupled" ({names}) are in units of weight decay: they state another problem.'
        return (
            f"Not solved: the residual of {worst.name} is {worst.relative:.2g} of the strength, the tolerance is "
            f"{self.tolerance:g}. {advice(worst.names, worst.relative, self.training)}{note if names else ''}"
        )


def residual_cells(each: ParameterResidual) -> list[str]:
    """Return the row of one parameter in the printed table."""
    numbers = [f"{number:.2g}" for number in (each.max, each.mean, each.relative)]
    return [each.name, each.penalty, each.strength, each.measure, *numbers, f"{100 * each.zeros:.0f}%"]
