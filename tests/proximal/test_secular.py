"""The norms of groups in a diagonal metric, against bisection."""

import pytest
import torch

from shrinkage import MCP
from shrinkage.penalties.group_norms import target_of
from shrinkage.proximal import secular, secular_search
from shrinkage.proximal.reductions import alone


def bisected_scale(matrix: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Solve the secular equation by bisection."""
    low, high = torch.zeros_like(matrix[:, :1]), matrix.norm(dim=1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        above = (matrix / (middle + thresholds)).square().sum(1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    zero = (matrix / thresholds).square().sum(1, keepdim=True) <= 1
    return torch.where(zero, 0.0, low / (low + thresholds))


@pytest.mark.parametrize("spread", [0, 6, 12, 20, 30])
@pytest.mark.parametrize("size", [1, 2, 16, 200])
@pytest.mark.parametrize("scatter", [0.0, 4.0])
def test_secular_equation_is_solved_to_rounding_in_wide_metrics(spread, size, scatter):
    normal = torch.randn(500, size, dtype=torch.float64)
    matrix = normal * torch.exp(scatter * torch.randn_like(normal))
    thresholds = torch.exp(spread * (torch.rand_like(normal) - 0.5) + 4 * torch.randn(500, 1, dtype=torch.float64))
    expected = bisected_scale(matrix, thresholds)
    norm = matrix.norm(dim=1, keepdim=True)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        found = secular.block_scale_in_metric(matrix.to(dtype), thresholds.to(dtype), (1,)).double()
        assert ((found - expected) * matrix / norm).abs().max() < tolerance
    assert 0 < (expected > 0).double().mean()


def test_equal_thresholds_give_the_closed_form():
    matrix = torch.randn(50, 7, dtype=torch.float64)
    norms = matrix.norm(dim=1)
    closed = (1 - 2.0 / norms).clamp_min(0)
    in_metric = secular.block_scale_in_metric(matrix, torch.full_like(matrix, 2.0), (1,))
    torch.testing.assert_close(in_metric, closed[:, None].expand_as(matrix))


def test_a_group_is_zero_exactly_when_its_dual_norm_is_at_most_1():
    thresholds = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    direction = torch.tensor([[0.3, 1.6]], dtype=torch.float64)
    on_sphere = direction / (direction / thresholds).norm()
    assert (secular.block_scale_in_metric(on_sphere * (1 - 1e-9), thresholds, (1,)) == 0).all()
    assert (secular.block_scale_in_metric(on_sphere * (1 + 1e-9), thresholds, (1,)) > 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_group_stays_bad_and_alone(bad):
    matrix = torch.ones(3, 2)
    matrix[1, 0] = bad
    steps = torch.tensor([[0.5, 0.1]]).expand_as(matrix)
    for scale in (
        secular.block_scale_in_metric(matrix, steps, (1,)),
        secular_search.radial_scale_in_metric(matrix, steps, (1,), target_of(MCP(0.5), 1.0, (3, 1))),
    ):
        out = matrix * scale
        assert torch.equal(out[1, 0].nan_to_num(7.0), torch.tensor(bad).nan_to_num(7.0))
        assert out[[0, 2]].isfinite().all()


def test_groups_that_are_zero_do_not_keep_the_others_from_stopping(monkeypatch):
    """On a CPU the iteration ends when no group moves; a zero group, 0 / 0 if careless, must not look as if it did."""
    calls = []
    original = torch.Tensor.square_
    monkeypatch.setattr(torch.Tensor, "square_", lambda self: calls.append(1) or original(self))
    matrix, thresholds = torch.randn(50, 8, dtype=torch.float64), torch.rand(50, 8, dtype=torch.float64) + 0.1
    expected = secular.block_scale_in_metric(matrix, thresholds, (1,))
    alone, _ = len(calls), calls.clear()
    mixed = torch.cat([matrix, torch.zeros(5, 8), 1e-3 * matrix])
    found = secular.block_scale_in_metric(mixed, torch.cat([thresholds, thresholds[:5], thresholds]), (1,))
    assert torch.equal(found[:50], expected)
    assert (found[50:] == 0).all()
    assert len(calls) <= alone < secular.NEWTON_ITERATIONS


def evaluations(w, thresholds, *, to_rest=True):
    """How often the terms of the equation are added up until no group moves."""
    calls = []

    def terms(theta, resting):
        calls.append(theta)
        return secular.secular_terms(w, 1 / thresholds, theta, (1,))

    root = alone(secular.secular_root(lambda: secular.secular_sums(w, 1 / thresholds, (1,)), terms, to_rest=to_rest))
    return len(calls), root


@pytest.mark.parametrize(("threshold", "least"), [(1e-6, 1), (0.03, 1), (0.3, 2), (1.0, 3)])
def test_few_iterations_are_needed(threshold, least):
    """One where steps are small beside the norms, as in training; each is a pass over memory."""
    torch.manual_seed(0)
    w = torch.randn(100, 64)
    count, _ = evaluations(w, threshold * torch.exp(torch.randn(100, 64)))
    assert count <= least


def test_what_becomes_of_a_group_does_not_depend_on_its_company():
    """A group at rest stays there while others go on: chunks of a tensor are moved as the whole is."""
    torch.manual_seed(0)
    w, thresholds = torch.randn(60, 9), torch.exp(3 * torch.randn(60, 9))
    count, together = evaluations(w, thresholds)
    each = torch.cat([evaluations(w[i : i + 1], thresholds[i : i + 1])[1] for i in range(60)])
    assert torch.equal(together, each)
    assert count > min(evaluations(w[i : i + 1], thresholds[i : i + 1])[0] for i in range(60))


def test_a_zero_element_with_a_zero_threshold_does_not_keep_its_group():
    scale = secular.block_scale_in_metric(torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 1.0]]), (1,))
    assert scale[0, 1] == 0
