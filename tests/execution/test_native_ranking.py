"""What native kernels count, find and cut is what the plain form does, bit for bit."""

import math
import random

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from models import equal, mlp, train
from shrinkage import Budget, Regularizer
from shrinkage.execution import native_build
from shrinkage.execution.kept_aside import cut_all_, restore_all_
from shrinkage.execution.native_ranking import can_rank, looked_at
from shrinkage.execution.ranking_window import counting, number_of, ranked_nearby
from shrinkage.proximal.ranking import Layers, floors, thresholds
from shrinkage.proximal.reductions import alone

LIBRARY = native_build.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no compiler for native kernels")
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1, 31, 33, 1024, 16385, 40_000]  # around what is looked at together, and what is a task of its own
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def drawn(generator: random.Random, dtype: torch.dtype) -> list[Tensor]:
    """Layers with ties, zeros of both signs, and what is not finite."""
    layers = [torch.randn(generator.choice(SIZES)) * generator.choice((1.0, 0.1, 0.01)) for _ in range(3)]
    layers.append(torch.empty(0))
    layers[0] = (3 * layers[0]).round() / 3
    layers[1][torch.rand(layers[1].shape) < 0.5] = -0.0
    layers[2][:3] = torch.tensor([math.nan, math.inf, -math.inf])[: len(layers[2])]
    return [layer.to(dtype) for layer in layers]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether bits are the same, but for the sign of zero."""
    pairs = [
        (a, b, a.view(WHOLE[a.element_size()]) == b.view(WHOLE[b.element_size()]))
        for a, b in zip(some, others, strict=True)
    ]
    return all(bool((alike | ((a == 0) & (b == 0))).all()) for a, b, alike in pairs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_kernels_rank_cut_and_restore_as_the_plain_form(seed, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = random.Random(seed)
    torch.manual_seed(seed)
    given = drawn(generator, dtype)
    sizes = [each.numel() for each in given]
    left = generator.randint(len(given), sum(sizes))
    least = [min(*pair) for pair in zip(floors(sizes, [1] * len(sizes), left, 0.3), sizes, strict=True)]
    layers = Layers(given, torch.ones(len(given), dtype=torch.long), torch.tensor(least), [(1, 0)] * len(given))
    plain = alone(thresholds(layers, left))
    assert all(map(torch.equal, alone(thresholds(layers, left, counting(LIBRARY))), plain))
    near = [number_of(pattern) * generator.uniform(0.999, 1.001) for pattern in plain.patterns.tolist()]
    nearby = ranked_nearby(layers, left, near, 0.01, LIBRARY)
    assert nearby is None or all(map(torch.equal, nearby, plain))

    asides = [torch.where((torch.rand(w.shape) < 0.3) & w.isfinite(), w, 0) for w in given]
    results = []
    for library in (None, LIBRARY):
        ws, own = [w.clone() for w in given], [aside.clone() for aside in asides]
        back = int(cut_all_(list(zip(ws, own, strict=True)), plain, library))
        cut = [each.clone() for each in (*ws, *own)]
        assert sum(int((w != 0).sum()) for w in ws) <= left
        restore_all_(list(zip(ws, own, strict=True)), library)
        assert all(torch.equal(w.nan_to_num(7.0), dense.nan_to_num(7.0)) for w, dense in zip(ws, given, strict=True))
        results.append((back, cut))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_only_what_lies_in_memory_as_kernels_read_it_is_ranked_by_them():
    w = torch.randn(8, 8)
    assert can_rank(w, torch.zeros_like(w))
    others = [w.t(), w[:, ::2], w.double(), torch.zeros(64), torch.zeros(8, 8, device="meta"), torch._neg_view(w)]
    assert not any(can_rank(w, other) for other in others)
    assert not can_rank(w.int())
    assert not can_rank(w.to_sparse())


def test_one_that_has_no_kernel_is_moved_beside_others():
    """Of one tensor rows and columns lie the other way around in memory."""
    torch.manual_seed(0)
    given = [torch.randn(40, 30), torch.randn(30, 40).t()]
    flat = [w.reshape(-1) for w in given]
    layers = Layers(flat, torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long), [(1, 0)] * 2)
    found = alone(thresholds(layers, 900))
    ws, asides = [w.clone() for w in given], [torch.zeros_like(w) for w in given]
    cut_all_(list(zip(ws, asides, strict=True)), found, LIBRARY)
    assert sum(int((w != 0).sum()) for w in ws) == 900
    assert all(torch.equal(w + aside, dense) for w, aside, dense in zip(ws, asides, given, strict=True))


def test_autograd_sees_what_is_written():
    w, aside = torch.randn(50), torch.zeros(50)
    layers = Layers([w], torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.long), [(1, 0)])
    found = alone(thresholds(layers, 20))
    cut_all_([(w, aside)], found, LIBRARY)
    assert (w._version, aside._version) == (1, 1)
    restore_all_([(w, aside)], LIBRARY)
    assert (w._version, aside._version) == (2, 1)


def test_more_in_a_window_than_there_is_room_for_is_told():
    many = torch.full((20_000,), 0.5)
    assert looked_at(LIBRARY, [many], [0x3E000000], [0x40000000]) is None
    assert looked_at(LIBRARY, [many[:1000]], [0x3E000000], [0x3F000000])[0][0].tolist() == [0.5] * 1000


def test_ties_of_a_large_tensor_go_by_their_places():
    w, aside = torch.full((40_000,), 0.5), torch.zeros(40_000)
    layers = Layers([w], torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.long), [(1, 0)])
    cut_all_([(w, aside)], alone(thresholds(layers, 30_000)), LIBRARY)
    assert torch.equal(w != 0, torch.arange(40_000) < 30_000)
    assert torch.equal(w + aside, torch.full((40_000,), 0.5))


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_the_same_without_kernels(dtype, monkeypatch):
    found, library = [], native_build.library
    for compile_ in ("auto", False):
        monkeypatch.setattr(
            native_build, "library", library if compile_ else lambda: pytest.fail("a kernel was asked for")
        )
        model = mlp(dtype)
        optimizer = AdamW(model.parameters(), lr=0.02, foreach=False)
        regularizer = Regularizer(model, Budget(zeros=0.7, updates=40), compile=compile_).attach(optimizer)
        train(model, optimizer, 30)
        found.append((model, [each.changed for each in regularizer.progress()]))
    assert equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
