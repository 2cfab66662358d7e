"""Native kernels against the plain form: every penalty, metric and type; odd values; memory they must not touch."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from catalog import CONSTRAINTS, PENALTIES, PenaltyCase
from shrinkage import (
    L1,
    L2,
    MCP,
    Columns,
    ElasticNet,
    GroupLasso,
    Lp,
    Penalty,
    Regularizer,
    Ridged,
    Rows,
    SparseGroupLasso,
)
from shrinkage.execution import native, native_build
from shrinkage.execution.native_coupled import blocks_of, shrink_together_
from shrinkage.execution.native_zeros import Zeros, hold_, restore_, slopes_of
from shrinkage.execution.single_tensor import with_number
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, MetricStep, number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.membership import GroupPenalty, Membership
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted
from shrinkage.proximal.precision import at_least_float32, upcast
from shrinkage.proximal.reductions import alone
from shrinkage.training.gradient_averages import following_weight

pytestmark = pytest.mark.skipif(native_build.library() is None, reason="there is no compiler for native kernels")

LR = 0.3
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = PENALTIES + CONSTRAINTS
# What no kernel is there for, in any metric; and what has one in a plain metric only.
NEVER = {
    "Grouped Weighted L1",
    "Grouped Weighted SCAD",
    "Toward GroupLasso",
    "NonNegative MaxNorm",
    "NonNegative L1Ball",
}
NEVER |= {f"{sign}GroupLInf{rest}" for sign in ("", "NonNegative ", "Ridged ") for rest in ("", " columns")}
NEVER |= {"Nuclear", "Nuclear of a convolution", "FusedLasso", "FusedLasso along dimension 0", "Orthogonal"}
NEVER |= {"Orthogonal spectral", "MaxNorm", "MinMaxNorm", "UnitNorm", "UnitNorm of length 2", "L1Ball", "Simplex"}
NEVER |= {"TopK", "TopK of rows", "NonNegative TopK", "NofM", "SpectralBall"}
PLAIN_ONLY = {"Grouped Huber", "Grouped MCP", "Grouped SCAD", "Grouped LogSum", "Grouped L0", "Grouped L0 + L2"}
PLAIN_ONLY |= {"Grouped Lp 1/2", "Grouped Lp 2/3"}
# Elements that arithmetic, square roots and comparisons serve: equal bit for bit in a plain metric.
EXACT = {"L1", "L2", "ElasticNet", "Huber", "MCP", "MCP gamma 1.2", "SCAD", "SCAD a 2.1", "L0", "Weighted L1"}
EXACT |= {"Weighted MCP", "NonNegative L1", "NonNegative MCP", "L0 + L2", "L0 + L1", "Ridged MCP", "Toward L2"}
EXACT |= {"Toward L1", "NonNegative", "Box"}


def made(case, shape, dtype: torch.dtype, strength: float = LR) -> Penalty:
    """A penalty whose tensors have a type that kernels take."""
    penalty = case.make(strength, shape) if isinstance(case, PenaltyCase) else case.make()
    if isinstance(penalty, Weighted):
        return Weighted(penalty.penalty, penalty.weights.to(at_least_float32(dtype)))
    return Toward(penalty.penalty, penalty.reference.to(dtype)) if isinstance(penalty, Toward) else penalty


def metric(w: Tensor, lr: float = LR) -> AdaptiveStep:
    """Adam's, with elements that never had a gradient, in the memory format of `w`."""
    moment = torch.empty_like(w).copy_(torch.rand(w.shape))
    moment[0, :2] = 0
    return AdaptiveStep(lr, moment, 1e-3, 0.7)


def expected(task: Task) -> Tensor:
    return task.penalty.prox(upcast(task.w), number(task.step)).to(task.w.dtype)


def roundings(found: Tensor, plain: Tensor, w: Tensor, case: object, drift: Tensor | float = 0.0) -> float:
    """The largest distance in roundings of the larger of what an element was and is, or of a reference near 1.

    `drift` is how far exact results move with a rounding of `w`; it counts as one.
    """
    least = 1.0 if str(case).startswith("Toward") else torch.finfo(w.dtype).tiny
    size = torch.maximum(w.double().abs(), plain.double().abs()).clamp_min(least)
    return float(((found.double() - plain.double()).abs() / (size * torch.finfo(w.dtype).eps + drift)).max())


