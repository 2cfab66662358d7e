"""Proximal operators of groups that span parameters, in place: small ones joined, large ones in chunks or by kernels.

The parameters are read for the sums over groups: once in a plain metric, and once per iteration of the secular equation
in a diagonal one. Then each is written where it is. `coupled_norms.prox` is the plain form.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.execution import native_coupled
from shrinkage.execution.buckets import LARGEST, LARGEST_COMPILED, Joined, batched
from shrinkage.execution.compiled import is_wanted
from shrinkage.execution.coupled_kernels import CompiledMember
from shrinkage.execution.in_place import norms_in_blocks
from shrinkage.execution.single_tensor import chunks
from shrinkage.execution.task import Compile, Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Step, number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.convex import L1
from shrinkage.penalties.coupled_groups import Slices
from shrinkage.penalties.coupled_norms import as_tensor, factors_of, one_number, widest
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.membership import GroupPenalty, Membership, padded
from shrinkage.proximal import secular
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import alone


class MemberTask(NamedTuple):
    """A tensor, the groups of its slices, and the step of its proximal operator."""

    part: Membership
    w: Tensor
    step: Step

    @property
    def task(self) -> Task:
        """The task as if its slices were groups of their own, which can be joined and compiled alike."""
        return Task(by_slices(self.part.dim), self.w, self.step)


@cache
def by_slices(dim: int) -> Grouped:
    """Return a penalty whose groups are slices: one object for each dimension."""
    return Grouped(L1(1.0), Slices(dim))


def shrink_together_(group_penalty: GroupPenalty, members: Sequence[MemberTask], *, compile: Compile) -> None:
    """Move members that share groups to their common proximal point."""
    if compile is not False and native_coupled.shrink_together_(group_penalty, members):
        return
    kernels = is_wanted(compile, [member.task for member in members])
    steps = [member.step for member in members]
    plain = None if any(isinstance(step, AdaptiveStep) for step in steps) else one_number(list(map(number, steps)))
    radials = group_penalty.penalty.radial()
    if plain is None and radials is None:
        search_(group_penalty, members)
        return
    batches = list(joined(members, LARGEST_COMPILED if kernels else LARGEST))
    whole = [member for member, _ in batches]
    if plain is not None:
        scale_(group_penalty, whole, plain)
    elif radials is not None:
        linear, quadratic = (part * group_penalty.weights for part in radials)
        shrink_in_metric_(linear, quadratic, whole, kernels=kernels)
    for _, batch in batches:
        if batch is not None:
            batch.write_back()


def joined(members: Sequence[MemberTask], largest: int) -> Iterator[tuple[MemberTask, Joined | None]]:
    """Yield members; small ones are joined, and have to be written back afterwards."""
    parts = {id(member.w): member.part for member in members}
    for batch in batched([member.task for member in members], largest):
        if len(batch) == 1:
            ((_, w, step),) = batch
            yield MemberTask(parts[id(w)], w, step), None
            continue
        own = [parts[id(each.w)] for each in batch]
        one = Joined(batch)
        groups = torch.cat([part.groups for part in own])
        yield MemberTask(Membership(own[0].dim, groups, own[0].count), one.task.w, one.task.step), one


def search_(group_penalty: GroupPenalty, members: Sequence[MemberTask]) -> None:
    """Move members in a diagonal metric where the penalty may have several minima."""
    parts, ws = [member.part for member in members], [member.w for member in members]
    moved = alone(
        coupled_norms.prox(group_penalty, parts, ws, [number(member.step) for member in members], to_rest=True)
    )
    for w, to in zip(ws, moved, strict=True):
        w.copy_(to)


def scale_(group_penalty: GroupPenalty, members: Sequence[MemberTask], step: float | Tensor) -> None:
    """Scale groups in a plain metric: norms are read once, and weights scaled where they are."""
    split = [(part, part.split(w)) for part, w, _ in members]
    total = zeros(members, 1)
    for part, w in split:
        part.add_(total, norms_in_blocks(w, part.within(w)).square()[None])
    factors = padded(factors_of(group_penalty, total[0, :-1].sqrt(), step), 1.0)
    for part, w in split:
        w.mul_(part.column(factors, w))


def shrink_in_metric_(linear: Tensor, quadratic: Tensor, members: Sequence[MemberTask], *, kernels: bool) -> None:
    """Scale groups in a diagonal metric, by one secular equation for all members of a group.

    Args:
        linear: the part of each group's penalty in proportion to its norm, shape `(count,)`.
        quadratic: the part in proportion to half of its square.
        members: what is moved.
        kernels: whether large members are moved by kernels.
    """
    slopes, curves = padded(linear, 0.0), padded(quadratic, 0.0)
    forms: list[PlainMember | CompiledMember] = []
    for member in members:
        own = CompiledMember.of(member.part, member.task, slopes, curves) if kernels else None
        forms += [own] if own is not None else [PlainMember(chunk, slopes, curves) for chunk in cut(member)]
    to_rest = all(member.w.device.type == "cpu" for member in members)

    def sums() -> Tensor:
        total = zeros(members, 5)
        for form in forms:
            form.part.add_(total, form.sums())
        return total[:, :-1]

    def terms(theta: Tensor, resting: Tensor) -> Tensor:
        total, point, at_rest = zeros(members, 2), padded(theta, 0.0), padded(resting, True)
        for form in forms:
            if not (to_rest and bool(form.part.values(at_rest).all())):
                form.part.add_(total, form.terms(point))
        return total[:, :-1]

    root = padded(alone(secular.secular_root(sums, terms, to_rest=to_rest)), 0.0)
    for form in forms:
        form.write_(root)


def zeros(members: Sequence[MemberTask], count: int) -> Tensor:
    """Return so many sums per group of nothing, and of slices in none."""
    dtype = torch.promote_types(widest([member.w for member in members]), torch.float32)
    return torch.zeros(count, members[0].part.count + 1, dtype=dtype, device=members[0].w.device)


def cut(member: MemberTask) -> Iterator[MemberTask]:
    """Yield chunks of a member that are small enough for a processor's cache."""
    part, w, step = member
    if isinstance(step, Tensor) and step.dim():
        step = step.expand_as(w)
    start = 0
    for _, chunk, own in chunks(by_slices(part.dim), w, step, share=2):
        length = chunk.shape[part.dim]
        yield MemberTask(part.cut(start, length), chunk, own)
        start += length


