"""Zeros that are held in a step that is prepared: `held_zeros.py` by native kernels, with room that is kept."""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shrinkage.execution.native_zeros import Holding, Zeros
from shrinkage.execution.single_tensor import restore_
from shrinkage.optimizers.adaptive_step import item_if_on_cpu
from shrinkage.optimizers.metrics import Group
from shrinkage.penalties.base import Penalty
from shrinkage.training.gradient_averages import Average, Averages
from shrinkage.training.penalized import PenalizedParameter


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
        self._targets, self._averages, self._holding = targets, averages, holding
        self._names = [target.name for target in targets]
        self._parameters = tuple(target.parameter for target in targets)
        self._groups, self._each_group = groups, list({id(group): group for group in groups}.values())
        self._maximize: list[object] = []  # of each group, as signs have been set

    @staticmethod
    def of(
        targets: Sequence[PenalizedParameter], groups: Sequence[Group], averages: Averages
    ) -> "PreparedZeros | None":
        """Return what holds the zeros of `targets`; None where there is no kernel for one of them."""
        zeros = []
        for target in targets:
            w, average = target.parameter, averages.of(target.name)
            if average is None or w.grad is None:
                return None
            mask = torch.zeros(w.shape, dtype=torch.bool)
            zeros.append(Zeros(w, w.grad, average.total, torch.empty_like(average.total), mask, 0.0))
        holding = Holding.of([target.penalty for target in targets], zeros, averages.decay)
        return None if holding is None else PreparedZeros(targets, groups, averages, holding)

    def adopts(self, penalties: Mapping[str, Penalty]) -> bool:
        """Take the penalties of this update, by names of parameters, and return whether the calls can."""
        return self._holding.adopts([penalties[name] for name in self._names])

    def before(self, library: ctypes.CDLL) -> bool:
        """Average gradients and note which zeros stay; False, and nothing is done, where that cannot be prepared."""
        if not self._averages.is_source(self) and not self._take_up():
            return False
        maximize = [group.get("maximize") for group in self._each_group]
        if maximize != self._maximize:
            self._holding.set_signs([-1.0 if group.get("maximize") else 1.0 for group in self._groups])
            self._maximize = maximize
        grads: list[Tensor] = [parameter.grad for parameter in self._parameters]  # type: ignore[misc]  # all have one
        if not self._holding.hold_(library, self._parameters, grads):
            return False
        self._averages.take_in_from(self)
        return True

    def after(self, library: ctypes.CDLL, *, as_they_were: bool) -> None:
        """Set back to zero what has to stay there, by a kernel if the parameters are `as_they_were`."""
        if not (as_they_were and self._holding.restore_(library, self._parameters)):
            for target, mask in zip(self._targets, self._holding.masks, strict=True):
                restore_(target.penalty, target.parameter.detach(), mask)
        self._holding.flip()
        self._averages.commit()

    def averages(self) -> dict[str, Average]:
        """Return the averages as they are, by name."""
        pairs = zip(self._names, self._holding.averages(), strict=True)
        return {name: Average(total, weight) for name, (total, weight) in pairs}

    def _take_up(self) -> bool:
        """Go on from averages that came from elsewhere."""
        found = [average for average in map(self._averages.of, self._names) if average is not None]
        weights = [item_if_on_cpu(weight) for _, weight in found]
        if len(found) != len(self._names) or any(isinstance(weight, Tensor) for weight in weights):
            return False
        totals = [total for total, _ in found]
        return self._holding.take_up(totals, [float(weight) for weight in weights], lent=self._averages.lent)
