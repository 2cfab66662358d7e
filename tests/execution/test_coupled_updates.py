"""Groups that span parameters in place, joined, cut and compiled, against the plain form."""

import pytest
import torch
from torch import Tensor

from shrinkage import L1, L2, MCP, ElasticNet
from shrinkage.execution import compiled as kernels
from shrinkage.execution import coupled_updates as fast
from shrinkage.execution import single_tensor as applied
from shrinkage.execution.coupled_updates import MemberTask, shrink_together_
from shrinkage.execution.memory_layout import folded_by
from shrinkage.optimizers.adaptive_step import AdaptiveStep, Step, number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.membership import GroupPenalty, Membership
from shrinkage.proximal.reductions import alone

pytestmark = pytest.mark.usefixtures("without_native")

COUNT = 40
TARGETS = [L1(0.5), ElasticNet(0.4, 0.5), L2(2.0), MCP(0.4)]


def part(groups: list[int], dim: int = 0) -> Membership:
    numbers = torch.tensor(groups)
    first = groups[0] if groups == list(range(groups[0], groups[0] + len(groups))) else None
    return Membership(dim, torch.where(numbers < 0, COUNT, numbers), COUNT, first)


def slabs(step, dtype=torch.float32) -> list[MemberTask]:
    """Rows, columns, planes in another order of memory, vectors, and slices in no group or several in one."""
    torch.manual_seed(0)
    shapes = {
        (20, 36): part(list(range(20))),
        (30, 20): part(list(range(20)), 1),
        (20, 4, 3, 3): part(list(reversed(range(20)))),
        (6, 20, 5): part([*range(10, 25), *[-1] * 5], 1),
        (20,): part(list(range(20))),
        (40,): part([row // 2 for row in range(40)]),
        (12, 24): part([-1, 3, -1, 3, 4, 4, 30, 31, 32, 33, 34, -1]),
        (18, 24): part(list(range(20, 38))),
    }
    found = []
    for shape, own in shapes.items():
        w = torch.randn(shape, dtype=dtype)
        found.append(MemberTask(own, w.to(memory_format=torch.channels_last) if len(shape) == 4 else w, step))
    found[1].w[:, 3] = 0
    return found


def with_steps(found: list[MemberTask], adaptive: bool) -> list[MemberTask]:
    """Slabs with moments of their own, some of them 0, and two rates; or with one number for all."""
    if not adaptive:
        return found
    result = []
    for index, slab in enumerate(found):
        moment = torch.rand_like(slab.w).to(memory_format=torch.preserve_format)
        moment[0] = 0
        result.append(slab._replace(step=AdaptiveStep(0.05 if index != 2 else 0.2, moment, 1e-3, 0.7)))
    return result


def plainly(penalized: GroupPenalty, found: list[MemberTask]) -> list[Tensor]:
    steps: list[Step] = [slab.step for slab in found]
    parts, ws = [slab.part for slab in found], [slab.w.clone() for slab in found]
    return alone(coupled_norms.prox(penalized, parts, ws, [number(step) for step in steps], to_rest=True))


def penalized(target, dtype=torch.float64) -> GroupPenalty:
    return GroupPenalty(target, torch.linspace(0.5, 4.0, COUNT, dtype=dtype))


@pytest.fixture
def small(monkeypatch):
    """Chunks, batches and kernels for small tensors."""
    monkeypatch.setattr(applied, "CHUNK", 256)
    monkeypatch.setattr(fast, "LARGEST", 200)
    monkeypatch.setattr(kernels, "LEAST", 1)
    folded_by.cache_clear()


@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "metric"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
def test_in_place_is_the_plain_form(small, target, adaptive):
    found = with_steps(slabs(0.3), adaptive)
    expected = plainly(penalized(target), found)
    shrink_together_(penalized(target), found, compile=False)
    for slab, moved in zip(found, expected, strict=True):
        torch.testing.assert_close(slab.w, moved, rtol=2e-6, atol=1e-7)
        assert torch.equal(slab.w == 0, moved == 0)


@pytest.mark.parametrize("target", TARGETS[:2], ids=lambda target: type(target).__name__)
def test_kernels_are_the_plain_form(small, target):
    found = with_steps(slabs(0.3), adaptive=True)
    expected = plainly(penalized(target), found)
    shrink_together_(penalized(target), found, compile=True)
    assert any(str(key[0]).startswith("Coupled") and compiled for key, compiled in kernels._compiles.items())
    for slab, moved in zip(found, expected, strict=True):
        torch.testing.assert_close(slab.w, moved, rtol=2e-6, atol=1e-7)
        assert torch.equal(slab.w == 0, moved == 0)


@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "metric"])
def test_what_is_in_no_group_is_not_touched(small, adaptive):
    found = with_steps(slabs(0.3), adaptive)
    found[6].w[0, 0] = 1e-30  # whose square is 0
    before = [slab.w.clone() for slab in found]
    shrink_together_(penalized(ElasticNet(0.4, 0.5)), found, compile=False)
    assert torch.equal(found[6].w[[0, 2, 11]], before[6][[0, 2, 11]])
    assert torch.equal(found[3].w[:, 15:], before[3][:, 15:])
    assert not torch.equal(found[6].w[1], before[6][1])


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "metric"])
def test_a_step_of_0_leaves_everything_alone(small, adaptive, compile):
    found = with_steps(slabs(0.0), adaptive)
    if adaptive:
        found = [slab._replace(step=slab.step._replace(lr=0.0)) for slab in found]
    before = [slab.w.clone() for slab in found]
    shrink_together_(penalized(L1(1.0)), found, compile=compile)
    assert all(torch.equal(slab.w, w) for slab, w in zip(found, before, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "metric"])
