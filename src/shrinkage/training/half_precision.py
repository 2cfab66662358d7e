"""Penalized parameters in bfloat16 and float16: a warning where rounding undoes a penalty, or stochastic rounding."""

from dataclasses import dataclass, field
from zlib import crc32

import torch

from shrinkage.distributed.dtensor import place_of
from shrinkage.errors import warn_user
from shrinkage.execution.task import Task
from shrinkage.optimizers.introspection import is_captured
from shrinkage.proximal.precision import NARROW
from shrinkage.training.penalized import PenalizedParameter


@dataclass
class Rounding:
    """How what is penalized in one optimizer is rounded.

    Args:
        stochastic: round up or down at random, so that the mean is right; False rounds to the nearest number, and warns
            once for each parameter most of which a penalty is too small to move.
    """

    stochastic: bool = False
    told: set[str] = field(default_factory=set)

    def generator(self, target: PenalizedParameter, task: Task, steps: int) -> torch.Generator | None:
        """Return what draws the rounding of `target` in step number `steps`; None to round to the nearest number.

        The numbers depend on the name of the parameter, the step, and the place of this process's shard alone: they are
        the same in all replicas and after a restart, and leave torch's own generators where they are.
        """
        if target.parameter.dtype not in NARROW:
            return None
        if self.stochastic:
            seed = crc32(" ".join(map(str, (target.name, steps, *place_of(target.parameter)))).encode())
            return torch.Generator(target.parameter.device).manual_seed(seed)
        # In steps 1, 2, 4, 8 ... only: an accelerator is waited for, and the learning rate may warm up from 0.
        # One shard of a group does not tell about the group, and one process may not ask the others here.
        known = target.name in self.told or is_captured(target.parameter) or target.group_sharding is not None
        if steps & (steps + 1) == 0 and not known:
            self._warn_of_stuck(target, task)
        return None

    def _warn_of_stuck(self, target: PenalizedParameter, task: Task) -> None:
        from shrinkage.execution.single_tensor import stuck_share

        share = stuck_share(*task, prox=not target.before)
        if share > 0.5:
            self.told.add(target.name)
            cut = "this process's shard of " if place_of(target.parameter) else ""
            warn_user(
                f"{task.penalty} is too small to move {100 * share:.0f}% of the weights of {cut}{target.name!r}, of "
                f"shape {tuple(task.w.shape)}, in a step: {task.w.dtype} rounds them back to where they were; keep "
                "the parameters in float32 (autocast computes in half precision), or choose "
                "Regularizer(..., stochastic_rounding=True)"
            )
