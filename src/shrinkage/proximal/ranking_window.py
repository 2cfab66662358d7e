"""A ranking that begins near the last one: one pass counts what is larger, and takes out what may be the threshold.

From one update to the next a threshold moves little. What lies in a window around it is ranked alone. If the threshold
turns out to lie elsewhere, everything is counted, as in the first ranking.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.proximal.ranking import Layers, Thresholds, chunks, thresholds
from shrinkage.proximal.reductions import alone

WIDTH = 0.01  # of the last threshold, to both sides
LARGEST = 0x7F000000  # patterns beyond this one are close to infinity
WORD = 8  # places that are looked at together


class Inside(NamedTuple):
    """The sizes of a layer in a window, how many are larger, and the two numbers that bound it."""

    sizes: Tensor
    above: int
    low: float
    high: float


def ranked(layers: Layers, left: int, near: Sequence[float]) -> Thresholds:
    """Return the thresholds that leave `left` weights, of layers that this process holds.

    Args:
        layers: what is ranked.
        left: so many weights stay.
        near: a number for each layer that may be near its threshold; empty if nothing is known.
    """
    found = ranked_nearby(layers, left, near) if near else None
    return alone(thresholds(layers, left)) if found is None else found


def expected(last: Sequence[Thresholds]) -> list[float]:
    """Return where thresholds are next, if they go on as they did in the last two rankings, the later one first."""
    if not last:
        return []
    numbers = [[number_of(pattern) for pattern in each.patterns.tolist()] for each in last[:2]]
    return [2 * own - before for own, before in zip(numbers[0], numbers[-1], strict=True)]


def ranked_nearby(layers: Layers, left: int, near: Sequence[float]) -> Thresholds | None:
    """Return the same as `ranked`, if each threshold is near the number in `near`; None if one is not."""
    if any(sizes.dtype != torch.float32 or not sizes.is_cpu for sizes in layers.sizes):
        return None
    if not all(0 < number < number_of(LARGEST) for number in near):
        return None
    found = [inside(sizes, number) for sizes, number in zip(layers.sizes, near, strict=True)]
    above = torch.tensor([each.above for each in found])
    reached = above + torch.tensor([each.sizes.numel() for each in found])
    if bool((reached < layers.least).any()) or int((reached * layers.members).sum()) < left:
        return None
    result = alone(thresholds(layers._replace(sizes=[each.sizes for each in found], above=above), left))
    numbers = map(number_of, result.patterns.tolist())
    within = all(each.low < number <= each.high for each, number in zip(found, numbers, strict=True))
    return result if within else None


def inside(sizes: Tensor, near: float) -> Inside:
    """Return what lies within a window around the number `near`, and how much above it.

    Comparisons are made by `hardshrink`, which is several times as fast as an operator that makes truth values.
    """
    low, high = rounded(near * (1 - WIDTH)), rounded(near * (1 + WIDTH))
    taken, above, scratch = [], 0, torch.empty(min(sizes.numel(), next(chunks(sizes)).numel()))
    larger, window = (torch.empty(scratch.numel(), dtype=torch.bool) for _ in range(2))
    for chunk in chunks(sizes):
        n = chunk.numel()
        over, within = larger[:n], window[:n]
        over.copy_(torch.hardshrink(chunk, high, out=scratch[:n]))
        within.copy_(torch.hardshrink(chunk, low, out=scratch[:n]))
        above += int(over.view(torch.uint8).sum(dtype=torch.int32))
        within.logical_xor_(over)
        taken.append(selected(chunk, within))
    return Inside(torch.cat(taken), above, low, high)


def selected(chunk: Tensor, mask: Tensor) -> Tensor:
    """Return the elements where `mask` is true, of which there are few: words of eight without one are skipped."""
    whole = chunk.numel() // WORD * WORD
    words = mask[:whole].view(torch.int64).nonzero().view(-1)
    rows, marks = chunk[:whole].view(-1, WORD)[words], mask[:whole].view(-1, WORD)[words]
    return torch.cat([rows[marks], chunk[whole:][mask[whole:]]])


def number_of(pattern: int) -> float:
    """Return the number whose magnitude has a bit pattern."""
    return torch.tensor(pattern, dtype=torch.int32).view(torch.float32).item()


def rounded(number: float) -> float:
    """Return `number` as a float32."""
    return torch.tensor(number, dtype=torch.float32).item()
