"""Every property over the whole catalogue, against brute force and autograd."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch

import shrinkage
from catalog import PENALTIES, SMOOTH_PENALTIES, SPARSE_PENALTIES, PenaltyCase
from oracle import best_improvement, minimiser_on_grid, objectives
from shrinkage import (
    L1,
    L2,
    Columns,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupError,
    GroupLasso,
    GroupLInf,
    Heads,
    NonNegative,
    Rows,
    Toward,
)
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.per_group import PerGroup

every_penalty = pytest.mark.parametrize("case", PENALTIES, ids=str)
CLOSED = [case for case in PENALTIES if case.closed]
SIGNED = [case for case in PENALTIES if "NonNegative" not in case.name]
GRID = {"atol": 1e-6, "rtol": 1e-6}  # values that differ by rounding, 1e-16, place a minimum to about its root
STEPS = [0.02, 0.5, 1.0, 3.0, 8.0, "metric"]
FEW = [0.02, 1.0, 8.0, "metric", *(pytest.param(step, marks=pytest.mark.slow) for step in (0.5, 3.0))]


def tensor(shape, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def steps_like(w: torch.Tensor) -> torch.Tensor:
    return torch.exp(2 * torch.randn_like(w))


@pytest.mark.parametrize("case", CLOSED, ids=str)
@pytest.mark.parametrize("step", FEW)
def test_prox_is_the_minimiser_on_a_grid(case: PenaltyCase, step):
    for strength in (0.1, 0.3, 1.0, 2.5):
        w = tensor(case.small, scale=3)
        steps = steps_like(w) if step == "metric" else torch.full_like(w, step)
        penalty = case.make(strength, case.small)
        best = minimiser_on_grid(penalty, w, steps)
        for y in [penalty.prox(w, steps)] + ([] if step == "metric" else [penalty.prox(w, step)]):
            found, least = objectives(penalty, torch.stack([y, best]), w, steps)
            assert found <= least + 1e-9 * (1 + least)
            if case.convex:
                torch.testing.assert_close(y, best, **GRID)


@pytest.mark.parametrize("case", CLOSED, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_nothing_improves_on_prox_in_any_direction(case: PenaltyCase, step):
    for strength in (0.05, 0.4):
        w = tensor(case.shape)
        steps = steps_like(w) if step == "metric" else torch.full_like(w, step)
        penalty = case.make(strength)
        y = penalty.prox(w, steps)
        # Iterations that solve for singular values in a metric stop at rounding of y, which is 1e-16 of a slope of 1e2.
        assert best_improvement(penalty, y, w, steps) <= (1e-10 if "Nuclear" in case.name else 1e-12)
        assert best_improvement(penalty, 1.01 * y + 1e-3, w, steps) > 1e-7


@every_penalty
@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_number_a_0_dim_tensor_and_a_constant_metric_agree(case: PenaltyCase, step):
    w, penalty = tensor(case.shape), case.make(0.4)
    expected = penalty.prox(w, step)
    torch.testing.assert_close(penalty.prox(w, torch.tensor(step, dtype=torch.float64)), expected)
    torch.testing.assert_close(penalty.prox(w, torch.full_like(w, step)), expected, rtol=1e-7, atol=1e-9)


@every_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_steps_and_zero_strengths_give_the_input_back(case: PenaltyCase, dtype):
    w = tensor(case.shape).to(dtype)
    if "NonNegative" in case.name:
        w = w.abs()  # a projection does not depend on the strength
    w[0] = 0
    for step in (0.0, torch.tensor(0.0), torch.zeros_like(w)):
        assert torch.equal(case.make(0.7).prox(w, step), w)
    for step in (0.7, torch.tensor(0.7), torch.full_like(w, 0.7)):
        assert torch.equal(case.make(0.0).prox(w, step), w)


@every_penalty
def test_the_origin_stays_where_it_is(case: PenaltyCase):
    penalty = case.make(1.0)
    origin = penalty.origin(torch.zeros(case.shape))
    for step in (0.0, 1.0, torch.rand(case.shape)):
        assert torch.equal(penalty.prox(origin, step), origin)
    assert torch.equal(penalty.gradient(origin), torch.zeros(case.shape))
    assert penalty.value(origin) == (1.0 if "spectral" in case.name else 0.0)  # all singular values are 0, not 1


@every_penalty
def test_every_element_is_computed_once_and_kept_in_shape(case: PenaltyCase):
    w, step = tensor(case.shape), torch.rand(case.shape).double()
    penalty = case.make(0.3)
    before = w.clone(), step.clone()
    expected = penalty.prox(w, step)
    assert torch.equal(w, before[0])
    assert torch.equal(step, before[1])
    strided = torch.empty(*case.shape, 2, dtype=torch.float64)[..., 0].copy_(w)
    assert not strided.is_contiguous()
    torch.testing.assert_close(penalty.prox(strided, step), expected)
    torch.testing.assert_close(penalty.value(strided), penalty.value(w))
    torch.testing.assert_close(penalty.gradient(strided), penalty.gradient(w))
    assert expected.shape == w.shape
    assert penalty.gradient(w).shape == w.shape


@every_penalty
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_types_are_computed_in_float32_and_rounded_once(case: PenaltyCase, dtype):
    w = tensor(case.shape).to(dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(case.make(0.3).prox(w, 0.7), case.make(0.3).prox(w.double(), 0.7).float())
        return
    for step in (0.7, torch.rand(case.shape)):
        found = case.make(0.3).prox(w, step)
        assert found.dtype == dtype
        assert torch.equal(found, case.make(0.3).prox(w.float(), step).to(dtype))


@pytest.mark.parametrize("case", SPARSE_PENALTIES, ids=str)
def test_a_huge_step_gives_exact_zeros(case: PenaltyCase):
    w = tensor(case.shape)
    if "Weighted" in case.name:
        w.view(-1)[0] = 0  # the first weight is 0
    for step in (1e4, torch.full_like(w, 1e4)):
        assert (case.make(1.0).prox(w, step) == 0).all()


@pytest.mark.parametrize("case", SPARSE_PENALTIES, ids=str)
@pytest.mark.parametrize("step", [0.5, 3.0, 1e4, "metric"])
def test_zeros_have_no_sign_or_that_of_the_weight(case: PenaltyCase, step):
    """Elements get +0.0; groups are scaled, so that the sign is left. Both are equal to 0."""
    w = tensor(case.shape)
    penalty = case.make(1.0)
    found = penalty.prox(w, 1e3 * steps_like(w) if step == "metric" else step)
    signs = found.signbit()[(found == 0) & (w != 0)]
    if isinstance(penalty, Elementwise):
        assert not signs.any()
    elif isinstance(penalty, Grouped | GroupLInf):
        assert torch.equal(signs, w.signbit()[(found == 0) & (w != 0)])


@pytest.mark.parametrize("case", SMOOTH_PENALTIES, ids=str)
def test_smooth_penalties_give_no_zeros(case: PenaltyCase):
    w = tensor(case.shape)
    assert (case.make(1.0).prox(w, 1e4) != 0).all()


@every_penalty
def test_gradient_is_that_of_the_value(case: PenaltyCase):
    w = tensor(case.shape).requires_grad_()
    if "NonNegative" in case.name:
        w = w.detach().abs().requires_grad_()
    penalty = case.make(0.7)
    value = penalty.value(w)
    expected = torch.autograd.grad(value, w)[0] if value.requires_grad else torch.zeros_like(w)  # L0 counts
    torch.testing.assert_close(penalty.gradient(w.detach()), expected)


@every_penalty
def test_value_and_gradient_are_proportional_to_the_strength(case: PenaltyCase):
    w = tensor(case.shape).abs()
    assert case.make(1.0).value(w).dim() == 0
    assert case.make(1.0).value(w) > 0
    if case.proportional:
        torch.testing.assert_close(case.make(3.0).value(w), 3 * case.make(1.0).value(w))
        torch.testing.assert_close(case.make(3.0).gradient(w), 3 * case.make(1.0).gradient(w))
    else:
        assert case.make(3.0).value(w) > case.make(1.0).value(w)


@pytest.mark.parametrize("case", CLOSED, ids=str)
def test_prox_points_are_stationary(case: PenaltyCase):
    w, penalty = tensor(case.shape), case.make(0.5)
    for step in (torch.tensor(1.3, dtype=torch.float64), steps_like(w)):
        y = penalty.prox(w, step)
        tolerance = 1e-6 if "Nuclear" in case.name and step.dim() else 1e-9
        assert penalty.residual(y, (y - w) / step).abs().max() < tolerance
        if case.unit:  # at a zero of a penalty that counts, every gradient is stationary
            assert penalty.residual(y, (y - w) / step - 2).abs().max() > 1e-3


@pytest.mark.parametrize("case", SIGNED, ids=str)
def test_residual_is_the_distance_to_the_subdifferential(case: PenaltyCase):
    """|residual| = min over subgradients s of |grad + s|; away from zero there is only the gradient."""
    w, grad, penalty = tensor(case.shape), tensor(case.shape), case.make(0.5)
    squares = penalty.residual(w, grad).square().sum()
    torch.testing.assert_close(squares, (grad + penalty.gradient(w)).square().sum())


HOMOGENEOUS = ("L1", "GroupLasso", "SparseGroupLasso", "GroupLInf", "Nuclear", "FusedLasso", "Toward L1")


@pytest.mark.parametrize("case", [case for case in PENALTIES if case.name.startswith(HOMOGENEOUS)], ids=str)
def test_residual_at_the_origin_is_the_distance_that_one_prox_step_moves(case: PenaltyCase):
    """The subdifferential C of a norm at 0 is its dual ball, and prox_R(-grad) = -grad - projection of -grad onto C."""
    penalty, grad = case.make(0.5), tensor(case.shape, scale=0.7)
    origin = penalty.origin(grad)
    moved = penalty.prox(origin - grad, 1.0) - origin
    residual = penalty.residual(origin, grad)
    torch.testing.assert_close(residual.square().sum(), moved.square().sum())


@every_penalty
def test_strength_max_is_where_the_origin_becomes_stationary(case: PenaltyCase):
    grad = tensor(case.shape)
    if case.name.startswith("FusedLasso"):
        grad -= grad.mean(dim=case.make(1.0).dim, keepdim=True)  # else a constant is better at every strength
    origin = case.make(1.0).origin(grad)
    strength = case.make(1.0).strength_max(grad).item()
    if case.make(1.0).smooth:
        assert strength == math.inf
        assert case.make(1.0).strength_max(torch.zeros_like(grad)) == 0
    elif not case.unit:
        assert strength == 0
        assert case.make(1e-9).residual(origin, grad).max() == 0
    else:
        penalized = grad.clone()
        if case.name.startswith("Weighted"):
            penalized.view(-1)[0] = 0  # the first weight is 0
        above, below = (strength / case.unit * (1 + change) for change in (1e-9, -1e-6))
        assert case.make(above).residual(origin, penalized).max() <= 1e-9
        assert case.make(below).residual(origin, penalized).max() > 1e-8
        if case.convex:
            assert torch.allclose(case.make(above).prox(origin - penalized, 1.0), origin, rtol=0, atol=1e-8)
            assert not torch.allclose(case.make(below).prox(origin - penalized, 1.0), origin, rtol=0, atol=1e-8)


@every_penalty
def test_slope_is_the_gradient_that_the_origin_withstands(case: PenaltyCase):
    """Along one element, the derivative of the value beside the origin; a group's is shared out among its elements."""
    penalty = case.make(0.5)
    slope = penalty.slope(case.shape)
    if not case.name.startswith((*HOMOGENEOUS, "MCP", "SCAD", "LogSum")):
        return
    origin = penalty.origin(torch.zeros(case.shape, dtype=torch.float64))
    beside = origin.clone()
    beside.view(-1)[0] += 1e-7
    rise = (penalty.value(beside) - penalty.value(origin)) / 1e-7
    torch.testing.assert_close(rise.item(), slope, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("case", [case for case in PENALTIES if case.make(1.0).holds_zeros], ids=str)
def test_zeros_stay_where_the_average_gradient_holds_them(case: PenaltyCase):
    average = tensor(case.shape)
    strength = 0.999 * case.make(1.0).strength_max(average).item() / (case.unit or 1.0)
    penalty = case.make(strength)
    origin = penalty.origin(average)
    held = penalty.stays(origin, average)
    assert held.shape == average.shape
    assert held.any() or "whole" in case.name
    assert not held.all()
    assert penalty.stays(origin, 0.99 * average).all() or case.name.startswith("Weighted")  # with one element free
    inside = torch.where(held, average, 0.0)
    assert penalty.residual(origin, inside).max() == 0
    assert not penalty.stays(origin + 1, 0 * average).any()


@every_penalty
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("in_metric", [False, True])
def test_bad_weights_propagate_and_do_not_leave_their_group(case: PenaltyCase, bad, in_metric):
    penalty, w = case.make(0.1), tensor(case.shape)
    step = steps_like(w) if in_metric else 1.0
    changed = w.clone()
    changed.view(-1)[0] = bad
    found, expected = penalty.prox(changed, step), penalty.prox(w, step)
    assert torch.equal(found[~first_group(penalty, w)], expected[~first_group(penalty, w)])
    first = found.reshape(-1)[0].item()
    if "NonNegative" in case.name and bad == -torch.inf:
        assert first == 0
    else:
        assert math.isnan(first) if math.isnan(bad) else first == bad


def first_group(penalty, w: torch.Tensor) -> torch.Tensor:
    """The elements that stand in one group with the first."""
    inner = penalty.penalty if isinstance(penalty, NonNegative | Toward) else penalty
    if isinstance(inner, PerGroup):
        index = inner.groups.spread(torch.arange(inner.groups.layout(w.shape).count), w.shape)
    elif isinstance(inner, FusedLasso):
        index = torch.arange(w.shape[1 - inner.dim % 2]).unsqueeze(inner.dim).expand_as(w)
    elif isinstance(inner, Elementwise):
        index = torch.arange(w.numel()).reshape(w.shape)
    else:
        index = torch.zeros_like(w)
    return index == index.reshape(-1)[0]


@every_penalty
def test_empty_tensors(case: PenaltyCase):
    w = torch.zeros(0, *case.shape[1:])
    penalty = case.make(1.0, tuple(w.shape))
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
    if case.round_trip:
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
    with pytest.raises(TypeError, match="one of single elements"):
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


def test_the_largest_elements_share_the_slope_of_their_group():
    w = torch.tensor([[2.0, -2.0, 1.0]])
    penalty = GroupLInf(1.0, Rows(), weigh_by_size=False)
    assert torch.equal(penalty.gradient(w), torch.tensor([[0.5, -0.5, 0.0]]))
    assert penalty.residual(w, torch.tensor([[-0.2, 0.8, 0.0]])) == 0  # any shares of equal elements are subgradients
    torch.testing.assert_close(penalty.residual(w, torch.tensor([[-0.2, 0.8, 0.3]])), torch.tensor([0.3]))
