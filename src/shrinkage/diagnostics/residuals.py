"""Does a training run solve the problem that was stated? Residuals, their table and the verdict.

minimize L(w) + R(w) is solved, to first order, where -grad L(w) lies in the subdifferential of R at w.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.advice import Training, advice
from shrinkage.diagnostics.evaluation import frozen_zeros, penalized_parameters, residual_of, slope_of
from shrinkage.diagnostics.loss_gradients import Closure, check_not_sharded, mean_gradients, trained
from shrinkage.diagnostics.zero_layers import dead_layers, told_first
from shrinkage.optimizers.adaptive_step import Number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.proximal.precision import upcast
from shrinkage.selection.coupled_rules import block_text
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan
from shrinkage.tables import Table, in_html


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


@value_class
class Residuals(ByFields):
    """The residuals of all penalized parameters, and of the others. Prints as a table and as text.

    Args:
        penalized: parameters that a rule penalizes, in the order of the plan.
        others: the other parameters that take a gradient.
        tolerance: largest residual that counts as solved, relative to the strength.
        decoupled: names of those that are penalized with `how="decoupled"`, whose strength has another unit.
        training: how the weights were trained, on which the advice depends.
        dead: names of the layers' weights that are zero as a whole: solved, but of no use.
        budgets: how many there are: which weights are zero by them is no part of the problem.
    """

    penalized: tuple[ParameterResidual, ...]
    others: tuple[ParameterResidual, ...]
    tolerance: float
    decoupled: tuple[str, ...] = ()
    training: Training = field(default_factory=Training, repr=False)
    dead: tuple[str, ...] = ()
    budgets: int = 0

    @property
    def worst(self) -> ParameterResidual:
        """The parameter with the largest residual relative to the strength, penalized or not."""
        return max((*self.penalized, *self.others), key=lambda each: (math.isnan(each.relative), each.relative))

    @property
    def solved(self) -> bool:
        """Whether no residual is larger than the tolerance."""
        return self.worst.relative <= self.tolerance

    def __str__(self) -> str:
        return "\n".join(map(str, self._parts()))

    def _repr_html_(self) -> str:
        return in_html(self._parts())

    def _parts(self) -> list[str | Table]:
        header = ["parameter", "penalty", "strength", "measure", "max", "mean", "of the strength", "zeros"]
        rows = [residual_cells(each) for each in (*self.penalized, *self.others)]
        left_out = ["Of weights with a Budget, those that are zero are left out."] if self.budgets else []
        return [*told_first(self.dead), Table(header, rows, range(4, 8)), self.verdict(), *left_out]

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


def residuals(
    model: nn.Module,
    plan: Plan,
    iteration: int,
    steps: Mapping[str, Number],
    maximized: Set[str],
    closure: Closure,
    data: Iterable[Any] | None,
    tolerance: float,
) -> Residuals:
    """Return the residuals of `model`; see `Regularizer.residuals`.

    Args:
        model: whose parameters are penalized.
        plan: what they are penalized.
        iteration: the update at which strengths are taken.
        steps: the optimizer's step of each parameter, for penalties that need one; 1 where it is missing.
        maximized: parameters whose optimizer climbs instead of descending.
        closure: returns the loss, of one batch of `data` or of everything.
        data: batches.
        tolerance: see `Residuals`.
    """
    found = penalized_parameters(model, plan)
    check_not_sharded(found)
    held = trained_as_planned(model, plan, {id(parameter): entry.name for entry, parameter in found})
    if not held:
        raise ValueError("no parameter of the model takes a gradient (requires_grad): there is nothing to solve")
    gradients = dict(zip(held, mean_gradients(model, list(held.values()), closure, data), strict=True))
    points = {name: upcast(parameter.detach()) for name, parameter in held.items()}
    descents = {name: -grad if name in maximized else grad for name, grad in gradients.items()}
    for name, mask in frozen_zeros(plan, held, iteration).items():  # whatever their gradient is, they stay
        descents[name] = descents[name].masked_fill(mask, 0.0)
    blocks = [(names, penalty.at(iteration)) for names, penalty in plan.at(iteration).blocks(held)]
    slopes = [slope_of(penalty, points[first].shape) for (first, *_), penalty in blocks]
    unit = min((slope for slope in slopes if 0 < slope < math.inf), default=1.0)
    penalized = []
    with torch.no_grad():
        for names, penalty in blocks:
            ws = {name: penalty.unrounded(held[name].detach()) for name in names}
            grads = {name: descents[name] for name in names}
            measure, values = residual_of(penalty, ws, grads, steps)
            each = summary(block_text(names), penalty, measure, list(ws.values()), values, unit)
            penalized.append(each._replace(members=tuple(names)))
    known = {name for names, _ in blocks for name in names}
    others = [
        summary(name, None, "gradient", [w], descents[name].abs(), unit)
        for name, w in points.items()
        if name not in known
    ]
    decoupled = tuple(entry.name for entry in plan if entry.how == "decoupled")
    dead = _dead(model, points)
    return Residuals(tuple(penalized), tuple(others), tolerance, decoupled, dead=dead, budgets=len(plan.budgets))


def trained_as_planned(model: nn.Module, plan: Plan, planned: Mapping[int, str]) -> dict[str, nn.Parameter]:
    """Return what takes a gradient, by the names of the plan: `planned` has them by the ids of parameters."""
    ranked = {entry.name for each in plan.budgets for entry in each.entries}
    names = {id(each.parameter): each.name for each in named_parameters(model) if each.name in ranked}
    return {{**planned, **names}.get(id(parameter), name): parameter for name, parameter in trained(model)}


def _dead(model: nn.Module, points: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return which `points` are zero as a whole and silence their layer, which frozen weights may keep alive."""
    frozen = [(name, each.detach()) for name, each in model.named_parameters() if not each.requires_grad]
    found = dead_layers((name, tuple(w.shape), not w.any()) for name, w in (*points.items(), *frozen))
    return tuple(name for name in found if name in points)


def summary(
    name: str, penalty: Penalty | None, measure: str, ws: Sequence[Tensor], values: Tensor, unit: float
) -> ParameterResidual:
    """Return the largest and the mean of residuals, in the penalty's own unit or else in `unit`."""
    shape = tuple(ws[0].shape) if coupled_of(penalty) is None else None
    text, strength, _ = ("none", "-", "-") if penalty is None else penalty.describe(shape)
    slope = 0.0 if penalty is None else slope_of(penalty, ws[0].shape)
    largest = float(values.max()) if values.numel() else 0.0
    largest = largest if all(bool(w.isfinite().all()) for w in ws) else math.nan
    mean = float(values.mean()) if values.numel() else 0.0
    zeros = sum(int((w == 0).sum()) for w in ws) / max(sum(w.numel() for w in ws), 1)
    relative = largest / (slope if 0 < slope < math.inf else unit)
    return ParameterResidual(name, text, strength, measure, largest, mean, relative, zeros)
