"""Random penalties, shapes, types and orders of memory: native kernels against the plain form, and by a sanitizer."""

import contextlib
import math
import os
import random
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Blocks,
    Budget,
    Columns,
    ElasticNet,
    Grouped,
    GroupLasso,
    Heads,
    Huber,
    Kernels,
    LogSum,
    Lp,
    NonNegative,
    Penalty,
    Regularizer,
    Ridged,
    Rows,
    SparseGroupLasso,
    Weighted,
    Whole,
)
from shrinkage.errors import GroupError
from shrinkage.execution import native, native_build, native_ranking
from shrinkage.execution.native_coupled import shrink_together_
from shrinkage.execution.native_ranking import Cut
from shrinkage.execution.native_zeros import Zeros, hold_
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, number
from shrinkage.penalties.membership import GroupPenalty, Membership
from shrinkage.proximal.precision import at_least_float32, upcast
from shrinkage.proximal.ranking import counted, patterns_of

pytestmark = pytest.mark.skipif(native_build.library() is None, reason="there is no compiler for native kernels")

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDINGS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def element(draw: random.Random) -> Penalty:
    s = draw.choice([0.0, 1e-4, 0.1, 1.0])
    return draw.choice(
        [L1(s), L2(s), ElasticNet(s, 0.5), Huber(s, 0.3), MCP(s), SCAD(s), LogSum(s, 0.3), L0(s), Lp(s, 1 / 2)]
    )


