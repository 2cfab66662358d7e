"""Functions of a group's norm in a diagonal metric, against bisection and against a fine scan of the multiplier."""

import pytest
import torch

from shrinkage import L0, L1, MCP, SCAD, Huber, LogSum, Lp, radial
from shrinkage.sums import alone


def charge_of(penalty, weight=1.0) -> radial.Charge:
    """A penalty of one element as a charge of the norms of groups."""
    return radial.Charge(
        cost=lambda norms: weight * penalty.cost(norms),
        slope=lambda norms: weight * penalty.gradient(norms),
        slope_at_zero=weight * penalty.slope_at_zero,
    )


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
        found = radial.block_scale_in_metric(matrix.to(dtype), thresholds.to(dtype), (1,)).double()
        assert ((found - expected) * matrix / norm).abs().max() < tolerance
    assert 0 < (expected > 0).double().mean()


def test_equal_thresholds_give_the_closed_form():
    matrix = torch.randn(50, 7, dtype=torch.float64)
    norms = matrix.norm(dim=1)
    closed = (1 - 2.0 / norms).clamp_min(0)
    in_metric = radial.block_scale_in_metric(matrix, torch.full_like(matrix, 2.0), (1,))
    torch.testing.assert_close(in_metric, closed[:, None].expand_as(matrix))


def test_a_group_is_zero_exactly_when_its_dual_norm_is_at_most_1():
    thresholds = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    direction = torch.tensor([[0.3, 1.6]], dtype=torch.float64)
    on_sphere = direction / (direction / thresholds).norm()
    assert (radial.block_scale_in_metric(on_sphere * (1 - 1e-9), thresholds, (1,)) == 0).all()
    assert (radial.block_scale_in_metric(on_sphere * (1 + 1e-9), thresholds, (1,)) > 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_group_stays_bad_and_alone(bad):
    matrix = torch.ones(3, 2)
    matrix[1, 0] = bad
    steps = torch.tensor([[0.5, 0.1]]).expand_as(matrix)
    for scale in (
        radial.block_scale_in_metric(matrix, steps, (1,)),
        radial.radial_scale_in_metric(matrix, steps, (1,), charge_of(MCP(0.5))),
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
    expected = radial.block_scale_in_metric(matrix, thresholds, (1,))
    alone, _ = len(calls), calls.clear()
    mixed = torch.cat([matrix, torch.zeros(5, 8), 1e-3 * matrix])
    found = radial.block_scale_in_metric(mixed, torch.cat([thresholds, thresholds[:5], thresholds]), (1,))
    assert torch.equal(found[:50], expected)
    assert (found[50:] == 0).all()
    assert len(calls) <= alone < radial.NEWTON_ITERATIONS


def evaluations(w, thresholds, *, to_rest=True):
    """How often the terms of the equation are added up until no group moves."""
    calls = []

    def terms(theta):
        calls.append(theta)
        return radial.secular_terms(w, 1 / thresholds, theta, (1,))

    root = alone(radial.secular_root(lambda: radial.secular_sums(w, 1 / thresholds, (1,)), terms, to_rest=to_rest))
    return len(calls), root


@pytest.mark.parametrize(("threshold", "least"), [(1e-6, 1), (0.03, 1), (0.3, 2), (1.0, 3)])
def test_few_iterations_are_needed(threshold, least):
    """One where steps are small beside the norms, as in training; each is a pass over memory."""
    torch.manual_seed(0)
    w = torch.randn(100, 64)
    count, _ = evaluations(w, threshold * torch.exp(torch.randn(100, 64)))
    assert count <= least


def test_what_becomes_of_a_group_does_not_depend_on_its_company():
    """A group at rest stays there while others go on: pieces of a tensor are moved as the whole is."""
    torch.manual_seed(0)
    w, thresholds = torch.randn(60, 9), torch.exp(3 * torch.randn(60, 9))
    count, together = evaluations(w, thresholds)
    each = torch.cat([evaluations(w[i : i + 1], thresholds[i : i + 1])[1] for i in range(60)])
    assert torch.equal(together, each)
    assert count > min(evaluations(w[i : i + 1], thresholds[i : i + 1])[0] for i in range(60))


def test_a_zero_element_with_a_zero_threshold_does_not_keep_its_group():
    scale = radial.block_scale_in_metric(torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 1.0]]), (1,))
    assert scale[0, 1] == 0


def least_objective(w, steps, charge, points=5_000) -> torch.Tensor:
    """The least objective of each row on a scan of multipliers, at 0 and at `w` itself."""
    norm = w.norm(dim=1, keepdim=True)
    least = torch.minimum(0.5 * (w.square() / steps).sum(1, keepdim=True), charge.cost(norm))
    low, high = 1e-8 / steps.amax(1, keepdim=True), 1e9 / steps.amin(1, keepdim=True)
    for share in torch.linspace(0, 1, points, dtype=w.dtype):
        multiplier = low * (high / low) ** share
        y = w / (1 + multiplier * steps)
        objective = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + charge.cost(y.norm(dim=1, keepdim=True))
        least = torch.minimum(least, objective)
    return least


