"""Projections: three situations of each (inside, on the boundary, outside), and the points that are kept."""

import pytest
import torch

from shrinkage.proximal import projections

SETS = {
    "l1 ball": (lambda w, steps: projections.l1_ball(w, steps, 2.0), lambda y: y.abs().sum(1) / 2),
    "l2 ball": (lambda w, steps: projections.l2_ball(w, steps, 2.0), lambda y: y.norm(dim=1) / 2),
    "l2 sphere": (lambda w, steps: projections.l2_sphere(w, steps, 2.0), lambda y: y.norm(dim=1) / 2),
    "simplex": (lambda w, steps: projections.simplex(w, steps, 2.0), lambda y: y.sum(1) / 2),
}
every_set = pytest.mark.parametrize(("project", "gauge"), SETS.values(), ids=SETS)


def rows(count: int = 200, size: int = 7) -> torch.Tensor:
    return torch.randn(count, size, dtype=torch.float64)


def metric(like: torch.Tensor, spread: float) -> torch.Tensor:
    return torch.exp(spread * torch.randn_like(like))


@every_set
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_points_outside_come_to_the_boundary_and_stay_there(project, gauge, spread):
    w = 10 * rows().abs() + 1
    steps = metric(w, spread)
    y = project(w, steps)
    torch.testing.assert_close(gauge(y), torch.ones(len(w), dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert torch.equal(project(y, steps), y)


@pytest.mark.parametrize("name", ["l1 ball", "l2 ball"])
def test_points_inside_come_back_bit_for_bit(name):
    project, gauge = SETS[name]
    w = rows()
    w = 0.99 * w / gauge(w)[:, None]
    assert torch.equal(project(w, metric(w, 2.0)), w)


@every_set
def test_projections_in_float32_stay_put(project, gauge):
    w = 3 * rows().float()
    once = project(w, metric(w, 1.0))
    assert torch.equal(project(once, metric(w, 1.0)), once)


@every_set
def test_rows_that_are_not_finite_come_back_and_leave_the_others_alone(project, gauge):
    w = 3 * rows(4)
    expected = project(w, torch.ones_like(w))
    w[1, 0], w[2, 3] = torch.nan, torch.inf
    found = project(w, torch.ones_like(w))
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
    assert torch.equal(found[1:3].nan_to_num(9.0), w[1:3].nan_to_num(9.0))


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_sphere_in_a_metric_is_a_root_of_the_secular_equation(spread, size):
    """Short rows take a negative multiplier, down to minus one over the largest step."""
    w = size * rows()
    steps = metric(w, spread)
    y = projections.l2_sphere(w, steps, 1.0)
    multipliers = (w / y - 1) / steps
    torch.testing.assert_close(multipliers, multipliers[:, :1].expand_as(w), rtol=1e-5, atol=1e-7)
    assert (multipliers * steps > -1).all()


def test_a_row_of_zeros_has_no_nearest_point_on_the_sphere():
    w = torch.zeros(2, 3)
    w[1, 0] = 0.5
    y = projections.l2_sphere(w, torch.ones_like(w), 1.0)
    assert torch.equal(y, torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


def test_a_short_row_whose_largest_step_meets_a_zero_is_scaled():
    y = projections.l2_sphere(torch.tensor([[0.0, 0.3, 0.1]]), torch.tensor([[5.0, 1.0, 1.0]]), 1.0)
    torch.testing.assert_close(y.norm(), torch.tensor(1.0))


def test_ties_go_to_the_lowest_index():
    w = torch.ones(1, 6)
    assert torch.equal(projections.keep_largest(w, torch.ones_like(w), 2), torch.tensor([[1.0, 1, 0, 0, 0, 0]]))


@pytest.mark.parametrize("count", [0, 1, 6])
def test_none_and_all_can_be_kept(count):
    w = rows(3, 6)
    assert ((projections.keep_largest(w, torch.ones_like(w), count) != 0).sum(1) == count).all()


def test_a_metric_changes_which_ones_are_largest():
    w, steps = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.1, 1.0]])
    assert torch.equal(projections.keep_largest(w, steps, 1), torch.tensor([[1.0, 0.0]]))  # 1 / 0.1 > 4 / 1
    assert torch.equal(projections.keep_largest(w, torch.ones_like(w), 1), torch.tensor([[0.0, 2.0]]))


def test_tiny_and_huge_weights_are_told_apart():
    w = torch.tensor([[1e-30, 2e-30, 3e30, 1e30]])
    assert torch.equal(projections.keep_largest(w, torch.ones_like(w), 3), torch.tensor([[0, 2e-30, 3e30, 1e30]]))


@pytest.mark.parametrize("name", ["l1 ball", "simplex"])
def test_long_rows_come_to_the_boundary_to_rounding(name):
    """A running sum of many numbers is less exact than the sum."""
    project, gauge = SETS[name]
    w = 1 + 1e-9 * rows(1, 300_000).abs()
    y = project(w, metric(w, 1.0))
    assert (gauge(y) - 1).abs() < 1e-15