def penalty_of(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Penalty:
    size = [max(each, 1) for each in (*shape, 1, 1)]
    blocks = Blocks(draw.choice([1, size[0]]), draw.choice([1, size[1]]))
    groups = draw.choice([Rows(), Columns(), Kernels(), Whole(), Heads(1), Heads(size[0]), blocks])
    inner = element(draw)
    weights = torch.rand(shape, dtype=at_least_float32(dtype))
    found = draw.choice(
        [
            inner,
            Weighted(inner, weights),
            GroupLasso(draw.choice([0.01, 0.5]), groups),
            Grouped(inner, groups),
            SparseGroupLasso(0.1, 0.1, groups),
        ]
    )
    return draw.choice([found, found, Ridged(found, 0.3), NonNegative(found)])


def tensor_of(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that lies in memory in one of several orders, behind as many elements as happen to be there."""
    order = draw.sample(range(len(shape)), len(shape)) if draw.random() < 0.5 else list(range(len(shape)))
    skipped = draw.choice([0, 0, 1, 3])
    memory = torch.empty(math.prod(shape) + skipped, dtype=dtype)[skipped:]
    back = [order.index(dim) for dim in range(len(order))]
    return memory.view([shape[dim] for dim in order]).permute(back)


def shape_of(draw: random.Random) -> tuple[int, ...]:
    sizes = [1, 2, 3, 7, 8, 15, 16, 17, 33]
    dims = draw.choice([1, 2, 2, 2, 3, 4])
    if draw.random() < 0.1:
        return draw.choice([(70, 700), (700, 70), (3, 2000), (2000, 3), (1, 5000)])
    return tuple(draw.choice(sizes[: 9 - 2 * max(dims - 2, 0)]) for _ in range(dims))


def check_one(draw: random.Random) -> None:
    """One random tensor; a threshold that is met to rounding would be a jump, which random numbers do not meet."""
    shape, dtype = shape_of(draw), draw.choice(TYPES)
    penalty = penalty_of(draw, shape, dtype)
    w = tensor_of(draw, shape, dtype).copy_(torch.randn(shape))
    moment = torch.empty_like(w).copy_(torch.rand(shape)) if draw.random() < 0.8 else torch.rand(shape).to(dtype)
    step = draw.choice([0.3, AdaptiveStep(0.3, moment, 1e-3, 0.7)])
    try:
        penalty.check_shape(shape)
    except GroupError:
        return
    plain, before = penalty.prox(upcast(w), number(step)).to(dtype), w.clone()
    if native.shrink_all_([Task(penalty, w, step)]):
        assert torch.equal(w, before)
        return
    distance = float((w.double() - plain.double()).abs().max())
    assert distance <= ROUNDINGS[dtype] * float(before.abs().max()), (penalty, shape)
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(w == 0, plain == 0), (penalty, shape)


def check_coupled(draw: random.Random) -> None:
    """Members of random shapes and groups; what is computed is compared elsewhere."""
    count = draw.choice([1, 5, 40])
    members = []
    for _ in range(draw.choice([1, 2, 5])):
        shape = shape_of(draw)
        dim = draw.randrange(len(shape))
        numbers = torch.randint(0, count + 1, (shape[dim],))
        part = Membership(dim, numbers, count)
        w = tensor_of(draw, shape, torch.float32).copy_(torch.randn(shape))
        moment = torch.empty_like(w).copy_(torch.rand(shape))
        members.append((part, w, AdaptiveStep(0.1, moment, 1e-3, 0.7) if draw.random() < 0.5 else 0.1))
    shrink_together_(GroupPenalty(ElasticNet(0.1, 0.1), torch.rand(count, dtype=torch.float64)), members)
    assert all(bool(w.isfinite().all()) for _, w, _ in members)


def check_zeros(draw: random.Random) -> None:
    """Masks and averages of random shapes."""
    shape, dtype = shape_of(draw), draw.choice(TYPES)
    penalty = penalty_of(draw, shape, dtype)
    try:
        penalty.check_shape(shape)
    except GroupError:
        return
    w = torch.randn(shape).to(dtype)
    total = torch.randn(shape, dtype=at_least_float32(dtype))
    mask = torch.empty(shape, dtype=torch.bool)
    hold_(penalty, [Zeros(w, torch.randn_like(w), total, torch.empty_like(total), mask, 0.5)], 0.9)


def check_ranking(draw: random.Random) -> None:
    """Windows, digits, ties and what is kept aside, of numbers of which many are equal."""
    library = native_build.library()
    dtype, sizes = (
        draw.choice(TYPES),
        [draw.choice([0, 1, 31, 33, 1000, 1025, 20_000]) for _ in range(draw.randint(1, 3))],
    )
    layers = [tensor_of(draw, (size,), dtype).copy_(torch.randn(size)) for size in sizes]
    if draw.random() < 0.5:
        layers = [each.copy_((2 * each.float()).round() / 2) for each in layers]
    low, high = sorted(draw.choice([0, 1, 0x3F000000, 0x3F800000, 0x7F000000, 0x7FFFFFFF]) for _ in range(2))
    found = native_ranking.looked_at(library, layers, [low] * len(layers), [high] * len(layers))
    for each, (near, above) in zip(layers, found or (), strict=found is not None):
        patterns = patterns_of(each)
        assert above == int((patterns > high).sum())
        assert near.numel() == int(((patterns > low) & (patterns <= high)).sum())
    prefix, shift, bits = draw.choice([(0, 20, 11), (0x3F8 >> 1, 10, 10), (0x3F800000 >> 10, 0, 10)])
    for each in layers:
        plain = counted(each, torch.tensor(prefix), shift, bits)
        assert torch.equal(native_ranking.counted(library, each, prefix, shift, bits), plain)
    asides = [torch.zeros_like(each) for each in layers]
    before = [each.clone() for each in layers]
    pairs = list(zip(layers, asides, strict=True))
    native_ranking.cut_(library, [Cut(*pair, high, draw.choice([0, 1, 5, 30_000])) for pair in pairs])
    native_ranking.restore_(library, pairs)
    assert all(map(torch.equal, layers, before))


def check_steps(draw: random.Random) -> None:
    """Steps that are prepared, whose kernels look for tensors themselves; in between, something changes."""
    sizes = draw.choices([2, 3, 8, 17], k=draw.randint(2, 5))
    rule = draw.choice([L1(0.01), GroupLasso(0.01, Rows()), ElasticNet(0.01, 0.1), Budget(zeros=0.5, updates=STEPS)])
    hold_zeros = None if isinstance(rule, Budget) else draw.choice([None, 0.9])
    changes = [draw.choice(CHANGES) for _ in range(STEPS)]
    make = draw.choice([partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.AdamW, weight_decay=0.0)])
    results = []
    for compile in (False, "auto"):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))
        optimizer = make(model.parameters())
        regularizer = Regularizer(model, rule, hold_zeros=hold_zeros, compile=compile).attach(optimizer)
        for change in changes:
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            change(model)
            optimizer.step()
        regularizer.detach()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for plain, own in zip(*results, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)


def nothing(model: nn.Sequential) -> None:
    """Leave all as it is."""


def move_data(model: nn.Sequential) -> None:
    """Let parameters lie elsewhere."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def take_a_gradient_away(model: nn.Sequential) -> None:
    """Leave the first matrix out of a step."""
    model[0].weight.grad = None


def other_order(model: nn.Sequential) -> None:
    """Let the gradient of the last matrix lie in memory in another order."""
    model[-1].weight.grad = model[-1].weight.grad.t().contiguous().t()


STEPS = 40
CHANGES = [nothing, nothing, nothing, move_data, take_a_gradient_away, other_order]


def fuzz(seed: int, count: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        draw.choices([check_one, check_coupled, check_zeros, check_ranking, check_steps], [8, 1, 1, 1, 1])[0](draw)


@pytest.mark.parametrize("seed", range(2))
def test_random_calls(seed):
    fuzz(seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_random_calls(seed):
    fuzz(seed, 3000)


@pytest.mark.slow
def test_no_bit_depends_on_the_vectors_of_a_machine(tmp_path, monkeypatch):
    """The library for any machine of this kind, and that for this one, on the same tensors."""
    flags = native_build.flags_for("DEFAULT")
    other = native_build.loaded(native_build.build(native_build.compiler_at_hand(), tmp_path, "default", flags))
    own = native_build.library()
    for seed in range(300):
        draw = random.Random(seed)
        shape, dtype = shape_of(draw), draw.choice(TYPES)
        penalty, w = penalty_of(draw, shape, dtype), torch.randn(shape).to(dtype)
        with contextlib.suppress(GroupError):
            penalty.check_shape(shape)
            step = draw.choice([0.3, AdaptiveStep(0.3, torch.rand(shape).to(dtype), 1e-3, 0.7)])
            found = []
            for library in (own, other):
                monkeypatch.setattr(native_build._state, "library", library)
                found.append(w.clone())
                native.shrink_all_([Task(penalty, found[-1], step)])
            assert torch.equal(*found), (penalty, shape)


def sanitizer() -> str | None:
    """The path of the address sanitizer's library, which has to be loaded before all others."""
    compiler = native_build.compiler_at_hand()
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return os.path.realpath(found) if os.path.isabs(found) else None


@pytest.mark.slow
def test_random_calls_by_the_address_sanitizer(tmp_path):
    """Every read and write beside a tensor, or beside the memory of kernels themselves, ends the process."""
    library = sanitizer()
    if library is None:
        pytest.skip("the compiler has no address sanitizer")
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    flags = (*native_build.flags_for(native_build.capability()), *flags)
    path = native_build.build(native_build.compiler_at_hand(), tmp_path, "sanitized", flags)
    environment = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "SANITIZED": str(path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all calls were clean" in done.stdout


if __name__ == "__main__":
    native_build._state.library = native_build.loaded(Path(os.environ["SANITIZED"]))
    native_build._state.asked = True
    torch.set_num_threads(1)
    for each in range(20, 26):
        fuzz(each, 400)
    print("all calls were clean")
