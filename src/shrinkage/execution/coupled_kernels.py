"""Kernels for groups that span parameters, in the metric of an `AdaptiveStep`: passes over one parameter at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from shrinkage.execution import compiled
from shrinkage.execution.kernels import added_up, last_pass_, left_for_norms
from shrinkage.execution.memory_layout import folded_by, memory_order
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep
from shrinkage.penalties.membership import Membership
from shrinkage.penalties.per_group import PerGroup
from shrinkage.proximal import secular
from shrinkage.proximal.precision import at_least_float32


class CompiledMember:
    """A parameter whose slices belong to groups; `of` returns None where there is no kernel."""

    def __init__(self, part: Membership, kind: str, kept: Sequence[int], given: tuple[Any, ...]) -> None:
        self.part, self._kind, self._kept, self._given = part, kind, kept, given

    @staticmethod
    def of(part: Membership, task: Task, slopes: Tensor, curves: Tensor) -> "CompiledMember | None":
        """Return the member, with the strengths of all groups; None where there is no kernel."""
        penalty, w, step = task
        least = compiled.LEAST // compiled.SLOW
        if not isinstance(step, AdaptiveStep) or not isinstance(penalty, PerGroup) or w.numel() < least:
            return None
        order = memory_order(w, step.moment)
        folded = None if order is None else folded_by(penalty.groups, w.shape, order)
        if order is None or folded is None:
            return None
        shape, within = folded
        kept = [1 if dim in within else size for dim, size in enumerate(shape)]
        w = w.permute(order).view(shape)
        step = compiled.with_tensors(step, lambda tensor: tensor.permute(order).view(shape))
        kind = f"Coupled {''.join('w' if dim in within else 'g' for dim in range(len(shape)))}"
        if not compiled.can_compile(kind, partial(all_passes_, within), w, step):
            return None
        linear, quadratic = (part.values(each).to(at_least_float32(w.dtype)).view(kept) for each in (slopes, curves))
        given = (w, *compiled.given_to_groups(step, w, 0.0, linear, quadratic), within)
        return CompiledMember(part, kind, kept, given)

    def sums(self) -> Tensor:
        """Return `secular.secular_sums` of the slices."""
        sums: Tensor = compiled.compiled(sums_pass, self._kind)(*self._given)
        return sums

    def terms(self, theta: Tensor) -> Tensor:
        """Return `secular.secular_terms` of the slices."""
        terms: Tensor = compiled.compiled(terms_pass, self._kind)(self._column(theta), *self._given)
        return terms

    def write_(self, root: Tensor) -> None:
        """Scale each element, unless the step or the strength is 0."""
        compiled.compiled(last_pass_, self._kind)(self._column(root), *self._given)

    def _column(self, padded: Tensor) -> Tensor:
        return self.part.values(padded).view(self._kept)


def all_passes_(within: tuple[int, ...], kind: str, w: Tensor, step: AdaptiveStep) -> None:
    """Run each kernel once, with strengths of 1."""
    shape = [1 if dim in within else size for dim, size in enumerate(w.shape)]
    ones = w.new_ones(shape, dtype=at_least_float32(w.dtype))
    given = (w, *compiled.given_to_groups(step, w, 0.0, ones, ones.clone()), within)
    compiled.compiled(sums_pass, kind)(*given)
    compiled.compiled(terms_pass, kind)(ones.clone(), *given)
    compiled.compiled(last_pass_, kind)(ones.clone(), *given)


def sums_pass(*given: Any) -> Tensor:
    """Return the sums over slices from which roots are bracketed."""
    w, metric, within = left_for_norms(*given)
    return added_up(secular.secular_sums(w, metric, within[-1:]), within[:-1])


def terms_pass(theta: Tensor, *given: Any) -> Tensor:
    """Return the sums over slices of which an iteration is made."""
    w, metric, within = left_for_norms(*given)
    return added_up(secular.secular_terms(w, metric, theta, within[-1:]), within[:-1])