def drift_of(task: Task) -> Tensor:
    """How far each element of an exact prox moves with one rounding of the weights: far beside a jump, as of LogSum."""
    size = 64 * torch.finfo(at_least_float32(task.w.dtype)).eps
    step = number(task.step)
    step = step.double() if isinstance(step, Tensor) else step
    w = task.w.double()
    return (task.penalty.prox(w * (1 + size), step) - task.penalty.prox(w, step)).abs() / 64


def shapes_of(case) -> list[tuple[int, ...]]:
    """The shape of a case, and larger ones with more lanes than a vector has, whole and not."""
    if len(case.shape) == 4:
        return [case.shape, (8, 18, 3, 3)]
    return [case.shape, (40, 24), (6, 210), (150, 6)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_penalty_is_the_plain_form(case, kind, dtype):
    for shape in shapes_of(case):
        penalty = made(case, shape, dtype)
        w = torch.randn(shape).to(dtype)
        task = Task(penalty, w, LR if kind == "number" else metric(w))
        before, plain, drift = w.clone(), expected(task), drift_of(task)
        left = native.shrink_all_([task])
        if case.name in NEVER or (kind == "metric" and case.name in PLAIN_ONLY):
            assert len(left) == 1
            assert torch.equal(w, before)
            continue
        assert not left
        assert torch.equal(w == 0, plain == 0)
        assert roundings(w, plain, before, case, drift) <= 4
        if kind == "number" and case.name in EXACT:
            assert torch.equal(w, plain)


@pytest.mark.parametrize("p", [1 / 2, 2 / 3])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e6, 1e30, 1e37])
def test_roots_solve_their_equation(p, scale):
    """Against Newton's method in float64 on y - |w| + u p y^(p - 1) = 0, from the native point."""
    w = torch.randn(4000) * scale
    u = LR * 0.01
    found = w.clone()
    assert not native.shrink_all_([Task(Lp(0.01, p), found, LR)])
    kept = found != 0
    y, size = found[kept].double().abs(), w[kept].double().abs()
    for _ in range(4):
        y = y - (y - size + u * p * y ** (p - 1)) / (1 + u * p * (p - 1) * y ** (p - 2))
    assert kept.any()
    assert float(((found[kept].double().abs() - y) / y).abs().max()) <= 3 * torch.finfo(torch.float32).eps


ODD = {
    "nan": (torch.nan,),
    "infinite": (torch.inf, -torch.inf),
    "large": (3e38, -3e38),
    "small": (1e-42, -1e-42, -0.0, 1e-23),
}
SIMPLE = [case for case in CASES if case.name not in NEVER and "2/3" not in case.name]


@pytest.mark.parametrize("place", ["weight", "moment"])
@pytest.mark.parametrize("case", SIMPLE, ids=str)
def test_odd_values_are_the_plain_forms(case, place):
    """Except that a constraint of groups shows a moment of NaN in all of its group."""
    if place == "moment" and case.name in PLAIN_ONLY:
        pytest.skip("there is no kernel in a metric")
    for odd, strength in itertools.product(ODD, (0.0, 1e-30, 0.3)):
        if place == "moment" and odd == "nan" and case.name.startswith("NonNegative "):
            continue
        for shape in shapes_of(case)[:2]:
            w, values = torch.randn(shape), torch.tensor(ODD[odd])
            step = metric(w) if place == "moment" else LR
            target = step.moment if isinstance(step, AdaptiveStep) else w
            target.view(-1)[torch.arange(len(values)) * 5] = values.abs() if place == "moment" else values
            task = Task(made(case, shape, torch.float32, strength), w, step)
            plain = expected(task)
            assert not native.shrink_all_([task])
            assert torch.equal(w == 0, plain == 0), (odd, strength)
            torch.testing.assert_close(w, plain, rtol=3e-6, atol=3e-7, equal_nan=True)


@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("case", SIMPLE, ids=str)
def test_a_step_of_0_leaves_all_as_it_is(case, kind):
    if kind == "metric" and case.name in PLAIN_ONLY:
        pytest.skip("there is no kernel in a metric")
    w = torch.randn(case.shape)
    before = w.clone()
    assert not native.shrink_all_(
        [Task(made(case, case.shape, torch.float32), w, 0.0 if kind == "number" else metric(w, 0.0))]
    )
    torch.testing.assert_close(w, before, rtol=1e-6, atol=0)