def test_what_is_not_finite_stays_in_its_group(small, adaptive, bad):
    found, clean = (with_steps(slabs(0.3), adaptive) for _ in range(2))
    found[0].w[5, 0] = bad
    shrink_together_(penalized(L1(0.5)), found, compile=False)
    shrink_together_(penalized(L1(0.5)), clean, compile=False)
    for slab, other in zip(found, clean, strict=True):
        same = (slab.w == other.w).movedim(slab.part.dim, 0).reshape(len(slab.part.groups), -1).all(1)
        assert same[slab.part.groups != 5].all()


def test_a_member_at_rest_is_read_no_more(small, monkeypatch):
    """One family needs more iterations than the others, whose members are left alone meanwhile."""
    calls = []
    original = fast.PlainMember.terms
    monkeypatch.setattr(fast.PlainMember, "terms", lambda self, theta: calls.append(self.part) or original(self, theta))
    w = torch.randn(20, 8, dtype=torch.float64)
    upcast = AdaptiveStep(1.0, torch.exp(20 * torch.rand(20, 8)).double(), 0.0)
    narrow = AdaptiveStep(1.0, torch.full((20, 8), 2.0).double(), 0.0)
    found = [
        MemberTask(part(list(range(20))), w.clone(), upcast),
        MemberTask(part(list(range(20, 40))), w.clone(), narrow),
    ]
    monkeypatch.setattr(fast, "LARGEST", 1)
    shrink_together_(penalized(L1(0.05)), found, compile=False)
    counts = [sum(own.first == first for own in calls) for first in (0, 20)]
    assert 0 < counts[1] < counts[0]


def test_small_members_are_joined(small, monkeypatch):
    reads = []
    original = fast.norms_in_blocks
    monkeypatch.setattr(fast, "norms_in_blocks", lambda w, within: reads.append(w.shape) or original(w, within))
    shrink_together_(penalized(L1(0.5)), slabs(0.3), compile=False)
    assert (60, 1) in reads
    assert len(reads) == len(slabs(0.3)) - 1
