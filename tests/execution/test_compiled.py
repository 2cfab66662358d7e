"""Compiled kernels against the plain prox, what they are compiled for, and what happens where they cannot be."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.optim import SGD, AdamW

from shrinkage import (
    L1,
    MCP,
    Columns,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupLasso,
    Heads,
    Regularizer,
    Rows,
    SparseGroupLasso,
    Weighted,
    Whole,
)
from shrinkage.execution import compiled as kernels
from shrinkage.execution import memory_layout
from shrinkage.execution.compiled import compiled_shrink_, pays
from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, number

pytestmark = pytest.mark.usefixtures("without_native")

ELEMENTS = [L1(0.1), ElasticNet(0.1, 0.2), MCP(0.1)]
GROUPS = [
    GroupLasso(1.0, Rows()),
    GroupLasso(1.0, Columns()),
    GroupLasso(1.0, Heads(4)),
    Grouped(ElasticNet(1.0, 0.2), Rows()),
    SparseGroupLasso(0.5, 1.0, Columns()),
]


@pytest.fixture
def small_kernels(monkeypatch):
    """Kernels for small tensors, and small examples to compile with."""
    monkeypatch.setattr(kernels, "LEAST", 1)
    monkeypatch.setattr(memory_layout, "ROWS", 4)
    memory_layout.folded_by.cache_clear()


@pytest.fixture
def all_is_large(monkeypatch):
    """Every tensor is read from memory twice."""
    monkeypatch.setattr(kernels, "LARGE", 1)


def metric(w: Tensor, lr: float = 0.05) -> AdaptiveStep:
    moment = torch.rand_like(w).to(memory_format=torch.preserve_format)
    moment[0] = 0
    return AdaptiveStep(lr, moment, 1e-3, 0.7)


@pytest.mark.parametrize("penalty", ELEMENTS, ids=str)
def test_elements(small_kernels, penalty):
    """Bit for bit in a plain metric; in Adam's, square roots are rounded right here, and by torch in its own way."""
    w = torch.randn(40, 24)
    moved, step = w.clone(), metric(w)
    assert compiled_shrink_(penalty, moved, step)
    torch.testing.assert_close(moved, penalty.prox(w, number(step)), rtol=1e-6, atol=1e-7)
    moved = w.clone()
    if not isinstance(penalty, L1):  # torch's own soft threshold is faster
        assert compiled_shrink_(penalty, moved, 0.3)
        assert torch.equal(moved, penalty.prox(w, 0.3))


@pytest.mark.parametrize("shape", [(40, 24), (8, 24, 3, 3)])
@pytest.mark.parametrize("penalty", GROUPS, ids=str)
def test_groups_to_rounding(small_kernels, penalty, shape):
    """The same groups are zero; others differ by the order of sums."""
    w = torch.randn(shape)
    w[: shape[0] // 2] *= 0.01
    w[:, : shape[1] // 2] *= 0.01
    step = metric(w)
    moved, plain = w.clone(), penalty.prox(w, number(step))
    assert compiled_shrink_(penalty, moved, step)
    torch.testing.assert_close(moved, plain, rtol=2e-6, atol=1e-8)
    assert torch.equal(moved == 0, plain == 0)
    assert (moved == 0).any()
    assert (moved != 0).any()


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [
        (GroupLasso(0.4, Rows()), (40, 24)),
        (GroupLasso(0.4, Rows(), weigh_by_size=False), (40, 24, 3, 3)),
        (GroupLasso(0.2, Heads(4)), (40, 24)),
        (Grouped(MCP(0.4), Rows()), (40, 24)),
        (SparseGroupLasso(0.5, 0.4, Rows()), (40, 24)),
    ],
    ids=str,
)
def test_large_groups_in_a_plain_metric_to_rounding(small_kernels, all_is_large, penalty, shape):
    w = torch.randn(shape)
    w[: shape[0] // 2] *= 0.01
    for stored in (w, w.double(), w.to(memory_format=torch.channels_last) if len(shape) == 4 else w):
        for step in (1.0, torch.tensor(0.5), 0.0):
            moved, plain = stored.clone(), penalty.prox(stored, step)
            assert compiled_shrink_(penalty, moved, step)
            torch.testing.assert_close(moved, plain, rtol=2e-6, atol=1e-8)
            assert torch.equal(moved == 0, plain == 0)
            assert moved.stride() == stored.stride()
    assert (penalty.prox(w, 1.0) == 0).any()


@pytest.mark.parametrize(
    "penalty",
    [
        GroupLasso(0.1, Columns()),  # not next to each other
        GroupLasso(0.1, Whole()),  # larger than the cache of the test
        Grouped(Weighted(L1(0.1), torch.rand(40)), Rows()),
    ],
    ids=str,
)
def test_other_groups_in_a_plain_metric_stay_in_place(small_kernels, all_is_large, monkeypatch, penalty):
    monkeypatch.setattr(kernels, "CACHED", 500)
    w = torch.randn(40, 24)
    moved = w.clone()
    assert not compiled_shrink_(penalty, moved, 0.1)
    assert torch.equal(moved, w)


def test_an_infinite_weight_stays(small_kernels, all_is_large):
    w = torch.randn(40, 24)
    w[5, 1] = torch.inf
    moved, penalty = w.clone(), GroupLasso(0.1, Rows())
    assert compiled_shrink_(penalty, moved, 0.1)
    torch.testing.assert_close(moved, penalty.prox(w, 0.1))


def test_convolutions_in_channels_last_stay_so(small_kernels):
    w = torch.randn(8, 12, 3, 3).to(memory_format=torch.channels_last)
    for penalty in (GroupLasso(0.02, Rows()), GroupLasso(0.02, Columns()), L1(0.1)):
        step, moved = metric(w), w.clone()
        assert compiled_shrink_(penalty, moved, step)
        torch.testing.assert_close(moved, penalty.prox(w, number(step)), rtol=2e-6, atol=1e-8)
        assert moved.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.05, Rows()), GroupLasso(0.05, Columns())], ids=str)