PENALTIES = [MCP(1.0), MCP(1.0, gamma=0.4), SCAD(1.0), LogSum(1.0, 0.3), Lp(1.0, 0.5), Lp(1.0, 2 / 3), L0(1.0), L1(1.0)]


@pytest.mark.parametrize("penalty", [*PENALTIES, Huber(1.0, 0.5)], ids=str)
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_no_multiplier_is_better_than_the_one_that_is_found(penalty, spread):
    rows = 300
    w = torch.randn(rows, 5, dtype=torch.float64) * torch.exp(1.5 * torch.randn(rows, 1, dtype=torch.float64))
    steps = torch.exp(spread * torch.randn(rows, 5, dtype=torch.float64))
    charge = charge_of(penalty, weight=torch.exp(torch.randn(rows, 1, dtype=torch.float64)))
    y = w * radial.radial_scale_in_metric(w, steps, (1,), charge)
    found = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + charge.cost(y.norm(dim=1, keepdim=True))
    assert (found <= least_objective(w, steps, charge) * (1 + 1e-9)).all()
    zero = (y == 0).all(1)
    assert 0 < zero.double().mean() < 1 or isinstance(penalty, Huber)


@pytest.mark.parametrize("penalty", [L1(1.0), Huber(1.0, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_thresholds_are_not_lost_in_rounding(penalty, dtype):
    """Steps of training are small: the objective barely falls, and what moves is told from its derivative."""
    w = torch.randn(200, 8, dtype=dtype)
    steps = 1e-4 * torch.exp(torch.randn(200, 8, dtype=dtype))
    scale = radial.radial_scale_in_metric(w, steps, (1,), charge_of(penalty))
    norms = w.double().norm(dim=1, keepdim=True)
    slope = penalty.gradient(norms)
    first_order = steps.double() * slope / norms  # y = w / (1 + mu t), mu = slope / norm
    torch.testing.assert_close(1 - scale.double(), first_order, rtol=2e-3, atol=3e-7)


def test_of_several_basins_the_lowest_is_found():
    """Two stationary norms, nearly alike on the grid: which one is better shows only when both are followed."""
    w = torch.tensor([[0.41983953, -0.05239675, 0.58823311, 0.02266298]], dtype=torch.float64)
    steps = torch.tensor([[0.15165719, 471.16421509, 0.54835469, 0.00017826296]], dtype=torch.float64)
    charge = charge_of(Lp(1.0, 2 / 3), weight=1.7)
    y = w * radial.radial_scale_in_metric(w, steps, (1,), charge)
    found = 0.5 * ((y - w).square() / steps).sum(1, keepdim=True) + charge.cost(y.norm(dim=1, keepdim=True))
    assert (found <= least_objective(w, steps, charge, points=20_000) * (1 + 1e-9)).all()


def test_a_group_is_zero_exactly_when_zero_is_stationary_though_the_objective_can_not_tell():
    steps, direction = torch.tensor([[0.5, 2.0]]).double(), torch.tensor([[0.3, 1.6]]).double()
    on_sphere = direction / (direction / steps).norm()
    for factor, zero in ((1 - 1e-9, True), (1 + 1e-9, False)):
        scale = radial.radial_scale_in_metric(on_sphere * factor, steps, (1,), charge_of(L1(1.0)))
        assert bool((scale == 0).all()) == zero


def test_the_tiniest_steps_move_groups_on_average():
    """Of a move by a few units in the last place, the objective in float32 tells nothing; its derivative does."""
    w, steps = torch.randn(2000, 8), 2e-7 * torch.exp(torch.randn(2000, 8))
    scale = radial.radial_scale_in_metric(w, steps, (1,), charge_of(L1(1.0)))
    expected = steps / w.norm(dim=1, keepdim=True)
    torch.testing.assert_close((1 - scale).mean(), expected.mean(), rtol=0.05, atol=0.0)


def test_a_convex_penalty_is_solved_as_the_special_case_solves_it():
    w = torch.randn(500, 6, dtype=torch.float64)
    steps = torch.exp(2 * torch.randn_like(w))
    general = radial.radial_scale_in_metric(w, steps, (1,), charge_of(L1(0.8)))
    torch.testing.assert_close(general, radial.block_scale_in_metric(w, 0.8 * steps, (1,)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_zero_steps_keep_their_elements_in_every_charge(penalty):
    w = torch.randn(50, 4)
    steps = torch.rand(50, 4)
    steps[:, 0] = 0
    steps[0] = 0
    scale = radial.radial_scale_in_metric(w, steps, (1,), charge_of(penalty))
    assert (scale[:, 0] == 1).all()
    assert (scale[0] == 1).all()
    assert scale.isfinite().all()


def test_nothing_is_done_to_nothing():
    empty = torch.zeros(4, 0)
    assert radial.radial_scale_in_metric(empty, empty, (1,), charge_of(MCP(1.0))).shape == (4, 0)
