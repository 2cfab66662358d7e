"""Zeros that are held in a step that is prepared: `held_zeros.py` by native kernels, with room that is kept."""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shrinkage.execution.native_zeros import Holding
from shrinkage.execution.single_tensor import restore_
from shrinkage.optimizers.metrics import Group
from shrinkage.penalties.base import Penalty
from shrinkage.training.gradient_averages import Average, Averages, following_weight
from shrinkage.training.penalized import PenalizedParameter

TINY = torch.finfo(torch.float32).tiny  # of weights, whose sums are larger after the first gradient


class PreparedZeros:
    """Zeros of parameters that averaged gradients hold, before and after each step.

    Args:
        targets: what is penalized, all with a gradient.
        groups: the parameter group of each.
        averages: of their gradients.
        holding: the calls of native kernels.
    """

    def __init__(
        self, targets: Sequence[PenalizedParameter], groups: Sequence[Group], averages: Averages, holding: Holding
    ) -> None:
        self._targets, self._groups, self._averages, self._holding = targets, groups, averages, holding
        self._names = [target.name for target in targets]
        self._parameters = [target.parameter for target in targets]
        self._totals: list[Tensor] = []  # before the step that is under way
        self._spare: list[Tensor] | None = None  # totals of long ago, which nobody else has

    @staticmethod
    def of(
        targets: Sequence[PenalizedParameter], groups: Sequence[Group], averages: Averages
    ) -> "PreparedZeros | None":
        """Return what holds the zeros of `targets`; None where there is no kernel for one of them."""
        grads = [target.parameter.grad for target in targets if target.parameter.grad is not None]
        if len(grads) != len(targets):
            return None
        found = [average for average in (averages.of(target.name) for target in targets) if average is not None]
        if len(found) != len(targets):
            return None
        totals = [total for total, _ in found]
        holding = Holding.of(
            [target.penalty for target in targets], [target.parameter for target in targets], grads, totals
        )
        return None if holding is None else PreparedZeros(targets, groups, averages, holding)

    def adopts(self, penalties: Mapping[str, Penalty]) -> bool:
        """Take the penalties of this update, by names of parameters, and return whether the calls can."""
        return self._holding.adopts([penalties[name] for name in self._names])

    def before(self, library: ctypes.CDLL) -> bool:
        """Average gradients and note which zeros stay; False, and nothing is done, where that cannot be prepared."""
        averages, share = self._averages, 1 - self._averages.decay
        found = [average for average in map(averages.of, self._names) if average is not None]
        if len(found) != len(self._names):
            return False
        totals = [total for total, _ in found]
        followings = self._spare or [torch.empty_like(total) for total in totals]
        after = {weight: following_weight(weight, share, totals[0]) for weight in {weight for _, weight in found}}
        weights = [after[weight] for _, weight in found]
        signs = [-1.0 if group.get("maximize") else 1.0 for group in self._groups]
        numbers = ([share] * len(found), signs, [max(float(weight), TINY) for weight in weights])
        grads: list[Tensor] = [parameter.grad for parameter in self._parameters]  # type: ignore[misc]  # all have one
        known = self._spare is not None and not averages.lent  # then the totals were written here
        if not self._holding.hold_(library, grads, totals, followings, numbers, known=known):
            return False
        pairs = zip(self._names, followings, weights, strict=True)
        averages.take_in({name: Average(total, weight) for name, total, weight in pairs})
        self._totals, self._spare = totals, None
        return True

    def after(self, library: ctypes.CDLL, *, as_they_were: bool) -> None:
        """Set back to zero what has to stay there, by a kernel if the parameters are `as_they_were`."""
        if as_they_were:
            self._holding.restore_(library)
        else:
            for target, mask in zip(self._targets, self._holding.masks, strict=True):
                restore_(target.penalty, target.parameter.detach(), mask)
        if self._averages.commit():
            self._spare = self._totals
