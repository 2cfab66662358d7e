"""Functions of a group's norm that are not convex, in a diagonal metric, against a fine scan of the multiplier."""

import pytest
import torch

from shrinkage import L0, L1, MCP, SCAD, Huber, LogSum, Lp
from shrinkage.proximal import secular, secular_search


def target_of(penalty, weight=1.0) -> secular_search.RadialFunction:
    """A penalty of one element as a penalty of the norms of groups."""
    return secular_search.RadialFunction(
        cost=lambda norms: weight * penalty.cost(norms),
        slope=lambda norms: weight * penalty.gradient(norms),
        slope_at_zero=weight * penalty.slope_at_zero,
    )


def least_objective(w, steps, function, points=5_000) -> torch.Tensor:
    """The least objective of each row on a scan of multipliers, at 0 and at `w` itself."""
    norm = w.norm(dim=1, keepdim=True)
    least = torch.minimum(0.5 * (w.square() / steps).sum(1, keepdim=True), function.cost(norm))
    low, high = 1e-8 / steps.amax(1, keepdim=True), 1e9 / steps.amin(1, keepdim=True)
    for share in torch.linspace(0, 1, points, dtype=w.dtype):
        multiplier = low * (high / low) ** share
        y = w / (1 + multiplier * steps)
        objective = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + function.cost(y.norm(dim=1, keepdim=True))
        least = torch.minimum(least, objective)
    return least


PENALTIES = [MCP(1.0), MCP(1.0, gamma=0.4), SCAD(1.0), LogSum(1.0, 0.3), Lp(1.0, 0.5), Lp(1.0, 2 / 3), L0(1.0), L1(1.0)]


@pytest.mark.parametrize("penalty", [*PENALTIES, Huber(1.0, 0.5)], ids=str)
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_no_multiplier_is_better_than_the_one_that_is_found(penalty, spread):
    rows = 300
    w = torch.randn(rows, 5, dtype=torch.float64) * torch.exp(1.5 * torch.randn(rows, 1, dtype=torch.float64))
    steps = torch.exp(spread * torch.randn(rows, 5, dtype=torch.float64))
    function = target_of(penalty, weight=torch.exp(torch.randn(rows, 1, dtype=torch.float64)))
    y = w * secular_search.radial_scale_in_metric(w, steps, (1,), function)
    found = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + function.cost(y.norm(dim=1, keepdim=True))
    assert (found <= least_objective(w, steps, function) * (1 + 1e-9)).all()
    zero = (y == 0).all(1)
    assert 0 < zero.double().mean() < 1 or isinstance(penalty, Huber)


@pytest.mark.parametrize("penalty", [L1(1.0), Huber(1.0, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_thresholds_are_not_lost_in_rounding(penalty, dtype):
    """Steps of training are small: the objective barely falls, and what moves is told from its derivative."""
    w = torch.randn(200, 8, dtype=dtype)
    steps = 1e-4 * torch.exp(torch.randn(200, 8, dtype=dtype))
    scale = secular_search.radial_scale_in_metric(w, steps, (1,), target_of(penalty))
    norms = w.double().norm(dim=1, keepdim=True)
    slope = penalty.gradient(norms)
    first_order = steps.double() * slope / norms  # y = w / (1 + mu t), mu = slope / norm
    torch.testing.assert_close(1 - scale.double(), first_order, rtol=2e-3, atol=3e-7)


def test_of_several_basins_the_lowest_is_found():
    """Two stationary norms, nearly alike on the grid: which one is better shows only when both are followed."""
    w = torch.tensor([[0.41983953, -0.05239675, 0.58823311, 0.02266298]], dtype=torch.float64)
    steps = torch.tensor([[0.15165719, 471.16421509, 0.54835469, 0.00017826296]], dtype=torch.float64)
    function = target_of(Lp(1.0, 2 / 3), weight=1.7)
    y = w * secular_search.radial_scale_in_metric(w, steps, (1,), function)
    found = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + function.cost(y.norm(dim=1, keepdim=True))
    assert (found <= least_objective(w, steps, function, points=20_000) * (1 + 1e-9)).all()


def test_a_group_is_zero_exactly_when_zero_is_stationary_though_the_objective_can_not_tell():
    steps, direction = torch.tensor([[0.5, 2.0]]).double(), torch.tensor([[0.3, 1.6]]).double()
    on_sphere = direction / (direction / steps).norm()
    for factor, zero in ((1 - 1e-9, True), (1 + 1e-9, False)):
        scale = secular_search.radial_scale_in_metric(on_sphere * factor, steps, (1,), target_of(L1(1.0)))
        assert bool((scale == 0).all()) == zero


def test_the_tiniest_steps_move_groups_on_average():
    """Of a move by a few units in the last place, the objective in float32 tells nothing; its derivative does."""
    w, steps = torch.randn(2000, 8), 2e-7 * torch.exp(torch.randn(2000, 8))
    scale = secular_search.radial_scale_in_metric(w, steps, (1,), target_of(L1(1.0)))
    expected = steps / w.norm(dim=1, keepdim=True)
    torch.testing.assert_close((1 - scale).mean(), expected.mean(), rtol=0.05, atol=0.0)


def test_a_convex_penalty_is_solved_as_the_special_case_solves_it():
    w = torch.randn(500, 6, dtype=torch.float64)
    steps = torch.exp(2 * torch.randn_like(w))
    general = secular_search.radial_scale_in_metric(w, steps, (1,), target_of(L1(0.8)))
    torch.testing.assert_close(general, secular.block_scale_in_metric(w, 0.8 * steps, (1,)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_zero_steps_keep_their_elements_in_every_penalty(penalty):
    w = torch.randn(50, 4)
    steps = torch.rand(50, 4)
    steps[:, 0] = 0
    steps[0] = 0
    w[25:] *= 1e-4  # whole groups become zero
    w[25:, 0] = 0
    scale = secular_search.radial_scale_in_metric(w, steps, (1,), target_of(penalty))
    assert (scale[:, 0] == 1).all()
    assert (scale[0] == 1).all()
    assert scale.isfinite().all()


def test_nothing_is_done_to_nothing():
    empty = torch.zeros(4, 0)
    assert secular_search.radial_scale_in_metric(empty, empty, (1,), target_of(MCP(1.0))).shape == (4, 0)
