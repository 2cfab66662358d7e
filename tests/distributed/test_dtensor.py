"""Shards of a tensor penalized apart, or in step with sums over all of them, in one process: as the whole is penalized.

What real processes do is tested by `test_processes.py`.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch

from catalog import CONSTRAINTS, PENALTIES
from shrinkage import L1, Columns, Grouped, GroupLasso, Heads, Rows
from shrinkage.distributed import dtensor, group_sharding
from shrinkage.proximal import secular, secular_search

CASES = [*PENALTIES, *CONSTRAINTS]
STEPS = [0.3, "metric"]


def made(case, strength=0.4):
    return case.make() if case in CONSTRAINTS else case.make(strength)


def example(case):
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(case.shape, generator=generator, dtype=torch.float64)
    return w, 0.05 + torch.rand(case.shape, generator=generator, dtype=torch.float64)


def taken(dim, start, length, tensor):
    return tensor.narrow(dim, start, length)


def cut(shape, dim):
    """Two unequal shards, and an empty one."""
    first = max(shape[dim] // 3, 1)
    return [partial(taken, dim, *shard) for shard in ((0, first), (first, shape[dim] - first), (shape[dim], 0))]


def in_step(computations):
    """Run computations of all shards of one tensor, each of which is sent the sum of what all of them yield."""
    results, sent, rounds = {}, None, 0
    while len(results) < len(computations):
        asked = []
        for index, computation in enumerate(computations):
            try:
                asked.append(computation.send(sent))
            except StopIteration as end:
                results[index] = end.value
        assert len(asked) in (0, len(computations)), "shards ask unequally often"
        sent, rounds = sum(asked), rounds + 1
    return [results[index] for index in range(len(computations))], rounds


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shards_that_may_be_cut_are_penalized_by_themselves(case, step):
    penalty, (w, metric) = made(case), example(case)
    steps = metric if step == "metric" else step
    expected = penalty.prox(w, steps)
    for dim in penalty.cuts(w.shape):
        shards = [
            penalty.with_tensors(take).prox(take(w), take(metric) if step == "metric" else step)
            for take in cut(w.shape, dim)[:2]
        ]
        torch.testing.assert_close(torch.cat(shards, dim), expected, rtol=1e-13, atol=1e-13)


def messages_of(penalty, dtype) -> int:
    """How often a prox in a diagonal metric asks for sums."""
    parts = penalty.penalty.radial() if isinstance(penalty, Grouped) else (1.0, 0.0)
    if parts is None:
        return 3 + secular_search.BISECTIONS[dtype]
    return 1 + secular.NEWTON_ITERATIONS if parts[0] else 0


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shards_that_may_not_be_cut_are_penalized_by_sums_or_not_at_all(case, step):
    penalty, (w, metric) = made(case), example(case)
    expected = penalty.prox(w, metric if step == "metric" else step)
    for dim in set(range(w.dim())) - set(penalty.cuts(w.shape)):
        takes = cut(w.shape, dim)
        computations = [
            penalty.with_tensors(take).prox_by_sums(
                take(w), take(metric) if step == "metric" else step, w.shape, cut=(dim,)
            )
            for take in takes
        ]
        assert len({computation is None for computation in computations}) == 1
        if computations[0] is not None:
            shards, rounds = in_step(computations)
            messages = messages_of(penalty, w.dtype)
            assert rounds == 1 + (messages if step == "metric" else 1)
            found = torch.cat(shards, dim)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("case", PENALTIES, ids=str)
def test_gradients_of_shards(case):
    penalty, (w, _) = made(case), example(case)
    for dim in range(w.dim()):
        takes = cut(w.shape, dim)
        targets = [penalty.with_tensors(take) for take in takes]
        computations = [
            target.gradient_by_sums(take(w), w.shape, cut=(dim,)) for target, take in zip(targets, takes, strict=True)
        ]
        if dim in penalty.cuts(w.shape):
            shards = [target.gradient(take(w)) for target, take in zip(targets[:2], takes[:2], strict=True)]
        elif computations[0] is not None:
            shards, rounds = in_step(computations)
            assert rounds == 2
        else:
            continue
        torch.testing.assert_close(torch.cat(shards, dim), penalty.gradient(w), rtol=1e-13, atol=1e-13)


def test_which_penalties_sums_suffice_for():
    """Penalizes of the norms of groups do with sums; what sorts or decomposes needs the whole."""
    by_sums = {
        str(case)
        for case in CASES
        for penalty, shape in [(made(case), case.shape)]
        for dim in range(len(shape))
        if dim not in penalty.cuts(shape)
        and penalty.prox_by_sums(torch.ones(shape), torch.ones(shape), shape, cut=(dim,)) is not None
    }
    assert {"GroupLasso rows", "GroupLasso columns", "SparseGroupLasso", "NonNegative GroupLasso"} <= by_sums
    assert {"Toward GroupLasso", "Grouped L2", "Grouped ElasticNet", "Grouped MCP"} <= by_sums
    assert not {"Nuclear", "FusedLasso", "TopK", "Simplex", "GroupLInf"} & by_sums
    assert GroupLasso(1.0, Heads(2)).prox_by_sums(torch.ones(2, 6), 0.1, (4, 6), cut=(0,)) is None
    assert GroupLasso(1.0, Heads(2)).prox_by_sums(torch.ones(4, 3), 0.1, (4, 6), cut=(1,)) is not None


def test_a_penalty_that_differs_between_groups_is_not_cut_between_them():
    weighted = next(case for case in PENALTIES if str(case) == "Grouped Weighted L1").make(1.0)
    assert weighted.cuts((4, 6)) == ()
    assert weighted.prox_by_sums(torch.ones(2, 6), 0.1, (4, 6), cut=(0,)) is None
    assert weighted.prox_by_sums(torch.ones(4, 3), 0.1, (4, 6), cut=(1,)) is not None


def test_plain_tensors_pass_through():
    w = torch.ones(2, 3)
    assert not dtensor.is_dtensor(w)
    assert dtensor.local(w) is w
    assert dtensor.whole(w) is w
    assert dtensor.spread(w, w) is w
    assert group_sharding.group_sharding_of(Grouped(L1(1.0), Columns()), w) is None
    penalty = GroupLasso(1.0, Rows())
    assert group_sharding.shard_penalty(penalty, w) is penalty


def test_distributed_tensors_are_not_imported_for_those_who_have_none():
    """Importing them takes a good part of a second."""
    code = "import sys, shrinkage; sys.exit('torch.distributed.tensor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
