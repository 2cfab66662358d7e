"""Sums and multiples of penalties: what is one penalty, and what is refused for which reason."""

import math
import pickle

import pytest
import torch
from torch.optim import SGD, Adam

from catalog import PENALTIES, PenaltyCase
from models import mlp, train
from oracle import minimiser_on_grid
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    Columns,
    Counted,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupError,
    GroupLasso,
    Huber,
    L1Ball,
    LogSum,
    MaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Penalty,
    Regularizer,
    Ridged,
    Rows,
    Simplex,
    SpectralBall,
    TopK,
    Toward,
    UnitNorm,
    Weighted,
    register_sum,
)


def tensor(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64)


SUMS = {
    "Box + L1": lambda: (Box(-0.5, 1.5), L1(0.4)),
    "Box beyond 0 + L1": lambda: (Box(0.3, 1.5), L1(0.4)),
    "Box + ElasticNet": lambda: (Box(-0.5, 1.5), ElasticNet(0.4, 0.7)),
    "Box + L2": lambda: (Box(-0.5, 1.5), L2(0.7)),
    "Box + Huber": lambda: (Box(-0.5, 1.5), Huber(0.7, 0.4)),
    "Box of tensors + L1": lambda: (Box(torch.tensor([[-0.5, 0.2]]), torch.tensor([[0.1, 2.0]])), L1(0.4)),
    "Box + Weighted": lambda: (Box(-0.5, 1.5), Weighted(L1(0.4), torch.tensor([[0.5, 2.0]]))),
    "Box + MCP + L2": lambda: (MCP(0.4), L2(0.7)),
    "L0 + L1": lambda: (L0(0.4), L1(0.3)),
    "L0 + L2": lambda: (L0(0.4), L2(0.7)),
    "L0 + ElasticNet": lambda: (L0(0.4), ElasticNet(0.3, 0.7)),
    "L0 + Huber": lambda: (L0(0.4), Huber(0.7, 0.4)),
    "L0 + MCP": lambda: (L0(0.4), MCP(0.5)),
    "SCAD + L2": lambda: (SCAD(0.4), L2(0.7)),
    "LogSum + ElasticNet": lambda: (LogSum(0.4, 0.3), L2(0.7)),
    "GroupLasso + L2": lambda: (GroupLasso(0.4, Rows()), L2(0.7)),
    "FusedLasso + L2": lambda: (FusedLasso(0.4), L2(0.7)),
    "Nuclear + L2": lambda: (Nuclear(0.4), L2(0.7)),
    "TopK + L2": lambda: (TopK(0.5), L2(0.7)),
    "NofM + L2": lambda: (NofM(1, 2), L2(0.7)),
    "MaxNorm + L2": lambda: (MaxNorm(0.8), L2(0.7)),
    "L1Ball + L2": lambda: (L1Ball(0.8), L2(0.7)),
    "NonNegative + MaxNorm": lambda: (NonNegative(), MaxNorm(0.8)),
    "NonNegative + L1Ball": lambda: (NonNegative(), L1Ball(0.8)),
    "NonNegative + TopK": lambda: (NonNegative(), TopK(0.5)),
    "NonNegative + NofM": lambda: (NonNegative(), NofM(1, 2)),
    "NonNegative + Box": lambda: (NonNegative(), Box(-0.5, 1.5)),
    "NonNegative L1 + Box": lambda: (NonNegative(L1(0.4)), Box(-0.5, 1.5)),
    "NonNegative + L0": lambda: (NonNegative(), L0(0.4)),
}


class Both(Penalty):
    """The values of two penalties, added up."""

    def __init__(self, one: Penalty, other: Penalty) -> None:
        self.one, self.other = one, other

    def value(self, w):
        return self.one.value(w) + self.other.value(w)


Both.__abstractmethods__ = frozenset()


