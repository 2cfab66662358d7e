"""Fits of a model, one after the other: at a strength, its score, and its refit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.side_effects import restored
from shrinkage.errors import AttachmentError, SelectionError, listed, shown
from shrinkage.paths.point import Point
from shrinkage.paths.refit import refit_rules
from shrinkage.paths.states import state_on_cpu
from shrinkage.paths.strengths import RulesAt
from shrinkage.paths.zero_counts import counts
from shrinkage.selection.how import How
from shrinkage.selection.plan import Plan, resolve
from shrinkage.selection.rules import Rules
from shrinkage.training.options import Options
from shrinkage.training.regularizer import Regularizer

Fit = Callable[[Regularizer], object]
Score = Callable[[nn.Module], float | Tensor]


@dataclass(frozen=True)
class Fits:
    """How a model is fitted at one strength after another; the arguments are explained in `path`."""

    model: nn.Module
    rules: RulesAt
    fit: Fit
    score: Score | None
    refit: Fit | None
    how: How
    options: Options
    modes: Mapping[nn.Module, bool]

    def regularizer(self, rules: Rules) -> Regularizer:
        """Return a regularizer of the model that is attached to nothing."""
        options = self.options
        return Regularizer(
            self.model,
            rules,
            how=self.how,
            hold_zeros=options.hold_zeros,
            stochastic_rounding=options.stochastic_rounding,
            compile=options.compile,
        )

    def check(self, strengths: Sequence[float]) -> None:
        """Raise what rules are wrong about at any of the strengths, and if they are about other parameters at some."""
        first: set[str] | None = None
        for strength in strengths:
            names = set(resolve(self.model, self.rules(strength), self.how).names)
            first = names if first is None else first
            if names != first:
                raise SelectionError(
                    f"the rules penalize other parameters at strength {strength:g} than at {strengths[0]:g}: "
                    f"{listed(sorted(names ^ first))}; give them strength 0 where they are to be left alone"
                )

    def asked(self, strengths: Sequence[float]) -> dict[str, Any]:
        """Return what is asked for up to the last of `strengths`, in plain data, by which saved points are known."""
        shapes = {name: tuple(each.shape) for name, each in self.model.named_parameters()}
        return {
            "strengths": list(strengths),
            "rules": str(resolve(self.model, self.rules(strengths[-1]), self.how)),
            "options": str(self.options),
            "parameters": str(shapes),
            "refit": self.refit is not None,
        }

    def point(self, strength: float) -> Point:
        """Fit the model at a strength, from where it stands, and return what came of it."""
        rules = self.rules(strength)
        regularizer = self.regularizer(rules)
        point = self._fitted(self.fit, regularizer, regularizer.plan, strength)
        if self.refit is None:
            return point
        kept = [parameter.detach().clone() for parameter in self.model.parameters()]
        try:
            with restored(self.model, self.refit):
                refit = self._fitted(
                    self.refit, self.regularizer(refit_rules(rules, self.how)), regularizer.plan, strength
                )
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.model.parameters(), kept, strict=True):
                    parameter.copy_(value)
        return replace(point, refit=refit)

    def _fitted(self, fit: Fit, regularizer: Regularizer, plan: Plan, strength: float) -> Point:
        """Let the user's loop train the model, and measure it; zeros are counted of what `plan` penalizes."""
        for module, training in self.modes.items():
            module.training = training
        try:
            fit(regularizer)
        finally:
            regularizer.detach()
        if regularizer.updates is None:
            raise AttachmentError(
                f"no update was made at strength {strength:g}: fit has to make an optimizer, to call "
                "regularizer.attach(optimizer) with what it is given, and to train"
            )
        found = counts(self.model, plan)
        score, error = self._score()
        return Point(strength, *found, score, error, regularizer.updates, state_on_cpu(self.model))

    def _score(self) -> tuple[float, float]:
        """Return the score of the model as it is, in evaluation mode, and its standard error."""
        if self.score is None:
            return math.nan, math.nan
        with restored(self.model, self.score), torch.no_grad():
            self.model.eval()
            return mean_and_error(self.score(self.model))


def mean_and_error(score: object) -> tuple[float, float]:
    """Return the mean of a score, and its standard error: std / sqrt(n) of n numbers, NaN of one.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    try:
        values = torch.as_tensor(score).detach().flatten().to("cpu", torch.float64)
    except (TypeError, RuntimeError, ValueError):
        values = torch.empty(0)
    if not values.numel():
        raise TypeError(f"score must return a number, or a tensor with a loss per example, got {shown(score)}")
    error = float(values.std() / values.numel() ** 0.5) if values.numel() > 1 else math.nan
    return float(values.mean()), error
