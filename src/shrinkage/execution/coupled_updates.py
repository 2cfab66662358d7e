"""Proximal operators of groups that span parameters, in place: small parameters joined, large ones cut or compiled.

The parameters are read for the sums over groups, once in a plain metric and once per iteration of the secular equation
in another, and then written, each where it is. What `coupled.prox` of `penalties` returns is the plain form.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.execution.buckets import LARGEST, LARGEST_COMPILED, Joined, batched
from shrinkage.execution.compiled import Compile, is_wanted
from shrinkage.execution.coupled_kernels import CompiledSlab
from shrinkage.execution.in_place import norms_in_blocks
from shrinkage.execution.single_tensor import chunks
from shrinkage.execution.task import Task
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


class Slab(NamedTuple):
    """A tensor, the groups of its slices, and the step of its proximal operator."""

    part: Membership
    w: Tensor
    step: Step

    @property
    def task(self) -> Task:
        """The slab as if its slices were groups of their own, which can be joined and compiled alike."""
        return Task(by_slices(self.part.dim), self.w, self.step)


@cache
def by_slices(dim: int) -> Grouped:
    """Return a penalty whose groups are slices: one object for each dimension."""
    return Grouped(L1(1.0), Slices(dim))


def shrink_together_(group_penalty: GroupPenalty, slabs: Sequence[Slab], *, compile: Compile) -> None:
    """Move all slabs to the proximal point of all of them together."""
    kernels = is_wanted(compile, [slab.task for slab in slabs])
    steps = [slab.step for slab in slabs]
    plain = None if any(isinstance(step, AdaptiveStep) for step in steps) else one_number(list(map(number, steps)))
    radials = group_penalty.penalty.radial()
    if plain is None and radials is None:
        search_(group_penalty, slabs)
        return
    batches = list(joined(slabs, LARGEST_COMPILED if kernels else LARGEST))
    whole = [slab for slab, _ in batches]
    if plain is not None:
        scale_(group_penalty, whole, plain)
    elif radials is not None:
        linear, quadratic = (part * group_penalty.weights for part in radials)
        shrink_in_metric_(linear, quadratic, whole, kernels=kernels)
    for _, batch in batches:
        if batch is not None:
            batch.write_back()


def joined(slabs: Sequence[Slab], largest: int) -> Iterator[tuple[Slab, Joined | None]]:
    """Yield slabs, small ones joined, which have to be written back then."""
    parts = {id(slab.w): slab.part for slab in slabs}
    for batch in batched([slab.task for slab in slabs], largest):
        if len(batch) == 1:
            ((_, w, step),) = batch
            yield Slab(parts[id(w)], w, step), None
            continue
        own = [parts[id(each.w)] for each in batch]
        one = Joined(batch)
        groups = torch.cat([part.groups for part in own])
        yield Slab(Membership(own[0].dim, groups, own[0].count), one.task.w, one.task.step), one


def search_(group_penalty: GroupPenalty, slabs: Sequence[Slab]) -> None:
    """Move slabs in a diagonal metric where the penalty may have several minima."""
    parts, ws = [slab.part for slab in slabs], [slab.w for slab in slabs]
    moved = alone(coupled_norms.prox(group_penalty, parts, ws, [number(slab.step) for slab in slabs], to_rest=True))
    for w, to in zip(ws, moved, strict=True):
        w.copy_(to)


def scale_(group_penalty: GroupPenalty, slabs: Sequence[Slab], step: float | Tensor) -> None:
    """Scale groups in a plain metric: norms are read once, and weights scaled where they are."""
    split = [(part, part.split(w)) for part, w, _ in slabs]
    total = zeros(slabs, 1)
    for part, w in split:
        part.add_(total, norms_in_blocks(w, part.within(w)).square()[None])
    factors = padded(factors_of(group_penalty, total[0, :-1].sqrt(), step), 1.0)
    for part, w in split:
        w.mul_(part.column(factors, w))


def shrink_in_metric_(linear: Tensor, quadratic: Tensor, slabs: Sequence[Slab], *, kernels: bool) -> None:
    """Scale groups in a diagonal metric, by one secular equation for all slabs of a group.

    Args:
        linear: the part of each group's penalize in proportion to its norm, shape `(count,)`.
        quadratic: the part in proportion to half of its square.
        slabs: what is moved.
        kernels: whether large slabs are moved by kernels.
    """
    slopes, curves = padded(linear, 0.0), padded(quadratic, 0.0)
    forms: list[CutSlab | CompiledSlab] = []
    for slab in slabs:
        own = CompiledSlab.of(slab.part, slab.task, slopes, curves) if kernels else None
        forms += [own] if own is not None else [CutSlab(piece, slopes, curves) for piece in cut(slab)]
    to_rest = all(slab.w.device.type == "cpu" for slab in slabs)

    def sums() -> Tensor:
        total = zeros(slabs, 5)
        for form in forms:
            form.part.add_(total, form.sums())
        return total[:, :-1]

    def terms(theta: Tensor, resting: Tensor) -> Tensor:
        total, point, at_rest = zeros(slabs, 2), padded(theta, 0.0), padded(resting, True)
        for form in forms:
            if not (to_rest and bool(form.part.values(at_rest).all())):
                form.part.add_(total, form.terms(point))
        return total[:, :-1]

    root = padded(alone(secular.secular_root(sums, terms, to_rest=to_rest)), 0.0)
    for form in forms:
        form.write_(root)


def zeros(slabs: Sequence[Slab], count: int) -> Tensor:
    """Return so many sums per group of nothing, and of slices in none."""
    dtype = torch.promote_types(widest([slab.w for slab in slabs]), torch.float32)
    return torch.zeros(count, slabs[0].part.count + 1, dtype=dtype, device=slabs[0].w.device)


def cut(slab: Slab) -> Iterator[Slab]:
    """Yield chunks of a slab that are small enough for a processor's cache."""
    part, w, step = slab
    if isinstance(step, Tensor) and step.dim():
        step = step.expand_as(w)
    start = 0
    for _, chunk, own in chunks(by_slices(part.dim), w, step, share=2):
        length = chunk.shape[part.dim]
        yield Slab(part.cut(start, length), chunk, own)
        start += length