def feasible(pair: tuple[Penalty, Penalty], points: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Points that the constraints among the two let pass, moved into one set after the other."""
    for each in 2 * pair:
        if not each.explicit and not isinstance(each, L0):
            points = torch.stack([each.prox(point, 1.0) for point in points])
    return points


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("in_metric", [False, True])
def test_the_prox_of_a_sum_is_the_minimiser(name, in_metric):
    """Against a grid where the sum is finite everywhere, and against points of the set, dense around the best."""
    pair = SUMS[name]()
    both = pair[0] + pair[1]
    assert both == pair[1] + pair[0]
    for _ in range(2):
        w = tensor(1, 2)
        steps = torch.exp(torch.randn_like(w)) if in_metric else torch.full_like(w, 0.7)
        y = both.prox(w, steps if in_metric else 0.7)
        objective = Both(*pair)
        assert objective.value(y).isfinite()
        torch.testing.assert_close(both.value(y), objective.value(y))
        if all(each.value(9 * tensor(1, 2)).isfinite() for each in pair):
            points = minimiser_on_grid(objective, w, steps)[None]
        else:
            around = torch.cat([y + 10.0**-k * torch.randn(25, 1, 2) for k in range(4)])
            kept = [around * torch.tensor(mask) for mask in ([1.0, 0.0], [0.0, 1.0])]
            points = feasible(pair, torch.cat([around, *kept, w[None], 0 * w[None]]), w)
        distances = 0.5 * ((torch.cat([y[None], points]) - w).square() / steps).flatten(1).sum(1)
        costs = distances + torch.stack([objective.value(point) for point in [y, *points]])
        assert costs[0] <= costs[1:].min() + 1e-9
        assert torch.equal(both.prox(w, 0.0), w)


@pytest.mark.parametrize("name", SUMS)
def test_prox_points_of_sums_are_stationary(name):
    """(w - y) / step is the gradient of the distance, less which the penalty has nothing left."""
    both = SUMS[name]()[0] + SUMS[name]()[1]
    w = tensor(1, 2)
    y = both.prox(w, 0.7)
    assert both.residual(y, (y - w) / 0.7).max() < 1e-6
    assert pickle.loads(pickle.dumps(both)) == both
    assert hash(both) == hash(pickle.loads(pickle.dumps(both)))


@pytest.mark.parametrize("penalty", [Box(-0.5, 1.5, L1(1.0)), Box(0.0, 1.5, L1(1.0)), Ridged(MCP(1.0), 0.3)], ids=str)
def test_the_largest_strength_is_where_zero_becomes_stationary(penalty):
    grad = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    largest = penalty.strength_max(grad).item()
    for factor, stays in ((1.001, True), (0.999, False)):
        inner = type(penalty.penalty)(factor * largest)
        changed = Ridged(inner, penalty.l2) if isinstance(penalty, Ridged) else Box(penalty.low, penalty.high, inner)
        assert bool((changed.residual(torch.zeros_like(grad), grad) == 0).all()) == stays


def test_a_sum_begins_with_0():
    assert sum([L1(0.1), L2(0.2)]) == ElasticNet(0.1, 0.2)
    assert sum([Box(-1.0, 1.0), L1(0.1), L2(0.2)]) == Box(-1.0, 1.0, ElasticNet(0.1, 0.2))
    for other in (1, 0.5, "0", None):
        with pytest.raises(TypeError, match=r"unsupported operand|can only concatenate"):
            other + L1(0.1)


@pytest.mark.parametrize("case", PENALTIES, ids=str)
def test_a_multiple_costs_a_multiple(case: PenaltyCase):
    penalty, w = case.make(0.3), tensor(*case.shape).abs()
    for many in (3 * penalty, penalty * 3):
        torch.testing.assert_close(many.value(w), 3 * penalty.value(w))
        torch.testing.assert_close(many.gradient(w), 3 * penalty.gradient(w))
    if case.closed and "Nuclear" not in case.name:
        torch.testing.assert_close((3 * penalty).prox(w, 0.2), penalty.prox(w, 0.6), rtol=1e-6, atol=1e-9)
    assert (0 * penalty).value(w) == 0
    assert 1 * penalty == penalty or "SCAD" in case.name
    twice = penalty + penalty
    torch.testing.assert_close(twice.value(w), 2 * penalty.value(w))


@pytest.mark.parametrize("penalty", [L1(0.3), L0(0.3), SCAD(0.3), MCP(0.3), Grouped(SCAD(0.3), Rows())], ids=str)
@pytest.mark.parametrize("count", [3, 7])
def test_equal_penalties_add_up_as_often_as_they_come(penalty, count):
    many, w = sum([penalty] * count), tensor(4, 6)
    torch.testing.assert_close(many.value(w), count * penalty.value(w))
    torch.testing.assert_close(many.gradient(w), count * penalty.gradient(w))
    torch.testing.assert_close(many.prox(w, 0.1), penalty.prox(w, count * 0.1))


class Absolute(L1):
    """A penalty that this library does not know."""


def test_the_sum_of_somebody_elses_penalty_is_what_is_registered():
    assert isinstance(Absolute(0.5) + L2(0.25), Ridged | ElasticNet)

    @register_sum
    def with_squares(one: Penalty, other: Penalty) -> Penalty | None:
        match one, other:
            case Absolute(strength), L2(squares):
                return Ridged(Absolute(2 * strength), squares)
        return None

    assert Absolute(0.5) + L2(0.25) == L2(0.25) + Absolute(0.5) == Ridged(Absolute(1.0), 0.25)
    assert L1(0.5) + L2(0.25) == ElasticNet(0.5, 0.25)
    with pytest.raises(TypeError, match="expected a function of two penalties, got 'L1'"):
        register_sum("L1")


def test_schedules_are_multiplied_and_added():
    many = 2 * L1(warm)
    assert many.at(3) == L1(1.5)
    assert (L1(warm) + L1(0.5)).at(3) == L1(1.25)
    assert (2 * MCP(warm, gamma=3.0)).at(3) == MCP(1.5, gamma=1.5)
    assert pickle.loads(pickle.dumps(many)) == many


def warm(update: int) -> float:
    return 0.25 * update


def test_tensors_that_do_not_fit_together_are_the_reason():
    with pytest.raises(TypeError, match=r"their weights, 3 and 4, do not spread over each other"):
        Weighted(L1(0.1), torch.ones(3)) + Weighted(L1(0.1), torch.ones(4))
    with pytest.raises(TypeError, match=r"the shapes of their bounds do not spread over each other"):
        Box(torch.zeros(3), 1.0) + Box(0.0, torch.ones(4))
    rows, columns = Box(torch.zeros(3, 1), 1.0), Box(0.5, torch.ones(4))
    assert (rows + columns).prox(torch.zeros(3, 4), 1.0).eq(0.5).all()


@pytest.mark.parametrize("factor", [-1, math.nan, math.inf])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="multiplied by a finite number >= 0, got"):
        factor * L1(0.1)


@pytest.mark.parametrize("factor", ["2", None, True, torch.ones(2)])
def test_factors_that_are_no_numbers_are_refused(factor):
    with pytest.raises(TypeError, match="multiplied by a finite number >= 0, got"):
        L1(0.1) * factor


@pytest.mark.parametrize(
    "constraint",
    [Box(0.0, 1.0), MaxNorm(1.0), UnitNorm(), TopK(0.5), NofM(2, 4), NonNegative(), NonNegative(TopK(0.5))],
)
def test_a_constraint_has_no_strength(constraint):
    with pytest.raises(TypeError, match="a constraint has no strength"):
        2 * constraint
    assert 2 * (constraint + L2(0.5)) == constraint + L2(1.0)


@pytest.mark.parametrize(
    ("one", "other", "sum_of_both"),
    [
        (L0(0.1), L0(0.2), L0(0.1 + 0.2)),
        (LogSum(0.25, 0.5), LogSum(0.5, 0.5), LogSum(0.75, 0.5)),
        (Nuclear(0.25), Nuclear(0.5), Nuclear(0.75)),
        (MCP(0.5), MCP(0.5), MCP(1.0, gamma=1.5)),
        (MCP(1, gamma=2.0), MCP(0.5, gamma=4.0), MCP(1.5, gamma=4 / 3)),
        (GroupLasso(0.25, Rows()), GroupLasso(0.5, Rows()), GroupLasso(0.75, Rows())),
        (Grouped(MCP(0.5), Rows()), Grouped(MCP(0.5), Rows()), Grouped(MCP(1.0, gamma=1.5), Rows())),
        (MaxNorm(1.0), MaxNorm(2.0), MaxNorm(1.0)),
        (L1Ball(1.0), L1Ball(2.0), L1Ball(1.0)),
        (SpectralBall(1.0), SpectralBall(2.0), SpectralBall(1.0)),
        (TopK(0.5), TopK(0.25), TopK(0.25)),
        (NofM(1, 4), NofM(2, 4), NofM(1, 4)),
        (Box(-1.0, 0.5), Box(0.0, 1.0), Box(0.0, 0.5)),
        (UnitNorm(), UnitNorm(), UnitNorm()),
        (NonNegative(), NonNegative(L1(0.5)), NonNegative(L1(0.5))),
        (NonNegative(), Simplex(1.0), Simplex(1.0)),
        (Ridged(TopK(0.5), 0.25), L2(0.5), Ridged(TopK(0.5), 0.75)),
        (Ridged(TopK(0.5), 0.25), NonNegative(), Ridged(NonNegative(TopK(0.5)), 0.25)),
        (Counted(L1(0.5), 0.25), L0(0.5), Counted(L1(0.5), 0.75)),
        (Toward(L1(0.5)), Toward(L2(0.5)), Toward(ElasticNet(0.5, 0.5))),
        (Weighted(L1(0.5), torch.ones(2)), Weighted(L1(0.5), torch.ones(2)), Weighted(L1(0.5), 2 * torch.ones(2))),
    ],
    ids=str,
)
def test_sums_that_are_one(one, other, sum_of_both):
    assert one + other == sum_of_both
    assert other + one == sum_of_both


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (Box(-1.0, 1.0), MCP(0.1), "MCP.* is not convex"),
        (Box(-1.0, 1.0, L1(0.1)), Box(-1.0, 1.0, Huber(0.1, 0.5)), "no exact prox of their sum is known here"),
        (NonNegative(), Nuclear(0.1), "Nuclear.* looks at signs"),
        (NonNegative(), UnitNorm(), "UnitNorm.* looks at signs, or forbids weights that are smaller"),
        (MCP(0.1), L1(0.1), "no exact prox of their sum is known here"),
        (MCP(0.1), MCP(0.2), "no exact prox of their sum is known here"),
        (
            Weighted(L1(0.1), torch.ones(2)),
            Weighted(L2(0.1), torch.ones(2)),
            "no exact prox of their sum is known here",
        ),
        (MaxNorm(1.0), L1(0.1), "no exact prox of their sum is known here"),
    ],
    ids=str,
)
def test_other_sums_are_refused_for_the_reason_that_is_true(one, other, reason):
    for left, right in ((one, other), (other, one)):
        with pytest.raises(TypeError, match=reason):
            left + right


@pytest.mark.parametrize("inner", [Nuclear(0.1), UnitNorm(), Simplex(), Box(-1.0, 1.0), "L1"], ids=str)
def test_what_looks_at_signs_can_not_be_inside(inner):
    with pytest.raises(TypeError, match="does not look at signs"):
        NonNegative(inner)


def test_what_excludes_each_other_is_refused():
    with pytest.raises(ValueError, match="low must not be greater than high"):
        Box(0.0, 1.0) + Box(2.0, 3.0)
    with pytest.raises(GroupError, match="overlap"):
        GroupLasso(0.1, Rows()) + GroupLasso(0.1, Columns())


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.01)])
@pytest.mark.parametrize("name", [name for name in SUMS if "tensors" not in name and "Weighted" not in name])
def test_sums_are_trained_with(name, make):
    pair = SUMS[name]()
    model = mlp()
    optimizer = make(model.parameters())
    Regularizer(model, {"0.weight": pair[0] + pair[1]}, compile=False).attach(optimizer)
    train(model, optimizer, 3)
    value = (pair[0] + pair[1]).value(model[0].weight.detach())
    assert value.isfinite()
