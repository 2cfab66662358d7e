"""Which channel each element of a tensor belongs to, and what an operation does to that."""

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from shrinkage.compression.tracing.disjoint_sets import DisjointSets
from shrinkage.penalties.value_objects import value_class


@value_class
class Channels:
    """The channels of a tensor: an element lives if all of its labels do.

    Each of `factors` is an integer tensor of labels that broadcasts to `shape`. No two of them extend along the same
    axis, and an axis along which none extends keeps its length. A weight of 8 rows and 3 columns has two factors, of
    shapes `(8, 1)` and `(1, 3)`; the output of a convolution has one, of shape `(1, channels, 1, 1)`; queries that were
    split into heads have one of shape `(1, heads, 1, size)`.
    """

    shape: tuple[int, ...]
    factors: tuple[Tensor, ...] = ()

    def along(self, axis: int) -> Tensor | None:
        """Return the factor that extends along `axis`."""
        return next((factor for factor in self.factors if factor.shape[axis] > 1), None)


def axes_of(factor: Tensor) -> list[int]:
    """Return the axes along which `factor` extends."""
    return [axis for axis, size in enumerate(factor.shape) if size > 1]


def reduced(labels: DisjointSets, factor: Tensor) -> Tensor:
    """Return `factor` without the axes along which it is constant."""
    roots = labels.find(factor)
    for axis in axes_of(factor):
        if torch.equal(roots, roots.narrow(axis, 0, 1).expand_as(roots)):
            factor, roots = factor.narrow(axis, 0, 1), roots.narrow(axis, 0, 1)
    return factor


def made(labels: DisjointSets, shape: Sequence[int], factors: Iterable[Tensor], place: str = "") -> Channels:
    """Return the channels with `factors`, made to extend along no axis twice and along none in vain.

    What extends along an axis of another length, which an operator cut or padded, stays. `place` tells in words where
    that is, for the reasons of what is held.
    """
    kept: list[Tensor] = []
    for factor in factors:
        factor = reduced(labels, factor)
        if any(shape[axis] != factor.shape[axis] for axis in axes_of(factor)):
            labels.pin(factor, f"lies along an axis whose length changes{place}")
            continue
        if not axes_of(factor):
            labels.pin(factor, f"all channels of a tensor are coupled{place}")
            continue
        for other in [other for other in kept if set(axes_of(other)) & set(axes_of(factor))]:
            labels.pin(factor, f"two kinds of channels share an axis{place}")
            labels.pin(other, f"two kinds of channels share an axis{place}")
            break
        else:
            kept.append(factor)
    return Channels(tuple(shape), tuple(kept))


def fixed(labels: DisjointSets, channels: Channels, axes: Iterable[int], reason: str) -> Channels:
    """Return `channels` when none of `axes` may change its length.

    Channels that extend along other axes too can still go as a whole: heads, where the size of a head is fixed.
    """
    axes = {axis % len(channels.shape) for axis in axes}
    factors = []
    for factor in channels.factors:
        inner = axes & set(axes_of(factor))
        if inner and inner != set(axes_of(factor)):
            for axis in inner:
                labels.unite(factor, factor.narrow(axis, 0, 1))
        if inner and (inner == set(axes_of(factor)) or not axes_of(reduced(labels, factor))):
            labels.pin(factor, reason)
        factors.append(factor)
    return made(labels, channels.shape, factors)


def combined(
    labels: DisjointSets, operands: Sequence[Channels], shape: Sequence[int], reason: str, place: str = ""
) -> Channels:
    """Return the channels of a pointwise function of `operands`: what meets in one element is one channel."""
    operands = [raised(channels, len(shape)) for channels in operands]
    before = None
    while before != (before := [[axes_of(factor) for factor in channels.factors] for channels in operands]):
        operands = [_met(labels, operands, number, reason) for number in range(len(operands))]
    factors: list[Tensor] = []
    every = [factor for channels in operands for factor in channels.factors]
    for factor in sorted(every, key=lambda factor: len(axes_of(factor))):  # so that a grid meets what lies along it
        factors = _joined(labels, factors, factor, place)
    return made(labels, shape, factors, place)


def raised(channels: Channels, rank: int) -> Channels:
    """Return `channels` with axes of length 1 in front, as broadcasting does."""
    missing = rank - len(channels.shape)
    ones = (1,) * missing
    factors = tuple(factor.reshape(ones + tuple(factor.shape)) for factor in channels.factors)
    return Channels(ones + channels.shape, factors)