def test_every_number_of_a_step_may_differ_from_element_to_element(small_kernels, penalty):
    """As where tensors are joined that each have their own numbers on a device."""
    w = torch.randn(8, 12, 3, 3)
    numbers = {name: torch.rand(8, 1, 1, 1).expand_as(w) + 0.1 for name in ("lr", "eps", "correction")}
    step = metric(w)._replace(**{name: number.contiguous() for name, number in numbers.items()})
    moved, plain = w.clone(), penalty.prox(w, number(step))
    assert compiled_shrink_(penalty, moved, step)
    torch.testing.assert_close(moved, plain, rtol=2e-6, atol=1e-7)
    assert torch.equal(moved == 0, plain == 0)


@pytest.mark.parametrize("penalty", [L1(0.1), GroupLasso(0.1, Rows())], ids=str)
@pytest.mark.parametrize("factor", [0.0, torch.tensor(0.0)])
def test_a_step_of_zero_leaves_all_as_it_is(small_kernels, penalty, factor):
    w = torch.randn(40, 24)
    w[0] *= 1e-14
    moved = w.clone()
    assert compiled_shrink_(penalty, moved, metric(w)._replace(lr=factor))
    assert torch.equal(moved, w)


def test_bad_numbers_stay_in_their_group(small_kernels):
    w = torch.randn(40, 24)
    w[3, 2], w[5, 1] = torch.nan, torch.inf
    penalty, step, moved = GroupLasso(0.02, Rows()), metric(w), w.clone()
    assert compiled_shrink_(penalty, moved, step)
    torch.testing.assert_close(moved, penalty.prox(w, number(step)), rtol=2e-6, atol=1e-8, equal_nan=True)
    assert moved[3].isnan().all()
    assert moved.isfinite().sum() == 38 * 24 + 23


def test_one_compilation_serves_all_shapes_rates_and_strengths(small_kernels, all_is_large, no_kernel_is_known):
    counts = []
    for index in range(100):
        w = torch.randn(30 + index, 20 + 2 * index if index else 30)
        for make in (L1, lambda strength: GroupLasso(strength, Rows())):
            assert compiled_shrink_(make(0.01 / (1 + index)), w, metric(w, 0.1 / (1 + index)))
        assert compiled_shrink_(GroupLasso(0.01 / (1 + index), Rows()), w, 0.1 / (1 + index))
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[-1] > 0


@pytest.mark.parametrize(
    ("penalty", "step"),
    [
        (Weighted(L1(0.1), torch.rand(40, 24)), metric),
        (FusedLasso(0.1), metric),
        (GroupLasso(0.1, Rows()), lambda w: 0.1),
        (SparseGroupLasso(0.1, 0.1, Rows()), lambda w: 0.1),
        (L1(0.1), lambda w: 0.1),
        (L1(0.1), lambda w: torch.rand(40, 24)),
        (GroupLasso(0.0, Rows()), metric),
    ],
)
def test_what_has_no_kernel_is_left_alone(small_kernels, penalty, step):
    w = torch.randn(40, 24)
    moved = w.clone()
    assert not compiled_shrink_(penalty, moved, step(w))
    assert torch.equal(moved, w)


