"""Rules whose proximal operator acts at every k-th step only: the steps since the last one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from shrinkage.distributed.dtensor import local, spread
from shrinkage.distributed.group_sharding import blocks_of
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Number, Step, number
from shrinkage.training.penalized import PenalizedParameter


class Pending(NamedTuple):
    """The sum of the steps of one parameter since its last prox, or of their learning rates, and their number."""

    total: Number
    steps: int


class Intervals:
    """The steps since the last proximal operator of each parameter that has one at every k-th step, by name.

    Of an `AdaptiveStep` the learning rates are added up, and the last moment serves all: nothing of the size of the
    parameter is kept. Other metrics that differ from element to element are added up element by element.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}

    def keep(self, targets: Iterable[PenalizedParameter]) -> None:
        """Keep what waits for these parameters, and for no others."""
        names = {target.name for target in targets if target.every > 1}
        self._pending = {name: pending for name, pending in self._pending.items() if name in names}

    def align(self, targets: Sequence[PenalizedParameter]) -> None:
        """Let parameters that share groups act in one step, though some of them may take part later than others."""
        for block in blocks_of(targets, lambda target: target.block):
            pending = {target.name: self._pending.get(target.name, Pending(0.0, 0)) for target in block}
            steps = max(each.steps for each in pending.values())
            self._pending |= {name: each._replace(steps=steps) for name, each in pending.items()}

    def total(self, target: PenalizedParameter, step: Step) -> Step | None:
        """Return the step of all steps since the last, with this one; None if more are to come."""
        amount = step.lr if isinstance(step, AdaptiveStep) else number(step)
        before = self._pending.pop(target.name, Pending(0.0, 0))
        pending = Pending(local(before.total) + amount, before.steps + 1)
        if pending.steps < target.every:
            self._pending[target.name] = pending._replace(total=spread_if_shaped(pending.total, target.parameter))
            return None
        total: Number = local(pending.total)
        shaped = isinstance(total, Tensor) and total.dim() > 0
        return step._replace(lr=total) if isinstance(step, AdaptiveStep) and not shaped else total

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what waits, by name."""
        return {
            name: {"total": saved(pending.total), "steps": pending.steps} for name, pending in self._pending.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from what `state_dict` returned."""
        self._pending = {name: Pending(each["total"], each["steps"]) for name, each in state.items()}


def spread_if_shaped(total: Number, parameter: Tensor) -> Number:
    """Return `total` sharded as `parameter` is, if it has one number per element."""
    if not isinstance(total, Tensor) or not total.dim():
        return total
    found: Tensor = spread(total, parameter.detach())
    return found


def saved(total: Number) -> Number:
    """Return `total` as a state_dict holds it: one number for all elements as a number."""
    return float(total) if isinstance(total, Tensor) and not total.dim() else total
