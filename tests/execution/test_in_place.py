"""What moves a parameter in place, joined or chunk by chunk, against the plain prox."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from catalog import CONSTRAINTS, PENALTIES, PenaltyCase
from shrinkage import L1, MCP, Columns, ElasticNet, GroupLasso, Penalty, Rows, SparseGroupLasso
from shrinkage.execution.buckets import LARGEST, Joined, batched
from shrinkage.execution.in_place import norms_in_blocks
from shrinkage.execution.single_tensor import shrink_all_
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, number
from shrinkage.proximal.precision import upcast

LR = 0.3


def metric(w: Tensor, lr: float | Tensor = LR) -> AdaptiveStep:
    """Adam's, with elements that never had a gradient."""
    moment = torch.rand(w.shape).to(w.dtype)
    moment.view(-1)[:2] = 0
    return AdaptiveStep(lr, moment, 1e-3, 0.7)


STEPS = {"number": lambda w: LR, "tensor": lambda w: torch.tensor(LR), "metric": metric}


def made(case, strength: float) -> Penalty:
    """A penalty of a strength, or a constraint, which has none."""
    return case.make(strength) if isinstance(case, PenaltyCase) else case.make()


def expected(task: Task) -> Tensor:
    """The plain prox, rounded once."""
    return task.penalty.prox(upcast(task.w), number(task.step)).to(task.w.dtype)


def assert_same(found: Tensor, plain: Tensor) -> None:
    """The same zeros, and numbers to rounding: torch's functions and sums depend on where in memory an element is."""
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.0}[found.dtype]
    assert torch.equal(found == 0, plain == 0)
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("penalty", [L1(0.3), ElasticNet(0.3, 0.2), MCP(0.3)], ids=str)
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_elements_are_moved_bit_for_bit(penalty, kind):
    tasks = [Task(penalty, torch.randn(7, 5), STEPS[kind](None)) for _ in range(5)]
    plain = [expected(task) for task in tasks]
    shrink_all_(tasks, compile=False)
    for task, one in zip(tasks, plain, strict=True):
        assert torch.equal(task.w, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("case", PENALTIES + CONSTRAINTS, ids=str)
def test_in_place_is_the_plain_prox(case, kind, dtype):
    w = torch.randn(case.shape).to(dtype)
    task = Task(made(case, 0.3), w, STEPS[kind](w))
    plain = expected(task)
    shrink_all_([task], compile=False)
    assert_same(w, plain)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("case", PENALTIES + CONSTRAINTS, ids=str)
def test_many_small_tensors_are_moved_as_each_by_itself(case, kind):
    """In batches or not: of one penalty and of another, of steps that are equal or not, of shapes that fit or not."""
    penalty, other = made(case, 0.3), made(case, 0.2)
    tasks = []
    for index in range(12):
        w = torch.randn(case.shape, dtype=torch.float64 if index == 5 else torch.float32)
        step = STEPS[kind](w)
        if index == 7:
            step = step._replace(lr=0.1) if isinstance(step, AdaptiveStep) else 0.1 if kind == "number" else step
        tasks.append(Task(other if index % 4 == 3 else penalty, w, step))
    plain = [expected(task) for task in tasks]
    shrink_all_(tasks, compile=False)
    for task, one in zip(tasks, plain, strict=True):
        assert_same(task.w, one)


@pytest.mark.parametrize(
    ("penalty", "shapes"),
    [
        (L1(0.1), [(3,), (4, 5), (2, 3, 4), ()]),
        (MCP(0.1), [(7,), (2, 2)]),
        (GroupLasso(0.1, Rows()), [(3, 5), (1, 5), (8, 5)]),
        (GroupLasso(0.1, Columns()), [(5, 3), (5, 2)]),
    ],
)
def test_shapes_that_fit_are_joined_whatever_the_device_keeps_to_itself(penalty, shapes):
    """Numbers that stand in tensors, which a device would be waited for, are spread out over the batch."""
    tasks = []
    for index, shape in enumerate(shapes):
        w = torch.randn(shape)
        lr, correction = torch.tensor(0.1 * (index + 1)), torch.tensor(0.5 + 0.1 * index)
        tasks.append(Task(penalty, w, AdaptiveStep(lr, torch.rand(shape), 1e-3, correction)))
    (batch,) = batched(tasks)
    assert len(batch) == len(shapes)
    plain = [expected(task) for task in tasks]
    shrink_all_(tasks, compile=False)
    for task, one in zip(tasks, plain, strict=True):
        torch.testing.assert_close(task.w, one, rtol=1e-6, atol=1e-7)


def test_batches_are_bounded():
    penalty = L1(0.1)
    tasks = [Task(penalty, torch.randn(size), 0.1) for size in [100] * 1000 + [LARGEST]]
    batches = list(batched(tasks))
    sizes = [sum(task.w.numel() for task in batch) for batch in batches]
    assert max(sizes) <= LARGEST
    assert sum(map(len, batches)) == len(tasks)
    assert len(batches) == 1 + -(-1000 // (LARGEST // 100))


def test_what_does_not_lie_in_order_is_written_back():
    w = torch.randn(6, 4).t()
    other = torch.randn(8, 4)[:, ::2]
    tasks = [Task(L1(0.5), w, 0.5), Task(L1(0.5), other, 0.5)]
    plain = [expected(task) for task in tasks]
    joined = Joined(tasks)
    joined.task.w.zero_()
    joined.write_back()
    assert not w.any()
    assert not other.any()
    assert plain[0].any()


@pytest.mark.parametrize("within", [(0,), (0, 2), (0, 2, 3), (1, 2, 3), (2, 3), (0, 1, 2, 3), (1,), (3,)])
def test_norms_in_blocks(within, monkeypatch):
    monkeypatch.setattr("shrinkage.execution.in_place.BLOCK", 50)
    w = torch.randn(7, 5, 3, 2, dtype=torch.float64)
    plain = w.square().sum(within, keepdim=True).sqrt()
    torch.testing.assert_close(norms_in_blocks(w, within), plain, rtol=1e-14, atol=1e-14)


LARGE = [L1(0.1), ElasticNet(0.1, 0.1), MCP(0.1), GroupLasso(0.1, Rows()), GroupLasso(0.1, Columns())]


@pytest.mark.parametrize("kind", ["number", "metric"])
@pytest.mark.parametrize("penalty", [*LARGE, SparseGroupLasso(0.1, 0.1, Rows())], ids=str)
def test_scratch_memory_is_bounded(penalty, kind):
    """1 MiB, for a tensor of 2 MiB and for one of 4 as well."""
    for rows in (512, 1024):
        w = torch.randn(rows, 1024)
        step = STEPS[kind](w)
        assert scratch(lambda w=w, step=step: shrink_all_([Task(penalty, w, step)], compile=False)) <= 1 << 20
    assert scratch(lambda: penalty.prox(w, number(step))) >= w.nbytes


def scratch(work: Callable[[], object]) -> int:
    """Bytes that `work` holds at one time, beside what there was."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
