"""The fused lasso's dynamic programme, against its dual solved by another method and against brute force in 2-d."""

import pytest
import torch

from shrinkage.proximal.total_variation import total_variation


def dual_gap(w, weights, strengths, y) -> torch.Tensor:
    """Return how far y is from optimal.

    The cumulated pull sum_{j <= i} weights (y - w) has to be the strength times the sign of the difference after i, and
    within the strength where there is no difference.
    """
    pull = (weights * (y - w)).cumsum(1)
    steps = y.diff(dim=1)
    wrong = torch.where(
        steps == 0, (pull[:, :-1].abs() - strengths).clamp_min(0), (pull[:, :-1] - strengths * steps.sign()).abs()
    )
    return torch.maximum(wrong.amax(1), pull[:, -1].abs())


@pytest.mark.parametrize("size", [2, 3, 10, 200])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("strength", [0.01, 0.3, 2.0, 100.0])
def test_the_solution_satisfies_the_optimality_conditions(size, spread, strength):
    w = torch.randn(30, size, dtype=torch.float64)
    weights = torch.exp(spread * torch.randn_like(w))
    strengths = torch.full_like(w[:, 1:], strength)
    y = total_variation(w, weights, strengths)
    assert dual_gap(w, weights, strengths, y).max() <= 1e-9 * weights.sum(1).max()
    if strength == 100.0 and spread == 0.0 and size < 200:
        torch.testing.assert_close(y, w.mean(1, keepdim=True).expand_as(y))
    assert dual_gap(w, weights, strengths, 1.01 * y).max() > 1e-4


def test_neighbours_may_have_strengths_of_their_own():
    w = torch.randn(20, 15, dtype=torch.float64)
    strengths = torch.rand(20, 14, dtype=torch.float64)
    strengths[:, ::3] = 0
    y = total_variation(w, torch.ones_like(w), strengths)
    assert dual_gap(w, torch.ones_like(w), strengths, y).max() <= 1e-12


def test_rows_do_not_depend_on_their_company():
    w = torch.randn(8, 40, dtype=torch.float64)
    weights, strengths = torch.rand_like(w) + 0.1, torch.full_like(w[:, 1:], 0.5)
    together = total_variation(w, weights, strengths)
    for i in range(8):
        assert torch.equal(together[i], total_variation(w[i : i + 1], weights[i : i + 1], strengths[i : i + 1])[0])


@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_elements_have_no_neighbours(size):
    w = torch.randn(3, size)
    assert torch.equal(total_variation(w, torch.ones_like(w), torch.ones(3, 0)), w)


def test_equal_stretches_are_exactly_equal():
    y = total_variation(torch.randn(5, 100).double(), torch.ones(5, 100).double(), torch.ones(5, 99).double())
    assert (y.diff(dim=1) == 0).double().mean() > 0.5