def test_a_moment_of_zero_steps_by_the_rate():
    w = torch.tensor([3.0, -3.0])
    native.shrink_all_([Task(L1(1.0), w, AdaptiveStep(0.5, torch.zeros(2), 1e-8, 0.1))])
    assert w.tolist() == [2.5, -2.5]


# Memory


STRIDED = {
    "transposed": lambda: torch.randn(24, 40).t(),
    "channels last": lambda: torch.randn(8, 18, 3, 3).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(6, 3, 20).permute(2, 0, 1),
    "with an offset": lambda: torch.randn(2, 30, 20)[1],
    "not aligned": lambda: torch.randn(601)[1:].view(30, 20),
}


@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.3, Rows()), SparseGroupLasso(0.1, 0.2, Columns())], ids=str)
@pytest.mark.parametrize("name", STRIDED)
def test_any_order_of_memory_without_gaps(name, penalty, kind):
    w = STRIDED[name]()
    moment = torch.empty_like(w).copy_(torch.rand(w.shape))
    task = Task(penalty, w, LR if kind == "number" else AdaptiveStep(LR, moment, 1e-3, 0.7))
    plain, before = expected(task), w.clone()
    assert not native.shrink_all_([task])
    assert torch.equal(w == 0, plain == 0)
    assert roundings(w, plain, before, "") <= 4


def with_gaps() -> dict[str, tuple[Tensor, object]]:
    """Tensors, and steps, that no kernel may be called with."""
    whole = torch.randn(8, 8)
    return {
        "gaps": (torch.randn(8, 16)[:, ::2], LR),
        "expanded": (torch.randn(8, 1).expand(8, 8), LR),
        "a step for each element": (whole.clone(), torch.rand(8, 8)),
        "a moment of another shape": (whole.clone(), AdaptiveStep(LR, torch.rand(8, 1), 1e-3)),
        "a moment in another order": (whole.clone(), AdaptiveStep(LR, torch.rand(8, 8).t(), 1e-3)),
        "a moment of another width": (whole.clone(), AdaptiveStep(LR, torch.rand(8, 8).double(), 1e-3)),
        "whole numbers": (torch.ones(8, 8, dtype=torch.int32), LR),
        "complex numbers": (torch.ones(8, 8, dtype=torch.complex64), LR),
        "another device": (torch.empty(8, 8, device="meta"), LR),
        "a view of the negative": (torch._neg_view(whole.clone()), LR),
        "sparse": (whole.to_sparse(), LR),
        "a number that is rounded": (whole.clone(), torch.tensor(LR)),
        "a step that is a function": (whole.clone(), MetricStep(lambda group, state, w: LR, {}, {}, whole)),
    }


@pytest.mark.parametrize("name", with_gaps())
def test_what_kernels_cannot_read_is_left(name):
    w, step = with_gaps()[name]
    before = None if w.is_meta else w.clone()
    task = Task(L1(0.1), w, step)
    assert native.shrink_all_([task]) == [task]
    if before is not None:
        assert torch.equal(w.to_dense() if w.is_sparse else w, before.to_dense() if before.is_sparse else before)


def test_subclasses_of_tensors_and_penalties_are_left():
    class Own(L1):
        pass

    class Other(Tensor):
        pass

    w = torch.randn(4)
    assert native.shrink_all_([Task(Own(0.1), w, LR)])
    assert native.shrink_all_([Task(L1(0.1), w.as_subclass(Other), LR)])


def test_tensors_made_in_inference_mode_are_left():
    with torch.inference_mode():
        w = torch.randn(4)
    assert native.shrink_all_([Task(L1(0.1), w, LR)])


CHANGES = {
    "another type": lambda data: data.double(),
    "a narrower type": lambda data: data.half(),
    "a smaller shape": lambda data: data[:4].clone(),
    "other strides": lambda data: data.t().contiguous().t(),
    "gaps": lambda data: torch.cat([data, data], 1)[:, ::2],
}


