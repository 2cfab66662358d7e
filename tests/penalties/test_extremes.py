"""Weights as large and as small as a type can hold, and steps of every size: the prox is finite, and right."""

import sys
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import Tensor

from catalog import CONSTRAINTS, PENALTIES, PenaltyCase
from shrinkage import (
    L1,
    L2,
    ElasticNet,
    Grouped,
    Huber,
    L1Ball,
    LogSum,
    Lp,
    MaxNorm,
    Orthogonal,
    Penalty,
    Rows,
    Simplex,
    TopK,
    UnitNorm,
    Weighted,
)
from shrinkage.execution import compiled as kernels
from shrinkage.execution import memory_layout
from shrinkage.execution.single_tensor import shrink_all_
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, number

# Steps along a derivative, which grows with the weight or with one over it.
EXPLICIT = ("Orthogonal",)
# Those whose rounding is relative to the whole tensor: decompositions, and differences to a reference.
MIXING = ("Nuclear", "SpectralBall", "Toward")
# The square of a smaller weight vanishes in float32, and a group of them is none.
VANISHING = 1e-18
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SLOWER = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float64, torch.bfloat16)]
EXACT = [case for case in PENALTIES + CONSTRAINTS if not case.name.startswith(EXPLICIT)]


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights between 1e-30 and 1e30, or what the type can hold of that."""
    count = torch.Size(shape).numel()
    least, most = (-7.0, 4.8) if dtype == torch.float16 else (-30.0, 30.0)
    signs = torch.randn(count, dtype=torch.float64).sign()
    share = torch.rand(count, dtype=torch.float64)
    mixed = signs * 10 ** (least + (most - least) * share)
    one_huge = torch.randn(count, dtype=torch.float64)
    one_huge[0] = 10.0**most
    found = {
        "mixed": mixed,
        "half zero": mixed * (torch.arange(count) % 2),
        "negative": -mixed.abs(),
        "zero": torch.zeros_like(mixed),
        "huge": signs * 10.0**most * share,
        "huge and equal": torch.full_like(mixed, 10.0**most),
        "one huge": one_huge,
        "large": signs * 10.0 ** (most * 0.6) * share,
        "tiny": signs * 10.0**least * share,
        "denormal": signs * torch.finfo(dtype).tiny * share,
    }
    return {name: w.to(dtype).reshape(shape) for name, w in found.items()}


def steps(shape: tuple[int, ...]) -> dict[str, float | Tensor]:
    """Steps between 1e-8 and 1e8, alike and of every element its own."""
    spread = {f"spread e{size}": 10 ** (size * (2 * torch.rand(shape) - 1)) for size in (1, 8)}
    return {"1e-8": 1e-8, "1": 1.0, "0-dim": torch.tensor(1e8), **spread}


def made(case, shape: tuple[int, ...]) -> Penalty:
    return case.make(0.3, shape) if isinstance(case, PenaltyCase) else case.make()


def assert_right(found: Tensor, exact: Tensor, w: Tensor, *, mixing: bool) -> None:
    """Equal to what float64 gives, to rounding of the type."""
    rounding = 64 * torch.finfo(found.dtype).eps
    size = torch.maximum(exact.abs(), w.double().abs())
    size = size.amax() + 1 if mixing else size
    error = (found.double() - exact).abs()
    least = torch.finfo(found.dtype).tiny if found.dtype == torch.float16 else VANISHING
    wrong = error > rounding * size + least
    assert not wrong.any(), (w[wrong], found[wrong], exact[wrong])


@pytest.mark.parametrize("case", EXACT, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *SLOWER])
def test_every_prox_is_finite_and_right(case, dtype):
    penalty = made(case, case.shape)
    mixing = case.name.startswith(MIXING)
    for name, w in weights(case.shape, dtype).items():
        for size, step in steps(case.shape).items():
            y = penalty.prox(w, step)
            assert y.isfinite().all(), (name, size, w, y)
            assert y.dtype == dtype
            if dtype != torch.float64 and not (mixing and size == "spread e8"):  # iterations that come near only
                exact = penalty.prox(w.double(), step.double() if isinstance(step, Tensor) else step)
                assert_right(y, exact, w, mixing=mixing)


@pytest.mark.parametrize("case", EXACT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_element_and_none(case, dtype):
    """Of the widest shape that the groups allow."""
    for size in (0, 1):
        shape = (size, *(case.shape[1:] if size == 0 else case.small[1:]))
        penalty = made(case, shape)
        try:
            penalty.check_shape(shape)
        except ValueError:
            continue
        for step in (1e-8, 1e8):
            for w in weights(shape, dtype).values() if size else [torch.zeros(shape, dtype=dtype)]:
                assert penalty.prox(w, step).isfinite().all()


@pytest.mark.parametrize("case", EXACT, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, SLOWER[1]])
def test_what_training_does_in_place_is_finite_and_the_same(case, dtype):
    """Joined, chunk by chunk and in place, in the metrics of SGD and Adam."""
    penalty = made(case, case.shape)
    for w in weights(case.shape, dtype).values():
        moment = (10 ** (30 * torch.rand(case.shape) - 15)).to(dtype)
        moment.view(-1)[0] = 0
        for step in (1e-8, 1e8, torch.tensor(1e8), AdaptiveStep(0.1, moment, 1e-8, 0.1)):
            moved = [w.clone() for _ in range(3)]
            shrink_all_([Task(penalty, each, step) for each in moved], compile=False)
            plain = penalty.prox(w.float(), number(step)).to(dtype)
            for each in moved:
                assert each.isfinite().all()
                torch.testing.assert_close(each, plain, rtol=4 * torch.finfo(dtype).eps, atol=1e-30)


@pytest.mark.slow  # kernels are compiled first
@pytest.mark.parametrize(
    "penalty",
    [
        Huber(0.3, delta=0.6),
        LogSum(0.3, epsilon=0.4),
        Lp(0.3, p=2 / 3),
        Grouped(L2(0.3), Rows()),
        Grouped(ElasticNet(0.3, 0.2), Rows()),
    ],
    ids=str,
)
def test_kernels_are_finite_and_right(penalty, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST", 1)
    monkeypatch.setattr(kernels, "LARGE", 1)
    monkeypatch.setattr(memory_layout, "ROWS", 4)
    memory_layout.folded_by.cache_clear()
    for w in weights((40, 24), torch.float32).values():
        moment = 10 ** (30 * torch.rand(w.shape) - 15)
        for step in (1e-8, 1e8, AdaptiveStep(0.1, moment, 1e-8, 0.1)):
            moved = w.clone()
            shrink_all_([Task(penalty, moved, step)], compile=True)
            assert moved.isfinite().all()
            spread = AdaptiveStep(0.1, moment.double(), 1e-8, 0.1) if isinstance(step, AdaptiveStep) else step
            assert_right(moved, penalty.prox(w.double(), number(spread)), w, mixing=False)


def on_the_ball(w: Tensor, steps: Tensor, radius: int = 1) -> Tensor:
    """The projection onto w >= 0, sum w = radius, in the metric of steps, by Duchi's algorithm in fractions."""
    pairs = [(Fraction(each), Fraction(step)) for each, step in zip(w.tolist(), steps.tolist(), strict=True)]
    level, total, weight = Fraction(0), Fraction(0), Fraction(0)
    for each, step in sorted(pairs, key=lambda pair: pair[0] / pair[1], reverse=True):
        total, weight = total + each, weight + step
        if each / step > (total - radius) / weight:
            level = (total - radius) / weight
    return torch.tensor([float(max(each - level * step, 0)) for each, step in pairs], dtype=torch.float64)