def _met(labels: DisjointSets, operands: Sequence[Channels], number: int, reason: str) -> Channels:
    """Return operand `number`, fixed along the axes that are fixed in another one."""
    mine, others = operands[number], [*operands[:number], *operands[number + 1 :]]
    axes = [
        axis
        for factor in mine.factors
        for axis in axes_of(factor)
        if any(other.shape[axis] > 1 and other.along(axis) is None for other in others)
    ]
    return fixed(labels, mine, axes, reason) if axes else mine


def _extends(labels: DisjointSets, factor: Tensor, axes: Sequence[int]) -> bool:
    """Return whether channels differ along one of `axes`."""
    return bool(set(axes_of(reduced(labels, factor))) & set(axes))


def _joined(labels: DisjointSets, factors: list[Tensor], factor: Tensor, place: str) -> list[Tensor]:
    """Return `factors` and `factor`, one with those that extend along an axis of it."""
    apart = [other for other in factors if not set(axes_of(other)) & set(axes_of(factor))]
    met = [other for other in factors if set(axes_of(other)) & set(axes_of(factor))]
    for number, other in enumerate(met):
        small, large = sorted((other, factor), key=lambda labels: len(axes_of(labels)))
        beyond = set(axes_of(reduced(labels, large))) - set(axes_of(small))
        loose = [each for each in met[number + 1 :] if labels.are_loose(each)]
        if beyond and labels.are_loose(small) and beyond <= {axis for each in loose for axis in axes_of(each)}:
            # A first state or a cache of so many heads of such a size: heads go as a whole.
            for axis in beyond:
                labels.unite(large, large.narrow(axis, 0, 1))
            labels.unite(small, large)
            factor = large
        elif beyond and labels.are_loose(small):
            # Sines and cosines of positions, say, which would tie all heads to each other.
            labels.pin(small, "a buffer that meets channels in a grid")
            for axis in axes_of(small):
                labels.unite(large, large.narrow(axis, 0, 1))
            factor = large
        elif len(axes_of(small)) < len(axes_of(large)) and not _extends(labels, large, axes_of(small)):
            # Heads that go as a whole, and a weight as long as one of them, which would tie all heads to each other.
            labels.pin(small, f"runs along what goes as a whole{place}")
            factor = large
        else:
            labels.unite(other, factor)
            factor = other + 0 * factor
    return [*apart, factor]


def reshaped(labels: DisjointSets, channels: Channels, shape: Sequence[int], place: str = "") -> Channels:
    """Return the channels of the same elements in another `shape`."""
    blocks = _blocks(channels.shape, shape)
    factors = []
    for factor in sorted(channels.factors, key=axes_of):
        extent, result = [1] * len(channels.shape), [1] * len(shape)
        for before, after in blocks:
            if any(factor.shape[axis] > 1 for axis in before):
                for axis in before:
                    extent[axis] = channels.shape[axis]
                for axis in after:
                    result[axis] = shape[axis]
        factors.append(factor.expand(extent).reshape(result))
    return made(labels, shape, _without_repeats(labels, factors, place), place)


def _without_repeats(labels: DisjointSets, factors: list[Tensor], place: str) -> list[Tensor]:
    """Return those of `factors` that share no axis with another one before; the others stay as they are.

    So of the inputs of a Kolmogorov-Arnold network and the functions of each, in one row, the inputs can go. What is of
    no parameter stays beside any other.
    """
    kept: list[Tensor] = []
    if len({axis for each in factors for axis in axes_of(each)}) < sum(len(axes_of(each)) for each in factors):
        factors = [each for each in factors if not labels.are_pinned(each)]  # whose number is as good as fixed
    for number, factor in enumerate(factors):
        factor = reduced(labels, factor)
        others = factors[:number] + factors[number + 1 :]
        if labels.are_loose(factor) and any(set(axes_of(other)) & set(axes_of(factor)) for other in others):
            labels.pin(factor, "repeated a fixed number of times")
        elif any(set(axes_of(other)) & set(axes_of(factor)) for other in kept):
            labels.pin(factor, f"two kinds of channels share an axis{place}")
        else:
            kept.append(factor)
    return kept


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the least blocks of neighbouring axes of two shapes that hold the same elements."""
    blocks, left, right = [], 0, 0
    while left < len(before) or right < len(after):
        ins: list[int] = []
        outs: list[int] = []
        while True:
            inside, outside = prod(before[axis] for axis in ins), prod(after[axis] for axis in outs)
            if ins and outs and inside == outside:
                break
            if left < len(before) and (not ins or inside < outside or right == len(after)):
                ins.append(left)
                left += 1
            elif right < len(after):
                outs.append(right)
                right += 1
            else:
                break
        blocks.append((ins, outs))
    return blocks