def test_small_tensors_are_not_worth_a_kernel():
    w = torch.randn(100, 100)
    assert not compiled_shrink_(L1(0.1), w, metric(w))


def test_compilation_pays_for_many_weights():
    w, few = torch.empty(1 << 11, 1 << 11), torch.empty(1 << 9, 1 << 9)
    assert pays([Task(L1(0.1), w, metric(few))])
    assert not pays([Task(L1(0.1), w, 0.1)])
    assert not pays([Task(GroupLasso(0.1, Rows()), w, 0.1)])
    assert not pays([Task(L1(0.1), few, metric(few))])
    assert pays([Task(GroupLasso(0.1, Rows()), few, metric(few))])
    assert pays([Task(L1(0.1), torch.empty(3, device="meta"), 0.1)])


def test_groups_in_a_plain_metric_save_little_and_only_where_they_are_large(monkeypatch):
    monkeypatch.setattr(kernels, "MANY", 1 << 18)
    rows = GroupLasso(0.1, Rows())
    small, large = torch.empty(1 << 10, 1 << 11), torch.empty(1 << 11, 1 << 11)
    assert pays([Task(rows, large, 0.1)])
    assert not pays([Task(rows, small, 0.1), Task(rows, small, 0.1), Task(rows, small, 0.1)])
    assert not pays([Task(L1(0.1), large, 0.1)])
    assert not compiled_shrink_(rows, small, 0.1)


@pytest.fixture
def no_kernel_is_known():
    kept = dict(kernels._compiles)
    kernels._compiles.clear()
    yield
    kernels._compiles.clear()
    kernels._compiles.update(kept)


@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.05, Rows())], ids=str)
def test_without_a_compiler_one_line_says_so(small_kernels, no_kernel_is_known, monkeypatch, caplog, penalty):
    def fails(kernel, kind):
        def call(*args):
            raise TorchDynamoException("no compiler here\nand more lines")

        return call

    def trained():
        torch.manual_seed(0)
        layer = nn.Linear(24, 40)
        optimizer = AdamW(layer.parameters(), lr=0.05)
        Regularizer(layer, penalty, compile=True).attach(optimizer)
        for _ in range(3):
            layer.weight.grad = torch.randn(40, 24)
            optimizer.step()
        return layer.weight

    with_kernels = trained()
    kernels._compiles.clear()
    monkeypatch.setattr(kernels, "compiled", fails)
    with caplog.at_level(logging.WARNING, logger="shrinkage"):
        without = trained()
    torch.testing.assert_close(without, with_kernels, rtol=2e-6, atol=1e-8)
    (record,) = (record for record in caplog.records if record.name == "shrinkage")
    assert "goes on without torch.compile" in record.message
    assert "no compiler here" in record.message
    assert "more lines" not in record.message


@pytest.mark.slow
def test_a_compiler_that_is_not_there(no_kernel_is_known, monkeypatch, caplog, tmp_path):
    import torch._inductor.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    kernels.compiled.cache_clear()
    w = torch.randn(400, 300)
    moved = w.clone()
    nowhere = config.patch({"cpp.cxx": (str(tmp_path / "nowhere"),)})
    with nowhere, caplog.at_level(logging.WARNING, logger="shrinkage"):
        assert not compiled_shrink_(L1(0.1), moved, metric(w))
    assert torch.equal(moved, w)
    assert len([record for record in caplog.records if record.name == "shrinkage"]) == 1
    kernels.compiled.cache_clear()
    torch.compiler.reset()


def test_the_regularizer_compiles_on_request(small_kernels, monkeypatch):
    calls = []
    monkeypatch.setattr("shrinkage.execution.single_tensor.compiled_shrink_", lambda *args: calls.append(args) or False)
    for compile, count in ((True, 1), (False, 0), ("auto", 0)):
        calls.clear()
        layer = nn.Linear(300, 200)
        optimizer = SGD(layer.parameters(), lr=0.1)
        Regularizer(layer, MCP(0.1), compile=compile).attach(optimizer)
        layer.weight.grad = torch.zeros(200, 300)
        optimizer.step()
        assert len(calls) == count
    with pytest.raises(ValueError, match="compile must be"):
        Regularizer(nn.Linear(2, 2), L1(0.1), compile="always")


def test_kernels_run_inside_a_step_that_is_compiled(small_kernels):
    def trained(compiled):
        torch.manual_seed(0)
        layer = nn.Linear(24, 40)
        optimizer = AdamW(layer.parameters(), lr=0.05)
        Regularizer(layer, L1(0.3), compile=True).attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            layer.weight.grad = torch.randn(40, 24)
            step()
        return layer.weight

    torch.testing.assert_close(trained(True), trained(False))
