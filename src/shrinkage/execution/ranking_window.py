"""A ranking that begins near the last one: one pass counts what is larger, and takes out what may be the threshold.

From one update to the next a threshold moves little. What lies in a window around it is ranked alone. If the threshold
turns out to lie elsewhere, a wider window is tried. If it is not there either, everything is counted, as in the first
ranking. Native kernels count and look, where there are some.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.execution import native_ranking
from shrinkage.execution.native_ranking import Library, can_rank
from shrinkage.proximal.ranking import CHUNK, Counting, Layers, Thresholds, chunks, counted, thresholds
from shrinkage.proximal.reductions import alone

WIDTHS = (0.0025, 0.02)  # of the number that is expected, to both sides
LARGEST = 0x7F000000  # patterns beyond this one are close to infinity
WORD = 8  # places that are looked at together


class Inside(NamedTuple):
    """The sizes of a layer in a window, and how many are larger."""

    sizes: Tensor
    above: int


def ranked(layers: Layers, left: int, near: Sequence[float], library: Library) -> Thresholds:
    """Return the thresholds that leave `left` weights, of layers that this process holds.

    Args:
        layers: what is ranked.
        left: so many weights stay.
        near: a number for each layer that may be near its threshold; empty if nothing is known.
        library: of native kernels.
    """
    for width in WIDTHS if near else ():
        found = ranked_nearby(layers, left, near, width, library)
        if found is not None:
            return found
    return alone(thresholds(layers, left, counting(library)))


def counting(library: Library) -> Counting:
    """Return what counts digits, by native kernels where there are some."""

    def count(sizes: Tensor, prefix: Tensor, shift: int, bits: int) -> Tensor:
        if library is None or not can_rank(sizes):
            return counted(sizes, prefix, shift, bits)
        return native_ranking.counted(library, sizes, int(prefix), shift, bits)

    return count


def expected(last: Sequence[Thresholds]) -> list[float]:
    """Return where thresholds are next, if they go on as they did in the last two rankings, the later one first."""
    if not last:
        return []
    numbers = [[number_of(pattern) for pattern in each.patterns.tolist()] for each in last[:2]]
    return [2 * own - before for own, before in zip(numbers[0], numbers[-1], strict=True)]


def ranked_nearby(
    layers: Layers, left: int, near: Sequence[float], width: float, library: Library
) -> Thresholds | None:
    """Return the same as `ranked`, if each threshold is within `width` of the number in `near`; None if one is not."""
    if not all(0 < number < number_of(LARGEST) for number in near):
        return None
    lows, highs = ([rounded(number * factor) for number in near] for factor in (1 - width, 1 + width))
    found = looked_at(layers.sizes, lows, highs, library)
    if found is None:
        return None
    above = torch.tensor([each.above for each in found])
    reached = above + torch.tensor([each.sizes.numel() for each in found])
    if bool((reached < layers.least).any()) or int((reached * layers.members).sum()) < left:
        return None
    inside = layers._replace(sizes=[each.sizes for each in found], above=above)
    result = alone(thresholds(inside, left, counting(library)))
    numbers = map(number_of, result.patterns.tolist())
    within = all(low < number <= high for low, number, high in zip(lows, numbers, highs, strict=True))
    return result if within else None


def looked_at(
    sizes: Sequence[Tensor], lows: Sequence[float], highs: Sequence[float], library: Library
) -> list[Inside] | None:
    """Return what lies in the window of each layer; None where that cannot be told in one pass."""
    if library is not None and all(map(can_rank, sizes)):
        patterns = [[pattern_of(number) for number in each] for each in (lows, highs)]
        found = native_ranking.looked_at(library, sizes, *patterns)
        return None if found is None else [Inside(*each) for each in found]
    if any(each.dtype != torch.float32 or not each.is_cpu for each in sizes):
        return None
    return [inside(*each) for each in zip(sizes, lows, highs, strict=True)]


def inside(sizes: Tensor, low: float, high: float) -> Inside:
    """Return what is larger than `low` and not larger than `high`, and how much is larger than that.

    Comparisons are made by `hardshrink`, which is several times as fast as an operator that makes truth values. Words
    of eight places without one inside are skipped.
    """
    taken, above, scratch = [sizes[:0]], 0, torch.empty(min(sizes.numel(), CHUNK))
    larger, window = (torch.empty(scratch.numel(), dtype=torch.bool) for _ in range(2))
    for chunk in chunks(sizes):
        n = chunk.numel()
        over, within, whole = larger[:n], window[:n], n // WORD * WORD
        over.copy_(torch.hardshrink(chunk, high, out=scratch[:n]))
        within.copy_(torch.hardshrink(chunk, low, out=scratch[:n]))
        above += int(over.view(torch.uint8).sum(dtype=torch.int32))
        words = within.logical_xor_(over)[:whole].view(torch.int64).nonzero().view(-1)
        taken += [chunk[:whole].view(-1, WORD).index_select(0, words).view(-1), chunk[whole:]]
    near = torch.cat(taken).abs()
    return Inside(near[(near > low) & (near <= high)], above)


def number_of(pattern: int) -> float:
    """Return the number whose magnitude has a bit pattern."""
    return torch.tensor(pattern, dtype=torch.int32).view(torch.float32).item()


def pattern_of(number: float) -> int:
    """Return the bit pattern of a magnitude."""
    return int(torch.tensor(number, dtype=torch.float32).view(torch.int32))


def rounded(number: float) -> float:
    """Return `number` as a float32."""
    return torch.tensor(number, dtype=torch.float32).item()
