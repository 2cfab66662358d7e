"""A ranking that begins near the last one finds what a ranking of everything finds."""

import pytest
import torch
from torch import Tensor

from shrinkage.execution import native_build
from shrinkage.execution.ranking_window import WIDTHS, expected, looked_at, number_of, ranked, ranked_nearby
from shrinkage.proximal.ranking import CHUNK, Layers, Thresholds, floors, patterns_of, thresholds
from shrinkage.proximal.reductions import alone

LIBRARIES = [None, native_build.library()] if native_build.library() else [None]
KERNELS = pytest.mark.parametrize("library", LIBRARIES, ids=["plain", "native"][: len(LIBRARIES)])


def layers_of(tensors: list[Tensor], least: list[int]) -> Layers:
    return Layers(tensors, torch.ones(len(tensors), dtype=torch.long), torch.tensor(least), [(1, 0)] * len(tensors))


def moved(seed: int, update: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(n) * (1 + 0.03 * update) for n in (4000, 33, 20001)]


@KERNELS
def test_it_finds_the_same(library):
    last: list[Thresholds] = []
    for update in range(6):
        tensors, left = moved(0, update), 2000
        layers = layers_of(tensors, floors([4000, 33, 20001], [1, 1, 1], left, 0.3))
        plain = alone(thresholds(layers, left))
        near = expected(last)
        if len(last) == 2:
            assert ranked_nearby(layers, left, near, WIDTHS[0], library) is not None
        found = ranked(layers, left, near, library)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
        last = [found, *last[:1]]


@KERNELS
@pytest.mark.parametrize("factor", [0.5, 0.97, 0.99, 1.01, 1.03, 2.0])
def test_elsewhere_a_wider_window_is_tried_and_then_everything_is_counted(factor, library):
    tensors = moved(1, 0)
    layers = layers_of(tensors, [10, 1, 50])
    plain = alone(thresholds(layers, 3000))
    last = [plain._replace(patterns=patterns_of(plain.patterns.int().view(torch.float32) * factor).long())]
    near = expected(last)
    assert ranked_nearby(layers, 3000, near, WIDTHS[0], library) is None
    assert (ranked_nearby(layers, 3000, near, WIDTHS[1], library) is None) == (abs(factor - 1) > WIDTHS[1])
    assert all(torch.equal(a, b) for a, b in zip(ranked(layers, 3000, near, library), plain, strict=True))


@KERNELS
@pytest.mark.parametrize("size", [0, 1, 7, 33, CHUNK + 13])
def test_what_is_in_a_window_is_found_once(size, library):
    torch.manual_seed(size)
    x = torch.randn(size)
    low, high = number_of(0x3F000000), number_of(0x3F010000)
    x[::50] = high  # which is inside, and so is no number that equals the lower bound
    x[1::51] = -low
    (found,) = looked_at([x], [low], [high], library)
    inside = (x.abs() > low) & (x.abs() <= high)
    assert torch.equal(found.sizes.sort().values, x[inside].abs().sort().values)
    assert found.above == int((x.abs() > high).sum())