@pytest.mark.parametrize("penalty", [L1(0.2), GroupLasso(0.2, Rows())], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_data_that_is_replaced_under_a_batch_is_seen(change, penalty):
    """The same object with other memory behind it: the batch is made anew, or the tensor is left."""
    parameter = nn.Parameter(torch.randn(8, 6))
    for _ in range(2):
        assert not native.shrink_all_([Task(penalty, parameter.detach(), LR)])
    parameter.data = CHANGES[change](parameter.data)
    w = parameter.detach()
    plain = expected(Task(penalty, w, LR))
    left = native.shrink_all_([Task(penalty, w, LR)])
    assert len(left) == (change == "gaps")
    if not left:
        torch.testing.assert_close(w, plain, rtol=1e-3 if w.dtype == torch.half else 1e-6, atol=0)


def test_nothing_is_written_beside_a_tensor():
    """Every penalty, in the middle of a larger block of memory that must not change."""
    for case in SIMPLE:
        for shape in shapes_of(case):
            for dtype in TYPES:
                size = torch.Size(shape).numel()
                memory = torch.full((size + 128,), 7.0, dtype=dtype)
                w = memory[64 : 64 + size].view(shape)
                w.copy_(torch.randn(shape))
                assert not native.shrink_all_([Task(made(case, shape, dtype), w, LR)])
                assert bool((memory[:64] == 7).all() and (memory[64 + size :] == 7).all()), case


def test_autograd_sees_the_write():
    w = nn.Parameter(torch.randn(4))
    squares = (w * w).sum()
    native.shrink_all_([Task(L1(0.1), w.detach(), LR)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


# Many tensors


@pytest.mark.parametrize("kind", ["number", "metric"])
def test_many_tensors_of_several_penalties_in_any_order(kind):
    penalties = [L1(0.1), GroupLasso(0.1, Rows()), L2(0.2), GroupLasso(0.1, Columns())]
    shapes = [(7, 5), (3, 40), (64, 33), (1, 1), (2, 3, 4), (5, 1)]
    tasks = []
    for index in range(48):
        w = torch.randn(shapes[index % 6], dtype=torch.float64 if index % 7 == 0 else torch.float32)
        step = metric(w, 0.1 + 0.01 * index) if kind == "metric" else 0.1
        tasks.append(Task(penalties[index % 4], w, step))
    plain = [expected(task) for task in tasks]
    assert not native.shrink_all_(tasks)
    for task, one in zip(tasks, plain, strict=True):
        assert torch.equal(task.w == 0, one == 0)
        torch.testing.assert_close(task.w, one, rtol=1e-6, atol=1e-7)


def test_a_batch_follows_its_numbers():
    """The second step of the same batch has another rate, correction and strength."""
    w = torch.randn(30)
    moment = torch.rand(30)
    for lr, correction in ((0.1, 0.1), (0.2, 0.1), (0.2, 0.3)):
        task = Task(L1(0.05), w, AdaptiveStep(torch.tensor(lr, dtype=torch.float64), moment, 1e-3, correction))
        plain = expected(task._replace(step=AdaptiveStep(lr, moment, 1e-3, correction)))
        native.shrink_all_([task])
        torch.testing.assert_close(w, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("penalty", [L1(0.01), GroupLasso(0.01, Rows()), GroupLasso(0.01, Columns())], ids=str)
def test_threads_do_not_change_a_bit(penalty, kind):
    found = []
    for threads in (1, 4, 16):
        torch.manual_seed(0)
        w = torch.randn(300, 1403)
        torch.set_num_threads(threads)
        native.shrink_all_([Task(penalty, w, metric(w) if kind == "metric" else LR)])
        torch.set_num_threads(1)
        found.append(w)
    assert all(torch.equal(found[0], each) for each in found)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("penalty", [GroupLasso(0.3, Columns()), Ridged(GroupLasso(0.3, Columns()), 0.2)], ids=str)
def test_wide_matrices_are_read_row_by_row(penalty, kind, dtype):
    """More columns than are moved together, in whole vectors and not; more rows than are read at a time, and not."""
    for shape in ((83, 1100), (150, 83), (64, 65), (65, 66), (7, 2100)):
        w = torch.randn(shape).to(dtype)
        w[:, ::3] *= 0.01
        task = Task(penalty, w, LR if kind == "number" else metric(w))
        plain, before = expected(task), w.clone()
        assert not native.shrink_all_([task])
        assert torch.equal(w == 0, plain == 0)
        assert roundings(w, plain, before, "") <= 4


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
@pytest.mark.parametrize("groups", [Rows(), Columns()], ids=str)
@pytest.mark.parametrize("lr", [1e-7, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2])
def test_small_steps_of_groups_are_solved_to_rounding(lr, groups, dtype):
    """By a series where its rest is lost to rounding, else by Newton's method."""
    w = torch.randn(90, 96, dtype=dtype)
    task = Task(GroupLasso(1.0, groups), w, metric(w, lr))
    plain, before = expected(task), w.clone()
    assert not native.shrink_all_([task])
    assert roundings(w, plain, before, "") <= 4


@pytest.mark.parametrize("penalty", [GroupLasso(0.01, Columns()), GroupLasso(0.01, Rows())], ids=str)
@pytest.mark.parametrize("kind", ["number", "metric"])
def test_groups_that_no_cache_holds_are_read_again(penalty, kind):
    w = torch.randn((70_000, 40) if "Columns" in str(penalty) else (2, 1_200_000))
    task = Task(penalty, w, LR if kind == "number" else metric(w))
    plain = penalty.prox(w.double(), number(task.step) if kind == "number" else task.step.tensor().double())
    native.shrink_all_([task])
    torch.testing.assert_close(w, plain.float(), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("adaptive", [False, True], ids=["number", "metric"])
def test_the_regularizer_uses_them_unless_it_compiles_nothing(adaptive, monkeypatch):
    moved = []
    monkeypatch.setattr(native.Batch, "move_", lambda self, library, ws, steps: moved.extend(ws) or True)
    for compile, count in (("auto", 2), (True, 2), (False, 0)):
        moved.clear()
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = (AdamW if adaptive else SGD)(model.parameters(), lr=0.1)
        Regularizer(model, MCP(0.1), compile=compile).attach(optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert len(moved) == count


def test_a_step_that_a_function_computes_is_a_number_where_it_can_be():
    w = torch.randn(30, 20)
    later = MetricStep(lambda group, state, w: LR, {}, {}, w)
    plain = expected(Task(L1(0.5), w, LR))
    task = with_number(Task(L1(0.5), w, later))
    assert task.step == LR
    assert native.shrink_all_([task]) == []
    assert torch.equal(w, plain)


@pytest.mark.parametrize("kind", ["number", "metric"])
def test_a_penalty_that_changes_from_call_to_call_is_followed(kind):
    """In numbers, as by a schedule, and in more than that."""
    penalties: list[Penalty] = [L1(0.1), L1(0.3), MCP(0.1), MCP(0.2, gamma=2.0), ElasticNet(0.1, 0.2)]
    penalties += [GroupLasso(strength, Rows()) for strength in (0.1, 0.2)]
    penalties += [GroupLasso(0.2, Columns()), GroupLasso(0.2, Rows(), weigh_by_size=False)]
    penalties += [SparseGroupLasso(0.1, strength, Rows()) for strength in (0.1, 0.2)]
    penalties += [Weighted(L1(0.1), torch.rand(8, 6)), Weighted(L1(0.1), torch.rand(8, 6))]
    for penalty in penalties * 2:
        w = torch.randn(8, 6)
        task = Task(penalty, w, LR if kind == "number" else metric(w))
        before, plain = w.clone(), expected(task)
        assert not native.shrink_all_([task])
        assert torch.equal(w == 0, plain == 0)
        assert roundings(w, plain, before, "") <= 4


def test_threads_of_python_do_not_meet():
    """Several models with one penalty and the same shapes, each in a thread."""
    penalty = GroupLasso(0.001, Rows())

    def steps(seed: int) -> Tensor:
        w = torch.randn(64, 512, generator=torch.Generator().manual_seed(seed))
        for _ in range(30):
            native.shrink_all_([Task(penalty, w, 0.1)])
        return w

    alone_ = [steps(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(steps, range(4)))
    assert all(torch.equal(*pair) for pair in zip(found, alone_, strict=True))


def test_threads_of_python_have_batches_of_their_own():
    """Two calls at a time of one shape: what a batch holds for one would be changed by the other."""
    native._batches.clear()
    barrier = Barrier(2)

    def step(w: Tensor) -> None:
        barrier.wait()
        native.shrink_all_([Task(L1(0.1), w, 0.1)])
        barrier.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(step, torch.randn(2, 30, 40).unbind()))
    assert len(native._batches) == 2


def test_a_child_of_fork_has_one_thread():
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    w = torch.randn(300, 400)
    native.shrink_all_([Task(L1(0.01), w.clone(), LR)])
    plain = expected(Task(L1(0.01), w, LR))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(4)
        left = native.shrink_all_([Task(L1(0.01), w, LR)])
        torch.set_num_threads(1)  # with more, torch itself waits for ever for the threads of its parent
        os._exit(0 if not left and torch.equal(w, plain) else 1)
    assert os.waitpid(child, 0)[1] == 0


# Groups that span parameters

COUNT = 40


def part(groups: list[int], dim: int = 0) -> Membership:
    numbers = torch.tensor(groups)
    first = groups[0] if groups == list(range(groups[0], groups[0] + len(groups))) else None
    return Membership(dim, torch.where(numbers < 0, COUNT, numbers), COUNT, first)


def members(dtype: torch.dtype, kind: str) -> list[tuple[Membership, Tensor, float | AdaptiveStep]]:
    """Rows, columns, planes in another order, vectors, slices in no group or several in one; a number among metrics."""
    shapes = {
        (20, 136): part(list(range(20))),
        (30, 40): part(list(range(40)), 1),
        (20, 4, 3, 3): part(list(reversed(range(20)))),
        (6, 20, 5): part([*range(10, 25), *[-1] * 5], 1),
        (20,): part(list(range(20))),
        (80,): part([row // 2 for row in range(80)]),
        (12, 24): part([-1, 3, -1, 3, 4, 4, 30, 31, 32, 33, 34, -1]),
        (40, 7): part(list(range(40))),
    }
    found: list[tuple[Membership, Tensor, float | AdaptiveStep]] = []
    for index, (shape, own) in enumerate(shapes.items()):
        w = torch.randn(shape).to(dtype)
        w = w.to(memory_format=torch.channels_last) if len(shape) == 4 else w
        moment = torch.empty_like(w).copy_(torch.rand(shape))
        adaptive = kind == "metric" and index != 4
        found.append((own, w, AdaptiveStep(0.05 * (1 + index % 2), moment, 1e-3, 0.7) if adaptive else LR))
    return found


def together(group_penalty: GroupPenalty, found) -> list[Tensor]:
    """The plain form."""
    parts, ws, steps = zip(*found, strict=True)
    moved = coupled_norms.prox(group_penalty, parts, [upcast(w) for w in ws], list(map(number, steps)), to_rest=True)
    return [each.to(w.dtype) for each, w in zip(alone(moved), ws, strict=True)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("penalty", [L1(0.5), ElasticNet(0.4, 0.5), L2(2.0), MCP(0.4)], ids=str)
def test_coupled_groups_are_the_plain_form(penalty, kind, dtype):
    group_penalty = GroupPenalty(penalty, torch.linspace(0.5, 4.0, COUNT, dtype=torch.float64))
    for _ in range(2):  # the second time by what was kept
        found = members(dtype, kind)
        plain, before = together(group_penalty, found), [w.clone() for _, w, _ in found]
        took = shrink_together_(group_penalty, found)
        assert took == (kind == "number" or not isinstance(penalty, MCP))
        for (own, w, _), one, old in zip(found, plain, before, strict=True):
            if took:
                assert torch.equal(w == 0, one == 0)
                assert roundings(w, one, old, "") <= 4
            nowhere = own.groups == COUNT
            assert torch.equal(w.movedim(own.dim, 0)[nowhere], old.movedim(own.dim, 0)[nowhere])


@pytest.mark.parametrize("adaptive", [False, True], ids=["number", "metric"])
def test_many_coupled_groups_are_moved_in_parts(adaptive):
    """Rows that no cache holds together, then columns, each range with a vector; no range begins at a whole vector."""
    shapes = {(301, 600): (0, 0), (301,): (0, 0), (100, 1203): (1, 301), (1203,): (0, 301), (90, 301): (1, 0)}
    count, found = 1504, []
    for shape, (dim, first) in shapes.items():
        own = Membership(dim, torch.arange(first, first + shape[dim]), count, first)
        w = torch.randn(shape)
        found.append((own, w, AdaptiveStep(LR, torch.rand(shape), 1e-3, 0.7) if adaptive else LR))
    group_penalty = GroupPenalty(L1(3.0), torch.linspace(0.5, 4.0, count, dtype=torch.float64))
    plain, before = together(group_penalty, found), [w.clone() for _, w, _ in found]
    assert shrink_together_(group_penalty, found)
    for (_, w, _), one, old in zip(found, plain, before, strict=True):
        assert torch.equal(w == 0, one == 0)
        assert roundings(w, one, old, "") <= 4


def test_blocks_of_coupled_groups_end_where_ranges_end():
    parts = [Membership(0, torch.arange(50_257), 55_000, 0), Membership(1, torch.arange(2304) + 50_257, 55_000, 50_257)]
    blocks = blocks_of([*parts, Membership(0, torch.tensor([54_999]), 55_000)]).tolist()
    assert {0, 50_257, 52_561, 55_000} <= set(blocks)
    assert all(0 < end - start <= 1024 for start, end in itertools.pairwise(blocks))


def test_members_that_do_not_fit_their_groups_are_left():
    w = torch.randn(8, 4)
    weights = torch.ones(COUNT, dtype=torch.float64)
    short = part(list(range(6)))
    later = MetricStep(lambda group, state, w: LR, {}, {}, w)
    assert not shrink_together_(GroupPenalty(L1(0.1), weights), [(part(list(range(8))), w, later)])
    assert not shrink_together_(GroupPenalty(L1(0.1), weights), [(short, w, LR)])
    assert not shrink_together_(GroupPenalty(L1(0.1), weights[:5].clone()), [(part(list(range(8))), w, LR)])
    assert not shrink_together_(GroupPenalty(L1(0.1), weights), [(part(list(range(8))), torch.randn(8, 8)[:, ::2], LR)])


# Zeros that are held


def zeros_of(w: Tensor) -> Zeros:
    computed = at_least_float32(w.dtype)
    total = 0.03 * torch.randn(w.shape, dtype=computed)
    total[::2] *= 0.1
    grad = (0.05 * torch.randn(w.shape)).to(w.dtype)
    return Zeros(w, grad, total, torch.empty_like(total), torch.empty(w.shape, dtype=torch.bool), 2 / 3, -1.0)


HOLDING = [case for case in PENALTIES if slopes_of(case.make(1.0)) is not None]


@pytest.mark.parametrize("dtype", TYPES[:3], ids=str)
@pytest.mark.parametrize("case", HOLDING, ids=str)
def test_zeros_are_held_as_in_the_plain_form(case, dtype):
    for shape in shapes_of(case):
        penalty = case.make(0.05, shape)
        w = torch.randn(shape).to(dtype)
        w[torch.rand(shape) < 0.5] = 0
        w[: shape[0] // 2] = 0
        w[..., :2] = 0
        zeros = zeros_of(w)
        assert hold_(penalty, [zeros], 0.9)
        following = zeros.total.lerp(-upcast(zeros.grad), 1 - 0.9)
        torch.testing.assert_close(zeros.following, following, rtol=1e-6, atol=1e-8)
        weight = following_weight(zeros.weight, 1 - 0.9, zeros.total)
        assert weight == pytest.approx(0.7)
        assert torch.equal(zeros.mask, penalty.stays(w, following / weight))
        assert restore_([(w, torch.ones_like(zeros.mask))])
        assert not w.any()


def test_held_zeros_that_kernels_cannot_read_are_left():
    w = torch.zeros(6, 4)
    zeros = zeros_of(w)
    for bad in (
        zeros._replace(following=zeros.total),
        zeros._replace(mask=torch.empty(6, 3, dtype=torch.bool)),
        zeros._replace(grad=torch.zeros(4, 6).t()),
        zeros._replace(total=zeros.total.double()),
        zeros._replace(mask=torch.empty(6, 4, dtype=torch.uint8)),
    ):
        assert not hold_(L1(0.1), [bad], 0.9)
    assert not restore_([(w, torch.ones(4, 6, dtype=torch.bool))])
    assert not hold_(Ridged(L2(0.1), 0.1), [zeros], 0.9)