@pytest.mark.parametrize("spread", [1, 4, 8])
@pytest.mark.parametrize("radius", [1, 10, 30])
def test_balls_in_a_metric_are_those_of_fractions(spread, radius):
    """Steps that differ by up to 1e16: float64 rounds a weight divided by its step beyond what float32 tells."""
    for _ in range(50):
        w = 10 * torch.rand(12)
        step = 10 ** (spread * (2 * torch.rand(12) - 1))
        for penalty in (L1Ball(float(radius)), Simplex(float(radius))):
            found = penalty.prox(w, step).double()
            assert w.sum() < radius or (found - on_the_ball(w, step, radius)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top", [1.0, 3e7, 1e16, 1e30])
def test_balls_are_those_of_fractions(dtype, top):
    """Amounts that are lost beside the weights: the radius is 1, and a weight 1e30."""
    for _ in range(20):
        w = top * torch.rand(6, dtype=dtype)
        w[1], w[2] = w[0], 1.0
        expected = on_the_ball(w, torch.ones(6))
        scale = {torch.float32: 1e-7, torch.float64: 1e-15}[dtype]
        for penalty in (L1Ball(1.0), Simplex(1.0)):
            found = penalty.prox(w, 1.0).double()
            assert (found - expected).abs().max() <= 4 * scale * (1 if dtype == torch.float32 else max(top, 1.0))
        signed = w * torch.tensor([1, -1, 1, -1, 1, -1])
        assert torch.equal(L1Ball(1.0).prox(signed, 1.0).abs(), L1Ball(1.0).prox(w, 1.0))


@pytest.mark.parametrize("size", [1e-310, 1e-300, 1e307])
def test_the_smallest_and_largest_weights_come_to_the_sphere_in_a_metric(size):
    w = size * torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    steps = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    for length in (1e-6, 1.0, 1e6):
        norm = float(UnitNorm(length=length).prox(w, steps).norm())
        assert norm == pytest.approx(length, rel=1e-9)


def test_large_weights_come_to_the_ball():
    assert torch.equal(L1Ball(1.0).prox(torch.tensor([[3e7, 1.0, 2.0]]), 1.0), torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(Simplex(1.0).prox(torch.tensor([3e7, 1.0]), 1.0), torch.tensor([1.0, 0.0]))
    for dtype in (torch.float32, torch.float64):
        w = torch.tensor([[3e25, -4e25], [3e-25, 4e-25], [3e-39, 4e-39]], dtype=dtype)
        expected = torch.tensor([[0.6, -0.8], [0.6, 0.8], [0.6, 0.8]], dtype=dtype)
        torch.testing.assert_close(UnitNorm().prox(w, 1.0), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(MaxNorm(1.0).prox(w, 1.0)[0], expected[0])
        assert torch.equal(MaxNorm(1.0).prox(w, 1.0)[1:], w[1:])


def test_the_largest_numbers_of_a_type_come_to_the_ball():
    for dtype in (torch.float32, torch.float64):
        most = torch.finfo(dtype).max
        w = torch.tensor([most, 1.0, -most, most / 2, -2.0, most / 4], dtype=dtype)
        assert torch.equal(L1Ball(1.0).prox(w, 1.0), torch.tensor([0.5, 0, -0.5, 0, 0, 0], dtype=dtype))
        assert torch.equal(Simplex(1.0).prox(w, 1.0), torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=dtype))


def test_steps_that_differ_by_1e16_are_told_apart():
    """In what is penalized nothing besides: the largest w^2 / step stays, whatever stands beside it."""
    w, step = torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.tensor([1e-8, 2e-8, 3e-8, 1e8])
    assert torch.equal(TopK(0.25).prox(w, step), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(TopK(0.5).prox(w, step), torch.tensor([1.0, 1.0, 0.0, 0.0]))


def slope(penalty: Penalty, y: mpmath.mpf) -> mpmath.mpf:
    """phi' beyond 0."""
    match penalty:
        case LogSum(strength, epsilon):
            return strength / (y + epsilon)
        case Lp(strength, _):
            return strength * penalty.exponent * y ** (penalty.exponent - 1)
        case Huber(strength, delta):
            return strength * min(y / delta, mpmath.mpf(1))
    raise NotImplementedError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", [LogSum(0.3, 1.0), Lp(0.3, 1 / 2), Lp(0.3, 2 / 3), Huber(0.3, 0.6)], ids=str)
def test_roots_are_exact_to_rounding(penalty, dtype):
    """The stationary point, in 60 digits, lies between what is 16 units in the last place above and below."""
    rounding = 16 * torch.finfo(dtype).eps
    found = 0
    with mpmath.workdps(60):
        for exponent in range(-30, 31, 2):
            for step in (1e-8, 1e-4, 1.0, 1e4, 1e8):
                w = torch.tensor([1.7 * 10.0**exponent], dtype=dtype)
                y = penalty.prox(w, step)
                if not y:
                    continue
                found += 1
                low, high = (mpmath.mpf(float(y)) * (1 + sign * rounding) for sign in (-1, 1))
                pull = [point - mpmath.mpf(float(w)) + step * slope(penalty, point) for point in (low, high)]
                assert pull[0] <= 0 <= pull[1], (w, step, y)
    assert found > 40


@pytest.mark.parametrize("lr", [1e-6, 1e-9, 1e-12, 1e-20])
@pytest.mark.parametrize(
    "target", [LogSum(1e-4, 0.1), Huber(1e-4, 0.1), Lp(1e-4, 0.5), Weighted(L1(1e-4), torch.ones(4))], ids=str
)
def test_a_learning_rate_that_warms_up_from_nearly_0_moves_groups_by_nearly_0(target, lr):
    w = 1 + torch.rand(4, 6, dtype=torch.float64)
    step = lr * (0.5 + torch.rand(4, 6, dtype=torch.float64))
    moved = w - Grouped(target, Rows()).prox(w, step)
    first_order = step * Grouped(target, Rows()).gradient(w)
    torch.testing.assert_close(moved, first_order, rtol=1e-3, atol=4 * sys.float_info.epsilon)


@pytest.mark.parametrize("form", ["cosines", "spectral"])
def test_an_explicit_step_is_finite_where_step_times_gradient_is(form):
    penalty = Orthogonal(0.3, form=form)
    for dtype in DTYPES:
        for w in weights((4, 6), dtype).values():
            for step in (1e-8, 1.0, 1e8):
                moved = step * penalty.gradient(w.float())
                if (w.float() - moved).isfinite().all() and moved.abs().max() < torch.finfo(dtype).max / 2:
                    assert penalty.prox(w, step).isfinite().all()
        if form == "cosines":  # of rows, whatever their lengths
            w = torch.tensor([[3.0, 4.0], [5.0, 12.0]])
            torch.testing.assert_close(penalty.value(1e25 * w), penalty.value(w))
            torch.testing.assert_close(1e25 * penalty.gradient(1e25 * w), penalty.gradient(w))
