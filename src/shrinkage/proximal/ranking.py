"""Which weights of several tensors are the largest of all: exact, by counting bit patterns, without a sort.

The magnitude of a float32 without its sign, read as a whole number of 31 bits, orders as the numbers do. So the k-th
largest is found digit by digit: three times, the next 11, 10 and 10 bits are counted of what shares the digits found
so far. Counts of several processes add up, so that three sums and one exchange of ties rank what they hold together.

A layer keeps `least` at least. So there is a common threshold t for which the sum over layers of
max(least, number of sizes >= t) is what stays; and layers with fewer sizes >= t have thresholds of their own, which
are found in the same rounds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.proximal.reductions import Reduction

ROUNDS = ((20, 11), (10, 10), (0, 10))  # the lowest bit of each digit, and how many it has
MAGNITUDE = 0x7FFFFFFF
CHUNK = 1 << 17  # elements that are looked at together, so that temporaries stay in a processor's cache


Counting = Callable[[Tensor, Tensor, int, int], Tensor]  # see `counted`


class Layers(NamedTuple):
    """What is ranked together, as far as this process holds it.

    Args:
        sizes: of the groups (or single weights) of each layer, flat, on one device.
        members: the number of weights of each of its groups.
        least: so many groups each layer keeps.
        places: of each layer, the number of processes that hold a shard, and which of them this one is.
        above: of each layer, so many more groups that are larger than all of `sizes`.
    """

    sizes: Sequence[Tensor]
    members: Tensor
    least: Tensor
    places: Sequence[tuple[int, int]]
    above: Tensor | None = None


class Thresholds(NamedTuple):
    """What stays of each layer: what is larger than a bit pattern, and the first `ties` of what equals it.

    Args:
        patterns: of each layer.
        ties: that stay, in the shard of this process.
        all_ties: what equals the pattern there.
        stay: so many groups stay, in all processes.
        bound: whether its floor holds the layer: it has a threshold of its own.
    """

    patterns: Tensor
    ties: Tensor
    all_ties: Tensor
    stay: Tensor
    bound: Tensor


def floors(sizes: Sequence[int], members: Sequence[int], left: int, least: float) -> list[int]:
    """Return how many groups each layer keeps at least.

    That is the part `least` of its even share, and never fewer than one. All together they are at most `left` weights,
    as far as one group of each layer is.

    Args:
        sizes: the number of groups of each layer.
        members: the number of weights of each of its groups; 1 for single weights.
        left: so many weights stay in all layers.
        least: from 0 to 1.

    >>> floors([100, 900], [1, 1], 100, 0.3)
    [3, 27]
    """
    count = sum(size * each for size, each in zip(sizes, members, strict=True))
    shares = [least * left / count * size for size in sizes]
    for rounded in (math.ceil, math.floor, lambda share: 1):
        found = [min(size, max(1, rounded(share))) for size, share in zip(sizes, shares, strict=True)]
        if sum(m * each for m, each in zip(found, members, strict=True)) <= left:
            break
    return found


def patterns_of(sizes: Tensor) -> Tensor:
    """Return the magnitudes as whole numbers in the same order: NaN above infinity, -0.0 equal to 0.0.

    >>> patterns_of(torch.tensor([-2.0, 1.0, -0.0]))
    tensor([1073741824, 1065353216,          0], dtype=torch.int32)
    """
    return sizes.reshape(-1).float().view(torch.int32) & MAGNITUDE


def chunks(flat: Tensor) -> Iterator[Tensor]:
    """Yield a flat tensor in chunks that fit the cache of a processor; on a device that is none, as a whole."""
    yield from torch.split(flat, CHUNK) if flat.is_cpu else (flat,)


def thresholds(layers: Layers, left: int, count: Counting | None = None) -> Reduction[Thresholds]:
    """Return a computation of the thresholds that leave `left` weights: a row of whole numbers for each layer to sum.

    With groups of several weights, at most so many stay, and so many that no further tie fits.

    Args:
        layers: what is ranked.
        left: so many weights stay in all layers.
        count: counts digits as `counted` does, which it is if left out.
    """
    count = count or counted
    members, least = layers.members, layers.least
    above = torch.zeros_like(least) if layers.above is None else layers.above
    prefix, bound = torch.zeros_like(least), torch.zeros_like(least, dtype=torch.bool)
    for shift, bits in ROUNDS:
        here = torch.stack([count(sizes, prefix[i], shift, bits) for i, sizes in enumerate(layers.sizes)])
        counts = yield here
        at_least = above[:, None] + counts.flip(1).cumsum(1).flip(1)
        kept = torch.where(bound[:, None], least[:, None], torch.maximum(at_least, least[:, None]))
        common = ((kept * members[:, None]).sum(0) >= left).sum() - 1
        bound = bound | (at_least.index_select(1, common.view(1)).view(-1) < least)
        own = (at_least >= least[:, None]).sum(1) - 1
        digit = torch.where(bound, own, common)[:, None]
        all_ties, ties = counts.gather(1, digit).view(-1), here.gather(1, digit).view(-1)
        above = at_least.gather(1, digit).view(-1) - all_ties
        prefix = (prefix << bits) | digit.view(-1)
    needed = (least - above).clamp_min(0)
    rest = left - ((above + needed) * members).sum()
    open_ties = torch.where(bound, 0, (all_ties - needed) * members)
    before = open_ties.cumsum(0) - open_ties  # ties of the layers before
    needed = needed + (rest - before).clamp_min(0).minimum(open_ties) // members
    earlier = torch.zeros_like(ties)
    if any(number > 1 for number, _ in layers.places):
        mine = ties.new_zeros(len(ties), max(number for number, _ in layers.places))
        column = torch.tensor([at for _, at in layers.places], device=ties.device)[:, None]
        everyones = yield mine.scatter(1, column, ties[:, None])
        earlier = (everyones.cumsum(1) - everyones).gather(1, column).view(-1)
    return Thresholds(prefix, (needed - earlier).clamp_min(0).minimum(ties), ties, above + needed, bound)


def counted(sizes: Tensor, prefix: Tensor, shift: int, bits: int) -> Tensor:
    """Return how many sizes have each value of the next `bits` bits, of those whose bits above are `prefix`."""
    found = torch.zeros(1 << bits, dtype=torch.long, device=sizes.device)
    for chunk in chunks(sizes):
        numbers = patterns_of(chunk)
        first = shift + bits == 31
        if numbers.is_cpu:
            if not first:
                numbers = numbers[(numbers >> (shift + bits)) == prefix]
            found += torch.bincount((numbers >> shift) & ((1 << bits) - 1), minlength=1 << bits)
        else:  # a selection would wait for the device
            inside = torch.ones_like(numbers) if first else (numbers >> (shift + bits)) == prefix
            found.scatter_add_(0, ((numbers >> shift) & ((1 << bits) - 1)).long(), inside.long())
    return found


def below(numbers: Tensor, pattern: int | Tensor, ties: int | Tensor | None, seen: int | Tensor = 0) -> Tensor:
    """Return which of the bit patterns `numbers` do not stay.

    Args:
        numbers: of a chunk of a layer.
        pattern: what is larger stays.
        ties: so many that equal it stay too, in the order of their places; None: all of them.
        seen: so many were in the chunks before.
    """
    if ties is None:
        return numbers < pattern
    equal = numbers == pattern
    return (numbers < pattern) | (equal & (equal.cumsum(0) + seen > ties))