class CutSlab:
    """A chunk of a slab, for which the metric is computed anew wherever it is used."""

    def __init__(self, slab: Slab, slopes: Tensor, curves: Tensor) -> None:
        self.part, self._w, self._step = slab
        split = self.part.split(self._w)
        self._within = self.part.within(split)
        self._slope, self._curve = self.part.column(slopes, split), self.part.column(curves, split)

    def sums(self) -> Tensor:
        """Return `radial.secular_sums` of the slices."""
        inner, thresholds = self._left()
        return secular.secular_sums(inner, metric_of(thresholds), self._within)

    def terms(self, theta: Tensor) -> Tensor:
        """Return `radial.secular_terms` of the slices."""
        inner, thresholds = self._left()
        return secular.secular_terms(inner, metric_of(thresholds), self.part.column(theta, inner), self._within)

    def write_(self, root: Tensor) -> None:
        """Scale each element, unless the step or the strength is 0."""
        inner, thresholds = self._left()
        scale = secular.secular_scale(metric_of(thresholds), self.part.column(root, inner))
        self.part.split(self._w).copy_(inner * scale.masked_fill_(thresholds == 0, 1.0))

    def _left(self) -> tuple[Tensor, Tensor]:
        """Return what is left for norms once the quadratic part is taken in: elements, and steps times strength."""
        inner = self.part.split(upcast(self._w))
        steps = self.part.split(as_tensor(number(self._step), self._w))
        divisor = 1 + steps * self._curve
        return inner / divisor, steps / divisor * self._slope


def metric_of(thresholds: Tensor) -> Tensor:
    """Return 1 / t, as far as it can be squared."""
    return thresholds.clamp_min(1 / secular.largest(thresholds.dtype)).reciprocal_()