class PlainMember:
    """A chunk of a member, whose metric is computed anew wherever it is used."""

    def __init__(self, member: MemberTask, slopes: Tensor, curves: Tensor) -> None:
        self.part, self._w, self._step = member
        split = self.part.split(self._w)
        self._within = self.part.within(split)
        self._slope, self._curve = self.part.column(slopes, split), self.part.column(curves, split)

    def sums(self) -> Tensor:
        """Return `secular.secular_sums` of the slices."""
        inner, thresholds = self._left()
        return secular.secular_sums(inner, metric_of(thresholds), self._within)

    def terms(self, theta: Tensor) -> Tensor:
        """Return `secular.secular_terms` of the slices."""
        inner, thresholds = self._left()
        return secular.secular_terms(inner, metric_of(thresholds), self.part.column(theta, inner), self._within)

    def write_(self, root: Tensor) -> None:
        """Scale each element, unless the step or the strength is 0."""
        inner, thresholds = self._left()
        scale = secular.secular_scale(metric_of(thresholds), self.part.column(root, inner))
        self.part.split(self._w).copy_(inner * scale.masked_fill_(thresholds == 0, 1.0))

    def _left(self) -> tuple[Tensor, Tensor]:
        """Return elements, and steps times strength, after the quadratic part is taken in."""
        inner = self.part.split(upcast(self._w))
        steps = self.part.split(as_tensor(number(self._step), self._w))
        divisor = 1 + steps * self._curve
        return inner / divisor, steps / divisor * self._slope


def metric_of(thresholds: Tensor) -> Tensor:
    """Return 1 / t, as far as it can be squared."""
    return thresholds.clamp_min(1 / secular.largest(thresholds.dtype)).reciprocal_()
