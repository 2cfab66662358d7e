"""Ranking by counting equals a stable sort, with a floor for each layer."""

import random

import pytest
import torch
from torch import Tensor

from shrinkage.proximal.ranking import Layers, Thresholds, below, floors, patterns_of, thresholds
from shrinkage.proximal.reductions import alone


def layers_of(tensors: list[Tensor], least: list[int], members: list[int] | None = None) -> Layers:
    one = torch.tensor(members or [1] * len(tensors))
    return Layers(tensors, one, torch.tensor(least), [(1, 0)] * len(tensors))


def stays(tensors: list[Tensor], found: Thresholds) -> list[Tensor]:
    patterns, ties = found.patterns.tolist(), found.ties.tolist()
    return [~below(patterns_of(x), p, t).view(x.shape) for x, p, t in zip(tensors, patterns, ties, strict=True)]


def sorted_stays(tensors: list[Tensor], left: int, least: list[int]) -> list[Tensor]:
    """The `left` largest, `least` of each layer first; of ties those that come first. By stable sorts."""
    scores = []
    for x, m in zip(tensors, least, strict=True):
        size = patterns_of(x).double()
        size[size.sort(descending=True, stable=True).indices[:m]] = torch.inf
        scores.append(size)
    flat = torch.cat(scores)
    keep = torch.zeros(flat.numel(), dtype=torch.bool)
    keep[flat.sort(descending=True, stable=True).indices[:left]] = True
    return [k.view(x.shape) for k, x in zip(keep.split([x.numel() for x in tensors]), tensors, strict=True)]


def drawn(generator: random.Random, kind: int, seed: int) -> Tensor:
    """Numbers of one of four kinds: any, of bfloat16, thirds, or mostly zero."""
    torch.manual_seed(seed)
    x = torch.randn(generator.randint(1, 300)) * generator.choice((1.0, 0.1, 0.01))
    if kind == 1:
        x = x.bfloat16().float()
    elif kind == 2:
        x = (3 * x).round() / 3
    elif kind == 3:
        x[torch.rand(x.shape) < 0.6] = 0.0
    return x


def summed_by_hand(machines: list[Layers], left: int) -> tuple[list[Thresholds], int]:
    """Several machines in turn: each row is added up over all of them. Returns the number of sums as well."""
    runs = [thresholds(layers, left) for layers in machines]
    rows, sums = [next(run) for run in runs], 0
    while True:
        total, sums, results = sum(rows[1:], rows[0]), sums + 1, []
        for i, run in enumerate(runs):
            try:
                rows[i] = run.send(total)
            except StopIteration as end:
                results.append(end.value)
        if results:
            return results, sums


@pytest.mark.parametrize("seed", range(400))
def test_what_stays_is_what_a_stable_sort_keeps(seed):
    generator = random.Random(seed)
    tensors = [drawn(generator, seed % 4, 10 * seed + i) for i in range(generator.randint(1, 6))]
    sizes = [x.numel() for x in tensors]
    left = generator.randint(len(tensors), sum(sizes))
    least = floors(sizes, [1] * len(sizes), left, 0.3)
    want = sorted_stays(tensors, left, least)
    found = alone(thresholds(layers_of(tensors, least), left))
    assert all(map(torch.equal, stays(tensors, found), want))
    assert found.stay.tolist() == [int(each.sum()) for each in want]
    assert int(found.stay.sum()) == left

    number = generator.randint(2, 4)
    shards = [x.chunk(number) for x in tensors]
    shards = [[*own, *[own[0][:0]] * (number - len(own))] for own in shards]
    machines = [
        layers_of([own[at] for own in shards], least)._replace(places=[(number, at)] * len(tensors))
        for at in range(number)
    ]
    results, sums = summed_by_hand(machines, left)
    together = [
        torch.cat(each)
        for each in zip(*(stays(list(m.sizes), r) for m, r in zip(machines, results, strict=True)), strict=True)
    ]
    assert all(map(torch.equal, together, want))
    assert sums == 4


def test_nan_and_infinities_stay():
    x = torch.tensor([1.0, torch.nan, -torch.inf, 2.0, torch.inf, -3.0])
    found = alone(thresholds(layers_of([x], [1]), 3))
    assert stays([x], found)[0].tolist() == [False, True, True, False, True, False]


def test_ties_of_bfloat16_are_cut_exactly():
    torch.manual_seed(0)
    tensors = [torch.where(torch.rand(5000) < 0.9, torch.tensor(0.5), torch.randn(5000)).bfloat16() for _ in range(3)]
    found = alone(thresholds(layers_of(tensors, [1, 1, 1]), 7001))
    masks = stays(tensors, found)
    assert sum(int(mask.sum()) for mask in masks) == 7001
    cut = torch.cat(tensors)[~torch.cat(masks)].abs()
    assert cut.max() <= 0.5 <= torch.cat(tensors)[torch.cat(masks)].abs().min()


def test_groups_are_counted_by_their_weights():
    """At most so many weights stay, and no further group fits."""
    tensors = [torch.tensor([4.0, 3.0, 2.0]), torch.tensor([3.5, 1.0])]
    found = alone(thresholds(layers_of(tensors, [1, 1], [10, 4]), 25))
    assert [mask.tolist() for mask in stays(tensors, found)] == [[True, True, False], [True, False]]


def test_floors_are_a_share_of_an_even_share_and_never_more_than_what_stays():
    assert floors([100, 900], [1, 1], 100, 0.3) == [3, 27]
    assert floors([10, 10, 10], [1, 1, 1], 4, 0.9) == [1, 1, 1]
    assert floors([3, 1000], [1, 1], 10, 0.0) == [1, 1]
    assert sum(floors([7] * 9, [1] * 9, 60, 1.0)) <= 60
