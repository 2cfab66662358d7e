"""Every property over the whole catalogue, against brute force and autograd."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch

import shrinkage
from catalog import PENALTIES, SMOOTH_PENALTIES, SPARSE_PENALTIES, PenaltyCase
from oracle import best_improvement, minimiser_on_grid
from shrinkage import L1, L2, Columns, ElasticNet, Grouped, GroupError, GroupLasso, Heads, Rows

every_penalty = pytest.mark.parametrize("case", PENALTIES, ids=str)
GRID = {"atol": 1e-6, "rtol": 1e-6}  # values that differ by rounding, 1e-16, place a minimum to about its root
STEPS = [0.02, 0.5, 1.0, 3.0, 8.0]


def tensor(shape, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def steps_like(w: torch.Tensor) -> torch.Tensor:
    return torch.exp(2 * torch.randn_like(w))


@every_penalty
@pytest.mark.parametrize("step", [*STEPS, "metric"])
def test_prox_is_the_minimiser_on_a_grid(case: PenaltyCase, step):
    for strength in (0.1, 0.3, 1.0, 2.5):
        w = tensor(case.small, scale=3)
        steps = steps_like(w) if step == "metric" else torch.full_like(w, step)
        penalty = case.make(strength)
        expected = minimiser_on_grid(penalty, w, steps)
        torch.testing.assert_close(penalty.prox(w, steps), expected, **GRID)
        if step != "metric":
            torch.testing.assert_close(penalty.prox(w, step), expected, **GRID)


@every_penalty
@pytest.mark.parametrize("step", [*STEPS, "metric"])
def test_nothing_improves_on_prox_in_any_direction(case: PenaltyCase, step):
    for strength in (0.05, 0.4):
        w = tensor(case.shape)
        steps = steps_like(w) if step == "metric" else torch.full_like(w, step)
        y = case.make(strength).prox(w, steps)
        assert best_improvement(case.make(strength), y, w, steps) <= 1e-12
        assert best_improvement(case.make(strength), 1.01 * y + 1e-3, w, steps) > 1e-7


@every_penalty
@pytest.mark.parametrize("step", STEPS)
def test_a_number_a_0_dim_tensor_and_a_constant_metric_agree(case: PenaltyCase, step):
    w, penalty = tensor(case.shape), case.make(0.4)
    expected = penalty.prox(w, step)
    torch.testing.assert_close(penalty.prox(w, torch.tensor(step, dtype=torch.float64)), expected)
    torch.testing.assert_close(penalty.prox(w, torch.full_like(w, step)), expected)


@every_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_steps_and_zero_strengths_give_the_input_back(case: PenaltyCase, dtype):
    w = tensor(case.shape).to(dtype)
    w[0] = 0
    for step in (0.0, torch.tensor(0.0), torch.zeros_like(w)):
        assert torch.equal(case.make(0.7).prox(w, step), w)
    for step in (0.7, torch.tensor(0.7), torch.full_like(w, 0.7)):
        assert torch.equal(case.make(0.0).prox(w, step), w)


@every_penalty
def test_zero_stays_zero(case: PenaltyCase):
    w = torch.zeros(case.shape)
    for step in (0.0, 1.0, torch.rand(case.shape)):
        assert torch.equal(case.make(1.0).prox(w, step), w)
    assert torch.equal(case.make(1.0).gradient(w), w)
    assert case.make(1.0).value(w) == 0


@pytest.mark.parametrize("case", SPARSE_PENALTIES, ids=str)
def test_a_huge_step_gives_exact_zeros(case: PenaltyCase):
    w = tensor(case.shape)
    for step in (1e4, torch.full_like(w, 1e4)):
        assert (case.make(1.0).prox(w, step) == 0).all()


@pytest.mark.parametrize("case", SMOOTH_PENALTIES, ids=str)
def test_smooth_penalties_give_no_zeros(case: PenaltyCase):
    w = tensor(case.shape)
    assert (case.make(1.0).prox(w, 1e4) != 0).all()


@every_penalty
def test_gradient_is_that_of_the_value(case: PenaltyCase):
    w = tensor(case.shape).requires_grad_()
    penalty = case.make(0.7)
    (expected,) = torch.autograd.grad(penalty.value(w), w)
    torch.testing.assert_close(penalty.gradient(w.detach()), expected)


@every_penalty
def test_value_and_gradient_are_linear_in_the_strength(case: PenaltyCase):
    w = tensor(case.shape)
    torch.testing.assert_close(case.make(3.0).value(w), 3 * case.make(1.0).value(w))
    torch.testing.assert_close(case.make(3.0).gradient(w), 3 * case.make(1.0).gradient(w))
    assert case.make(1.0).value(w).dim() == 0
    assert case.make(1.0).value(w) > 0


@every_penalty
def test_prox_points_are_stationary(case: PenaltyCase):
    w, penalty = tensor(case.shape), case.make(0.5)
    for step in (torch.tensor(1.3, dtype=torch.float64), steps_like(w)):
        y = penalty.prox(w, step)
        assert penalty.residual(y, (y - w) / step).abs().max() < 1e-10
        assert penalty.residual(y, (y - w) / step + 0.1).abs().max() > 1e-3


@every_penalty
def test_residual_is_the_distance_to_the_subdifferential(case: PenaltyCase):
    """|residual| = min over subgradients s of |grad + s|; away from zero there is only the gradient."""
    w, grad, penalty = tensor(case.shape), tensor(case.shape), case.make(0.5)
    squares = penalty.residual(w, grad).square().sum()
    torch.testing.assert_close(squares, (grad + penalty.gradient(w)).square().sum())


@pytest.mark.parametrize("case", [case for case in SPARSE_PENALTIES if "ElasticNet" not in case.name], ids=str)
def test_residual_at_zero_is_the_distance_that_one_prox_step_moves(case: PenaltyCase):
    """The subdifferential C of a norm at 0 is its dual ball, and prox_R(-grad) = -grad - projection of -grad onto C."""
    penalty, grad = case.make(0.5), tensor(case.shape, scale=0.7)
    moved = penalty.prox(-grad, 1.0)
    residual = penalty.residual(torch.zeros_like(grad), grad)
    torch.testing.assert_close(residual.square().sum(), moved.square().sum())


@every_penalty
def test_strength_max_is_where_zero_becomes_stationary(case: PenaltyCase):
    grad = tensor(case.shape)
    zero = torch.zeros_like(grad)
    strength = case.make(1.0).strength_max(grad).item()
    if case.make(1.0).smooth:
        assert strength == math.inf
        assert case.make(1.0).strength_max(zero) == 0
        return
    assert case.make(strength * (1 + 1e-9)).residual(zero, grad).max() == 0
    assert case.make(strength * (1 - 1e-6)).residual(zero, grad).max() > 0
    assert (case.make(strength * (1 + 1e-9)).prox(-grad, 1.0) == 0).all()
    assert (case.make(strength * (1 - 1e-6)).prox(-grad, 1.0) != 0).any()


@every_penalty
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("in_metric", [False, True])
def test_bad_weights_propagate_and_do_not_spread(case: PenaltyCase, bad, in_metric):
    penalty, w = case.make(0.1), tensor(case.shape)
    step = steps_like(w) if in_metric else 1.0

    def with_first(value: float) -> torch.Tensor:
        changed = w.clone()
        changed.view(-1)[0] = value
        return penalty.prox(changed, step)

    together = with_first(50.0) != with_first(100.0)
    found = with_first(bad)
    assert torch.equal(found[~together], with_first(50.0)[~together])
    assert torch.equal(found.view(-1)[:1].nan_to_num(7.0), torch.tensor([bad]).double().nan_to_num(7.0))
    if math.isnan(bad) and together.sum() > 1:
        assert found[together].isnan().all()


@every_penalty
def test_empty_tensors(case: PenaltyCase):
    w = torch.zeros(0, *case.shape[1:])
    penalty = case.make(1.0)
    assert penalty.prox(w, 1.0).shape == w.shape
    assert penalty.prox(w, torch.zeros_like(w)).shape == w.shape
    assert penalty.value(w) == 0
    assert penalty.strength_max(w) == 0


@every_penalty
def test_penalties_are_values(case: PenaltyCase):
    penalty = case.make(0.5)
    assert penalty == case.make(0.5)
    assert penalty != case.make(0.25)
    assert hash(penalty) == hash(case.make(0.5))
    assert eval(repr(penalty), vars(shrinkage)) == penalty
    assert pickle.loads(pickle.dumps(penalty)) == penalty
    assert copy.deepcopy(penalty) == penalty
    with pytest.raises(AttributeError):
        setattr(penalty, dataclasses.fields(penalty)[0].name, 1.0)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make", [L1, L2, lambda s: ElasticNet(s, 0.0), lambda s: ElasticNet(0.0, s), lambda s: GroupLasso(s, Rows())]
)
def test_bad_strengths_are_refused(make, bad):
    with pytest.raises(ValueError, match=r"must be a finite number >= 0 or a schedule .*, got"):
        make(bad)


@pytest.mark.parametrize("bad", ["1", None, True, torch.tensor(1.0)])
def test_strengths_that_are_no_numbers_are_refused(bad):
    with pytest.raises(TypeError, match="L1: strength must be"):
        L1(bad)


def test_a_schedule_has_a_value_at_an_update():
    penalty = GroupLasso(lambda iteration: 0.1 * iteration, Rows())
    assert penalty.scheduled
    assert not GroupLasso(0.1, Rows()).scheduled
    assert penalty.at(5) == GroupLasso(0.5, Rows())
    assert ElasticNet(lambda i: i, 2.0).at(3) == ElasticNet(3, 2.0)
    with pytest.raises(TypeError, match=r"schedule: take the penalty of one update with \.at\(iteration\)"):
        penalty.prox(torch.ones(2, 2), 1.0)
    with pytest.raises(ValueError, match="got -1"):
        L1(lambda iteration: -1.0).at(0)


def test_grouped_checks_its_arguments():
    with pytest.raises(TypeError, match="elementwise"):
        Grouped(GroupLasso(1.0, Rows()), Rows())
    with pytest.raises(TypeError, match="group view"):
        Grouped(L1(1.0), Rows)
    with pytest.raises(GroupError, match="multiple of 5, got 12"):
        GroupLasso(1.0, Heads(5)).prox(torch.zeros(12, 2), 1.0)


def test_groups_weigh_by_the_root_of_their_size():
    w = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    assert GroupLasso(1.0, Rows(), weigh_by_size=False).value(w) == 6
    torch.testing.assert_close(GroupLasso(1.0, Rows()).value(w), torch.tensor(6 * math.sqrt(3)))
    torch.testing.assert_close(GroupLasso(1.0, Columns()).value(w), torch.tensor((3 + math.sqrt(17)) * math.sqrt(2)))
    residual = GroupLasso(1.0, Rows()).residual(torch.zeros_like(w), w)
    torch.testing.assert_close(residual, torch.tensor([5 - math.sqrt(3), 0.0]))
